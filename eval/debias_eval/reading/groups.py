"""The group of each example, by field, pattern or classifier."""

from collections.abc import Sequence
from dataclasses import replace

from debias.data import Example
from debias.errors import InputError
from debias_eval.reading.suite import Suite


def _grouped(suite: Suite, examples: Sequence[Example]) -> list[Example]:
    rule = suite.group_rule
    if not (suite.group_field or rule.by_label or rule.partial_input):
        return list(examples)
    from debias_eval.reading.partial import easy_or_hard

    difficulty = easy_or_hard(suite, examples) if rule.partial_input else [None] * len(examples)
    return [
        replace(example, group=_group(suite, example, partial))
        for example, partial in zip(examples, difficulty, strict=True)
    ]


def _group(suite: Suite, example: Example, partial: str | None) -> str | None:
    rule = suite.group_rule
    parts = []
    if suite.group_field is not None:
        if example.group is None:
            return None
        parts.append(example.group.split(rule.keep_before)[0] if rule.keep_before else example.group)
    if partial is not None:
        parts.append(partial)
    if rule.by_label:
        parts.append(suite.labels[example.label])
    return "/".join(parts) or None


def _check_gap(suite: Suite, examples: Sequence[Example]) -> None:
    present = {example.group for example in examples if example.group is not None}
    for name in (*suite.gap.aligned, *suite.gap.conflicting) if suite.gap else ():
        if name not in present:
            raise InputError(f"suite {suite.name}: gap names the group {name!r}; the data has {sorted(present)}")
