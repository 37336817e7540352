"""A bias model of words and of how the parts of an input overlap, which cannot understand either.

Shapes: N examples, C labels, F fields, V features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import BiasModel, Floats, Ints, check_folds, cross_fitted, folds_by_source, labels_of
from debias.bias.calibration import out_of_fold
from debias.bias.features import counted, relations, weighted
from debias.config.words import words_of
from debias.data.examples import Example


@dataclass(frozen=True)
class Lexical(BiasModel):
    """Words of each field and how the fields overlap: TF-IDF and logistic regression, cross-fitted in `folds`.

    A feature knows its field: sequences of up to `longest` words; with `relations` also, of every two fields, the share
    of words in common, whether one stands in the other, which is longer; and of each its length and an English
    negation. Linear, so that it cannot tell what the parts say about each other. `fields`: those it may see (default:
    all). Needs scikit-learn and no group labels. Costs half a minute for 50,000 pairs on one core. Fails where words
    are the task itself (sentiment, toxicity): honest signal is corrected away, too; and on shortcuts of word order.
    `calibrated`: one temperature for what it said out of fold.

    Source: the lexical and overlap features of Clark et al., EMNLP 2019, arXiv 1909.03683, and of McCoy et al., ACL
    2019, arXiv 1902.01007; the classifier is ours.
    """

    name: ClassVar[str] = "lexical"
    fields: tuple[str, ...] = ()
    longest: int = 2
    relations: bool = True
    folds: int = 5
    calibrated: bool = True

    def __post_init__(self) -> None:
        check_folds(self.folds)
        if self.longest < 1:
            raise ValueError(f"longest is {self.longest}, expected 1 or more words in a sequence")

    def check(self, text_fields: Sequence[str]) -> None:
        check_words(self.name, self.fields, text_fields)

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        label_N = labels_of(examples)
        seen_NV = self.features(examples, text_fields, others)
        p_NC = judged_out_of_fold(seen_NV, label_N, labels, self.fold_N(examples, seed))
        return out_of_fold(p_NC, label_N, calibrated=self.calibrated)

    def fold_N(self, examples: Sequence[Example], seed: int, text_fields: Sequence[str] = ()) -> Ints:
        return folds_by_source(examples, self.folds, seed)

    def features(self, examples: Sequence[Example], text_fields: Sequence[str], others: Sequence[Example] = ()) -> Any:
        """What the classifier sees, [N + M, V] sparse; words and their weights are those of the N examples.

        ValueError where no word occurs twice and nothing relates.
        """
        from scipy import sparse

        fields = self.fields or tuple(text_fields)
        places = [list(text_fields).index(field) for field in fields]
        words_FN = [[words_of(example.texts[place]) for example in (*examples, *others)] for place in places]
        blocks = [weighted(counts, len(examples)) for counts in _counts_of(words_FN, self.longest, len(examples))]
        if self.relations:
            blocks.append(sparse.csr_matrix(relations(words_FN, fields)[0]))
        if not blocks:
            raise ValueError(f"bias_model lexical: no word occurs in 2 of {len(examples)} texts: nothing to fit on")
        return sparse.hstack(blocks, format="csr")


def check_words(name: str, fields: Sequence[str], text_fields: Sequence[str]) -> None:
    """ValueError where a bias model of words could not read these fields of the data, or has no classifier."""
    if not text_fields:
        raise ValueError(f"bias_model {name} reads words, and the data has no text field")
    unknown = [field for field in fields if field not in text_fields]
    if unknown:
        raise ValueError(f"bias_model.fields: {unknown[0]!r} is not one of data.text_fields {list(text_fields)}")
    linear_classifier()


def _counts_of(words_FN: Sequence[Sequence[Sequence[str]]], longest: int, learned_from: int) -> list[Any]:
    """The counts of each field, those left out in which no word occurs twice in the texts to learn from."""
    found = []
    for words_N in words_FN:
        try:
            found.append(counted(words_N, longest, learned_from=learned_from)[0])
        except ValueError as error:
            if "scikit-learn" in str(error):
                raise
    return found


def judged_out_of_fold(seen_NV: Any, label_N: Ints, labels: int, fold_N: Ints) -> Floats:
    """Probabilities [N, C] of rows of features by a linear classifier of the other folds' rows; of rows beyond the
    labels, which nothing is fitted on, by those of all folds.
    """

    def judge(fitted_on: Ints, judged: Ints) -> Floats:
        return probabilities(fitted(seen_NV[fitted_on], label_N[fitted_on]), seen_NV[judged], labels)

    return cross_fitted(fold_N, labels, judge, seen_NV.shape[0] - len(fold_N))


def fitted(seen_NV: Any, label_N: Ints, times_N: Ints | Floats | None = None) -> Any:
    """A linear classifier of these rows, each as often as `times_N` says; where they have one label, that label."""
    seen = np.unique(label_N)
    return int(seen[0]) if len(seen) == 1 else linear_classifier().fit(seen_NV, label_N, sample_weight=times_N)


def probabilities(model: Any, seen_MV: Any, labels: int) -> Floats:
    """What a fitted classifier says of rows, [M, C]."""
    p_MC = np.zeros((seen_MV.shape[0], labels))
    if isinstance(model, int):
        p_MC[:, model] = 1.0
    else:
        p_MC[:, model.classes_] = model.predict_proba(seen_MV)
    return p_MC


def linear_classifier() -> Any:
    """The unfitted logistic regression. ValueError without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ValueError("a classifier of words needs scikit-learn: pip install scikit-learn") from None
    return LogisticRegression(C=1.0, solver="newton-cg", tol=1e-6, max_iter=200)
