"""Which examples belong together: rows of one source vary together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from debias.config.words import JOINED, WORD, as_compared
from debias.data import Example
from debias.errors import InputError
from debias_eval.reading.suite import Cluster, Suite

Read = tuple[Example, Mapping[str, Any]]


def _field(suite: Suite, field: str, read: Read) -> str | None:
    """What an example has under a field of the suite's or a column of its row, as text."""
    example, columns = read
    if field in suite.text_fields:
        return example.texts[suite.text_fields.index(field)]
    if field in columns:
        return None if columns[field] is None else str(columns[field])
    if field == "texts":
        return "\n".join(sorted(example.texts))
    return example.group if field in ("group", suite.group_field) else example.id


def clustered(suite: Suite, read: Read, number: int) -> Example:
    """The example of a row with its cluster, if the suite has clusters; `number`: the how manieth it is."""
    rule = suite.cluster
    return read[0] if rule is None else replace(read[0], cluster=_cluster(suite, rule, read, number))


def _cluster(suite: Suite, rule: Cluster, read: Read, number: int) -> str:
    values = [_field(suite, field, read) for field in rule.field]
    if None in values:
        return f"row {number}"  # a row that says nothing of relatives has none
    if rule.regex is not None:
        return _found(suite, rule, str(values[0]))
    if rule.words:
        texts = zip(rule.field, values, strict=True)
        values = [_skeleton(value, rule.words) if field in suite.text_fields else value for field, value in texts]
    if rule.mask:
        values = [_any_of(rule.mask).sub("_", str(value)) for value in values]
    return " | ".join(map(str, values))


def _found(suite: Suite, rule: Cluster, value: str) -> str:
    found = re.search(str(rule.regex), value)
    if found is None or found[1] is None:
        raise InputError(f"suite {suite.name}: cluster.regex {rule.regex!r} finds nothing in {rule.field[0]} {value!r}")
    return found[1]


def _skeleton(text: str | None, words: Sequence[str]) -> str:
    return " ".join(word if word in words else "_" for word in re.findall(WORD, as_compared(str(text))))


@cache
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    edge = rf"[\w{JOINED}]"  # a mark behind a letter is of its word
    return re.compile(rf"(?<!{edge})(?:{'|'.join(map(re.escape, longest_first))})(?!{edge})", re.IGNORECASE)
