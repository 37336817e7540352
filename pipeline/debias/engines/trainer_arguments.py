"""What becomes of each of `transformers.TrainingArguments` in a DebiasTrainer, whose step is its own: none is ignored.

THEIRS: honoured by Hugging Face's own code, which runs as it is. OURS: honoured by code here in the place of theirs.
REFUSED: at a value that would have no effect, or a wrong one, a ValueError when the trainer is made.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers import Trainer, TrainingArguments

from debias.losses import Classification, CrossEntropy, LabelSmoothing, Loss
from debias.readouts import Readout

logger = logging.getLogger(__name__)

_THEIRS = """
output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps warmup_ratio optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules
gradient_accumulation_steps max_grad_norm bf16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing
activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs fsdp_config torch_compile
torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica
logging_dir disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start eval_do_concat_batches
eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy
save_steps save_on_each_node enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_always_push
hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config dataloader_drop_last
dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order length_column_name ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout debug skip_memory_metrics do_train
do_eval do_predict resume_from_checkpoint local_rank
"""
THEIRS = frozenset(_THEIRS.split())

OURS: Mapping[str, str] = {
    "label_smoothing_factor": "the loss becomes label_smoothing, for both gradients; beside another loss it is refused",
    "torch_empty_cache_steps": "after the micro-batches of such a step",
    "auto_find_batch_size": "the step that ran out of memory is forgotten",
    "include_num_input_tokens_seen": "counts what the model is given",
    "prediction_loss_only": "prediction_step",
    "remove_unused_columns": "columns that are facts stay",
    "train_sampling_strategy": "refused beside a data set that brings its own sampler",
    "save_total_limit": "a checkpoint is whole before an older one goes",
    "deepspeed": "a hook on the engine",
}


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _layerwise(args: Any) -> bool:
    name = _text(args.optim)
    return name.endswith("layerwise") or name in ("lomo", "adalomo")


def _uploads_checkpoints(args: Any) -> bool:
    return bool(args.push_to_hub) and _text(args.hub_strategy) != "end" and _text(args.save_strategy) != "no"


# When the value may not be, and why; the name and the value are said before it.
REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "fp16": (
        lambda args: bool(args.fp16),
        "not supported, its loss scaling hides overflow until after the rule; use bf16=true or full precision",
    ),
    "fsdp": (
        lambda args: bool(args.fsdp),
        "FSDP is not supported; use one process, DistributedDataParallel or DeepSpeed",
    ),
    "parallelism_config": (
        lambda args: args.parallelism_config is not None,
        "tensor, context and sequence parallelism are not supported; use DistributedDataParallel or DeepSpeed",
    ),
    "optim": (
        _layerwise,
        "it steps inside the backward pass, before the rule has seen a gradient; use another, for example adamw_torch",
    ),
    "average_tokens_across_devices": (
        lambda args: not args.average_tokens_across_devices,
        "both gradients are divided by the count of all ranks; leave it true",
    ),
    "ddp_static_graph": (
        lambda args: bool(getattr(args, "ddp_static_graph", None)),
        "PyTorch then counts on averaging the gradients by itself; leave it out",
    ),
    "label_names": (
        lambda args: bool(args.label_names) and list(args.label_names) != ["labels"],
        "the right labels are the fact 'labels'; name the column so, and leave this out",
    ),
    "hub_strategy": (
        _uploads_checkpoints,
        "a checkpoint moves to its place once it is whole, which an upload in the meantime does not survive; use end",
    ),
}


def refuse_arguments(args: Any, train_dataset: Any) -> None:
    """ValueError for an argument that a DebiasTrainer cannot honour, with its name, value and what would be right."""
    for name, (is_wrong, why) in REFUSED.items():
        if hasattr(args, name) and is_wrong(args):
            raise ValueError(f"{name} is {_text(getattr(args, name))!r}: {why}")
    strategy = getattr(args, "train_sampling_strategy", "random")
    if hasattr(train_dataset, "sampler") and strategy != "random":
        raise ValueError(f"train_sampling_strategy is {strategy!r}: the data set brings its own sampler; use random")
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process (DataParallel) are not supported: use torchrun")
    _say_unknown(args)


def _say_unknown(args: Any) -> None:
    """Of a newer transformers: nobody has looked whether our step honours them."""
    defaults = {one.name: one.default for one in fields(TrainingArguments)}
    for name in sorted(set(defaults) - THEIRS - set(OURS) - set(REFUSED)):
        if getattr(args, name) != defaults[name]:
            logger.warning("%s is an argument that this version does not know; it may have no effect", name)


def refuse_precision(trainer: Trainer) -> None:
    """ValueError where Accelerate would train in another precision than the arguments say, by its environment."""
    args, found = trainer.args, trainer.accelerator.mixed_precision
    told = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    if found != told:
        raise ValueError(
            f"bf16 is {bool(args.bf16)}, and accelerate's mixed precision is {found!r} (ACCELERATE_MIXED_PRECISION, as"
            " accelerate launch sets it from its flag or its default config): set bf16 to what is meant, or start with"
            f" --mixed_precision {told}"
        )


def refuse_losses(trainer: Trainer) -> None:
    """ValueError for ways of the Trainer to a loss of one's own, which two gradients cannot be taken from."""
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func is given: it returns one number, and two gradients need the loss of each sample; give"
            " loss=, one of debias.losses or a Loss of your own"
        )
    if type(trainer).compute_loss is not Trainer.compute_loss:
        raise ValueError(
            f"{type(trainer).__name__}.compute_loss is never called: two gradients need the loss of each sample; give"
            " loss=, one of debias.losses or a Loss of your own"
        )


def loss_of(args: Any, loss: Loss | None, readout: Readout) -> Loss:
    """The loss of a trainer: the one given, or cross-entropy, with `label_smoothing_factor`; ValueError where that
    cannot be honoured.
    """
    epsilon = args.label_smoothing_factor
    if not epsilon:
        return loss or CrossEntropy()
    told = f"label_smoothing_factor is {epsilon}"
    if loss not in (None, CrossEntropy()):
        with_weights = " with class_weights" if isinstance(loss, CrossEntropy) else ""
        given = loss.name if loss is not None else ""
        raise ValueError(
            f"{told}, and the loss {given}{with_weights}: smoothing is of cross-entropy; leave one of them out"
        )
    if not isinstance(readout, Classification):
        raise ValueError(
            f"{told}: it is the smoothing of a head's labels; of answers over their labels give"
            " loss=debias.losses.LabelSmoothing(...)"
        )
    return LabelSmoothing(epsilon)


def one_readout(readout: Readout | None, objective: Readout | None) -> Readout:
    """The one that is given, by its name or its older one. ValueError where none is, or both."""
    if readout is not None and objective is not None:
        raise ValueError("readout and objective are given: they are one thing by two names; leave objective out")
    given = readout or objective
    if given is None:
        raise ValueError("readout is missing: Classification() for a model with a head, Answers(...) for a causal one")
    return given
