"""Which results of one suite are alike, so that they may be averaged: of the same rows, scored in the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

from debias_eval.results.files import Result

# What was chosen of how answers become labels, and what it is where nobody chose.
SCORING = {"by": "debias", "normalize": "none", "calibrate": "none"}


def scoring(judge: Any) -> dict[str, str]:
    """What a result's `judge` says of that; where it says nothing, as of a head of its own, the default."""
    told = judge if isinstance(judge, Mapping) else {}
    return {key: str(told.get(key) or usual) for key, usual in SCORING.items()}


def alike(results: Sequence[Result]) -> list[list[int]]:
    """The places of results that may be averaged with one another, the largest such set first, of equal ones the one
    that begins first.
    """
    sets: list[list[int]] = []
    for place, result in enumerate(results):
        home = next((one for one in sets if why_none_of(result, [results[i] for i in one]) is None), None)
        if home is None:
            sets.append([place])
        else:
            home.append(place)
    return sorted(sets, key=len, reverse=True)


def why_none_of(result: Result, others: Sequence[Result]) -> str | None:
    """`why_apart`, from the first of the others that it is apart from."""
    return next(filter(None, (why_apart(result, other) for other in others)), None)


def why_apart(result: Result, other: Result) -> str | None:
    """What keeps a result from being averaged with another one of its suite, in words about the first; None where
    nothing is known to.

    Rows that each run leaves out because they are its own training data are no reason: all seeds do so.
    """
    found = []
    if result.version != other.version:
        found.append(f"judged under version {result.version} of it")
    if _other_rows(result, other):
        found.append(f"judged on other examples ({_rows_text(result)})")
    elif _other_gold(result, other):
        found.append("judged by other labels, groups or clusters")
    mine, theirs = scoring(result.judge), scoring(other.judge)
    if changed := [f"{key} {value}" for key, value in mine.items() if value != theirs[key]]:
        found.append(f"scored in another way ({', '.join(changed)})")
    return " and ".join(found) or None


def _other_rows(result: Result, other: Result) -> bool:
    digests = (result.examples_sha256, other.examples_sha256)
    if None in digests or (_leaves_out(result) and _leaves_out(other)):
        return _draw(result) != _draw(other)
    return digests[0] != digests[1]


def _other_gold(result: Result, other: Result) -> bool:
    golds = (result.gold_sha256, other.gold_sha256)
    return None not in golds and golds[0] != golds[1] and not _leaves_out(result)


def _draw(result: Result) -> tuple[int | None, int]:
    if result.limit is None or (result.available is not None and result.limit >= result.available):
        return None, 0  # of all rows
    return result.limit, result.limit_seed or 0


def _leaves_out(result: Result) -> bool:
    return result.overlap is not None and result.overlap.excluded


def _rows_text(result: Result) -> str:
    counted = f"{result.n:,} of {result.available:,}" if result.limited else f"{result.n:,}"
    seed = "" if result.limit is None else f", drawn with seed {result.limit_seed or 0}"
    without = ", without rows it was trained on" if _leaves_out(result) else ""
    return f"{counted}{seed}{without}"
