"""What a DeepSpeed file says of optimizer and schedule, held against what the run says of them."""

from collections.abc import Callable, Mapping
from typing import Any

from debias.config.run import RunConfig
from debias.errors import InputError

# DeepSpeed's names, without capitals, and the run's `optim` that is the same mathematics. Its Adam decouples the decay.
OPTIMIZERS = {
    "adam": ("adamw_torch", "adamw_torch_fused"),
    "adamw": ("adamw_torch", "adamw_torch_fused"),
    "sgd": ("sgd",),
}
SCHEDULES = {"WarmupLR": ("constant_with_warmup",), "WarmupDecayLR": ("linear",)}
SAYS_IT = "; the run's optim, learning_rate, weight_decay and lr_scheduler_type say it: remove the block"
_ABSENT = "absent"


def check_optimizer(file: str, block: Any, run: RunConfig) -> None:
    """InputError where `block`, the file's `optimizer`, is another optimizer than the run's, or has other numbers."""
    adam = {
        "betas": _is([0.9, 0.999], _ABSENT),
        "eps": _is(1e-8, _ABSENT),
        "torch_adam": _is(True, False, _ABSENT),
        "adam_w_mode": _is(True, _ABSENT),
    }
    kind = str(_type(block)).lower()
    agrees = {"lr": _is(run.learning_rate), "weight_decay": _is(run.weight_decay)}
    agrees |= {"momentum": _is(0, _ABSENT)} if kind == "sgd" else adam
    _check(file, "optimizer", block, run.optim in OPTIMIZERS.get(kind, ()), f"optim is {run.optim!r}", agrees)


def check_scheduler(file: str, block: Any, run: RunConfig) -> None:
    """InputError where `block`, the file's `scheduler`, is another schedule than the run's, or has other numbers."""
    kind = _type(block)
    # Where nobody says, DeepSpeed warms up along a logarithm.
    rises = _is("linear") if run.warmup_steps else _is("linear", "log", _ABSENT)
    agrees = {
        "warmup_min_lr": _is(0),
        "warmup_max_lr": _is(run.learning_rate),
        "warmup_num_steps": _is(run.warmup_steps),
        "warmup_type": rises,
    }
    if kind == "WarmupDecayLR":
        agrees["total_num_steps"] = _is(run.max_steps)
    same = run.lr_scheduler_type in SCHEDULES.get(str(kind), ()) and not run.lr_scheduler_kwargs
    same = same or (kind == "WarmupLR" and run.lr_scheduler_type == "constant" and not run.warmup_steps)
    _check(file, "scheduler", block, same, f"lr_scheduler_type is {run.lr_scheduler_type!r}", agrees)


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _type(block: Any) -> Any:
    return block.get("type") if isinstance(block, Mapping) else block


def _check(file: str, key: str, block: Any, same: bool, runs: str, agrees: Mapping[str, Callable[[Any], bool]]) -> None:
    """`same`: whether the two are of one kind. A value of `params` may be `auto` (the run's), or pass its check."""
    params = block.get("params") or {} if isinstance(block, Mapping) else {}
    if not same or not isinstance(params, Mapping):
        raise InputError(f"deepspeed: {file}: {key}.type is {_type(block)!r}, and the run's {runs}{SAYS_IT}")
    for name in [*agrees, *(name for name in params if name not in agrees)]:
        value = params.get(name, _ABSENT)
        if name not in agrees or not (value == "auto" or agrees[name](value)):
            said = "is not given" if value == _ABSENT else f"is {value!r}"
            raise InputError(f"deepspeed: {file}: {key}.params.{name} {said}, which is not the run's{SAYS_IT}")
