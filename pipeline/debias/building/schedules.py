"""The learning rate's schedule, tried before anything is loaded: what it lacks, and settings that it has not."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from debias.config.run import RunConfig
from debias.errors import InputError

# Who gives these is the Trainer.
NOT_SETTINGS = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
LOOKS_AT_VALIDATION = ("reduce_lr_on_plateau", "greedy")
STEPS = 1000  # of a run whose length is not known yet


def check_schedule(config: RunConfig) -> None:
    """InputError for a schedule without a setting that it needs, or with one that it has not or cannot take."""
    kind, given = config.lr_scheduler_type, dict(config.lr_scheduler_kwargs)
    if kind in LOOKS_AT_VALIDATION and config.eval_strategy == "no":
        raise InputError(
            f"lr_scheduler_type is {kind!r}, which follows the loss on data.validation; set eval_strategy to steps or"
            " epoch"
        )
    known = _settings(kind)
    if known is not None and (unknown := sorted(set(given) - set(known))):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(f"lr_scheduler_kwargs.{unknown[0]}: no setting of {kind!r}; {has}")
    if kind == "reduce_lr_on_plateau" and config.selection != "last" and given.get("mode") != "max":
        raise InputError(
            f"lr_scheduler_type is {kind!r} with selection {config.selection!r}, whose figure grows as it gets better;"
            " set lr_scheduler_kwargs: {mode: max}"
        )
    _try(config, kind, given)


def _settings(kind: str) -> list[str] | None:
    """The names of a schedule's own settings; None where they are another function's, which says itself."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    function: Callable[..., Any] = TYPE_TO_SCHEDULER_FUNCTION[kind]
    if kind == "reduce_lr_on_plateau":
        function = torch.optim.lr_scheduler.ReduceLROnPlateau
    names = inspect.signature(function).parameters
    if kind != "reduce_lr_on_plateau" and any(p.kind is p.VAR_KEYWORD for p in names.values()):
        return None
    return [name for name in names if name not in NOT_SETTINGS]


def _try(config: RunConfig, kind: str, given: Mapping[str, Any]) -> None:
    """Make it, on a parameter of nothing, and take a step."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    steps = config.max_steps if config.max_steps > 0 else STEPS
    warmup = int(config.warmup_steps if config.warmup_steps >= 1 else config.warmup_steps * steps)
    try:
        schedule = get_scheduler(kind, optimizer, warmup, steps, scheduler_specific_kwargs=dict(given))
        optimizer.step()
        schedule.step(*((0.0,) if kind in LOOKS_AT_VALIDATION else ()))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(_told(kind, given, " ".join(str(error).split()))) from None


def _told(kind: str, given: Mapping[str, Any], error: str) -> str:
    if lacks := re.search(r"missing .*arguments?: '(\w+)'", error):
        name = lacks.group(1)
        return f"lr_scheduler_type is {kind!r}, which needs a setting; add lr_scheduler_kwargs: {{{name}: ...}}"
    return f"lr_scheduler_kwargs is {dict(given)}: {kind!r} cannot take it: {error}"
