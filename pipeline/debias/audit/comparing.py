"""Several data sets side by side: what gives a label away in one and not in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from debias.audit.audit import Audit, Counted

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
    """Every finding of each data set that another lacks, word by word for the surest; fields and labels by name."""
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
        if one.found and one.field in there and not there[one.field].found
    ]


def _relations(first: Audit, second: Audit) -> list[OnlyHere]:
    there = {one.name: one for one in second.relations}
    return [
        OnlyHere(one.name, first.name, second.name, _means(one.means), _means(there[one.name].means))
        for one in first.relations
        if one.found and one.name in there and not there[one.name].found
    ]


def _words(first: Audit, second: Audit, counted: Counted) -> list[OnlyHere]:
    known = {(word.field, word.text, word.label) for word in second.words}
    fields, found = {one.field for one in second.alone}, []
    for word in first.words:
        if word.field in fields and word.label in second.labels and (word.field, word.text, word.label) not in known:
            there = counted.word(word.field, word.text, word.label)
            told = "hardly occurs" if there is None else f"{there.with_label} of {there.count}"
            what = f"“{word.text}” in {word.field}: {word.label}"
            found.append(OnlyHere(what, first.name, second.name, f"{word.with_label} of {word.count}", told))
    return found[:SHOWN]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _means(means: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {mean:.2f}" for label, mean in means.items())
