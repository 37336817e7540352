"""A random subset of a suite that keeps whole clusters."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from debias.data import Example
from debias.data.tables import Examples
from debias.errors import InputError

LARGEST_WHOLE_CLUSTER = 16


def subset(
    examples: Sequence[Example], limit: int | None, seed: int, *, whole: bool = False, asked: str = "limit"
) -> Sequence[Example]:
    """At most `limit` examples in the original order, drawn at random with `seed`.

    Clusters of up to 16 examples (pairs, edits of one original) are drawn whole, so that a few places may stay empty;
    larger ones (templates) example by example, or a small subset would hold few of them, unless `whole`, as consistency
    needs. Without clusters it is a simple random sample of exactly `limit`. InputError, which names what `asked` for
    it, for a limit too small for the cluster drawn first.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected a number over 0, got {limit}")
    if limit is None or limit >= len(examples):
        return examples
    if not _clustered(examples):
        return taken(examples, np.sort(np.random.default_rng(seed).permutation(len(examples))[:limit]))
    units = _drawn_together(examples, len(examples) if whole else LARGEST_WHOLE_CLUSTER)
    kept: list[int] = []
    for chosen in np.random.default_rng(seed).permutation(len(units)):
        if len(kept) + len(units[chosen]) > limit:
            break
        kept += units[chosen]
    if not kept:
        raise InputError(
            f"{asked}: {limit} is too few: clusters are drawn whole, and hold up to {max(map(len, units))}"
        )
    return taken(examples, np.array(sorted(kept)))


def taken(examples: Sequence[Example], places_K: NDArray[np.int64]) -> Sequence[Example]:
    """The examples at these places."""
    return examples.take(places_K) if isinstance(examples, Examples) else [examples[place] for place in places_K]


def _clustered(examples: Sequence[Example]) -> bool:
    if isinstance(examples, Examples):
        return examples.clustered
    return any(example.cluster is not None for example in examples)


def _drawn_together(examples: Sequence[Example], largest: int) -> list[list[int]]:
    members: dict[str | int, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(index if example.cluster is None else example.cluster, []).append(index)
    units: list[list[int]] = []
    for cluster in members.values():
        units += [cluster] if len(cluster) <= largest else [[index] for index in cluster]
    return units
