"""Columns of a kept table, read where they lie: nothing is copied before a row is asked for. Shapes: N rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from debias.data.store import ROWS

Array = NDArray[Any]


class Column:
    """Numbers, one a row."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._parts = [array.to_numpy(zero_copy_only=True) for array in arrays]

    def __getitem__(self, row: int) -> Any:
        return self._parts[row // ROWS][row % ROWS].item()

    def whole(self) -> Array:
        """All of them, [N]."""
        return np.concatenate(self._parts)


class Ragged:
    """Rows of different length: numbers of `kind`, or the bytes of a text."""

    def __init__(self, arrays: Sequence[Any], kind: Any) -> None:
        offsets = np.int64 if kind is np.bytes_ else np.int32
        self._parts = [_parts(array, offsets, np.uint8 if kind is np.bytes_ else kind) for array in arrays]

    def __getitem__(self, row: int) -> Array:
        offsets, values = self._parts[row // ROWS]
        place = row % ROWS
        return values[offsets[place] : offsets[place + 1]]

    def text(self, row: int) -> str:
        """A row of bytes as the text that it is."""
        return str(self[row].data, "utf-8", "surrogatepass")

    def lengths(self) -> NDArray[np.int32]:
        """How long each row is, [N]."""
        return np.concatenate([np.diff(offsets).astype(np.int32) for offsets, _ in self._parts])


def _parts(array: Any, offsets: Any, kind: Any) -> tuple[Array, Array]:
    buffers = [buffer for buffer in array.buffers()[1:] if buffer is not None]
    values = np.frombuffer(buffers[1], dtype=kind) if len(buffers) > 1 and len(buffers[1]) else np.empty(0, dtype=kind)
    return np.frombuffer(buffers[0], dtype=offsets)[array.offset : array.offset + len(array) + 1], values


def bytes_of(texts: Sequence[str]) -> Any:
    """A pyarrow array of texts; half of a character too, which an id may hold."""
    import pyarrow as pa

    return pa.array([text.encode("utf-8", "surrogatepass") for text in texts], type=pa.large_binary())


def in_batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    """Lists of ROWS rows, the last shorter."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
