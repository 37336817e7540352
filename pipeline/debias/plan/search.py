"""The largest micro-batch that fits, found with few looks."""

import bisect
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

LARGEST_MICRO_BATCH = 4096  # micro-batches above are not looked for


def largest_that_fits(total: Callable[[int], int], limit: int, first: int = 2) -> int:
    """The largest micro-batch, up to LARGEST_MICRO_BATCH, whose total is within the limit; 0 if none.

    `total` grows with the micro-batch.

    Looks are dear (each takes a step on tensors without memory). Memory is linear in the micro-batch, with a square
    where there is a mask over packed rows, so the curve through what is known says where to look next. `first`: another
    size that will be looked at anyway.
    """
    known = {1: total(1)}
    if known[1] > limit:
        return 0
    low, high = 1, LARGEST_MICRO_BATCH + 1  # low fits, high does not or is out of range
    guess = max(2, first)
    while high - low > 1:
        width = high - low
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = total(guess)
        low, high = (guess, high) if known[guess] <= limit else (low, guess)
        # A curve that leads nowhere must not cost a look for each size.
        stuck = len(known) > 3 and 2 * (high - low) > width
        guess = (low + high) // 2 if stuck else _last_below(known, limit, low, high)
    return low


def _last_below(known: Mapping[int, int], limit: int, low: int, high: int) -> int:
    """The last size before `high` at which the curve through three known sizes is within the limit; `low` if none."""
    near = sorted(known, key=lambda size: abs(known[size] - limit))[:3]

    def curve(size: int) -> Fraction | int:
        """Lagrange's polynomial, exact: rounding would make a flat curve cross the limit anywhere."""
        terms = (
            known[one] * math.prod(Fraction(size - other, one - other) for other in near if other != one)
            for one in near
        )
        return sum(terms, Fraction())

    return low + bisect.bisect_left(range(low + 1, high), True, key=lambda size: curve(size) > limit)
