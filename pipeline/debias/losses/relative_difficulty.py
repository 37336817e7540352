"""LfF's weights of a biased model that is trained already (Nam et al., NeurIPS 2020, arXiv 2007.02561).

Shapes: B samples, C labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.losses.base import Loss
from debias.readouts.said import Said

NO_DIVISION_BY_ZERO = 1e-8  # of the authors' code


@dataclass(frozen=True)
class RelativeDifficulty(Loss):
    """`-W log p(y)` with `W = L_b / (L_b + L)`, the losses of a bias model and of this one: what misleads counts more.

    L is the model's own cross-entropy as it is now, L_b that of the bias model, and no gradient goes through W. Of two
    samples that are equally hard here, the one that the bias model gets wrong counts more. It is the weight of Learning
    from Failure, whose biased twin is trained beside the model; here it is a finished one, as LfF's by
    `first_stage: {keep: log_p, settings: {loss: gce}}`, or any bias model. LfF's release also averages losses over
    epochs and divides them by the largest of the label; neither is here, nor in SubpopBench's LfF.

    Needs a bias model, or a first stage that keeps `log_p`; answers of a causal model may have any length. Costs the
    bias model: a second training. Fails where the bias model knows the task as well: then everything counts half; and
    where labels are wrong, whose samples count most.

    Source: Nam et al., Learning from Failure: Training Debiased Classifier from Biased Classifier, NeurIPS 2020, arXiv
    2007.02561 (its weight, with the two models trained one after the other).
    """

    name: ClassVar[str] = "relative_difficulty"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p"})

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        own_B = -said.log_p_B.detach()
        theirs_B = -facts["bias_log_p"].gather(1, facts["labels"].unsqueeze(1)).squeeze(1).to(own_B.dtype)
        return -theirs_B / (theirs_B + own_B + NO_DIVISION_BY_ZERO) * said.log_p_B
