"""GMT: each step moves the elements with the largest gradients of that step alone (Li et al., arXiv 2406.15330)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from debias.masks.base import Mask


@dataclass(frozen=True)
class GMT(Mask):
    """In each step the `share` of elements with the largest gradients keeps them; all others have a gradient of zero.

    The gradient is the step's: over all micro-batches and ranks, as the rule has made it, before clipping. Nothing is
    remembered from one step to the next. What is zero is the gradient: an optimizer with momentum (Adam) still moves
    such an element by what it remembers, and weight decay pulls at it. `hold: true` puts the others back after the
    optimizer's step, so that they stay where they are in this step, as the paper's formula has it, and only the
    optimizer's memory of them goes on. `scope`: the share of each tensor (`tensor`), or one threshold for the whole
    model (`model`).

    Needs gradients of all that trains, and no groups. Where ranks have pieces of the gradients (DeepSpeed, FSDP2) they
    add up their counts: a few messages a choice. Exactly the share is kept, one element of a tensor at least, of equal
    gradients the first in the model's order. With LoRA A's gradient is zero in the first step, since B is. Costs no
    memory but a few 16 MB blocks; with `hold` a byte an element and a copy of what trains around each optimizer step.
    In time the choice of each step, which grows with what trains and not with the batch: with all of a tiny BERT
    training on one CPU core nearly nine tenths of a step of 256 tokens, and a tenth of one of 2,048. Fails where a
    small gradient is what matters (rare samples add little to a mean): it knows of size, not of bias.

    Source: Li et al., Enhancing Large Language Model Performance with Gradient-Based Parameter Selection, AAAI 2025,
    arXiv 2406.15330 (first called Gradient-Mask Tuning). Verified in abstracts and summaries: the mean gradient of N
    batches, absolute values, a threshold at a percentile, and an update of the elements above it that has no momentum.
    Not verified, for want of the authors' code: `scope`, of which public reimplementations have both, and `share`; 0.2
    and a mask before an optimizer's step as it is are those of one which masks tensor by tensor.
    """

    name: ClassVar[str] = "gmt"
    share: float = 0.2
    scope: Literal["model", "tensor"] = "tensor"
    hold: bool = False

    @property
    def holds(self) -> bool:
        return self.hold
