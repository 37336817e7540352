"""The loss bias_covariance against its formula in plain loops, and its gradient against that of the penalty itself."""

import math
from typing import Any

import pytest
import torch

from debias.losses import LearningLoss, make_loss
from debias.readouts import Said

Matrix = list[list[float]]
LABELS = 3
P_B = [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]


def drawn(count: int, seed: int = 0) -> tuple[Matrix, Matrix, list[int]]:
    """Logits, log-probabilities of a bias model and labels; label 2 is rare."""
    generator = torch.Generator().manual_seed(seed)
    logits = (1.5 * torch.randn(count, LABELS, generator=generator, dtype=torch.float64)).tolist()
    bias = [[math.log(p) for p in P_B[(3 * i + i // 4) % 4]] for i in range(count)]
    return logits, bias, [(0, 1, 0, 1, 2)[i % 5] for i in range(count)]


def said(logits: Any, labels: list[int]) -> Said:
    log_p = torch.log_softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1)
    own = log_p.gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
    return Said(own, own.detach(), len(labels), log_p)


def facts(bias: Matrix, labels: list[int]) -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(labels), "bias_log_p": torch.tensor(bias, dtype=torch.float64)}


def covariances(logits: Matrix, bias: Matrix, labels: list[int], weights: list[float]) -> tuple[list[Matrix], Matrix]:
    """Of each label, [F][C], of weighted samples; and the means of the bias model's."""
    found, means = [], []
    for label in range(LABELS):
        own = [i for i, one in enumerate(labels) if one == label and weights[i] > 0]
        whole = math.fsum(weights[i] for i in own)
        f = {i: [one - math.fsum(logits[i]) / LABELS for one in logits[i]] for i in own}
        mean_f = [math.fsum(weights[i] * f[i][c] for i in own) / whole if own else 0.0 for c in range(LABELS)]
        mean_b = [math.fsum(weights[i] * bias[i][c] for i in own) / whole if own else 0.0 for c in range(LABELS)]
        found.append(
            [
                [
                    math.fsum(weights[i] * (f[i][a] - mean_f[a]) * (bias[i][b] - mean_b[b]) for i in own) / whole
                    if own
                    else 0.0
                    for b in range(LABELS)
                ]
                for a in range(LABELS)
            ]
        )
        means.append(mean_b)
    return found, means


def square(covariance: Matrix) -> float:
    return math.fsum(one**2 for row in covariance for one in row)


def cross_entropy(logits: list[float], bias: list[float], label: int, tau: float) -> float:
    mixed = [one + tau * b for one, b in zip(logits, bias, strict=True)]
    return math.log(math.fsum(math.exp(one) for one in mixed)) - mixed[label]


def objective(logits: Matrix, bias: Matrix, labels: list[int], strength: float, tau: float) -> float:
    """As it is written: of all samples together."""
    fit = math.fsum(cross_entropy(*sample, tau) for sample in zip(logits, bias, labels, strict=True)) / len(labels)
    found, _ = covariances(logits, bias, labels, [1.0] * len(labels))
    return fit + strength * math.fsum(labels.count(y) / len(labels) * square(found[y]) for y in range(LABELS))


@pytest.mark.parametrize(("strength", "tau"), [(0.3, 0.0), (2.0, 1.0)])
def test_value_and_gradient_are_the_penalty_s_where_nothing_has_changed(strength: float, tau: float) -> None:
    """One step of all samples, and then the same samples: by central differences of the objective."""
    logits, bias, labels = drawn(20)
    known = facts(bias, labels)
    block = {"name": "bias_covariance", "strength": strength, "tau": tau, "memory": 0.0}
    loss = LearningLoss(make_loss(block), known)
    loss(said(logits, labels), known)
    loss.step(lambda sums: sums)
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    mean = loss(said(leaf, labels), known).mean()
    assert float(mean) == pytest.approx(objective(logits, bias, labels, strength, tau), rel=1e-9)
    mean.backward()
    assert leaf.grad is not None
    for i in range(len(labels)):
        for c in range(LABELS):
            ends = []
            for way in (1e-5, -1e-5):
                moved = [[one + way * ((i, c) == (j, k)) for k, one in enumerate(row)] for j, row in enumerate(logits)]
                ends.append(objective(moved, bias, labels, strength, tau))
            assert float(leaf.grad[i, c]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("cuts", [[6], [1, 5], [1] * 6], ids=str)
def test_what_is_known_fades_and_a_sample_hears_the_tangent(cuts: list[int]) -> None:
    """After four steps, each cut into micro-batches: by loops over all samples seen, each with what is left of it."""
    loss = LearningLoss(make_loss({"name": "bias_covariance", "strength": 0.7, "memory": 0.5}), facts(*drawn(6)[1:]))
    every: tuple[Matrix, Matrix, list[int], list[float]] = ([], [], [], [])
    for step in range(4):
        logits, bias, labels = drawn(6, step)
        start = 0
        for size in cuts:
            part = slice(start, start + size)
            loss(said(logits[part], labels[part]), facts(bias[part], labels[part]))
            start += size
        loss.step(lambda sums: sums)
        for held, new in zip(every, (logits, bias, labels, [0.5 ** (3 - step)] * 6), strict=True):
            held.extend(new)  # type: ignore[arg-type]
    found, means = covariances(*every)
    whole = math.fsum(every[3])
    shares = [
        math.fsum(w for w, one in zip(every[3], every[2], strict=True) if one == y) / whole for y in range(LABELS)
    ]
    constant = math.fsum(share * square(one) for share, one in zip(shares, found, strict=True))
    logits, bias, labels = drawn(5, 9)
    wanted = []
    for row, b, label in zip(logits, bias, labels, strict=True):
        f = [one - math.fsum(row) / LABELS for one in row]
        linear = math.fsum(
            f[a] * found[label][a][c] * (b[c] - means[label][c]) for a in range(LABELS) for c in range(LABELS)
        )
        wanted.append(cross_entropy(row, b, label, 0.0) + 0.7 * (2 * linear - constant))
    assert loss(said(logits, labels), facts(bias, labels)).tolist() == pytest.approx(wanted, rel=1e-9)


def test_training_with_it_takes_the_covariance_away() -> None:
    """Logits that are free: of a label whose bias model says two things, they soon say one."""
    _, bias, labels = drawn(40)
    known = facts(bias, labels)
    left = {}
    for strength in (0.0, 1.0):
        loss = LearningLoss(make_loss({"name": "bias_covariance", "strength": strength}), known)
        leaf = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([leaf], lr=2.0)
        for _ in range(60):
            optimizer.zero_grad()
            loss(said(leaf, labels), known).mean().backward()
            optimizer.step()
            loss.step(lambda sums: sums)
        found, _ = covariances(leaf.tolist(), bias, labels, [1.0] * 40)
        left[strength] = math.fsum(map(square, found))
    assert left[1.0] < 0.02 * left[0.0]
