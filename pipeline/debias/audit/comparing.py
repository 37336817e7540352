"""Several data sets side by side: what gives a label away in one and not in another.

Shapes: K tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, norm

from debias.audit.audit import Audit, Counted
from debias.audit.fields import Alone, Relation
from debias.audit.sureness import ALPHA, adjusted
from debias.audit.words import RAREST, Word
from debias.bias.forms import names_of

SHOWN = 20
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class OnlyHere:
    """A finding of one data set that another lacks, in words, with how it is in each: texts that say what was seen."""

    what: str
    found_in: str
    not_in: str
    here: str
    there: str


@dataclass(frozen=True)
class _Tested:
    """`p`, one-sided, that it is no stronger here than there."""

    told: OnlyHere
    p: float


def only_in_one(audits: Sequence[tuple[Audit, Counted]]) -> list[OnlyHere]:
    """Every finding of each data set that another lacks, word by word for the surest; fields and labels by name.

    Lacks: it is no finding there, and it is stronger here, by a test of the two data sets. p is adjusted for all that
    is laid side by side; of words for all that were looked at, for those that are found were picked for being strong.
    """
    pairs = [(one, other) for one in audits for other in audits if one[0].name != other[0].name]
    fields = [_fields(first, second) for (first, _), (second, _) in pairs]
    relations = [_relations(first, second) for (first, _), (second, _) in pairs]
    words = [_words(one, other) for one, other in pairs]
    looked_at = sum(first.looked_at for (first, _), _ in pairs)
    clear = [
        _clear(fields, sum(map(len, fields))),
        _clear(relations, sum(len(first.relations) + len(first.forms) for (first, _), _ in pairs)),
        [found[:SHOWN] for found in _clear(words, looked_at)],
    ]
    return [one for of_pair in zip(*clear, strict=True) for found in of_pair for one in found]


def _clear(tests: Sequence[Sequence[_Tested]], looked_at: int) -> list[list[OnlyHere]]:
    """What surely differs, by pair; `looked_at`: of how many the tests are those that there was reason to make."""
    p_K = np.array([one.p for of_pair in tests for one in of_pair])
    adjusted_K = adjusted(np.append(p_K, np.ones(max(looked_at - len(p_K), 0))))
    sure = iter(adjusted_K[: len(p_K)] < ALPHA)
    return [[one.told for one in of_pair if next(sure)] for of_pair in tests]


def _fields(first: Audit, second: Audit) -> list[_Tested]:
    there = {one.field: one for one in second.alone}
    return [
        _Tested(
            OnlyHere(f"{one.field} alone", first.name, second.name, _share(one.accuracy), _share(other.accuracy)),
            _no_more_right(one, first.examples, other, second.examples),
        )
        for one in first.alone
        if one.found and (other := there.get(one.field)) is not None and not other.found
    ]


def _no_more_right(here: Alone, n_here: int, there: Alone, n_there: int) -> float:
    """p that a field is no further above the most frequent label here than there."""
    apart = (here.accuracy - here.most) - (there.accuracy - there.most)
    variance = sum(
        ((one.interval[1] - one.interval[0]) / (2 * _Z95)) ** 2 + one.most * (1 - one.most) / n
        for one, n in ((here, n_here), (there, n_there))
    )
    return float(norm.sf(apart / variance**0.5))


def _relations(first: Audit, second: Audit) -> list[_Tested]:
    alike = {name: Relation(name, 0.0, dict.fromkeys(second.labels, 0.0), 1.0) for name in names_of(second.fields)}
    there = alike | {one.name: one for one in (*second.relations, *second.forms)}
    varies = {one.name for one in (*second.relations, *second.forms)}
    return [
        _Tested(
            OnlyHere(
                one.name,
                first.name,
                second.name,
                _means(one.means),
                _means(other.means) if one.name in varies else "alike in all",
            ),
            _no_more_effect((one, first), (other, second)),
        )
        for one in (*first.relations, *first.forms)
        if one.found and (other := there.get(one.name)) is not None and not other.found
    ]


def _no_more_effect(here: tuple[Relation, Audit], there: tuple[Relation, Audit]) -> float:
    """p that labels explain no more of the ranks here than there; Kruskal's H as a non-central chi squared.

    Copies of rows count as no rows.
    """
    apart, variance = 0.0, 0.0
    for sign, (one, data) in ((1, here), (-1, there)):
        n = max(data.examples - data.copies.repeated - 1, 1)
        freedom = len(one.means) - 1
        moved = max(one.effect * n - freedom, 0.0)
        apart += sign * moved / n
        variance += 2 * (freedom + 2 * moved) / n**2
    return float(norm.sf(apart / variance**0.5)) if variance > 0 else 1.0


def _words(one: tuple[Audit, Counted], other: tuple[Audit, Counted]) -> list[_Tested]:
    (first, counted_here), (second, counted_there) = one, other
    known = {(word.field, word.text, word.label) for word in second.words}
    fields, tests = {one.field for one in second.alone}, []
    for word in first.words:
        if word.field in fields and word.label in second.labels and (word.field, word.text, word.label) not in known:
            there = counted_there.word(word.field, word.text, word.label)
            told = "hardly occurs" if there is None else f"{there.with_label} of {there.count}"
            what = f"“{word.text}” in {word.field}: {word.label}"
            found = OnlyHere(what, first.name, second.name, f"{word.with_label} of {word.count}", told)
            tests.append(_Tested(found, _no_more_often(word, counted_here, counted_there)))
    return tests


def _no_more_often(word: Word, here: Counted, there: Counted) -> float:
    """p that a label is no likelier with the word here than there (Fisher's exact test of the texts with the word).

    Where it hardly occurs there: that it is no more frequent in the label's texts. Rows as they count.
    """
    (with_here, count_here, size_here), (with_there, count_there, size_there) = (
        _sure(one, word) for one in (here, there)
    )
    if count_there:
        return _fisher(with_here, count_here, with_there, count_there)
    return _fisher(with_here, size_here, min(RAREST - 1, size_there), size_there)


def _sure(counted: Counted, word: Word) -> tuple[int, int, int]:
    """Texts with the word and its label, all texts with the word (0: it hardly occurs), and all of the label."""
    table = next(one for one in counted.tables if one.field == word.field)
    label = list(table.labels).index(word.label)
    if word.text not in table.texts:
        return 0, 0, int(table.sure_C[label])
    count_C = table.sure_VC[list(table.texts).index(word.text)]
    return int(count_C[label]), int(count_C.sum()), int(table.sure_C[label])


def _fisher(here: int, of_here: int, there: int, of_there: int) -> float:
    """One-sided p of `here` of `of_here` or more, beside `there` of `of_there`."""
    return float(hypergeom.sf(here - 1, of_here + of_there, here + there, of_here))


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _means(means: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {mean:.2f}" for label, mean in means.items())
