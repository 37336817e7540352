"""Focal loss (Lin et al., ICCV 2017, arXiv 1708.02002). Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class Focal(Loss):
    """`-(1 - p)^gamma log p` of the right answer (eq. 4): what is right already counts less, the more the surer.

    `gamma` 0 is cross-entropy. Needs nothing beside the labels. Costs nothing more. Fails where the model learns the
    shortcut late, or a shortcut is certain: its own confidence is the only sign of what is easy.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv 1708.02002.
    """

    name: ClassVar[str] = "focal"
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if self.gamma == 0:
            return -said.log_p_B
        # 1 - p without cancellation; at p = 1 a power below 1 has no gradient, so it stops one rounding short of it.
        rest_B = (-said.log_p_B.expm1()).clamp(min=1e-7)
        return -(rest_B**self.gamma) * said.log_p_B
