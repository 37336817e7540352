"""ROOM 3: how one batch yields two gradients. `main` lands in `p.grad`, `bias` beside it; the engine does the rest."""

import logging
from collections.abc import Mapping

from torch import nn

from debias.gradients.base import Again, GradientSource, MicroBatch, Plain, SharedForward, TwoPass, no_grad_weight
from debias.gradients.single_pass import SinglePass, refusal
from debias.gradients.taps import SamplesNotFirst

logger = logging.getLogger(__name__)

SOURCES: dict[str, type[GradientSource]] = {s.name: s for s in (SinglePass, SharedForward, TwoPass)}


def make_source(
    name: str,
    model: nn.Module,
    selected: Mapping[str, nn.Parameter],
    *,
    bias: bool = True,
    fallback: str = "shared_forward",
) -> GradientSource:
    """The gradient source of that name; `auto` is single_pass where it is exact, else `fallback`, and says which.

    `bias=False`: nobody looks at the bias gradient, and the ordinary backward pass is enough. Raises ValueError for an
    unknown name, and with the reason when `single_pass` is asked for and not exact.
    """
    if name != "auto" and name not in SOURCES:
        raise ValueError(f"gradients is {name!r}, not one of auto, {', '.join(SOURCES)}")
    if not bias:
        return Plain(model, selected)
    if name == "auto":
        reason = refusal(model, selected)
        if reason:
            logger.warning("gradients: auto chose %s; single_pass is not exact here: %s", fallback, reason)
        else:
            logger.info("gradients: auto chose single_pass")
        name = fallback if reason else "single_pass"
    return SOURCES[name](model, selected)


__all__ = [
    "Again",
    "GradientSource",
    "MicroBatch",
    "Plain",
    "SamplesNotFirst",
    "SharedForward",
    "SinglePass",
    "TwoPass",
    "make_source",
    "no_grad_weight",
]
