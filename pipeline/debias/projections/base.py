"""What every row is: of a tensor that the optimizer has moved, the share of its whole way that is taken back."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """Tensor by tensor, `p <- p - share m` after the optimizer's step, with m the way from where p is held to p.

    Subclasses are frozen dataclasses whose fields are the settings of the `weight_projection:` block. `strength`: the
    share is in proportion to it; at 0 nothing is taken back. `towards`: p is held where the run began (`start`), which
    costs a copy of what trains, or at 0 (`zero`).
    """

    name: ClassVar[str]
    strength: float = 1.0
    towards: Literal["start", "zero"] = "start"

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength:g}, expected 0 or more")

    def taken_back(self, along: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The share of its way that is taken back of a tensor, a scalar. All are scalars in float32 or wider: `along`,
        the inner product of the gradient with the way before the step; the way's length `before` and `after` it.
        """
        raise NotImplementedError
