"""A suite's examples: read from its file or its hub id, kept, clustered, grouped, stressed; seeded subsets of them."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from debias.config.data import DataConfig, DataSource
from debias.data import Example, paint, plant
from debias.data.sources import load_with_columns
from debias.errors import InputError
from debias_eval.reading.rows import Rows
from debias_eval.reading.stress import stressed
from debias_eval.reading.suite import Cluster, Hub, Suite

log = logging.getLogger(__name__)
Read = tuple[Example, Mapping[str, Any]]
LARGEST_WHOLE_CLUSTER = 16


def suite_examples(suite: Suite, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The suite's examples with their groups; `limit` keeps a random subset of at most that size, drawn with `seed`.

    The subset is drawn last, so an example has the same text and group under every limit. InputError for data that is
    not found or does not fit, and for a gap whose groups the data does not hold.
    """
    return subset(all_examples(suite), limit, seed, whole=suite.consistency)


def all_examples(suite: Suite) -> list[Example]:
    """Every example of the suite: clusters and groups named from the rows as they are, then stress or cue written in.

    An id that occurs again becomes `id#2`, so that an example can be named.
    """
    examples = _clustered(suite, _rows(suite))
    if suite.stress:
        examples = stressed(examples, suite.stress)
    if suite.planted_bias:
        examples = plant(examples, suite.planted_bias, DataConfig.model_validate(suite.data_config))
    elif suite.planted_color:
        examples = paint(examples, suite.planted_color, len(suite.labels))
    else:
        examples = _grouped(suite, examples)
    _check_gap(suite, examples)
    return _named_apart(examples)


def subset(examples: Sequence[Example], limit: int | None, seed: int, *, whole: bool = False) -> list[Example]:
    """At most `limit` examples in the original order, drawn at random with `seed`.

    Clusters of up to 16 examples (pairs, edits of one original) are drawn whole, so that a few places may stay empty;
    larger ones (templates) example by example, or a small subset would hold few of them, unless `whole`, as consistency
    needs. Without clusters it is a simple random sample of exactly `limit`. InputError for a limit too small for the
    cluster drawn first.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected a number over 0, got {limit}")
    if limit is None or limit >= len(examples):
        return list(examples)
    units = _drawn_together(examples, len(examples) if whole else LARGEST_WHOLE_CLUSTER)
    kept: list[int] = []
    for chosen in np.random.default_rng(seed).permutation(len(units)):
        if len(kept) + len(units[chosen]) > limit:
            break
        kept += units[chosen]
    if not kept:
        raise InputError(f"limit: {limit} is too few: clusters are drawn whole, and hold up to {max(map(len, units))}")
    return [examples[i] for i in sorted(kept)]


def _drawn_together(examples: Sequence[Example], largest: int) -> list[list[int]]:
    members: dict[str | int, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(index if example.cluster is None else example.cluster, []).append(index)
    units: list[list[int]] = []
    for cluster in members.values():
        units += [cluster] if len(cluster) <= largest else [[index] for index in cluster]
    return units


def local_file(suite: Suite, name: str) -> Path | None:
    """The file or folder `name` beside the suite's YAML or in DEBIAS_DATA; None if there is none.

    InputError for a link that leads out of the folder in which it lies.
    """
    for folder in (suite.folder, os.environ.get("DEBIAS_DATA") or None):
        if folder is None:
            continue
        root = Path(folder).expanduser().resolve()
        place = root / name
        if place.exists():
            if not place.resolve().is_relative_to(root):
                raise InputError(f"suite {suite.name}: {place} is a link that leads out of {root}; put the file there")
            return place
    return None


def where_from(suite: Suite) -> str:
    """`local`, `generated`, `hub` (nothing is asked of the hub), or `missing`: where the examples would come from."""
    if suite.source is not None and suite.source.source == "generated":
        return "generated"
    names = [*([suite.source.source] if suite.source else ()), *([suite.hub.source] if suite.hub else ())]
    if any(local_file(suite, name) for name in names):
        return "local"
    return "hub" if suite.hub else "missing"


def local_config(suite: Suite, source: DataSource, path: Path | None = None) -> DataConfig:
    """How a file of this suite's schema is read; `path` is where it lies."""
    found = source if path is None else source.model_copy(update={"source": str(path)})
    return DataConfig.model_validate({**suite.data_config, "train": found})


def hub_config(suite: Suite, hub: Hub, limit: int | None = None) -> DataConfig:
    """How the rows of a hub id are read; a folder of that name in DEBIAS_DATA stands in for it.

    `limit` keeps a random sample of the rows, the same every time.
    """
    config = DataConfig.model_validate(suite.hub_config(hub))
    folder = local_file(suite, hub.source)
    found = {"limit": limit, "source": hub.source if folder is None else str(folder)}
    return config.model_copy(update={"train": config.train.model_copy(update=found)})


def not_found(suite: Suite, name: str) -> str:
    """What to say of a local file that is not there."""
    folder = os.environ.get("DEBIAS_DATA")
    looked = f"and {folder} lacks it" if folder else "and is not set"
    return f"suite {suite.name}: no {name}; DEBIAS_DATA names the folder of local data, {looked}"


def _rows(suite: Suite) -> list[Read]:
    """The rows as examples, beside the columns that the rules need."""
    if suite.source is None:
        assert suite.hub is not None
        return _hub_rows(suite, suite.hub, f"suite {suite.name}")
    if suite.source.source == "generated":
        return _load(suite, local_config(suite, suite.source))
    path = local_file(suite, suite.source.source)
    if path is not None:
        return _load(suite, local_config(suite, suite.source, path))
    absent = not_found(suite, suite.source.source)
    if suite.hub is None:
        raise InputError(absent)
    log.info("%s; reading %s from the hub", absent, suite.hub.source)
    return _hub_rows(suite, suite.hub, absent)


def _hub_rows(suite: Suite, hub: Hub, otherwise: str) -> list[Read]:
    try:
        return _load(suite, hub_config(suite, hub))
    except InputError as error:
        raise InputError(f"{otherwise}; and from the hub: {error}") from None


def _load(suite: Suite, config: DataConfig) -> list[Read]:
    own = {"id", "group", "texts", suite.id_field, suite.group_field, *suite.text_fields}
    columns = {*suite.cluster.field} - own if suite.cluster else set()
    return [*load_with_columns(config.train, config, sorted(columns), through=Rows(suite, config))]


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


def _clustered(suite: Suite, rows: Sequence[Read]) -> list[Example]:
    rule = suite.cluster
    if rule is None:
        return [example for example, _ in rows]
    return [replace(read[0], cluster=_cluster(suite, rule, read, number)) for number, read in enumerate(rows, start=1)]


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
    return " ".join(word if word in words else "_" for word in re.findall(r"\w+", str(text).lower()))


@cache
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


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


def _named_apart(examples: Sequence[Example]) -> list[Example]:
    taken, seen = {example.id for example in examples}, Counter[str]()
    named = []
    for example in examples:
        seen[example.id] += 1
        name, number = example.id, seen[example.id]
        while number > 1 and name in taken:  # `x#2` may be an id of the data's own
            name, number = f"{example.id}#{number}", number + 1
        taken.add(name)
        named.append(example if name == example.id else replace(example, id=name))
    return named
