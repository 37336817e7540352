"""Examples that lie in a kept table: a sequence of them as any other, and columns where all are read at once.

Shapes: N examples.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from debias.data.columns import Column, Ragged, bytes_of, in_batches
from debias.data.digests import digests_of, inputs_of
from debias.data.examples import NO_GROUP, Example
from debias.data.store import Batches, Notes, Table, kept


class Examples(Sequence[Example]):
    """The examples of a table, or those of its rows that `chosen` [N] names; each is made when it is asked for.

    `key` says what they are: the same key, the same examples.
    """

    def __init__(self, table: Table, chosen: NDArray[np.int64] | None = None) -> None:
        self.table = table
        self.key = table.key if chosen is None else f"{table.key}/{hashlib.sha256(chosen.tobytes()).hexdigest()}"
        self.chosen = chosen
        self.groups: list[str] = table.notes["groups"]
        self._size = sum(map(len, table.batches)) if chosen is None else len(chosen)
        names = table.batches[0].schema.names
        self._texts = [self._ragged(name) for name in names if name.startswith("text")]
        self._p = [self._column(name) for name in names if name.startswith("p")]
        self._id, self._label = self._ragged("id"), self._column("label")
        self._group, self._weight = self._column("group"), self._column("weight")
        self._cluster = self._ragged("cluster") if "cluster" in names else None

    @property
    def clustered(self) -> bool:
        """Whether each has a cluster; else none has."""
        return self._cluster is not None

    def _column(self, name: str) -> Column:
        return Column([batch.column(name) for batch in self.table.batches])

    def _ragged(self, name: str) -> Ragged:
        return Ragged([batch.column(name) for batch in self.table.batches], np.bytes_)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            made = [self[one] for one in range(*place.indices(self._size))]
            self.table.let_go()
            return made
        row = self._row(place)
        group, weight = self._group[row], self._weight[row]
        return Example(
            id=self._id.text(row),
            texts=tuple([column.text(row) for column in self._texts]),
            label=self._label[row],
            group=None if group == NO_GROUP else self.groups[group],
            bias_weight=None if math.isnan(weight) else weight,
            cluster=None if self._cluster is None else self._cluster.text(row),
            bias_p=tuple([column[row] for column in self._p]) or None,
        )

    def __iter__(self) -> Iterator[Example]:
        return self.table.from_end_to_end(self)

    def _row(self, place: int) -> int:
        if not -self._size <= place < self._size:
            raise IndexError(place)
        place = place % self._size
        return place if self.chosen is None else int(self.chosen[place])

    def take(self, places: NDArray[np.int64]) -> "Examples":
        """Those at these places, in their order."""
        return Examples(self.table, places if self.chosen is None else self.chosen[places])

    def column(self, name: str) -> NDArray[Any]:
        """As `InColumns` has it."""
        whole = self._column(name).whole()
        self.table.let_go()
        return whole if self.chosen is None else whole[self.chosen]


class Ids(Sequence[str]):
    """What examples are called, read one at a time."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Any) -> Any:
        return self.examples[place].id


def keep_examples(key: str, make: Callable[[Notes], Iterator[Example]]) -> Examples:
    """The examples of that key, of texts alone; where there are none, those that `make(notes)` gives, one or more.

    All of them have a cluster, or none.
    """
    return Examples(kept(key, lambda notes: _batches(make(notes), notes)))


def _batches(examples: Iterator[Example], notes: Notes) -> Batches:
    import pyarrow as pa

    number: dict[str, int] = {}
    for rows in in_batches(examples):
        columns = {"id": bytes_of([row.id for row in rows])}
        for place in range(len(rows[0].texts)):
            columns[f"text{place}"] = bytes_of([row.texts[place] for row in rows])
        columns["label"] = pa.array([row.label for row in rows], type=pa.int32())
        numbers = [NO_GROUP if row.group is None else number.setdefault(row.group, len(number)) for row in rows]
        columns["group"] = pa.array(numbers, type=pa.int32())
        columns["weight"] = _floats([row.bias_weight for row in rows])
        for place in range(len(rows[0].bias_p or ())):
            columns[f"p{place}"] = _floats([row.bias_p[place] for row in rows])
        if rows[0].cluster is not None:
            columns["cluster"] = bytes_of([str(row.cluster) for row in rows])
        columns["digest"] = pa.array(digests_of(rows), type=pa.uint64())
        columns["input"] = pa.array(inputs_of(rows), type=pa.uint64())
        notes["groups"] = list(number)
        yield pa.record_batch(columns)


def _floats(values: Sequence[float | None]) -> Any:
    import pyarrow as pa

    return pa.array(np.array([np.nan if value is None else value for value in values], dtype=np.float64))
