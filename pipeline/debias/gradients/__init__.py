"""ROOM 3: how one batch yields two gradients. `main` lands in `p.grad`, `bias` beside it; the engine does the rest."""

import logging
from collections.abc import Mapping

from torch import nn

from debias.gradients.again import ProvenSharedForward
from debias.gradients.base import Again, GradientSource, MicroBatch, Plain, SharedForward, TwoPass, no_grad_weight
from debias.gradients.choice import choose, slower
from debias.gradients.fused import Fused
from debias.gradients.samples import NotExact
from debias.gradients.single_pass import SinglePass, refusal
from debias.gradients.taps import SamplesNotFirst
from debias.gradients.verified import Verified

WEIGHTS_SHARDED = 3  # the stage of ZeRO at which a module has to be called for its weights to be there
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
    verify: bool = True,
    asked: str | None = None,
) -> GradientSource:
    """The gradient source that `name` comes to for this model (`choice.choose`); the log says which `auto` took.

    `bias=False`: nobody looks at the bias gradient, and the ordinary backward pass is enough. `stage` is ZeRO's;
    `elements` are those selected and those of the whole model. `verify`: single_pass compares its bias gradient with an
    ordinary backward pass (`Verified`), and shared_forward that pass with itself (`ProvenSharedForward`); each leaves
    the field to a slower way where that was left to `auto`. `asked`: for what, where `name` came of that. Raises
    ValueError as `choose` does.
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
    if chosen.name == Plain.name and stage < WEIGHTS_SHARDED:
        return Fused(model, selected)
    if verify and chosen.name == SinglePass.name:
        return Verified(model, selected, slower(stage) if name == "auto" else None)
    if verify and chosen.name == SharedForward.name:
        return ProvenSharedForward(model, selected, may_change=(asked or name) == "auto")
    return SOURCES[chosen.name](model, selected)


__all__ = [
    "Again",
    "Fused",
    "GradientSource",
    "MicroBatch",
    "NotExact",
    "Plain",
    "ProvenSharedForward",
    "SamplesNotFirst",
    "SharedForward",
    "SinglePass",
    "TwoPass",
    "Verified",
    "make_source",
    "no_grad_weight",
]
