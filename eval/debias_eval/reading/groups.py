"""The group of each example, by field, pattern or classifier."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from debias.config.data import twins
from debias.data import Example
from debias.errors import InputError
from debias_eval.reading.suite import Suite

log = logging.getLogger(__name__)


def grouped(suite: Suite, examples: Sequence[Example]) -> list[Example]:
    """The examples in the groups of a classifier that sees a part of each, and of what else the suite asks."""
    from debias_eval.reading.partial import easy_or_hard

    return [
        replace(example, group=group_of(suite, example, partial))
        for example, partial in zip(examples, easy_or_hard(suite, examples), strict=True)
    ]


def group_of(suite: Suite, example: Example, partial: str | None = None) -> str | None:
    """The example's group as the suite's rule names it; `partial`: how a classifier of a part of it fares."""
    rule = suite.group_rule
    if not (suite.group_field or rule.by_label or rule.partial_input):
        return example.group
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


def check_present(suite: Suite, present: Collection[str]) -> None:
    """A warning of groups that are one but for how they are written; InputError where the gap names a group that the
    data does not hold.
    """
    for alike in twins(sorted(present)):
        told = ", ".join(map(repr, alike))
        log.warning(
            "suite %s: the groups %s differ in how they are written alone, and are scored apart", suite.name, told
        )
    for name in (*suite.gap.aligned, *suite.gap.conflicting) if suite.gap else ():
        if name not in present:
            raise InputError(f"suite {suite.name}: gap names the group {name!r}; the data has {sorted(present)}")
