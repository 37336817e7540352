"""Several data sets side by side: what gives a label away in one and not in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from debias.audit.audit import Audit, Counted
from debias.audit.fields import Alone
from debias.audit.sureness import wilson
from debias.audit.words import RAREST, Word

SHOWN = 20


@dataclass(frozen=True)
class OnlyHere:
    """A finding of one data set that another lacks, in words, with how it is in each: texts that say what was seen."""

    what: str
    found_in: str
    not_in: str
    here: str
    there: str


def only_in_one(audits: Sequence[tuple[Audit, Counted]]) -> list[OnlyHere]:
    """Every finding of each data set that another lacks, word by word for the surest; fields and labels by name.

    Lacks: where it would be seen. What is as strong there for all that the smaller data can tell is left out.
    """
    return [
        one
        for first, _ in audits
        for second, counted in audits
        if first.name != second.name
        for one in [*_fields(first, second), *_relations(first, second), *_words(first, second, counted)]
    ]


def _fields(first: Audit, second: Audit) -> list[OnlyHere]:
    there = {one.field: one for one in second.alone}
    return [
        OnlyHere(f"{one.field} alone", first.name, second.name, _share(one.accuracy), _share(there[one.field].accuracy))
        for one in first.alone
        if one.found and one.field in there and one.accuracy - one.most > _at_most(there[one.field])
    ]


def _relations(first: Audit, second: Audit) -> list[OnlyHere]:
    there = {one.name: one for one in second.relations}
    return [
        OnlyHere(one.name, first.name, second.name, _means(one.means), _means(there[one.name].means))
        for one in first.relations
        if one.found and one.name in there and not there[one.name].found and one.effect > 2 * there[one.name].effect
    ]


def _words(first: Audit, second: Audit, counted: Counted) -> list[OnlyHere]:
    known = {(word.field, word.text, word.label) for word in second.words}
    fields, found = {one.field for one in second.alone}, []
    for word in first.words:
        if word.field in fields and word.label in second.labels and (word.field, word.text, word.label) not in known:
            there = counted.word(word.field, word.text, word.label)
            if _may_be_the_same(word, there, second.examples / first.examples):
                continue
            told = "hardly occurs" if there is None else f"{there.with_label} of {there.count}"
            what = f"“{word.text}” in {word.field}: {word.label}"
            found.append(OnlyHere(what, first.name, second.name, f"{word.with_label} of {word.count}", told))
    return found[:SHOWN]


def _may_be_the_same(here: Word, there: Word | None, size: float) -> bool:
    """Whether a word may be as it is here in other data, `size` times as large, for all that can be told of it."""
    if there is None:
        return here.count * size < 2 * RAREST  # so few were to be expected
    return wilson(there.with_label, there.count)[1] >= here.share


def _at_most(one: Alone) -> float:
    """How far above the most frequent label a field may be, for all that is known; a finding is no lack of one."""
    return 1.0 if one.found else one.interval[1] - one.most


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _means(means: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {mean:.2f}" for label, mean in means.items())
