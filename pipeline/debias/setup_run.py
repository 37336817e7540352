"""The pieces of a run, each from its part of the config; `train.py` puts them together."""

import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from debias.adapters.bitfit import train_biases
from debias.adapters.families import sparse_blocks
from debias.adapters.lora import add_lora
from debias.config import deepspeed_file as zero_config
from debias.config.data import DataConfig, DataSource
from debias.config.run import SELECTIONS, RunConfig
from debias.data import Example, load_examples, paint, plant
from debias.data.encode import Collator, EncodedExamples, Prompt, encode_for_answers, encode_for_classification
from debias.data.encode_images import ImageCollator, encode_images
from debias.data.packing import PackingCollator, tokens_of_an_epoch
from debias.engines import zero_launch
from debias.errors import InputError
from debias.losses import (
    Answers,
    BiasWeightSource,
    Classification,
    ColumnWeight,
    Objective,
    SelfWeight,
    add_router_loss,
)
from debias.methods import Rule, make_rule
from debias.models.activations import checkpoint_activations
from debias.models.attention import check_attention, check_packing, choose_attention
from debias.models.compiling import compile_layers
from debias.models.kernels import check_liger, liger_settings
from debias.models.load import load_model, longest_input
from debias.models.precision import usable_bf16
from debias.models.quantized import prepare_quantized

# Settings that the Trainer has too, and would do otherwise.
OURS = {"gradient_checkpointing", "torch_compile"}

# Optimizers of the Trainer that leave no gradient to act on; so do all `..._layerwise`.
STEPS_IN_BACKWARD = ("lomo", "adalomo")

# A large model may take this long to load on one rank while the others wait.
LOADING_WAIT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """How examples become tokens and tokens become losses; the same for training, evaluation and inference.

    With `pictures`, `tokenizer` is the model's image processor.
    """

    objective: Objective
    prompt: Prompt | None
    tokenizer: Any
    max_length: int
    pictures: bool = False
    packing: bool = False

    def encode(self, examples: list[Example], *, with_answer: bool) -> EncodedExamples:
        """Token ids of `examples`; a causal model's training examples carry their right answer."""
        if self.pictures:
            return encode_images(examples)
        if self.prompt is None:
            return encode_for_classification(examples, self.tokenizer, self.max_length)
        return encode_for_answers(examples, self.prompt, self.max_length, with_answer=with_answer)

    @property
    def collate(self) -> Collator | ImageCollator | PackingCollator:
        """What makes a batch of encoded examples."""
        if self.pictures:
            return ImageCollator(self.tokenizer)
        return PackingCollator(self.tokenizer) if self.packing else Collator(self.tokenizer)


def build_task(config: RunConfig, tokenizer: Any) -> Task:
    """The run's objective and prompt."""
    if config.prompt is None or config.head != "causal_lm":
        pictures = config.head == "image_classification"
        return Task(Classification(), None, tokenizer, config.max_length, pictures)
    answers = [config.prompt.verbalizers[label] for label in config.data.labels]
    fields = config.data.text_fields
    prompt = Prompt(tokenizer, config.prompt.template, answers, fields, chat=config.prompt.chat)
    objective = Answers(prompt.answer_ids, config.answer_probability, config.loss_mean, config.loss_chunk_size)
    return Task(objective, prompt, tokenizer, config.max_length, packing=config.packing)


def build_rule(config: RunConfig) -> Rule:
    """The rule of the `method:` block; InputError that names the setting."""
    try:
        return make_rule(config.method)
    except ValueError as error:
        raise InputError(str(error)) from None


def build_bias_weight(config: RunConfig) -> BiasWeightSource:
    """The source of the `bias_weight:` block."""
    return ColumnWeight() if config.bias_weight.source == "file" else SelfWeight(config.bias_weight.q)


def training_examples(config: RunConfig, base: Path | None) -> list[Example]:
    """Training data with its planted bias, if any; every label must occur."""
    column = config.bias_weight.column
    examples = load_examples(config.data.train, config.data, base=base, bias_column=column, require_every_label=True)
    return _planted(examples, config.data, later=0)


def validation_examples(config: RunConfig, base: Path | None) -> list[Example]:
    """In-distribution validation data: the same planted bias as in training, drawn with another seed."""
    source: DataSource | None = config.data.validation
    if source is None:
        return []
    if config.eval_strategy == "no":
        logger.info("data.validation is not read: eval_strategy is no")
        return []
    return _planted(load_examples(source, config.data, base=base), config.data, later=1)


def _planted(examples: list[Example], data: DataConfig, later: int) -> list[Example]:
    """The examples with the shortcut of `data`, if any, drawn with its seed plus `later`."""
    cue, color = data.planted_bias, data.planted_color
    if cue:
        return plant(examples, cue.model_copy(update={"seed": cue.seed + later}), data)
    if color:
        return paint(examples, color.model_copy(update={"seed": color.seed + later}), len(data.labels))
    return examples


def check_length(config: RunConfig, model: Any) -> None:
    """InputError if examples may be longer than the model's absolute position embeddings."""
    limit = longest_input(model)
    if limit is not None and config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}, but {config.model!r} reads at most {limit} tokens")


def say_what_packing_saves(config: RunConfig, encoded: EncodedExamples, world: int) -> None:
    """Log the tokens of an epoch, packed and as they would be padded."""
    lengths = [len(feature["input_ids"]) for feature in encoded.features]
    samples = config.per_device_train_batch_size
    step = samples * config.gradient_accumulation_steps * world
    packed, padded = tokens_of_an_epoch(lengths, samples, step, config.seed)
    saved = 1 - packed / padded
    logger.info("packing: %s tokens an epoch in place of %s padded ones (%.1f %% fewer)", packed, padded, 100 * saved)


def build_model(config: RunConfig) -> Any:
    """The base model with what is to be trained; seed before this, for heads and adapters are drawn here."""
    lora = config.adapter.type == "lora"
    check_trainable(config)
    if not lora:
        logger.info("adapter.type %s: lora_r, lora_alpha and lora_dropout have no effect", config.adapter.type)
    model = base_model(config, config.model, training=True)
    if config.packing:
        check_packing(model, config.per_device_train_batch_size, config.max_length)
    if config.use_liger_kernel:
        check_liger(model)
    adapted = adapt(config, model)
    if config.torch_compile:
        compile_layers(adapted)
    if config.router_aux_loss_coef:
        try:
            add_router_loss(adapted, config.router_aux_loss_coef)
        except ValueError as error:
            raise InputError(str(error)) from None
    return adapted


def check_trainable(config: RunConfig) -> None:
    """InputError where what is to be trained is 4-bit."""
    if config.load_in_4bit and config.adapter.type != "lora":
        raise InputError(
            f"load_in_4bit: a 4-bit base cannot be trained itself; adapter.type is {config.adapter.type!r}"
        )


def adapt(config: RunConfig, model: Any) -> Any:
    """A base model with what the run trains of it; on the meta device too."""
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    if config.adapter.type == "bitfit":
        return train_biases(model, model.fresh_modules)
    if config.adapter.type == "full":
        return model
    adapted = add_lora(
        model,
        r=config.lora_r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.adapter.targets,
        classification=config.head != "causal_lm",
        fresh=model.fresh_modules,
        target_parameters=config.adapter.target_parameters,
        experts=config.adapter.experts,
        experts_r=config.adapter.experts_r,
    )
    if config.deepspeed is not None and usable_bf16(config.bf16):
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # of one dtype with what stage 3 has sharded; the engine keeps float32 copies
                parameter.data = parameter.data.bfloat16()
    return adapted


def base_model(config: RunConfig, name: str, *, training: bool = False) -> Any:
    """The model called `name` as the run loads it, in training as in inference: its dtype, head and quantization."""
    bf16, asked = usable_bf16(config.bf16), config.attn_implementation
    dtype = base_dtype(config.model_copy(update={"bf16": bf16}))
    model = load_model(
        name,
        config.head,
        config.data.labels,
        dtype=dtype,
        load_in_4bit=config.load_in_4bit,
        attn_implementation=choose_attention(asked, name, config.head, dtype, bf16=bf16, training=training),
        seed=config.seed,
    )
    if config.deepspeed is not None:
        zero_launch.mark_leaves(model, sparse_blocks(model))
    if training:
        check_attention(asked, model)
    return prepare_quantized(model) if config.load_in_4bit else model


def base_dtype(config: RunConfig) -> torch.dtype:
    """What the base model is loaded in.

    A frozen base may live in bf16; weights that train stay in float32, with autocast. DeepSpeed keeps float32 copies
    itself, and what its stage 3 has sharded on the way in must be bf16 already.
    """
    half = config.adapter.type == "lora" or config.deepspeed is not None
    return torch.bfloat16 if config.bf16 and half else torch.float32


def training_arguments(config: RunConfig) -> Any:
    """The Hugging Face arguments of a run: every setting of one name is passed on."""
    from transformers import TrainingArguments

    check_names(config)
    names = set(TrainingArguments.__dataclass_fields__) & set(RunConfig.model_fields) - OURS
    values = {name: getattr(config, name) for name in names} | {"bf16": usable_bf16(config.bf16)}
    if config.use_liger_kernel:
        values["liger_kernel_config"] = liger_settings()
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if config.deepspeed is not None:
        values["deepspeed"] = _deepspeed(config)
    report_to = [config.report_to] if isinstance(config.report_to, str) else list(config.report_to)
    extra = {
        "report_to": report_to,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_backend": "gloo" if launched and not torch.cuda.is_available() else None,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
    }
    if config.selection != "last":
        best = {"load_best_model_at_end": True, "greater_is_better": True}
        extra |= {**best, "metric_for_best_model": SELECTIONS[config.selection]}
    known = {k: v for k, v in extra.items() if k in TrainingArguments.__dataclass_fields__}
    try:
        arguments = TrainingArguments(**{**values, **known})
        return _one_gpu_a_process(arguments)
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def check_names(config: RunConfig) -> None:
    """InputError for a scheduler, an optimizer or a reporter that Hugging Face has not."""
    from transformers import SchedulerType
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    _check_choice("lr_scheduler_type", config.lr_scheduler_type, [kind.value for kind in SchedulerType])
    _check_choice("optim", config.optim, [kind.value for kind in OptimizerNames])
    if config.optim.endswith("layerwise") or config.optim in STEPS_IN_BACKWARD:
        raise InputError(
            f"optim is {config.optim!r}, which steps inside the backward pass, before the rule has seen a gradient; use"
            " another, for example adamw_torch"
        )
    for reporter in (config.report_to,) if isinstance(config.report_to, str) else config.report_to:
        _check_choice("report_to", reporter, ["none", "all", *INTEGRATION_TO_CALLBACK])


def _deepspeed(config: RunConfig) -> dict[str, Any]:
    """The checked DeepSpeed configuration of a run, with its process group ready to be opened."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    path = zero_config.find(str(config.deepspeed))
    found = zero_config.read(path, world, config.per_device_train_batch_size, config.gradient_accumulation_steps)
    check_engine(config, found, path.name)
    try:
        # Before the model is loaded: stage 3 shards it as it comes, over the ranks of this group.
        zero_launch.open_group(timeout=LOADING_WAIT)
    except ImportError:
        raise InputError("deepspeed is not installed; pip install 'debias[deepspeed]'") from None
    if problems := zero_launch.build_problems():
        raise InputError(f"deepspeed: {problems[0]}")
    return found


def check_engine(config: RunConfig, found: Mapping[str, Any], file: str) -> None:
    """InputError for what `found`, the run's DeepSpeed configuration in `file`, may not ask of this run."""
    if (found.get("fp16") or {}).get("enabled") is True:
        raise InputError(f"deepspeed: {file}: fp16 is not supported by debias train; use bf16")
    if found.get("zero_optimization", {}).get("stage") == 3 and config.gradients == "shared_forward":
        raise InputError("gradients: shared_forward is not safe at stage 3 of DeepSpeed; use auto or two_pass")


def _one_gpu_a_process(arguments: Any) -> Any:
    """The Trainer would wrap the model in DataParallel, whose replicas share no hooks; torchrun is the way to more."""
    if arguments.n_gpu > 1:  # asking also gives each rank its own GPU, before models are loaded
        logger.warning("one of %d GPUs is used; start with torchrun to use them all", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{key} is {value!r}, not one of {', '.join(known)}{hint}")
