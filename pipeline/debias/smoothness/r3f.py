"""R3F (Aghajanyan et al., ICLR 2021, arXiv 2008.03156)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from debias.smoothness.base import Ask, Smoothness


@dataclass(frozen=True)
class R3F(Smoothness):
    """The answer should hardly change under noise on the embeddings, with the dropout of the second answer its own.

    Added to each sample's loss: `strength` times the symmetric KL between the answers with and without noise, uniform
    in `[-noise, noise]` in every column or normal of that deviation (`kind`). At the paper's 1e-5 the noise by itself
    moves no answer that one would notice: on MiniLM with a fresh head the term was 7e-4 with a mask of its own for each
    answer (`masks: own`, as in the authors' code) and 6e-14 with one for both, so that it compares two masks. With
    `masks: same` take a `noise` that is felt.

    Needs every label in one answer: a head, or of a causal model answers of one token; and 32 bits; with `masks: own` a
    model that drops. Costs a second forward and backward pass, twice the time of a step, and the activations of two
    passes at once. Fails where the shortcut is as smooth as the task, which is what `smart` fails at.

    Source: Aghajanyan et al., Better Fine-Tuning by Reducing Representational Collapse, ICLR 2021, arXiv 2008.03156,
    and its authors' code.
    """

    name: ClassVar[str] = "r3f"
    noise: float = 1e-5
    kind: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise > 0:
            raise ValueError(f"noise is {self.noise:g}, expected more than 0")

    def move(self, like_D: Tensor, ask: Ask, log_p_BC: Tensor) -> Tensor:
        wide = torch.promote_types(like_D.dtype, torch.float32)
        options: dict[str, Any] = {"dtype": wide, "device": like_D.device}
        if self.kind == "normal":
            return self.noise * torch.randn(like_D.shape, **options)
        return self.noise * (2 * torch.rand(like_D.shape, **options) - 1)
