"""Adaptive sharpness-aware minimization (Kwon et al., ICML 2021, arXiv 2102.11600)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.sharpness.base import Sharpness


@dataclass(frozen=True)
class ASAM(Sharpness):
    """SAM whose ball is wide along large weights: gradients are taken at `w + rho T^2 g / |T g|`, `T = |w| + eta`.

    Element by element, with `eta` so that small weights do not stand still. Scaling a layer up and the next one down
    leaves the model as it is, and (but for `eta`) what ASAM does, where SAM's ball would be another one. `rho` is 0.5
    in the paper, ten times SAM's. Biases have T = 1. In the authors' code all has that is
    not named `weight`, so also the vectors of `ia3` and `vera`, which are weights here.

    Micro-batches, ranks, dropout and losses that learn as with `sam`. Needs a `rho` that fits the size of the weights.
    Costs a second forward and backward pass in each micro-batch, and two copies of what trains. Fails as `sam` does,
    and moves a LoRA little at first: where B is zero, T is `eta`.

    Source: Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks, ICML 2021, arXiv 2102.11600, and its authors' code.
    """

    name: ClassVar[str] = "asam"
    rho: float = 0.5
    eta: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta < 0:
            raise ValueError(f"eta is {self.eta:g}, expected 0 or more")

    def scale(self, name: str, weight: Tensor) -> Tensor | None:
        # An adapter's vector may have the adapter's name behind its own: `beft_bias.default`.
        is_bias = any(part.endswith("bias") for part in name.split(".")[-2:])
        return None if is_bias else weight.detach().abs().add_(self.eta)
