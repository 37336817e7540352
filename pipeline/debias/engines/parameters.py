"""Which trainable parameters a rule acts on."""

import logging
from collections.abc import Callable

import torch
from torch import nn

logger = logging.getLogger(__name__)

# What Hugging Face calls a task head. It starts from random values, so its first gradients say little about shortcuts.
HEAD_NAMES = frozenset({"classifier", "score", "qa_outputs", "classification_head", "modules_to_save"})

Select = Callable[[str, nn.Parameter], bool]


def not_head(name: str, parameter: nn.Parameter) -> bool:
    """The default selection: every trainable tensor but those of a task head."""
    return HEAD_NAMES.isdisjoint(name.split("."))


def selection(*, debias_head: bool) -> Select:
    """On which tensors a run's rule acts: all that train, or all but those of a task head."""
    return (lambda name, parameter: True) if debias_head else not_head


def chosen_by(select: Select, model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters that `select` accepts, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and select(name, p)}


def select_parameters(model: nn.Module, select: Select = not_head) -> dict[str, nn.Parameter]:
    """The trainable parameters that `select(name, parameter)` accepts, logged by kind; ValueError if none is."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    selected = chosen_by(select, model)
    if not selected:
        raise ValueError(f"the rule would act on nothing: {len(trainable)} trainable tensors, none selected")
    others = [name for name in trainable if name not in selected]
    logger.info(
        "the rule acts on %d tensors, %s elements (%s); %d other trainable tensors follow main only%s",
        len(selected),
        f"{sum(elements(p) for p in selected.values()):,}",
        ", ".join(f"{count} {kind}" for kind, count in kinds(selected).items()),
        len(others),
        f": {', '.join(others[:4])}{', ...' if len(others) > 4 else ''}" if others else "",
    )
    return selected


def elements(parameter: nn.Parameter) -> int:
    """How many elements a parameter has, also where ZeRO-3 left only a slice of it here."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape, also where ZeRO-3 left only a slice of it here."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def kinds(parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    """How many tensors of each kind: the last name that is not `default` or `weight` (lora_A, bias, q_proj, ...)."""
    counts: dict[str, int] = {}
    for name in parameters:
        parts = [part for part in name.split(".") if part not in {"weight", "default"}]
        kind = parts[-1] if parts else name
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
