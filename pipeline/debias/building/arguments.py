"""The Hugging Face Trainer's arguments and the DeepSpeed configuration of a run."""

import difflib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from debias.building.schedules import check_schedule
from debias.config import deepspeed_file as zero_config
from debias.config.run import SELECTIONS, RunConfig
from debias.engines.zero import launch as zero_launch
from debias.errors import InputError
from debias.gradients.choice import choose
from debias.models.kernels import forget_liger, liger_settings
from debias.models.precision import usable_bf16
from debias.ranks.world import world_size

logger = logging.getLogger(__name__)

# Settings that the Trainer has too, and would do otherwise.
OURS = {"gradient_checkpointing", "torch_compile"}

# Optimizers of the Trainer that leave no gradient to act on; so do all `..._layerwise`.
STEPS_IN_BACKWARD = ("lomo", "adalomo")

# A large model may take this long to load on one rank while the others wait.
LOADING_WAIT = timedelta(minutes=30)
USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"  # what accelerate's Accelerator sets where it is given a DeepSpeed plugin
_ASKED_FOR_DEEPSPEED = os.environ.get(USE_DEEPSPEED)  # by whoever started this process


def training_arguments(config: RunConfig) -> Any:
    """The Hugging Face arguments of a run: every setting of one name is passed on."""
    from transformers import TrainingArguments

    check_names(config)
    names = set(TrainingArguments.__dataclass_fields__) & set(RunConfig.model_fields) - OURS
    values = {name: getattr(config, name) for name in names} | {"bf16": usable_bf16(config.bf16)}
    if config.use_liger_kernel:
        values["liger_kernel_config"] = liger_settings(checkpointing=config.gradient_checkpointing)
    launched = world_size() > 1
    if config.deepspeed is not None:
        values["deepspeed"] = _deepspeed(config)
    else:
        _no_deepspeed_of_a_run_before()
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
    check_schedule(config)
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
    world = world_size()
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
    try:
        choose(config.gradients, stage=int(found.get("zero_optimization", {}).get("stage") or 0))
    except ValueError as error:
        raise InputError(str(error)) from None


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


def _no_deepspeed_of_a_run_before() -> None:
    """A run with DeepSpeed leaves word of it behind, by which the next one of the process would be of its kind, too:
    in the environment, and for how weights are loaded (stage 3: in shards).

    What whoever started the process said in the environment (`accelerate launch --use_deepspeed`) stays.
    """
    if _ASKED_FOR_DEEPSPEED is None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        os.environ.pop(USE_DEEPSPEED, None)
        unset_hf_deepspeed_config()
    else:
        os.environ[USE_DEEPSPEED] = _ASKED_FOR_DEEPSPEED


@contextmanager
def a_run_of_its_own() -> Iterator[None]:
    """As a context: what a run leaves in its process is gone behind it, for the next one and for its children."""
    with zero_launch.own_group():
        try:
            yield
        finally:
            _no_deepspeed_of_a_run_before()
            forget_liger()


def forget_accelerate() -> None:
    """Between two runs of one process: accelerate's singletons remember the DeepSpeed configuration of the first."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
