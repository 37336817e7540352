"""What can be read off the frozen base's hidden states by a linear model. N examples, C labels, D hidden units."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import (
    AskedBase,
    BaseBiasModel,
    Floats,
    Ints,
    check_folds,
    cross_fitted,
    folds_of,
    labels_of,
)
from debias.bias.calibration import out_of_fold
from debias.config.blocks import EXPECTS
from debias.data.examples import Example


@dataclass(frozen=True)
class Embedding(BaseBiasModel):
    """Logistic regression on the frozen base's hidden states, averaged over an example's tokens, cross-fitted.

    `layer`: -1, the default, for the last; a whole number counts layers (0: the embeddings), a fraction above 0 and
    below 1 is that far up. One forward pass over the training set, in inference mode and batches of like length; the
    states are standardised, the regression is fitted in `folds` (equal texts share one), and its answers are floored
    and kept. `calibrated`: one temperature for what it said out of fold.

    Needs scikit-learn and no group labels. Costs one forward pass, 8 bytes x hidden size x examples of memory, and a
    regression on the CPU. Fails where the base knows the task already, so that honest signal is linear in its states:
    that is corrected away, too.

    Source: the linear bias proxy of uLA (Tsirigotis et al., Group Robust Classification Without Any Group Information,
    NeurIPS 2023, arXiv 2310.18555), there on a self-supervised base.
    """

    name: ClassVar[str] = "embedding"
    layer: float = field(default=-1.0, metadata={EXPECTS: "-1, a layer's number, or a fraction of them below 1"})
    folds: int = 5
    calibrated: bool = True

    def __post_init__(self) -> None:
        if self.layer != -1 and (self.layer < 0 or (self.layer > 1 and self.layer % 1)):
            raise ValueError(f"layer is {self.layer}, expected -1, a layer's number, or a fraction of them below 1")
        check_folds(self.folds)

    def check(self, text_fields: Sequence[str]) -> None:
        if not text_fields:
            raise ValueError("bias_model embedding reads the hidden states of texts, and the data is pictures")
        linear_classifier()

    def asked(
        self, examples: Sequence[Example], labels: int, seed: int, base: AskedBase, others: Sequence[Example] = ()
    ) -> Floats:
        hidden_ND, label_N = base.hidden(self.layer, [*examples, *others]), labels_of(examples)

        def judge(fitted_on: Ints, judged: Ints) -> Floats:
            return _judged(hidden_ND[fitted_on], label_N[fitted_on], hidden_ND[judged], labels)

        p_NC = cross_fitted(folds_of(examples, self.folds, seed), labels, judge, len(others))
        return out_of_fold(p_NC, label_N, calibrated=self.calibrated)


def _judged(fitted_on_ND: Floats, label_N: Ints, judged_MD: Floats, labels: int) -> Floats:
    seen = np.unique(label_N)
    p_MC = np.zeros((len(judged_MD), labels))
    if len(seen) < 2:  # nothing to tell apart
        p_MC[:, seen] = 1.0
        return p_MC
    model = linear_classifier().fit(fitted_on_ND, label_N)
    p_MC[:, model.classes_] = model.predict_proba(judged_MD)
    return p_MC


def linear_classifier() -> Any:
    """The unfitted classifier, a scikit-learn pipeline from vectors to labels. ValueError without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ValueError("a linear model of hidden states needs scikit-learn: pip install scikit-learn") from None
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
