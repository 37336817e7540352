"""The tokens of examples, tokenized once and kept. Shapes: N examples."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from debias.data.columns import Ragged, in_batches
from debias.data.store import Notes, Table, kept

Feature = dict[str, Any]
# What is not an int32 in the file: a mask, and which of two texts a token is of.
KINDS: dict[str, Any] = {"answer_mask": np.bool_, "token_type_ids": np.int8}


class Tokens(Sequence[Feature]):
    """Of each example its lists of tokens (`input_ids`, `answer_mask`, ...), made when they are asked for."""

    def __init__(self, table: Table) -> None:
        names = table.batches[0].schema.names
        self._table = table
        self._size = sum(map(len, table.batches))
        self._columns = {
            name: Ragged([batch.column(name) for batch in table.batches], KINDS.get(name, np.int32)) for name in names
        }

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self._size))]
        if not -self._size <= place < self._size:
            raise IndexError(place)
        return {name: column[place % self._size].tolist() for name, column in self._columns.items()}

    def __iter__(self) -> Iterator[Feature]:
        return self._table.from_end_to_end(self)

    def lengths(self) -> NDArray[np.int32]:
        """The tokens of each example, [N]."""
        found = self._columns["input_ids"].lengths()
        self._table.let_go()
        return found


def lengths_of(features: Sequence[Feature]) -> Sequence[int] | NDArray[np.int32]:
    """The tokens of each example, [N]; none of a picture."""
    if isinstance(features, Tokens):
        return features.lengths()
    return [len(feature.get("input_ids", ())) for feature in features]


def keep_tokens(key: str, make: Callable[[Notes], Iterator[Feature]]) -> tuple[Tokens, Notes]:
    """The tokens of that key, and what was noted of them; where there are none, those that `make(notes)` gives."""
    table = kept(key, lambda notes: map(_batch, in_batches(make(notes))))
    return Tokens(table), table.notes


def _batch(rows: list[Feature]) -> Any:
    import pyarrow as pa

    def column(name: str) -> Any:
        offsets = np.cumsum([0, *(len(row[name]) for row in rows)], dtype=np.int32)
        kind = KINDS.get(name, np.int32)
        values = np.fromiter((token for row in rows for token in row[name]), dtype=kind, count=int(offsets[-1]))
        return pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(values.view(np.int8) if kind is np.bool_ else values)
        )

    return pa.record_batch({name: column(name) for name in rows[0]})


def tokenizer_digest(tokenizer: Any) -> str | None:
    """A digest of all that says which tokens a text has; None where nobody can say it: a tokenizer with code of its
    own, or one that is not a fast one.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    import tokenizers
    import transformers

    inner.no_truncation()  # which the next call sets as it needs it
    inner.no_padding()
    kinds = (type(tokenizer).__qualname__, tokenizer.model_input_names, tokenizer.truncation_side)
    told = (*kinds, getattr(tokenizer, "split_special_tokens", False), tokenizer.chat_template)
    versions = (transformers.__version__, tokenizers.__version__)
    return hashlib.sha256(repr((told, versions, inner.to_str())).encode("utf-8", "surrogateescape")).hexdigest()
