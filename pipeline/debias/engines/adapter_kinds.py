"""Kinds of PEFT's adapters in which nobody has looked whether samples mix: taken by autograd alone, and named."""

import logging
import sys
from collections.abc import Mapping

from torch import nn

from debias.gradients.classes import own_class

logger = logging.getLogger(__name__)

# Whose code was read; `gradients.single_pass` says itself which of their layers it is not exact for.
READ = ("lora", "beft", "ia3")


def unknown_adapter(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> str | None:
    """What a selected parameter's layer is, where it is an adapter of a kind that is not in READ; else None."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    if peft is None:
        return None
    ours = {id(p) for p in selected.values()}
    for name, module in model.named_modules():
        kind = own_class(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
        if isinstance(module, peft.BaseTunerLayer) and kind not in READ and _holds(module, ours):
            return f"{name} is an adapter of a kind that is not known ({kind}: {own_class(module).__name__})"
    return None


def _holds(layer: nn.Module, ours: set[int]) -> bool:
    return any(id(p) in ours for p in layer.parameters())


def way_for(asked: str, model: nn.Module, selected: Mapping[str, nn.Parameter], *, stage: int = 0) -> str:
    """The way to two gradients that was asked for; in the place of `auto` one that is exact for any adapter.

    `stage`: of ZeRO. Raises ValueError where single_pass is asked for and the kind of adapter is not known.
    """
    if asked not in ("auto", "single_pass") or (reason := unknown_adapter(model, selected)) is None:
        return asked
    if asked == "single_pass":
        raise ValueError(f"gradients 'single_pass' may not be exact here: {reason}; use auto or shared_forward")
    taken = "two_pass" if stage == 3 else "shared_forward"
    logger.warning("gradients: auto chose %s; %s", taken, reason)
    return taken
