"""What every rule is: a function of the row Gram, and of the little it remembers. Shapes: O rows, I columns.

A rule says which vectors of a parameter it `looks_at`, main first. For row r the Gram holds their inner products, the
upper triangle row by row: for (main, bias) `mm = <main_r, main_r>`, `mb = <main_r, bias_r>`, `bb = <bias_r, bias_r>`.
The update is a sum of these vectors with one coefficient a row each. A row's coefficients are a function of its own
products and of their sums over all rows, so nothing has to be gathered when they are sharded. G inner products, S
numbers that a tensor keeps between steps.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# The square of the share of the longest vector below which another one counts as none, 2^-122 (2e-37). A coefficient
# is a quotient of two lengths, or a few of them, and float32, in which it is multiplied, ends at 2^128.
NOTHING = 2.0**-244
# A direction whose squared length is below this share of its parts is cancellation noise of the float64 sums, not a
# direction: float64 rounding leaves about 1e-16, float32 inputs that cancel exactly leave less.
CANCELLED = 1e-12


class Vector(StrEnum):
    """What a rule can look at, each of the parameter's shape.

    `MAIN` and `BIAS` are gradients of means over the whole batch. `MOVED` is how far the weights are from where they
    were when the hook was attached, theta - theta_0, and `MOVED_BEFORE` the same at the step before (0 in the first).
    Every rank knows its part of the last two: they are never summed over ranks nor divided by a count.
    """

    MAIN = "main"
    BIAS = "bias"
    MOVED = "moved"
    MOVED_BEFORE = "moved_before"


GRADIENTS = frozenset({Vector.MAIN, Vector.BIAS})


@dataclass(frozen=True)
class StepFacts:
    """What a rule with memory is told of the step it takes part in.

    `number`: 1 in the first step; steps that were skipped, being not finite, do not count. `learning_rate`: float64, of
    this step, one value for each tensor (a tensor of the Gram's leading dimensions; a scalar for a single tensor); 0
    for a rule that does not read it.
    """

    number: int
    learning_rate: Tensor


@dataclass(frozen=True)
class Gram:
    """What a rule is told of a parameter; leading dimensions are parameters of one shape, each by itself.

    `rows_OG` [..., O, G] float64: of the rows that get their coefficients, all of the parameter's or some (or none).
    `whole_1G` [..., 1, G]: the sums over all its rows, `count` of them.
    """

    rows_OG: Tensor
    whole_1G: Tensor
    count: int

    @classmethod
    def of(cls, rows_OG: Tensor) -> "Gram":
        """Of all rows."""
        return cls(rows_OG, rows_OG.sum(dim=-2, keepdim=True), rows_OG.shape[-2])


@dataclass(frozen=True)
class Rule:
    """How gradients become one update. Subclasses are frozen dataclasses whose fields are the hyper-parameters.

    `looks_at` begins with MAIN. `memory`: how many float64 numbers each tensor keeps between steps, 0 at first. A rule
    without memory defines `coefficients`, one with it `advance`. `reads_rate`: whether that reads the step's learning
    rate; one that does not trains with an optimizer that has none. `is_plain`: true of the rule whose update is main
    itself, so that nothing is combined.
    """

    name: ClassVar[str]
    looks_at: ClassVar[tuple[Vector, ...]] = (Vector.MAIN, Vector.BIAS)
    memory: ClassVar[int] = 0
    reads_rate: ClassVar[bool] = True
    is_plain: ClassVar[bool] = False

    def coefficients(self, gram: Gram) -> tuple[Tensor, ...]:
        """Float64 [O] for each vector of `looks_at`, from one parameter's Gram of them: `x * main + y * bias`.

        Leading dimensions are parameters of one shape, each by itself: rows [K, O, G] give [K, O].
        A zero norm drops its term, so the result is finite for every finite Gram; a non-finite Gram gives a
        non-finite result (it must reach the overflow check, not be masked).
        """
        raise NotImplementedError

    def advance(self, gram: Gram, memory_S: Tensor, step: StepFacts) -> tuple[tuple[Tensor, ...], Tensor]:
        """`(coefficients, memory after the step)`, for a rule with memory; pure, of the Gram's leading dimensions.

        The memory is a function of the sums over all rows alone, so it is the same on all ranks. What comes out of a
        step whose update is not finite is dropped: the step is skipped, and the memory stays.
        """
        return self.coefficients(gram), memory_S

    @property
    def uses_bias(self) -> bool:
        """False for a rule that never looks at the bias gradient, so that it need not be computed."""
        return Vector.BIAS in self.looks_at

    @property
    def combines(self) -> tuple[Vector, ...]:
        """The vectors that the update is a sum of; none where it is main itself."""
        return () if self.is_plain else self.looks_at

    @property
    def is_stateless(self) -> bool:
        """True for a rule that needs nothing of the steps before."""
        return self.memory == 0 and GRADIENTS.issuperset(self.looks_at)


def pairs_of(vectors: int) -> list[tuple[int, int]]:
    """The inner products of so many vectors in the order of a Gram's columns: the upper triangle, row by row."""
    return list(itertools.combinations_with_replacement(range(vectors), 2))


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator` (broadcast), 0 where the denominator is exactly 0; NaN and inf pass through."""
    zero = denominator == 0
    if denominator.numel() < numerator.numel():  # one pass over the larger one: what is divided by infinity is 0
        return numerator / denominator.masked_fill(zero, math.inf)
    return (numerator / denominator.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def seen(gram: Gram) -> Gram:
    """The Gram in which a vector that is far too short beside another one counts as zero.

    Bias weights of 1e-40 leave such a bias gradient. Its products, in float64, are fine numbers, and so is what a rule
    would multiply it by; float32 cannot hold that, and the step would be skipped as one that is not finite.
    """
    vectors = _vectors_of(gram.whole_1G.shape[-1])
    at = {pair: place for place, pair in enumerate(pairs_of(vectors))}
    squared_1V = torch.stack([gram.whole_1G[..., at[i, i]] for i in range(vectors)], dim=-1)
    longest_1 = squared_1V.amax(dim=-1, keepdim=True)
    # What is not finite must be seen, not masked.
    none_1V = (squared_1V < NOTHING * longest_1) & torch.isfinite(longest_1) & (squared_1V > 0)
    if none_1V.device.type == "cpu" and not none_1V.any():  # elsewhere to ask is to wait
        return gram
    none_1G = torch.stack([none_1V[..., i] | none_1V[..., j] for i, j in at], dim=-1)
    return Gram(gram.rows_OG.masked_fill(none_1G, 0.0), gram.whole_1G.masked_fill(none_1G, 0.0), gram.count)


def _vectors_of(products: int) -> int:
    """How many vectors have so many inner products."""
    return (math.isqrt(8 * products + 1) - 1) // 2


def totals(gram: Gram) -> Sequence[Tensor]:
    """The whole tensor's inner products (mm, mb, bb of two), each [..., 1] float64: they broadcast against rows."""
    return gram.whole_1G.unbind(dim=-1)


def each_row(gram: Gram, value: Tensor | float) -> Tensor:
    """`value` (a number, or [..., 1]) for each row, [..., O] float64."""
    rows_OG = gram.rows_OG
    return torch.as_tensor(value, dtype=rows_OG.dtype, device=rows_OG.device).expand(rows_OG.shape[:-1])
