"""What examples are, in eight bytes each: whether a run goes on with the data that it was begun with. Shapes: N."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from debias.data.examples import Example, InColumns

Digests = NDArray[np.uint64]


def digests_of(examples: Sequence[Example]) -> Digests:
    """[N] of all that training sees of each example: texts or picture, label, group, bias weight."""
    if isinstance(examples, InColumns):
        return examples.column("digest")
    return _digests(_content(example) for example in examples)


def digests_of_rows(*arrays: NDArray[np.generic]) -> Digests:
    """[N] of the rows of arrays [N, ...], side by side."""
    return _digests(b"".join(np.ascontiguousarray(row).tobytes() for row in rows) for rows in zip(*arrays, strict=True))


def _content(example: Example) -> bytes:
    told = repr((example.texts, example.label, example.group, example.bias_weight))
    return told.encode("utf-8", "surrogateescape") + (b"" if example.image is None else example.image.tobytes())


def _digests(contents: Iterable[bytes]) -> Digests:
    joined = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)
