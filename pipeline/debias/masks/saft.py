"""SAFT: the elements with the largest gradients at the pretrained weights train (Nguyen et al., 2407.03036)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from debias.masks.base import Mask


@dataclass(frozen=True)
class SAFT(Mask):
    """Before anything is trained the `share` of elements with the largest gradients is chosen; they alone train.

    In the first `steps` (1) optimizer steps nothing moves: their gradients, as the rule has made them, are summed, and
    by the absolute value of the sum the elements are chosen, once. The optimizer sees no gradient in these steps, so
    that it decays nothing and counts no step; they are counted apart (`measured_steps`), take their batches of data and
    their places in the learning rate's schedule. Steps that are skipped choose nothing. Afterwards all other elements
    have a gradient of zero before the update is clipped, and are put back after the optimizer's step to the bit: weight
    decay acts on the chosen ones alone, and so does whatever an optimizer does to a whole matrix.

    It is measured in the run's own steps, not before them, so that it is of the very gradients that train: after the
    rule, over all micro-batches and ranks, with the run's dropout. More `steps` make it surer; `steps` of one epoch
    measure on all data. `scope`: one threshold for the whole model (`model`), or the share of each tensor (`tensor`).

    Needs gradients of all that trains, and no groups. Where ranks have pieces of the gradients (DeepSpeed, FSDP2) they
    add up their counts: a few messages a choice. Exactly the share is chosen, of equal gradients the first in the
    model's order. What trains is what is chosen among: beside full fine-tuning also a fresh head, whose gradients are
    large at first, or an adapter. With LoRA, B is zero at the start, and so is A's gradient: B's elements, and a
    head's, are chosen alone (as long as so many are not zero), and A stays as it was drawn. Costs a byte an element for
    the mask and a copy of what trains around each optimizer step; with several `steps` a float32 sum until they are
    over. In time little: with all of a tiny BERT training on one CPU core, a seventh of a step of 256 tokens, and of
    one of 2,048 too little to be measured. Fails where the first gradients are those of a shortcut: it knows of size,
    not of bias.

    Source: Nguyen et al., SAFT: Towards Out-of-Distribution Generalization in Fine-Tuning, ECCV 2024, arXiv 2407.03036.
    Verified in its abstract: a small share of parameters by gradient magnitude, 0.1 % of CLIP's, the others frozen. Not
    verified, for want of the authors' code: that the sum is taken before the absolute value and that the threshold is
    the model's, which is how a public reimplementation has it, over the whole training set (here: `steps`).
    """

    name: ClassVar[str] = "saft"
    share: float = 0.001
    scope: Literal["model", "tensor"] = "model"
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more")

    @property
    def measures(self) -> int:
        return self.steps

    @property
    def holds(self) -> bool:
        return True
