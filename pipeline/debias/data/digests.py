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


def inputs_of(examples: Sequence[Example]) -> Digests:
    """[N] of what a model reads of each example alone: the same for the same picture, and for texts that differ in
    spaces and capitals alone, whatever their label.
    """
    if isinstance(examples, InColumns):
        return examples.column("input")
    return _digests(_input(example) for example in examples)


def are_among(asked: Digests, known: Digests) -> NDArray[np.bool_]:
    """[M]: which of the `asked` [M] are among the `known` [N]; of these, which may be many, nothing is sorted."""
    if not len(asked):
        return np.zeros(0, dtype=np.bool_)
    each_U, of_M = np.unique(asked, return_inverse=True)
    place_N = np.minimum(np.searchsorted(each_U, known), len(each_U) - 1)
    found_U = np.zeros(len(each_U), dtype=np.bool_)
    found_U[place_N[each_U[place_N] == known]] = True
    return found_U[of_M]


def digests_of_rows(*arrays: NDArray[np.generic]) -> Digests:
    """[N] of the rows of arrays [N, ...], side by side."""
    return _digests(b"".join(np.ascontiguousarray(row).tobytes() for row in rows) for rows in zip(*arrays, strict=True))


def _content(example: Example) -> bytes:
    told = repr((example.texts, example.label, example.group, example.bias_weight))
    return told.encode("utf-8", "surrogateescape") + (b"" if example.image is None else example.image.tobytes())


def _input(example: Example) -> bytes:
    told = repr([" ".join(text.split()).casefold() for text in example.texts])
    return told.encode("utf-8", "surrogateescape") + (b"" if example.image is None else example.image.tobytes())


def _digests(contents: Iterable[bytes]) -> Digests:
    joined = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)
