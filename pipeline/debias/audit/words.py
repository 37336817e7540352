"""Words that give a label away: how often, how sure, and whether everywhere in the data.

Shapes: V words and pairs of words of one field, C labels, K folds, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from debias.audit.sureness import ALPHA, adjusted
from debias.bias.base import Floats, Ints

RAREST = 5  # texts that a word must be in: chosen without a look at labels, so that it costs no sureness
WORTH = 1.5  # how much larger a label's odds must be with a word than in all of the data, for it to be worth telling
_PRIOR = 0.1  # of the data: how much the prior weighs, which says that a word is as frequent with every label


@dataclass(frozen=True)
class Word:
    """A word, or a pair of words, in a field and a label that it comes with.

    `count` texts have it, `with_label` of them this label, a share of `share` where `base` is the label's in all.
    `log_odds`, against all other labels, and `z` with an informative prior (Monroe et al., Political Analysis 16,
    2008, eq. 16 and 22); `p` one-sided, exact, adjusted. `stable`: more frequent than the label in every fold. `z` and
    `p` are of rows as they count (`weights_of_copies`), all else is of rows as they are.
    """

    text: str
    field: str
    label: str
    count: int
    with_label: int
    share: float
    base: float
    log_odds: float
    z: float
    p: float
    stable: bool

    @property
    def found(self) -> bool:
        """Whether it gives its label away: surely, everywhere, and enough to matter."""
        return self.p < ALPHA and self.stable and self.share * (1 - self.base) >= WORTH * self.base * (1 - self.share)


@dataclass(frozen=True)
class WordTable:
    """What was counted of the words of one field: texts of each label with each word, [V, C], and that by folds.

    `sure_VC`, `sure_C`: as `count_VC` and `size_C`, of rows as they count (`weights_of_copies`). `p_VC` is of these and
    not adjusted for anything.
    """

    field: str
    labels: Sequence[str]
    texts: Sequence[str]
    count_VC: Ints
    size_C: Ints
    stable_VC: Any
    p_VC: Floats
    sure_VC: Ints
    sure_C: Ints

    def word(self, at: int, label: int, p: float) -> Word:
        """The word at this place as it comes with a label."""
        count_C, total = self.count_VC[at], int(self.count_VC[at].sum())
        log_odds, _ = _odds(count_C, self.size_C, label)
        _, z = _odds(self.sure_VC[at], self.sure_C, label)
        return Word(
            text=self.texts[at],
            field=self.field,
            label=self.labels[label],
            count=total,
            with_label=int(count_C[label]),
            share=float(count_C[label] / total),
            base=float(self.size_C[label] / self.size_C.sum()),
            log_odds=log_odds,
            z=z,
            p=p,
            stable=bool(self.stable_VC[at, label]),
        )


def log_odds_of(with_label: float, count: float, size: float, everything: float) -> tuple[float, float]:
    """Log-odds ratio of a word between texts of a label and all others, and its z, with an informative Dirichlet prior.

    The prior is a tenth of the data in which the word is as frequent with every label.
    """
    prior, all_prior = _PRIOR * count, _PRIOR * everything
    mine, others = with_label + prior, count - with_label + prior
    odds = mine / (size + all_prior - mine), others / (everything - size + all_prior - others)
    difference = log(odds[0]) - log(odds[1])
    return difference, difference / (1 / mine + 1 / others) ** 0.5


def _odds(count_C: Ints, size_C: Ints, label: int) -> tuple[float, float]:
    return log_odds_of(float(count_C[label]), int(count_C.sum()), float(size_C[label]), float(size_C.sum()))


def table_of(
    counts_NV: Any,
    texts: Sequence[str],
    label_N: Ints,
    fold_N: Ints,
    field: str,
    labels: Sequence[str],
    weight_N: Floats | None = None,
) -> WordTable:
    """The table of a field's words, those in fewer than RAREST texts left out.

    `weight_N`: how much each row counts for p (`weights_of_copies`), None for all alike; sums of it are rounded.
    """
    folds = int(fold_N.max()) + 1
    cells_NX = np.zeros((len(label_N), folds * len(labels)))
    cells_NX[np.arange(len(label_N)), fold_N * len(labels) + label_N] = 1.0
    count_VKC = (
        np.rint((counts_NV > 0).T.astype(np.float64) @ cells_NX).astype(np.int64).reshape(-1, folds, len(labels))
    )
    kept = np.flatnonzero(count_VKC.sum(axis=(1, 2)) >= RAREST)
    count_VKC, size_KC = count_VKC[kept], np.rint(cells_NX.sum(axis=0)).astype(np.int64).reshape(folds, -1)
    count_VC, size_C = count_VKC.sum(axis=1), size_KC.sum(axis=0)
    sure_VC, sure_C = count_VC, size_C
    if weight_N is not None:
        one_NC = weight_N[:, None] * np.eye(len(labels))[label_N]
        sure_VC = np.rint((counts_NV[:, kept] > 0).T.astype(np.float64) @ one_NC).astype(np.int64)
        sure_C = np.maximum(np.rint(one_NC.sum(axis=0)).astype(np.int64), sure_VC.max(axis=0, initial=0))
    return WordTable(
        field=field,
        labels=labels,
        texts=[texts[int(place)] for place in kept],
        count_VC=count_VC,
        size_C=size_C,
        stable_VC=_stable(count_VKC, size_KC),
        p_VC=exact(sure_VC, sure_C),
        sure_VC=sure_VC,
        sure_C=sure_C,
    )


def _stable(count_VKC: Ints, size_KC: Ints) -> Any:
    """Whether a word comes with a label oftener than chance in every fold, [V, C]; a fold without the word says no."""
    base_KC = size_KC / np.maximum(size_KC.sum(axis=1, keepdims=True), 1)
    return (count_VKC > base_KC * count_VKC.sum(axis=2, keepdims=True)).all(axis=1)


def exact(count_VC: Ints, size_C: Ints) -> Floats:
    """The chance of so many texts with a label or more, were labels dealt out at random: Fisher's exact test."""
    total_VC = np.broadcast_to(count_VC.sum(axis=1, keepdims=True), count_VC.shape)
    p_VC = np.ones(count_VC.shape)
    more = count_VC * size_C.sum() > total_VC * size_C  # the others are no candidates, and would take most of the time
    size_VC = np.broadcast_to(size_C, count_VC.shape)
    p_VC[more] = hypergeom.sf(count_VC[more] - 1, size_C.sum(), size_VC[more], total_VC[more])
    return p_VC


def words_found(tables: Sequence[WordTable]) -> tuple[list[Word], int]:
    """The words of all fields that give a label away, the surest first, and how many were looked at.

    A pair of words is left out where one of the two alone says it more surely.
    """
    p_K = np.concatenate([table.p_VC.ravel() for table in tables]) if tables else np.zeros(0)
    adjusted_K, at, found = adjusted(p_K), 0, []
    for table in tables:
        p_VC = adjusted_K[at : at + table.p_VC.size].reshape(table.p_VC.shape)
        at += table.p_VC.size
        places = np.argwhere((p_VC < ALPHA) & table.stable_VC)
        found += [table.word(int(v), int(c), float(p_VC[v, c])) for v, c in places]
    found = sorted((word for word in found if word.found), key=lambda word: (-word.z, word.field, word.text))
    return _without_echoes(found), len(p_K)


def _without_echoes(words: Sequence[Word]) -> list[Word]:
    single = {(word.field, word.label, word.text): word.z for word in words if " " not in word.text}
    return [
        word
        for word in words
        if " " not in word.text
        or all(single.get((word.field, word.label, part), 0) < word.z for part in word.text.split(" "))
    ]
