"""A suite's examples: read from its file or its hub id, kept, clustered, grouped, stressed; seeded subsets of them."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from debias.config.data import DataConfig
from debias.data import Example, paint, plant
from debias.data.sources import load_with_columns
from debias.errors import InputError
from debias_eval.reading.clusters import Read, _clustered
from debias_eval.reading.groups import _check_gap, _grouped
from debias_eval.reading.places import hub_config, local_config, local_file, not_found
from debias_eval.reading.rows import Rows
from debias_eval.reading.stress import stressed
from debias_eval.reading.subset import subset
from debias_eval.reading.suite import Hub, Suite

log = logging.getLogger(__name__)


def suite_examples(suite: Suite, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The suite's examples with their groups; `limit` keeps a random subset of at most that size, drawn with `seed`.

    The subset is drawn last, so an example has the same text and group under every limit. InputError for data that is
    not found or does not fit, and for a gap whose groups the data does not hold.
    """
    return subset(all_examples(suite), limit, seed, whole=suite.consistency or suite.invariant)


def all_examples(suite: Suite) -> list[Example]:
    """Every example of the suite: clusters and groups named from the rows as they are, then stress or cue written in.

    An id that occurs again becomes `id#2`, so that an example can be named.
    """
    examples = _clustered(suite, _rows(suite))
    if suite.stress:
        examples = stressed(examples, suite.stress)
    if suite.planted_bias:
        examples = list(plant(examples, suite.planted_bias, DataConfig.model_validate(suite.data_config)))
    elif suite.planted_color:
        examples = paint(examples, suite.planted_color, len(suite.labels))
    else:
        examples = _grouped(suite, examples)
    _check_gap(suite, examples)
    return _named_apart(examples)


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
