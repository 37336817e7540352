"""Label smoothing (Szegedy et al., CVPR 2016, arXiv 1512.00567). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.losses.base import EVERY_LABEL, Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class LabelSmoothing(Loss):
    """`(1 - epsilon)` of cross-entropy and `epsilon` of its mean over all C labels: no answer is asked to be certain.

    At `epsilon` 0 it is cross-entropy; for a head it is `label_smoothing_factor` of Hugging Face's Trainer. Needs
    nothing beside the labels, and of a causal model answers of one token. Costs nothing more. Fails where a shortcut
    explains the labels: a less certain answer is no less a shortcut's.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, arXiv 1512.00567.
    """

    name: ClassVar[str] = "label_smoothing"
    reads: ClassVar[frozenset[str]] = frozenset({EVERY_LABEL})
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}, expected 0 to 1")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        return -(1 - self.epsilon) * said.log_p_B - self.epsilon * said.log_p_BC.mean(dim=-1)
