"""Grids of which each row is a test, without every combination."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any


def covering(
    factors: Mapping[str, Sequence[Any]],
    allowed: Callable[[dict[str, Any]], bool] = lambda row: True,
    apart: Collection[frozenset[str]] = (),
) -> list[dict[str, Any]]:
    """Rows in which every pair of values occurs that an allowed row can hold; greedy, and the same at each call.

    Factors that lie `apart` exercise no code together: each value of both is met, but not every pair.
    """
    names = list(factors)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())]
    every = [row for row in every if allowed(row)]
    together = [pair for pair in itertools.combinations(names, 2) if frozenset(pair) not in apart]
    pairs = [
        frozenset((first, repr(row[first]), second, repr(row[second])) for first, second in together) for row in every
    ]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(every)), key=lambda i: len(pairs[i] & missing))
        chosen.append(every[best])
        missing -= pairs[best]
    return chosen
