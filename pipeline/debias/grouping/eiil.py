"""Environment inference (Creager et al., ICML 2021, arXiv 2010.07249). Shapes: N examples, C labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from debias.grouping.base import Floats, Grouping, Inferred, Ints, numbered


@dataclass(frozen=True)
class EIIL(Grouping):
    """The two environments in which the model that was asked is least invariant: EIIL's inference, exactly.

    With g the slope of an example's cross-entropy by a scale of its logits, at 1, EIIL looks for weights q in [0, 1]
    that make `(mean q g)^2 + (mean (1 - q) g)^2` largest. That is convex in `mean q g`, so that the largest is where q
    is 1 on one sign of g and 0 on the other: the environments are the signs of `g = sum_c p_c log p_c - log p_y`, the
    examples whose loss is above what the model itself expects, and all others. The authors climb there by 10,000 steps
    of Adam from random weights. With two labels it is the model's error set (`guessed` with `by: error`).

    `with_labels`: the examples of one label in one environment are a group, as for Group DRO; without it there are the
    two environments. Needs a bias model, or a first stage that keeps `log_p`: the reference model, which has to follow
    the shortcut and not to have learned its examples by heart. Costs nothing beside. Fails where the reference model is
    right on all, or follows honest signal: the second environment is then what is hard or mislabelled.

    Source: Creager et al., Environment Inference for Invariant Learning, ICML 2021, arXiv 2010.07249, and its authors'
    code.
    """

    name: ClassVar[str] = "eiil"
    with_labels: bool = True

    def infer(self, log_p_NC: Floats, label_N: Ints, labels: Sequence[str], seed: int) -> Inferred:
        slope_N = (np.exp(log_p_NC) * log_p_NC).sum(axis=1) - log_p_NC[np.arange(len(label_N)), label_N]
        above_N = (slope_N > 0).astype(int).tolist()
        words = ("as sure as right", "less right than sure")
        if not self.with_labels:
            return numbered([(above,) for above in above_N], {(above,): words[above] for above in (0, 1)})
        names = {(y, above): f"{label}, {words[above]}" for y, label in enumerate(labels) for above in (0, 1)}
        return numbered(list(zip(label_N.tolist(), above_N, strict=True)), names)
