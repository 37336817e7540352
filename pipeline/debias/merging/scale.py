"""WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903): the trained change times a number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from debias.errors import InputError
from debias.merging.edits import Edit, LowRank


@dataclass(frozen=True)
class Scale(Edit):
    """Weights on the line from the base to the fine-tuned model: `W_base + alpha * change` (WiSE-FT).

    `alpha`: 1 is the adapter as trained, 0 the base, 0.5 the paper's choice without validation. Needs one adapter.
    Costs nothing: no data, no training, the same rank. Fails where the base cannot do the task at all: a head that was
    trained whole stays as it is, for a base has none to go back to.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv 2109.01903.
    """

    name: ClassVar[str] = "scale"
    also_called: ClassVar[tuple[str, ...]] = ("wise_ft",)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_factor("alpha", self.alpha)

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The first change times alpha."""
        return changes[0].times(self.alpha)


def check_factor(setting: str, value: float) -> None:
    """InputError unless a change may be multiplied by `value`."""
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{setting} is {value}, expected a number of 0 or more; 1 is the adapter as trained")


def scale_layers(model: Any, factor: float, source: Path) -> None:
    """The same edit on a loaded PEFT model: every LoRA layer's change times `factor`. InputError where it has none."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if factor != 1 and not layers:
        raise InputError(f"scale is {factor}, but {source} has no LoRA layers to scale")
    if factor != 1 and any(any(layer.use_dora.values()) for layer in layers):
        raise InputError(f"scale is {factor}, but {source} is DoRA: its magnitudes stay, so 0 would not be the base")
    for layer in layers:
        layer.scaling = {name: value * factor for name, value in layer.scaling.items()}
