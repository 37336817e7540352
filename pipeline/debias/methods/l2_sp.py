"""L2-SP: weight decay towards the starting point (Li et al., ICML 2018, arXiv 1802.01483)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.methods.base import Gram, Rule, Vector, each_row


@dataclass(frozen=True)
class L2SP(Rule):
    """The ordinary gradient and a pull back to where training started: `main + alpha (theta - theta_0)`.

    It is the gradient of `loss + alpha/2 |theta - theta_0|^2`, the paper's first term; its second, which pulls a fresh
    head towards 0, is `weight_decay`. (NFL-CP of Chew et al., EACL 2024, is the same with `alpha = 2 lambda`.) It goes
    through the optimizer as the gradient does, so Adam scales it too. For LoRA theta_0 is B at 0 and A at its drawn
    values.

    Needs a starting point worth staying near (pretrained weights), and no labels of the bias. Costs one float32 copy of
    what it acts on, and no second gradient. Fails where the start itself has the shortcut, and where the task lies far
    from it: it knows of distance, not of bias.

    Source: Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018, arXiv
    1802.01483.
    """

    name: ClassVar[str] = "l2_sp"
    looks_at: ClassVar[tuple[Vector, ...]] = (Vector.MAIN, Vector.MOVED)
    alpha: float = 0.01

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha:g}, expected 0 or more")

    def coefficients(self, gram: Gram) -> tuple[Tensor, ...]:
        return each_row(gram, 1.0), each_row(gram, self.alpha)
