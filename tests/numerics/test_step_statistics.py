"""Losses with statistics of the step itself, however it is cut, against the objectives as they are written.

In plain loops, over all samples of the step together; gradients by central differences. Within a group `irm` has the
product of two different samples' slopes and `mmd` the kernel of two different samples, on average over all pairs.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_bias_covariance import objective as of_covariance
from test_group_losses import COLUMNS, DISTANCE, LABELS, Matrix, coral, cross_entropy, drawn, mean, of_groups, pgi
from torch import Tensor

from debias.losses import LearningLoss, make_loss
from debias.readouts import Said

STRENGTH, SAMPLES = 0.7, 16
CUTS = ([16], [3, 13], [5, 1, 10])
Facts = dict[str, Tensor]
P_B = [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]
BIAS = [[math.log(p) for p in P_B[(3 * i + i // 4) % 4]] for i in range(SAMPLES)]
Objective = Callable[[Matrix, Matrix, list[int], list[int]], float]


def fit(logits: Matrix, labels: list[int]) -> float:
    return mean([cross_entropy(*one) for one in zip(logits, labels, strict=True)])


def slope_of(row: list[float], label: int) -> float:
    """Of cross-entropy by a factor on the logits, at 1, by central differences."""
    ends = [cross_entropy([w * one for one in row], label) for w in (1 + 1e-4, 1 - 1e-4)]
    return (ends[0] - ends[1]) / 2e-4


def irm(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int]) -> float:
    found = []
    for group in sorted(set(groups)):
        own = [i for i, of in enumerate(groups) if of == group]
        penalty = 0.0
        if len(own) > 1:
            slopes = [slope_of(logits[i], labels[i]) for i in own]
            penalty = mean([one * other for one, other in itertools.permutations(slopes, 2)])
        found.append(fit([logits[i] for i in own], [labels[i] for i in own]) + STRENGTH * penalty)
    return mean(found)


def kernel(one: list[float], other: list[float]) -> float:
    return math.fsum(math.exp(-gamma * math.dist(one, other) ** 2 / DISTANCE) for gamma in (0.25, 0.5, 1, 2, 4))


def mmd(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int]) -> float:
    known = [rows for rows in of_groups(hidden, groups) if len(rows) > 1]
    own = [mean([kernel(*pair) for pair in itertools.permutations(rows, 2)]) for rows in known]
    pairs = [
        own[i] + own[j] - 2 * mean([kernel(a, b) for a in known[i] for b in known[j]])
        for i, j in itertools.combinations(range(len(known)), 2)
    ]
    return fit(logits, labels) + STRENGTH * mean(pairs)


def whole_coral(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int]) -> float:
    """Of groups that are more than one sample; cross-entropy is of all."""
    kept = [i for i, group in enumerate(groups) if groups.count(group) > 1]
    rest = [[one[i] for i in kept] for one in (logits, hidden, labels, groups)]
    return fit(logits, labels) + coral(*rest, STRENGTH) - fit(*rest[::2])  # type: ignore[arg-type]


def bias_covariance(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int]) -> float:
    return of_covariance(logits, BIAS, labels, STRENGTH, 0.5)


def of_predictions(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int]) -> float:
    return pgi(logits, hidden, labels, groups, STRENGTH, first=(0, 1, 2))  # as in what `begun` gives


OBJECTIVES: dict[str, tuple[dict[str, Any], Objective]] = {
    "irm": ({}, irm),
    "coral": ({}, whole_coral),
    "mmd": ({}, mmd),
    "bias_covariance": ({"tau": 0.5}, bias_covariance),
    "pgi": ({}, of_predictions),
}


def of_step(alone: bool) -> tuple[Matrix, Matrix, list[int], list[int]]:
    """Samples of three groups; of the last one there is a single sample, or there are a few."""
    logits, hidden, labels, groups = drawn(SAMPLES)
    if alone:
        rare = [i for i, group in enumerate(groups) if group == 2]
        groups = [group if i == rare[0] or group < 2 else 0 for i, group in enumerate(groups)]
    return logits, hidden, labels, groups


def said(logits: Any, hidden: Any, labels: list[int]) -> Said:
    log_p = torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1)
    own = log_p.gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
    return Said(own, own.detach(), len(labels), log_p, torch.as_tensor(hidden, dtype=torch.float64))


def facts(labels: list[int], groups: list[int], bias: Matrix = BIAS) -> Facts:
    known = {"labels": torch.tensor(labels), "group": torch.tensor(groups)}
    return known | {"bias_log_p": torch.tensor(bias, dtype=torch.float64)}


def begun(name: str) -> LearningLoss:
    """Of a training set whose groups have other shares than any step's; as after a step that left a distance."""
    known = facts([0, 1, 2, 0], [0, 1, 2, 2], BIAS[:4])
    loss = LearningLoss(make_loss({"name": name, "strength": STRENGTH, **OBJECTIVES[name][0]}), known)
    if name == "mmd":
        loss.memory_S[0] = DISTANCE
    return loss


def taken(loss: LearningLoss, leaves: list[Tensor], labels: list[int], groups: list[int], cuts: list[int]) -> Tensor:
    """The loss of each sample in a step that is gathered, settled and then taken, micro-batch by micro-batch."""
    edges = [0, *itertools.accumulate(cuts)]
    parts = [slice(*ends) for ends in itertools.pairwise(edges)]

    def of(part: slice) -> tuple[Said, Facts]:
        one = said(leaves[0][part], leaves[1][part], labels[part])
        return one, facts(labels[part], groups[part], BIAS[part])

    with torch.no_grad():
        for part in parts:
            loss.gather(*of(part))
    loss.settle(lambda sums: sums)
    found = torch.cat([loss(*of(part)) for part in parts])
    loss.step(lambda sums: sums)
    return found


@pytest.mark.parametrize("alone", [False, True], ids=["few", "one"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_those_of_the_whole_step(name: str, *, alone: bool) -> None:
    logits, hidden, labels, groups = of_step(alone)
    objective, loss = OBJECTIVES[name][1], begun(name)
    gradients = []
    for cuts in CUTS:  # with one loss: nothing of a step may stay for the next
        leaves = [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (logits, hidden)]
        value = taken(loss, leaves, labels, groups, cuts).mean()
        assert float(value.detach()) == pytest.approx(objective(logits, hidden, labels, groups), rel=1e-7), cuts
        value.backward()
        gradients.append([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    for other in gradients[1:]:
        for one, same in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-9, atol=1e-12)
    for at, width in enumerate((LABELS, COLUMNS)):
        for i, c in itertools.product((0, 4, 9, 14), range(width)):
            ends = []
            for way in (1e-5, -1e-5):
                moved = [[row[:] for row in logits], [row[:] for row in hidden]]
                moved[at][i][c] += way
                ends.append(objective(*moved, labels, groups))
            assert float(gradients[0][at][i, c]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_one_micro_batch_gathers_itself(name: str) -> None:
    logits, hidden, labels, groups = of_step(alone=False)
    leaves = [torch.tensor(one, dtype=torch.float64) for one in (logits, hidden)]
    want = taken(begun(name), leaves, labels, groups, [SAMPLES])
    loss, known = begun(name), facts(labels, groups)
    assert torch.equal(loss(said(*leaves, labels), known), want)
    assert torch.equal(loss(said(*leaves, labels), known, counts=False), want)  # a second pass of the same step
    loss.step(lambda sums: sums)
    assert torch.equal(loss(said(*leaves, labels), known, counts=False), want)  # of no step: of its own samples


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_not_in_the_statistics_is_refused(name: str) -> None:
    """A second micro-batch that nobody gathered, and samples of other ranks."""
    logits, hidden, labels, groups = of_step(alone=False)
    one, known, loss = said(logits, hidden, labels), facts(labels, groups), begun(name)
    loss(one, known)
    with pytest.raises(RuntimeError, match=rf"loss {name} takes statistics of the whole step, and this micro-batch is"):
        loss(one, known)
    loss = begun(name)
    loss(one, known)
    with pytest.raises(RuntimeError, match=rf"loss {name} takes statistics of the whole step, and took those of one"):
        loss.step(lambda sums: 2 * sums)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_that_is_not_finite_is_skipped(name: str) -> None:
    """One process and one micro-batch: what is not a number is no sign of other ranks."""
    logits, hidden, labels, groups = of_step(alone=False)
    known, loss = facts(labels, groups), begun(name)
    want = loss(said(logits, hidden, labels), known)
    loss.step(lambda sums: sums)
    loss(said(torch.tensor(logits) * math.nan, torch.tensor(hidden) * math.nan, labels), known)
    loss.step(lambda sums: sums, applied=False)
    assert torch.equal(loss(said(logits, hidden, labels), known), want)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_step_changes_what_the_next_one_says(name: str) -> None:
    """And a checkpoint holds no statistics of groups."""
    logits, hidden, labels, groups = of_step(alone=False)
    one, known, loss = said(logits, hidden, labels), facts(labels, groups), begun(name)
    begins = loss.memory_S.clone()
    other = said(torch.tensor(logits) * -3, torch.tensor(hidden) + 2, labels)
    want = loss(one, known)
    loss.step(lambda sums: sums)
    loss(other, known)
    loss.step(lambda sums: sums)
    assert torch.equal(loss(one, known), want)
    assert torch.equal(loss.memory_S, begins)
    again = begun(name)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(one, known), want)


@pytest.mark.parametrize("cuts", CUTS)
def test_mmd_takes_the_widths_of_its_first_step(cuts: list[int]) -> None:
    """From that step on; of samples that are all alike there are none, and nothing is penalised."""
    logits, hidden, labels, groups = of_step(alone=False)
    loss = LearningLoss(make_loss({"name": "mmd", "strength": 1.0}), facts(labels, groups))
    alike = [torch.tensor(logits, dtype=torch.float64), torch.ones(SAMPLES, COLUMNS, dtype=torch.float64)]
    assert float(taken(loss, alike, labels, groups, cuts).mean()) == pytest.approx(fit(logits, labels))
    assert float(loss.memory_S) == 0
    first = [alike[0], torch.tensor(hidden, dtype=torch.float64)]
    penalty = float(taken(loss, first, labels, groups, cuts).mean()) - fit(logits, labels)
    wide = math.fsum(math.dist(a, b) ** 2 for a, b in itertools.permutations(hidden, 2)) / (SAMPLES * (SAMPLES - 1))
    scaled = [[one * math.sqrt(DISTANCE / wide) for one in row] for row in hidden]
    assert penalty == pytest.approx((mmd(logits, scaled, labels, groups) - fit(logits, labels)) / STRENGTH)
    taken(loss, [first[0], 5 * first[1]], labels, groups, cuts)
    assert float(loss.memory_S) == pytest.approx(wide)


def test_mmd_has_features_of_the_steps_before_alone() -> None:
    with pytest.raises(ValueError, match=r"loss\.features is 64: they stand for kernels of the steps before.*leave"):
        make_loss({"name": "mmd", "features": 64})
    assert make_loss({"name": "mmd", "memory": 0.9}) == make_loss({"name": "mmd", "memory": 0.9, "features": 128})
