"""The table of methods as the tests walk it: golden rows for each form of each rule, and what is derived from them.

A new rule with its row is held to the properties, run under every engine and every way to two gradients, resumed, and
trained end to end: no other list names the rules.

With MAIN = [[2, 1], [2, 0]] (norm 3) and BIAS = [[0, 4], [3, 0]] (norm 5) the row sums are mm = (5, 4), mb = (4, 6),
bb = (16, 9), so published EDGE has s = (4/3 + 16/5, 6/3 + 9/5) = (68/15, 57/15), x = 1 + s/3 and y = s/5 - 1.

NormBalance: main - bias is [[2, -3], [-1, 0]] of norm sqrt(14) with BIAS, and [[2, 5], [5, 0]] of norm sqrt(54) with
AGAINST; the update is 3/2 of the sum of the two unit vectors.

MGDA: |MAIN - AGAINST|^2 = 54 and gamma = (25 + 10) / 54; BIAS is long and agrees with MAIN, LEAN short and does.

CAGrad: with BIAS |g_0|^2 = 54 / 4, the slope is (9 - 25) / 2 = -8, and 14 (c |g_0|)^2 is less than 64 for c = 1/2: all
of g_w is MAIN. With AGAINST |g_0|^2 = 14 / 4 and |MAIN - AGAINST|^2 = 54; for c = 9/10 the derivative is 0 at TURN.

GradVac's rows are three steps, see `history`: the cosines are -2/3, 2/3 and again -2/3, so with beta = 1/2 the target
of the third is (-1/3 + 2/3) / 2 = 1/6. With beta = 0 it is PCGrad. L2SP's third step has moved by -BIAS.

DiGraP's rows are three steps, see `history`. In the second <-MAIN, BIAS> = -10: the projection is -0.4 BIAS. In the
third its cosine with MAIN is -10 / (3 * 5): a slope of -2/3 raises omega, and <MAIN, AGAINST> = -10, so 0.4 omega
AGAINST is added to MAIN.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from debias.methods import (
    L2SP,
    METHODS,
    MGDA,
    CAGrad,
    ComponentClip,
    DiGraP,
    Edge,
    GradVac,
    Gram,
    MainOnly,
    NormBalance,
    Orthogonal,
    PCGrad,
    Rule,
    StepFacts,
    Subtract,
    Vector,
    combine,
    take_step,
)

Matrix = list[list[float]]

MAIN: Matrix = [[2.0, 1.0], [2.0, 0.0]]
BIAS: Matrix = [[0.0, 4.0], [3.0, 0.0]]
AGAINST: Matrix = [[0.0, -4.0], [-3.0, 0.0]]  # conflicts with MAIN: the inner product is -10
RATE = 0.1  # the learning rate of every step, where a rule asks for it


def projected(omega: float) -> Matrix:
    """MAIN + 0.4 omega AGAINST."""
    return [[2.0, 1 - 1.6 * omega], [2 - 1.2 * omega, 0.0]]


# Adam's step is mean / (sqrt(square) + 1e-8); with betas of 0 it is the slope over itself.
QUARTER = 0.25 * (2 / 3) / (2 / 3 + 1e-8)
# With betas of 1/2 and one step of slope 0 before: mean (1/2)(2/3)/(3/4), square (1/2)(4/9)/(3/4).
HALVES = 0.5 * (4 / 9) / (math.sqrt(8 / 27) + 1e-8)

LEAN: Matrix = [[0.0, 1.0], [1.0, 0.0]]
# CAGrad with c = 9/10 and AGAINST: 54 * 0.81 * 3.5 - 64, the distance of the line from 0, steps from the foot, w.
CURVED, APART = 54 * 0.81 * 3.5 - 64, (9 * 25 - 100) / 54
STEPS = 8 * math.sqrt(APART / (54 * CURVED))
TURN = STEPS + 35 / 54
REACH = 0.9 * math.sqrt(3.5) / math.sqrt(APART + 54 * STEPS**2)


def mixed(x: float, y: float, other: Matrix) -> Matrix:
    """x MAIN + y other."""
    return [[x * m + y * o for m, o in zip(mr, other_r, strict=True)] for mr, other_r in zip(MAIN, other, strict=True)]


# From a cosine of -2/3 to one of 1/6: (1/6)(sqrt(5)/3)(6/sqrt(35)) + 2/3 lengths of the other.
VACCINE = 1 / (3 * math.sqrt(7)) + 2 / 3

# The rule, the second gradient (or the weights' way, see `history`), the update.
GOLDEN: list[tuple[Rule, Matrix, Matrix]] = [
    (Edge(), BIAS, [[226 / 45, 481 / 225], [858 / 225, 0.0]]),
    (Edge(alpha=0.5), BIAS, [[2 + (226 / 45 - 2) / 2, 1 + (481 / 225 - 1) / 2], [2 + (858 / 225 - 2) / 2, 0.0]]),
    # Row 2 of bias is parallel to row 2 of main: nothing there is exclusive, main stays.
    (Edge(projection="row"), BIAS, [[1458 / 389, -11 / 389], [2.0, 0.0]]),
    (Edge(projection="tensor"), BIAS, [[11 / 3, -1 / 6], [13 / 6, 0.0]]),
    (NormBalance(), BIAS, [[3 / 14**0.5, 1.2 - 4.5 / 14**0.5], [0.9 - 1.5 / 14**0.5, 0.0]]),
    (NormBalance(), AGAINST, [[3 / 54**0.5, -1.2 + 7.5 / 54**0.5], [-0.9 + 7.5 / 54**0.5, 0.0]]),
    (NormBalance(), MAIN, MAIN),  # nothing is left of main: nothing to balance
    (Subtract(), BIAS, [[2.0, -3.0], [-1.0, 0.0]]),
    (Subtract(alpha=0.25), BIAS, [[2.0, 0.0], [1.25, 0.0]]),
    (Orthogonal(), BIAS, [[2.0, -0.6], [0.8, 0.0]]),
    (Orthogonal(alpha=0.5), BIAS, [[2.0, 0.2], [1.4, 0.0]]),
    (PCGrad(), BIAS, [[2.0, 5.0], [5.0, 0.0]]),
    (PCGrad(), AGAINST, [[38 / 9, 19 / 9 - 5.6], [38 / 9 - 4.2, 0.0]]),
    (PCGrad(keep="main"), BIAS, MAIN),
    (PCGrad(keep="main"), AGAINST, [[2.0, -0.6], [0.8, 0.0]]),
    (GradVac(beta=0.5), AGAINST, mixed(1 + VACCINE * 5 / 3, 1 + VACCINE * 3 / 5, AGAINST)),
    (GradVac(beta=0.0), AGAINST, [[38 / 9, 19 / 9 - 5.6], [38 / 9 - 4.2, 0.0]]),
    (GradVac(beta=0.5), BIAS, [[2.0, 5.0], [5.0, 0.0]]),  # the target is -1/6
    (MGDA(), AGAINST, [[35 / 27, -41 / 54], [13 / 54, 0.0]]),
    (MGDA(), BIAS, MAIN),
    (MGDA(), LEAN, LEAN),
    (CAGrad(), BIAS, mixed(0.5 + math.sqrt(3.375) / 3, 0.5, BIAS)),
    (CAGrad(c=0.9), AGAINST, mixed(0.5 + REACH * TURN, 0.5 + REACH * (1 - TURN), AGAINST)),
    (CAGrad(form="code"), BIAS, mixed((0.5 + math.sqrt(3.375) / 3) / 1.25, 0.4, BIAS)),
    (L2SP(alpha=0.1), BIAS, [[2.0, 0.6], [1.7, 0.0]]),
    (ComponentClip(max_norm=0.05), BIAS, mixed(0.05 / 3, 0.0, BIAS)),
    (ComponentClip(max_norm=3.5), BIAS, MAIN),
    (DiGraP(mu=0.5, beta1=0.5, beta2=0.5), BIAS, projected(HALVES)),
    (DiGraP(mu=0.25, beta1=0.0, beta2=0.0), BIAS, projected(QUARTER)),
    (DiGraP(mu=5.0, beta1=0.0, beta2=0.0), BIAS, projected(1.0)),  # clipped: the whole projection is taken out
    (DiGraP(), AGAINST, MAIN),  # omega grows, and in the third step <MAIN, BIAS> = 10: nothing leads away
    (MainOnly(), BIAS, MAIN),
]

RULES: list[Rule] = list(dict.fromkeys(rule for rule, _, _ in GOLDEN))


def _form(rule: Rule) -> tuple[Any, ...]:
    return (rule.name, *(v for v in dataclasses.asdict(rule).values() if not isinstance(v, float)))


# One rule for each form: those that differ in more than a number. The first row of a form stands for it.
FORMS: list[Rule] = [rule for i, rule in enumerate(RULES) if _form(rule) not in map(_form, RULES[:i])]
# One for each method.
EXAMPLES: list[Rule] = [next(rule for rule in RULES if rule.name == name) for name in METHODS]


def seen_by(rule: Rule) -> str:
    """All that an engine knows of a rule: what it looks at, if anything is done, remembered, or not the same by row."""
    products = len(rule.looks_at) * (len(rule.looks_at) + 1) // 2
    gram_OG = torch.arange(1.0, 2 * products + 1, dtype=torch.float64).view(2, -1)
    facts = StepFacts(1, torch.tensor(RATE, dtype=torch.float64))
    coefficients, _ = rule.advance(Gram.of(gram_OG), torch.zeros(rule.memory, dtype=torch.float64), facts)
    by_row = any(not torch.equal(x_O[0], x_O[1]) for x_O in coefficients)
    return "+".join([*rule.looks_at, *["memory"] * bool(rule.memory), *["rows"] * by_row, *["plain"] * rule.is_plain])


def settings_of(rule: Rule) -> dict[str, Any]:
    """The `method:` block that makes this rule."""
    return {"name": rule.name, **dataclasses.asdict(rule)}


def history(rule: Rule, main: Tensor, other: Tensor) -> list[list[Tensor]]:
    """What the rule looks at, step by step: of two tensors, one step; of what moved as well, or with memory, three.

    `other` is the bias gradient, or how far the weights moved: in the second step main leads away from where they
    started, in the third they are on the other side, and main leads away again where it led back before.
    """
    zero = torch.zeros_like(main)
    moves = [(main, zero, zero), (-main, other, zero), (main, -other, other)]
    steps = [
        {Vector.MAIN: now, Vector.BIAS: other, Vector.MOVED: moved, Vector.MOVED_BEFORE: before}
        for now, moved, before in moves
    ]
    looked = [[step[vector] for vector in rule.looks_at] for step in steps]
    return looked[-1:] if rule.is_stateless else looked


def last_update(rule: Rule, steps: Sequence[Sequence[Tensor]]) -> Tensor:
    """The update of one parameter in the last of these steps."""
    memory_S, update = torch.zeros(rule.memory, dtype=torch.float64), torch.empty(0)
    for number, vectors in enumerate(steps, 1):
        rate = torch.tensor(RATE, dtype=torch.float64)
        update, memory_S = take_step(rule, vectors, memory_S, StepFacts(number, rate))
    return update


def update_of(rule: Rule, main: Tensor, other: Tensor) -> Tensor:
    """The last update of `history`: for a rule that looks at two gradients that of `combine`."""
    return combine(rule, main, other) if rule.is_stateless else last_update(rule, history(rule, main, other))


def first_update(rule: Rule, main: Tensor, bias: Tensor) -> Tensor:
    """The update in the first step after the hook was attached, when nothing has moved."""
    if rule.is_stateless:
        return combine(rule, main, bias)
    known = {Vector.MAIN: main, Vector.BIAS: bias}
    return last_update(rule, [[known.get(vector, torch.zeros_like(main)) for vector in rule.looks_at]])
