"""What every row is: of a layer with LoRA, the slopes of a term of its weights. O rows, I columns, R the rank."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """A layer of weights W [O, I] that do not train, and what LoRA adds to them: `scale B A`, B [O, R] and A [R, I]."""

    base_OI: Tensor
    b_OR: Tensor
    a_RI: Tensor
    scale: float


@dataclass(frozen=True)
class Penalty:
    """`strength` times a sum over layers of a term of their weights. Subclasses are frozen dataclasses whose fields are
    the settings of the `weight_penalty:` block.

    No sample is in it, so that it is the same however a step is cut. Its slopes are added to what the rule has made of
    the gradients: neither of the two has any of it.
    """

    name: ClassVar[str]
    strength: float = 0.001

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength:g}, expected 0 or more")

    def check(self, rank: int) -> None:
        """ValueError where a layer's LoRA has a rank that it cannot take."""

    def slopes(self, layer: Factors) -> tuple[Tensor, Tensor]:
        """Of `strength` times the layer's term, by B [O, R] and by A [R, I], in the factors' dtype."""
        raise NotImplementedError
