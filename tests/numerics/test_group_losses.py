"""Losses that hold groups together (irm, coral, mmd, pgi) by the steps before, against their objectives in plain loops.

Of a step of all samples and then the same samples, `memory` 0: the value is the objective's, and the gradient that of
the objective as it is written, of all samples together, by central differences.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from debias.losses import LearningLoss, make_loss, mmd_step
from debias.losses import coral as coral_loss
from debias.losses.mmd import GAMMAS, directions, phases
from debias.readouts import DONE, Said

LABELS, COLUMNS = 3, 4
Matrix = list[list[float]]
Objective = Callable[..., float]


def drawn(count: int, seed: int = 0) -> tuple[Matrix, Matrix, list[int], list[int]]:
    """Logits, hidden states, labels and groups; of three groups one is rare."""
    generator = torch.Generator().manual_seed(seed)
    logits, hidden = (1.5 * torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (LABELS, COLUMNS))
    groups = [(0, 1, 0, 1, 2)[i % 5] for i in range(count)]
    hidden += torch.tensor(groups, dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, 0.0, -0.5, 0.2])
    return logits.tolist(), hidden.tolist(), [(3 * i + i // 4) % 3 for i in range(count)], groups


def said(logits: Any, hidden: Any, labels: list[int]) -> Said:
    log_p = torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1)
    own = log_p.gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
    return Said(own, own.detach(), len(labels), log_p, torch.as_tensor(hidden, dtype=torch.float64))


def facts(labels: list[int], groups: list[int]) -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(labels), "group": torch.tensor(groups)}


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(math.fsum(math.exp(one) for one in logits)) - logits[label]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def of_groups(rows: Matrix, groups: list[int]) -> list[Matrix]:
    return [[row for row, of in zip(rows, groups, strict=True) if of == group] for group in sorted(set(groups))]


def slope(rows: Matrix, labels: list[int]) -> float:
    """Of the mean cross-entropy by a factor on all logits, at 1, by central differences."""
    ends = [
        mean([cross_entropy([w * one for one in row], y) for row, y in zip(rows, labels, strict=True)])
        for w in (1 + 1e-5, 1 - 1e-5)
    ]
    return (ends[0] - ends[1]) / 2e-5


def irm(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int], strength: float) -> float:
    found = []
    for group in sorted(set(groups)):
        own = [i for i, of in enumerate(groups) if of == group]
        rows, right = [logits[i] for i in own], [labels[i] for i in own]
        fit = mean([cross_entropy(row, y) for row, y in zip(rows, right, strict=True)])
        found.append(fit + strength * slope(rows, right) ** 2)
    return mean(found)


def coral(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int], strength: float) -> float:
    known = []
    for rows in of_groups(hidden, groups):
        m = [mean([row[a] for row in rows]) for a in range(COLUMNS)]
        cov = [
            math.fsum((row[a] - m[a]) * (row[b] - m[b]) for row in rows) / (len(rows) - 1)
            for a in range(COLUMNS)
            for b in range(COLUMNS)
        ]
        known.append((m, cov))
    pairs = [
        mean([(x - y) ** 2 for x, y in zip(left[0], right[0], strict=True)])
        + mean([(x - y) ** 2 for x, y in zip(left[1], right[1], strict=True)])
        for i, left in enumerate(known)
        for right in known[:i]
    ]
    return mean([cross_entropy(*one) for one in zip(logits, labels, strict=True)]) + strength * mean(pairs)


def mmd(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int], strength: float) -> float:
    """With FEW features of each kernel, one cosine at a time; the distance is that of the first step, held as known."""
    w, b = directions(COLUMNS, FEW, CPU, torch.float64).tolist(), phases(FEW, CPU, torch.float64).tolist()
    wide = [math.sqrt(2 * gamma / DISTANCE) for gamma in GAMMAS for _ in range(FEW)]
    means = [
        [
            mean([math.cos(math.fsum(row[a] * w[a][d] * wide[d] for a in range(COLUMNS)) + b[d]) for row in rows])
            for d in range(len(b))
        ]
        for rows in of_groups(hidden, groups)
    ]
    pairs = [
        2 / FEW * math.fsum((x - y) ** 2 for x, y in zip(left, right, strict=True))
        for i, left in enumerate(means)
        for right in means[:i]
    ]
    return mean([cross_entropy(*one) for one in zip(logits, labels, strict=True)]) + strength * mean(pairs)


def pgi(logits: Matrix, hidden: Matrix, labels: list[int], groups: list[int], strength: float,
        first: Sequence[int] = (0, 0, 1)) -> float:  # fmt: skip
    """`first`: of each label the most frequent group in the training data, by default of 15 samples that are drawn."""
    p = [[math.exp(one) / math.fsum(map(math.exp, row)) for one in row] for row in logits]
    fits = [[cross_entropy(*one)] for one in zip(logits, labels, strict=True)]
    penalties = []
    for label, most in enumerate(first):
        own = [i for i, of in enumerate(labels) if of == label]
        means = {g: [mean([p[i][c] for i in own if groups[i] == g]) for c in range(LABELS)]
                 for g in {groups[i] for i in own}}  # fmt: skip
        found = [math.fsum(a * math.log(a / b) for a, b in zip(means[g], means[most], strict=True))
                 for g in means if g != most and most in means]  # fmt: skip
        penalties.append(mean(found) if found else 0.0)
    return mean([mean([one for [one] in rows]) for rows in of_groups(fits, groups)]) + strength * mean(penalties)


FEW, DISTANCE, CPU = 3, 7.0, torch.device("cpu")
OBJECTIVES: dict[str, tuple[dict[str, Any], Objective]] = {"irm": ({}, irm), "coral": ({}, coral),
                                                           "mmd": ({"features": FEW}, mmd),
                                                           "pgi": ({}, pgi)}  # fmt: skip


def begun(name: str, known: dict[str, torch.Tensor], **settings: Any) -> LearningLoss:
    """As after a first step that left a distance, where the loss makes one."""
    block = {"name": name, "memory": 0.9, **OBJECTIVES[name][0], **settings}
    loss = LearningLoss(make_loss(block), known)
    if name == "mmd":
        loss.memory_S[:, -1] = DISTANCE
    return loss


@pytest.mark.parametrize("strength", [0.3, 2.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_the_objective_s_where_nothing_has_changed(name: str, strength: float) -> None:
    logits, hidden, labels, groups = drawn(15)
    known, objective = facts(labels, groups), OBJECTIVES[name][1]
    loss = begun(name, known, strength=strength, memory=0.0)
    loss(said(logits, hidden, labels), known)
    loss.step(lambda sums: sums)
    leaves = [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (logits, hidden)]
    value = loss(said(*leaves, labels), known).mean()
    assert float(value.detach()) == pytest.approx(objective(logits, hidden, labels, groups, strength), rel=1e-9)
    value.backward()
    for at, (leaf, width) in enumerate(zip(leaves, (LABELS, COLUMNS), strict=True)):
        if at and name in ("irm", "pgi"):
            assert leaf.grad is None
            continue
        assert leaf.grad is not None
        for i in (0, 4, 9, 13):
            for c in range(width):
                ends = []
                for way in (1e-5, -1e-5):
                    moved = [[row[:] for row in logits], [row[:] for row in hidden]]
                    moved[at][i][c] += way
                    ends.append(objective(*moved, labels, groups, strength))
                assert float(leaf.grad[i, c]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=2e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_known_fades_however_a_step_is_cut(name: str) -> None:
    """Three steps that fade by a half are one step in which samples of later steps occur two and four times.

    But for `coral`, to which a sample that weighs twice is no two samples: what the squares of weights are is told.
    """
    found = {}
    for cuts in ([5], [1, 4], [1] * 5):
        loss = begun(name, facts(*drawn(15)[2:]), memory=0.5)
        for step in range(3):
            logits, hidden, labels, groups = drawn(5, step)
            start = 0
            for size in cuts:
                part = slice(start, start + size)
                loss(said(logits[part], hidden[part], labels[part]), facts(labels[part], groups[part]))
                start += size
            loss.step(lambda sums: sums)
        found[len(cuts)] = loss.memory_S
    once = begun(name, facts(*drawn(15)[2:]), memory=0.0)
    for step, times in enumerate((1, 2, 4)):
        logits, hidden, labels, groups = drawn(5, step)
        for _ in range(times):
            once(said(logits, hidden, labels), facts(labels, groups))
    once.step(lambda sums: sums)
    if name == "coral":
        weights = [(group, times) for step, times in enumerate((1, 2, 4)) for group in drawn(5, step)[3]]
        once.memory_S[:, -1] = torch.tensor([math.fsum(w**2 for own, w in weights if own == g) for g in range(3)])
    logits, hidden, labels, groups = drawn(7, 9)
    want = once(said(logits, hidden, labels), facts(labels, groups), counts=False)
    for memory in found.values():
        torch.testing.assert_close(memory, found[1], rtol=1e-12, atol=1e-12)
        once.memory_S = memory
        got = once(said(logits, hidden, labels), facts(labels, groups), counts=False)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_group_that_was_not_seen_yet_is_no_fault(name: str) -> None:
    """Nor one of which nothing is left, nor a step in which there is one group alone."""
    logits, hidden, labels, groups = drawn(10)
    loss = begun(name, facts(labels, groups), memory=0.0)
    for shown in ([0] * 10, [0, 1] * 5, groups):
        loss_B = loss(said(logits, hidden, labels), facts(labels, shown))
        assert loss_B.isfinite().all()
        loss.step(lambda sums: sums)
    plain = [cross_entropy(*one) for one in zip(logits, labels, strict=True)]
    if name not in ("irm", "pgi"):  # to which groups count alike
        alone = begun(name, facts(labels, groups), memory=0.0)
        alone(said(logits, hidden, labels), facts(labels, [1] * 10))
        alone.step(lambda sums: sums)
        assert alone(said(logits, hidden, labels), facts(labels, groups)).tolist() == pytest.approx(plain)


def weighed(rows: Matrix, weights: list[float]) -> tuple[list[float], list[float], float]:
    """Mean and covariance of rows that weigh unlike, without bias, and how many rows they are worth; in plain loops."""
    whole = math.fsum(weights)
    m = [math.fsum(w * row[a] for w, row in zip(weights, rows, strict=True)) / whole for a in range(COLUMNS)]
    free = whole - math.fsum(w * w for w in weights) / whole
    cov = [
        math.fsum(w * (row[a] - m[a]) * (row[b] - m[b]) for w, row in zip(weights, rows, strict=True)) / free
        if free > 1e-9
        else 0.0
        for a in range(COLUMNS)
        for b in range(COLUMNS)
    ]
    return m, cov, whole**2 / math.fsum(w * w for w in weights)


def test_covariances_of_the_steps_before_are_without_bias() -> None:
    """Of weights that fade by 0.8; a group that is worth less than two samples is left out."""
    fade, strength = 0.8, 0.7
    known = facts([0, 1, 2, 0, 1], [0, 1, 2, 0, 0])
    share = [3 / 5, 1 / 5, 1 / 5]
    loss = LearningLoss(make_loss({"name": "coral", "strength": strength, "memory": fade}), known)
    seen: list[tuple[list[float], int, float]] = []
    left_out = []
    for step, groups in enumerate(
        ([0, 0, 0, 1, 2], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 2], [0, 0, 1, 1, 0])
    ):
        logits, hidden, labels, _ = drawn(5, step)
        value = loss(said(logits, hidden, labels), facts(labels, groups)).mean()
        told = {g: weighed([r for r, own, _ in seen if own == g], [w for _, own, w in seen if own == g])
                for g in {own for _, own, _ in seen}}  # fmt: skip
        kept = {g: (m, c) for g, (m, c, worth) in told.items() if worth >= 2 - 1e-9}
        left_out.append(set(told) - set(kept))
        pairs = [(a, b) for a in kept for b in kept if a < b]

        def apart(at: int, known: dict[int, Any] = kept, pairs: list[Any] = pairs) -> float:
            squares = [(x - y) ** 2 for a, b in pairs for x, y in zip(known[a][at], known[b][at], strict=True)]
            return math.fsum(squares) / len(pairs) / len(known[0][at]) if pairs else 0.0

        want = mean([cross_entropy(*one) for one in zip(logits, labels, strict=True)])
        want += strength * (apart(0) + apart(1))
        for g in kept if pairs else ():  # the tangent: what the step's own samples say beside those before
            m, c = kept[g]
            free = told[g][2] / (told[g][2] - 1)
            for row in (row for row, own in zip(hidden, groups, strict=True) if own == g):
                slope = 0.0
                for other in (kept[h] for pair in pairs if g in pair for h in pair if h != g):
                    slope += math.fsum(2 * (m[a] - other[0][a]) * (row[a] - m[a]) for a in range(COLUMNS)) / COLUMNS
                    slope += math.fsum(
                        2 * (c[a * COLUMNS + b] - other[1][a * COLUMNS + b])
                        * (free * (row[a] - m[a]) * (row[b] - m[b]) - c[a * COLUMNS + b])
                        for a in range(COLUMNS) for b in range(COLUMNS)
                    ) / COLUMNS**2  # fmt: skip
                want += strength * slope / len(pairs) / share[g] / len(groups)
        assert float(value) == pytest.approx(want, rel=1e-9)
        loss.step(lambda sums: sums)
        seen = [(row, own, fade * w) for row, own, w in seen] + [
            (r, g, 1.0) for r, g in zip(hidden, groups, strict=True)
        ]
    assert left_out == [set(), {1, 2}, {2}, {2}, {2}]  # of the third two samples, three steps apart


def test_covariances_are_over_one_less_than_there_are() -> None:
    """On average that of the distribution, however few: two of each group, in all pairs of eight rows; a step."""
    _, hidden, _, _ = drawn(8)
    whole = weighed(hidden, [1.0] * 8)[1]
    found = []
    for i, j in itertools.combinations(range(8), 2):
        loss = make_loss("coral")
        one = said([[0.0] * LABELS] * 2, [hidden[i], hidden[j]], [0, 0])
        step = loss.of_step(loss.sums(one, facts([0, 0], [0, 0]), torch.zeros(1, 1)), torch.zeros(1, 1))
        found.append(coral_loss._known(step, COLUMNS)[1].flatten().tolist())
    assert [mean(column) for column in zip(*found, strict=True)] == pytest.approx(whole)


def clouds() -> list[Matrix]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(12, COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2))
    return [x.tolist(), (y + 0.5).tolist()]


def test_random_features_are_the_kernels() -> None:
    """The penalty against the exact mean of kernels over all pairs, widths of the first step: within 3 %."""
    many, (x, y) = 4000, clouds()
    both, labels, groups = [*x, *y], [0, 1] * 12, [0] * 12 + [1] * 12
    known = facts(labels, groups)
    loss = LearningLoss(make_loss({"name": "mmd", "strength": 1.0, "features": many, "memory": 0.0}), known)
    for _ in range(2):
        loss(said([[0.0] * 3] * 24, both, labels), known)
        loss.step(lambda sums: sums)
    penalty = float(loss(said([[0.0] * 3] * 24, both, labels), known).mean()) - math.log(3)
    wide = math.fsum(math.dist(a, b) ** 2 for a in both for b in both) / (24 * 23)

    def kernel(left: Matrix, right: Matrix) -> float:
        return mean([
            math.fsum(math.exp(-g * math.dist(a, b) ** 2 / wide) for g in GAMMAS) for a in left for b in right
        ])  # fmt: skip

    assert float(loss.memory_S[0, -1]) == pytest.approx(wide, rel=0.03)
    assert penalty == pytest.approx(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), rel=0.03)


@pytest.mark.parametrize("cuts", [[24], [5, 19]])
def test_the_first_step_says_how_far_samples_lie_apart(cuts: list[int]) -> None:
    """However it is cut; where all samples are alike nothing is known, and the next step says it."""
    x, y = clouds()
    labels, groups = [0, 1] * 12, [0] * 12 + [1] * 12
    loss = LearningLoss(make_loss({"name": "mmd", "features": 400, "memory": 0.9}), facts(labels, groups))
    for both in ([[1.0] * COLUMNS] * 24, [*x, *y]):
        assert float(loss.memory_S[0, -1]) == 0
        start = 0
        for size in cuts:
            part = slice(start, start + size)
            got = loss(said([[0.0] * 3] * size, both[part], labels[part]), facts(labels[part], groups[part]))
            assert got.tolist() == pytest.approx([math.log(3)] * size)
            start += size
        loss.step(lambda sums: sums)
    wide = math.fsum(math.dist(a, b) ** 2 for a in both for b in both) / (24 * 23)
    assert float(loss.memory_S[0, -1]) == pytest.approx(wide, rel=0.1)
    assert not loss.memory_S[:, 1:-1].any()


@pytest.mark.parametrize("memory", [0.9, None])
def test_one_sample_a_step_is_refused(memory: float | None) -> None:
    """It has no distance: nothing would ever be penalised."""
    loss = LearningLoss(make_loss({"name": "mmd", "memory": memory}), facts([0, 1], [0, 1]))
    loss(said([[0.0] * 3], [[1.0] * COLUMNS], [0]), facts([0], [0]))
    with pytest.raises(ValueError, match=r"loss mmd takes its widths .* this step has one; set per_device_train_batch"):
        loss.step(lambda sums: sums)


def test_a_covariance_that_would_be_huge_is_refused() -> None:
    known = facts([0, 1], [0, 1])
    loss = begun("coral", known)
    with pytest.raises(ValueError, match=r"coral keeps 2 covariances of 9000 x 9000 hidden columns.*take loss mmd"):
        loss(said([[0.0] * 3] * 2, torch.zeros(2, 9000), [0, 1]), known)


@pytest.mark.parametrize("rare", [1, 5, 25])
@pytest.mark.parametrize("name", ["group_dro", "irm", "gerne", "pgi"])
def test_what_an_order_does_for_groups_is_not_done_twice(name: str, rare: int) -> None:
    """Of each group's samples as many are seen as `rare` says: group by group the loss is the same, in plain loops.

    Of `gerne` groups are alike within each label.
    """
    logits, hidden, labels, groups = drawn(15)
    seen = [float((4, 2, rare)[group]) for group in groups]
    known = facts(labels, groups)
    settings = {"strength": 0.0, "memory": 0.9} if name in ("irm", "pgi") else {}
    loss = LearningLoss(make_loss({"name": name, **settings}), lambda: {**known, "seen": torch.tensor(seen).double()})
    value_B = loss(said(logits, hidden, labels), known)
    found = math.fsum(w * float(v) for w, v in zip(seen, value_B, strict=True)) / math.fsum(seen)
    losses = [[cross_entropy(row, y)] for row, y in zip(logits, labels, strict=True)]
    if name != "gerne":
        assert found == pytest.approx(mean([mean([one for [one] in own]) for own in of_groups(losses, groups)]))
        return
    want = 0.0
    for label in set(labels):
        own = [i for i, y in enumerate(labels) if y == label]
        share = math.fsum(seen[i] for i in own) / math.fsum(seen)
        parts = of_groups([losses[i] for i in own], [groups[i] for i in own])
        want += share * mean([mean([one for [one] in part]) for part in parts])
    assert found == pytest.approx(want)


@pytest.mark.parametrize("name", ["group_dro", "irm", "gerne", "pgi"])
def test_it_is_the_same_however_small_a_part_of_the_data_an_epoch_sees(name: str) -> None:
    """A label that is drawn less than once an epoch, on average, is a label like any other."""
    logits, hidden, labels, groups = drawn(15)
    known, values = facts(labels, groups), []
    settings = {"strength": 0.5, "memory": 0.9} if name in ("irm", "pgi") else {}
    for part in (1.0, 0.01):
        seen = torch.tensor([part * (4, 2, 1)[group] for group in groups]).double()
        loss = LearningLoss(make_loss({"name": name, **settings}), lambda seen=seen: {**known, "seen": seen})
        values.append(loss(said(logits, hidden, labels), known))
    assert torch.allclose(values[0], values[1], rtol=1e-12)


def test_of_a_checkpoint_of_other_groups_it_does_not_go_on() -> None:
    """And of its own it does, although its memory was longer than it is at the beginning."""
    logits, hidden, labels, groups = drawn(10)
    loss = begun("coral", facts(labels, groups))
    loss(said(logits, hidden, labels), facts(labels, groups))
    loss.step(lambda sums: sums)
    again = begun("coral", facts(labels, groups))
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.memory_S, loss.memory_S)
    with pytest.raises(ValueError, match="the checkpoint is of coral with"):
        begun("coral", facts(labels, [0, 1] * 5)).load_state_dict(loss.state_dict())


def test_irm_waits_for_its_share_of_training() -> None:
    logits, hidden, labels, groups = drawn(10)
    known = facts(labels, groups)
    late, weak, strong = (begun("irm", known, strength=s, warmup=w) for s, w in ((9.0, 0.5), (1.0, 0.0), (9.0, 0.0)))
    for loss in (late, weak, strong):
        loss(said(logits, hidden, labels), {**known, DONE: torch.tensor(0.0)})
        loss.step(lambda sums: sums)
    for done, like in ((0.25, weak), (0.5, strong)):
        told = {**known, DONE: torch.tensor(done)}
        assert torch.equal(late(said(logits, hidden, labels), told), like(said(logits, hidden, labels), told))
    with pytest.raises(ValueError, match=r"loss\.warmup: this batch does not say how much of training is done"):
        late(said(logits, hidden, labels), known)


@pytest.mark.parametrize("name", [*OBJECTIVES, "group_dro", "gerne"])
def test_numbers_of_groups_may_have_gaps(name: str) -> None:
    """A loss is that of the groups that occur, to the digit: it does not shrink by numbers that nobody has."""
    logits, hidden, labels, groups = drawn(15)

    def losses(numbers: tuple[int, int, int]) -> torch.Tensor:
        known = facts(labels, [numbers[group] for group in groups])
        loss = begun(name, known) if name in OBJECTIVES else LearningLoss(make_loss(name), known)
        found = []
        for _ in range(3):
            found.append(loss(said(logits, hidden, labels), known))
            loss.step(lambda sums: sums)
        return torch.stack(found)

    assert torch.allclose(losses((1, 4, 9)), losses((0, 1, 2)), rtol=1e-12, atol=0)


def test_pgi_grows_until_its_share_of_training() -> None:
    logits, hidden, labels, groups = drawn(15)
    known, one = facts(labels, groups), said(logits, hidden, labels)
    late, half, full = (LearningLoss(make_loss({"name": "pgi", "strength": s, "warmup": w}), known)
                        for s, w in ((6.0, 0.5), (3.0, 0.0), (6.0, 0.0)))  # fmt: skip
    for done, like in ((0.25, half), (0.5, full), (0.9, full)):
        got = late(one, {**known, DONE: torch.tensor(done)}, counts=False)
        torch.testing.assert_close(got, like(one, known, counts=False), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"loss\.warmup: this batch does not say how much of training is done"):
        late(one, known, counts=False)


def test_pgi_does_not_pull_where_the_training_data_has_nothing() -> None:
    """A label's group that it does not know would weigh as one of which there is next to nothing."""
    labels, groups = [0, 0, 1, 1], [0, 1, 0, 1]
    logits = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]]
    loss = LearningLoss(make_loss({"name": "pgi", "strength": 3.0, "memory": 0.5}), facts([0, 0, 1, 0], [0, 1, 1, 0]))
    for _ in range(3):
        leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        loss_B = loss(said(leaf, [[0.0] * COLUMNS] * 4, labels), facts(labels, groups))
        (slope_BC,) = torch.autograd.grad(loss_B.mean(), leaf)
        loss.step(lambda sums: sums)
    assert float(slope_BC.abs().max()) < 5
    assert float(loss_B.detach().abs().max()) < 20


@pytest.mark.parametrize("memory", [0.9, None])
def test_pgi_of_a_prediction_that_is_none_is_finite(memory: float | None) -> None:
    """Probabilities that are 0 in every digit: of a group, and of all its label's samples."""
    labels, groups = [0, 0, 1, 1, 2, 2], [0, 1] * 3
    logits = [[900.0, 0.0, 0.0], [0.0, 900.0, 0.0], [0.0, 900.0, 0.0], [0.0, 800.0, 0.0], *[[0.0] * 3] * 2]
    known = facts(labels, groups)
    loss = LearningLoss(make_loss({"name": "pgi", "memory": memory}), known)
    for _ in range(2):
        leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        loss_B = loss(said(leaf, [[0.0] * COLUMNS] * 6, labels), known)
        (slope_BC,) = torch.autograd.grad(loss_B.mean(), leaf)
        assert loss_B.isfinite().all()
        assert slope_BC.isfinite().all()
        loss.step(lambda sums: sums)
    # Two of nine probabilities that matter: log of 1 over what stands for 0, a third of it.
    assert float(loss_B.detach().mean()) > math.log(1e12) / 3


@pytest.mark.parametrize("memory", [0.9, None])
def test_one_sample_that_is_wrong_among_sure_ones_does_not_outweigh_the_step(memory: float | None) -> None:
    """A mean of steps before is without it: the slope of PGI by so small a mean would be thousands."""
    labels, groups = [0] * 14 + [1] * 14, ([0] * 12 + [1] * 2) * 2
    sure = torch.tensor(
        [[15.0 if c == y and g == 0 else 0.0 for c in (0, 1)] for y, g in zip(labels, groups, strict=True)]
    )
    known = facts(labels, groups)
    loss = LearningLoss(make_loss({"name": "pgi", "memory": memory}), known)

    def step_on(logits: torch.Tensor) -> torch.Tensor:
        value = loss(said(logits, [[0.0]] * 28, labels), known).mean()
        loss.step(lambda sums: sums)
        return value

    for _ in range(3):
        step_on(sure)
    wrong = sure.clone()
    wrong[0] = torch.tensor([0.0, 2.0])
    wrong.requires_grad_()
    value = step_on(wrong)
    value.backward()
    assert 0 < float(value.detach()) < 10
    assert wrong.grad is not None
    assert float(wrong.grad.norm()) < 5


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e3, 1e4])
def test_discrepancies_far_from_the_origin_are_those_near_it(offset: float) -> None:
    """In float32, where the squares of distant numbers have no digits left for their differences."""
    torch.manual_seed(0)
    near_BH, group_B = torch.randn(24, 8, dtype=torch.float64), torch.arange(24) % 3
    near_BH[group_B == 1] += 0.7

    def slope(hidden_BH: torch.Tensor) -> torch.Tensor:
        hidden_BH = hidden_BH.requires_grad_()
        step = mmd_step.packed(mmd_step.rows_of(hidden_BH, group_B), torch.tensor(0.0, dtype=torch.float64))
        mmd_step.tangent(hidden_BH, group_B, step).mean().backward()
        assert hidden_BH.grad is not None
        return hidden_BH.grad.double()

    far_BH = (near_BH + offset).float()
    want, found = slope(far_BH.double() - offset), slope(far_BH)  # of what float32 has of the distant numbers
    assert (found - want).norm() < 1e-4 * want.norm()
