"""ROOM 3: how one batch yields two gradients. `main` lands in `p.grad`, `bias` beside it; the engine does the rest."""

import logging
from collections.abc import Mapping

from torch import nn

from debias.gradients.base import Again, GradientSource, MicroBatch, Plain, SharedForward, TwoPass, no_grad_weight
from debias.gradients.choice import choose
from debias.gradients.single_pass import SinglePass, refusal
from debias.gradients.taps import SamplesNotFirst

logger = logging.getLogger(__name__)

SOURCES: dict[str, type[GradientSource]] = {s.name: s for s in (Plain, SinglePass, SharedForward, TwoPass)}


def make_source(
    name: str,
    model: nn.Module,
    selected: Mapping[str, nn.Parameter],
    *,
    bias: bool = True,
    stage: int = 0,
    elements: tuple[int, int] = (0, 0),
) -> GradientSource:
    """The gradient source that `name` comes to for this model (`choice.choose`); the log says which `auto` took.

    `bias=False`: nobody looks at the bias gradient, and the ordinary backward pass is enough. `stage` is ZeRO's;
    `elements` are those selected and those of the whole model. Raises ValueError as `choose` does.
    """
    chosen = choose(
        name,
        lambda: refusal(model, selected),
        uses_bias=bias,
        stage=stage,
        selected=elements[0],
        whole=elements[1],
    )
    if chosen.why is not None:
        logger.warning("gradients: auto chose %s; %s", chosen.name, chosen.why)
    elif name == "auto" and bias:
        logger.info("gradients: auto chose %s", chosen.name)
    return SOURCES[chosen.name](model, selected)


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
