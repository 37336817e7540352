"""A suite's examples: read from its file or its hub id, kept, clustered, grouped, stressed; seeded subsets of them.

Many rows go into a kept table, of which a process holds no more than it looks at; few are a list.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from debias.config.data import DataConfig
from debias.data import Example, paint, plant
from debias.data.examples import NO_GROUP
from debias.data.shards import resolve_files
from debias.data.sources import Underway, kept_examples, load_with_columns
from debias.data.store import key_of, version_of
from debias.data.tables import Examples, keep_examples
from debias.errors import InputError
from debias_eval.reading.clusters import Read, clustered
from debias_eval.reading.groups import check_present, group_of, grouped
from debias_eval.reading.places import hub_config, local_config, local_file, not_found
from debias_eval.reading.rows import Rows
from debias_eval.reading.stress import stressed
from debias_eval.reading.subset import subset
from debias_eval.reading.suite import Suite

log = logging.getLogger(__name__)
ROOM = Path(__file__).parent  # whose code says what becomes of a row
MANY = 8_000_000  # bytes of a suite's files, from which on its rows are kept in a table


def suite_examples(suite: Suite, limit: int | None = None, seed: int = 0) -> Sequence[Example]:
    """The suite's examples with their groups; `limit` keeps a random subset of at most that size, drawn with `seed`.

    The subset is drawn last, so an example has the same text and group under every limit. InputError for data that is
    not found or does not fit, and for a gap whose groups the data does not hold.
    """
    return subset(all_examples(suite), limit, seed, whole=suite.consistency or suite.invariant)


def all_examples(suite: Suite) -> Sequence[Example]:
    """Every example of the suite: clusters and groups named from the rows as they are, then stress or cue written in.

    An id that occurs again becomes `id#2`, so that an example can be named.
    """
    config, absent = _found(suite)
    with _told_of_hub(absent):
        if _in_table(suite, config):
            return _table(suite, config)
        source = config.train
        # Clusters are drawn whole, as by `--limit`; they are known once every row is read.
        late = suite.cluster is not None and source.source != "generated"
        rows = load_with_columns(
            source.model_copy(update={"limit": None}) if late else source,
            config,
            _columns(suite),
            through=Rows(suite, config),
        )
    examples: Sequence[Example] = [*_one_by_one(suite, rows)]
    if late:
        if source.limit is not None and source.limit >= len(examples):
            log.info("%s: limit is %d, all %d examples are used", suite.name, source.limit, len(examples))
        examples = subset(
            examples, source.limit, source.seed, whole=suite.consistency or suite.invariant, asked="source.limit"
        )
    if suite.planted_bias:
        examples = list(plant(examples, suite.planted_bias, _own_config(suite)))
    elif suite.planted_color:
        examples = paint(examples, suite.planted_color, len(suite.labels))
    elif suite.group_rule.partial_input:
        examples = grouped(suite, examples)
    check_present(suite, {example.group for example in examples if example.group is not None})
    times = Counter(example.id for example in examples)
    return [*_named_apart(examples, {name for name, number in times.items() if number > 1}, set(times))]


def _found(suite: Suite) -> tuple[DataConfig, str | None]:
    """How the suite's rows are read; of those that come from the hub also why they do."""
    if suite.source is None:
        assert suite.hub is not None
        return hub_config(suite, suite.hub), f"suite {suite.name}"
    if suite.source.source == "generated":
        return local_config(suite, suite.source), None
    path = local_file(suite, suite.source.source)
    if path is not None:
        return local_config(suite, suite.source, path), None
    absent = not_found(suite, suite.source.source)
    if suite.hub is None:
        raise InputError(absent)
    log.info("%s; reading %s from the hub", absent, suite.hub.source)
    return hub_config(suite, suite.hub, suite.source.limit, suite.source.seed), absent


def _own_config(suite: Suite) -> DataConfig:
    """Under the suite's own names of fields, which the hub's columns need not have."""
    return DataConfig.model_validate(suite.data_config)


@contextmanager
def _told_of_hub(absent: str | None) -> Iterator[None]:
    """An error then says why the hub was asked, where it was."""
    try:
        yield
    except InputError as error:
        raise (error if absent is None else InputError(f"{absent}; and from the hub: {error}")) from None


def _in_table(suite: Suite, config: DataConfig) -> bool:
    """Whether the rows go into a kept table: large files, and the hub's; not where all are asked at once."""
    if suite.planted_color or suite.group_rule.partial_input or not config.text_fields:
        return False
    source = config.train
    if source.limit is not None or source.source == "generated":
        return False
    if suite.source is None or local_file(suite, suite.source.source) is None:
        return True
    files = [file for file in resolve_files(source.source) if file.is_file()]
    return sum(file.stat().st_size for file in files) > MANY


def _table(suite: Suite, config: DataConfig) -> Examples:
    told = (version_of(ROOM), suite.model_dump_json())
    way = Underway(told, Rows(suite, config), _columns(suite), lambda read: _one_by_one(suite, read))
    examples = kept_examples(config.train, config, underway=way)
    if suite.planted_bias:
        planted = plant(examples, suite.planted_bias, _own_config(suite))
        assert isinstance(planted, Examples)
        examples = planted
    numbers = np.unique(examples.column("group"))
    check_present(suite, {examples.groups[number] for number in numbers if number != NO_GROUP})
    ids = _Names(example.id for example in examples)
    twice = ids.twice
    if twice is None:
        return examples
    key = key_of("named apart", version_of(ROOM), examples.key)
    return keep_examples(key, lambda notes: _named_apart(examples, twice, ids))


def _columns(suite: Suite) -> list[str]:
    """Columns that a cluster is named by, beside what every example has."""
    own = {"id", "group", "texts", suite.id_field, suite.group_field, *suite.text_fields}
    return sorted({*suite.cluster.field} - own) if suite.cluster else []


def _one_by_one(suite: Suite, rows: Iterable[Read]) -> Iterator[Example]:
    """What the suite makes of each row by itself: a cluster, words appended, a group."""
    whole = suite.planted_bias or suite.planted_color or suite.group_rule.partial_input
    for number, read in enumerate(rows, start=1):
        example = clustered(suite, read, number)
        if suite.stress:
            example = stressed(example, suite.stress)
        yield example if whole else replace(example, group=group_of(suite, example))


def _named_apart(examples: Iterable[Example], twice: Container[str], taken: "set[str] | _Names") -> Iterator[Example]:
    """The examples, those whose ids are told `twice` numbered from their second on; `taken`: all ids that there are."""
    seen = Counter[str]()
    for example in examples:
        if example.id not in twice:
            yield example
            continue
        seen[example.id] += 1
        name, number = example.id, seen[example.id]
        while number > 1 and name in taken:  # `x#2` may be an id of the data's own
            name, number = f"{example.id}#{number}", number + 1
        taken.add(name)
        yield example if name == example.id else replace(example, id=name)


class _Names:
    """Many names, eight bytes each: whether one is among them, but for one chance in 10^12; `twice`: those told again.

    Where that chance comes true a name gets a number that it did not need.
    """

    def __init__(self, names: Iterable[str]) -> None:
        told = np.fromiter(map(_number, names), dtype=np.uint64)
        self._sorted, times = np.unique(told, return_counts=True)
        self._more: set[str] = set()
        self.twice: Container[str] | None = None
        if (times > 1).any():
            self.twice = again = _Names(())
            again._sorted = self._sorted[times > 1]

    def __contains__(self, name: object) -> bool:
        number = _number(str(name))
        place = int(np.searchsorted(self._sorted, number))
        return name in self._more or (place < len(self._sorted) and bool(self._sorted[place] == number))

    def add(self, name: str) -> None:
        """One more."""
        self._more.add(name)


def _number(name: str) -> np.uint64:
    told = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.uint64(int.from_bytes(told, "little"))
