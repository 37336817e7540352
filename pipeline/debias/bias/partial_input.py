"""A bias model that sees only a part of the input (Gururangan et al., NAACL 2018; Poliak et al., *SEM 2018).

Shapes: N examples, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import (
    BiasModel,
    Floats,
    Ints,
    check_folds,
    cross_fitted,
    digest_of,
    even_folds,
    folds_of,
    has_near_copies,
    keys_of,
    labels_of,
)
from debias.bias.calibration import out_of_fold
from debias.config.words import WORD, as_compared
from debias.data.examples import Example


@dataclass(frozen=True)
class PartialInput(BiasModel):
    """Words and pairs of words of some fields alone, TF-IDF and logistic regression, cross-fitted in `folds`.

    For an input of several parts of which one should not give the label away (a hypothesis without its premise). Needs
    scikit-learn and no group labels. Costs seconds for 50,000 examples on one core, before training. Fails where the
    shortcut lies in how the parts relate (overlap), and where honest signal lies in the part alone (sentiment): that is
    corrected away, too. `calibrated`: one temperature for what it said out of fold.

    Source: the hypothesis-only baselines of Gururangan et al., NAACL 2018, arXiv 1803.02324, and Poliak et al., *SEM
    2018, arXiv 1805.01042; the classifier is ours.
    """

    name: ClassVar[str] = "partial_input"
    fields: tuple[str, ...]
    folds: int = 5
    calibrated: bool = True

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields: none is given; name the text fields that the bias model may see")
        check_folds(self.folds)

    def check(self, text_fields: Sequence[str]) -> None:
        unknown = [field for field in self.fields if field not in text_fields]
        if unknown:
            raise ValueError(f"bias_model.fields: {unknown[0]!r} is not one of data.text_fields {list(text_fields)}")
        if set(self.fields) == set(text_fields):
            raise ValueError(f"bias_model.fields: {list(self.fields)} are all there are; leave out at least one")
        word_classifier()

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        texts = [" \n ".join(seen) for seen in self._seen([*examples, *others], text_fields)]
        label_N = labels_of(examples)
        fold_N = self.fold_N(examples, seed, text_fields)
        p_NC = cross_fitted(fold_N, labels, partial(_judged, texts, label_N, labels), len(others))
        return out_of_fold(p_NC, label_N, calibrated=self.calibrated)

    def fold_N(self, examples: Sequence[Example], seed: int, text_fields: Sequence[str] = ()) -> Ints:
        """Examples of which it sees the same share a fold, or it would judge what it was fitted on."""
        if not text_fields:
            return folds_of(examples, self.folds, seed)
        return even_folds([keys_of(seen) for seen in self._seen(examples, text_fields)], self.folds, seed)

    def _seen(self, examples: Sequence[Example], text_fields: Sequence[str]) -> list[tuple[str, ...]]:
        places = [list(text_fields).index(field) for field in self.fields]
        return [tuple(example.texts[place] for place in places) for example in examples]

    def digest(self, examples: Sequence[Example], labels: int, seed: int) -> str:
        """Not that of answers of versions whose folds went by all fields together."""
        near = ("near copies share a fold",) if has_near_copies(examples) else ()
        return digest_of(repr((self, "folds by what it sees", *near)), examples, labels, seed)


def _judged(texts: list[str], label_N: Ints, labels: int, fitted_on: Ints, judged: Ints) -> Floats:
    seen = np.unique(label_N[fitted_on])
    p_MC = np.zeros((len(judged), labels))
    if len(seen) < 2:  # nothing to tell apart
        p_MC[:, seen] = 1.0
        return p_MC
    try:
        model = word_classifier().fit([texts[i] for i in fitted_on], label_N[fitted_on])
    except ValueError as error:  # no word is there twice
        raise ValueError(f"bias_model partial_input: nothing to fit on in {len(fitted_on)} examples: {error}") from None
    p_MC[:, model.classes_] = model.predict_proba([texts[i] for i in judged])
    return p_MC


def word_classifier() -> Any:
    """The unfitted classifier, a scikit-learn pipeline from texts to labels. ValueError without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise ValueError("a classifier of words needs scikit-learn: pip install scikit-learn") from None
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, preprocessor=as_compared, token_pattern=rf"{WORD}|[^\w\s]"
    )
    # Newton to full convergence: the same answers as lbfgs run to its end, in a fifth of the time.
    return make_pipeline(words, LogisticRegression(C=1.0, solver="newton-cg", tol=1e-8, max_iter=200))
