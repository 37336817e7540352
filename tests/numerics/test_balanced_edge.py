"""Balanced EDGE as it is written: sums over samples of J^T r, in plain loops, against the hook on a real loss.

A linear model without a bias: logits f = W x, so that J^T r of a sample is the outer product of r and x. With the
residual r = w (softmax(f + tau log p_b) - e_y) and v = p_b(y), G is the sum of r x^T and G_b that of v r x^T.

C1: G - alpha (G_b - <G_b, u> u), u the unit vector of G/|G| + G_b/|G_b|. C2: |G| (G_b/|G_b| + G_c/|G_c|) / 2 with
G_c = G - G_b.
"""

import math
from typing import Any

import pytest
import torch

from debias import attach
from debias.bias import ModelWeight
from debias.losses import LearningLoss, make_loss
from debias.methods import make_rule
from debias.readouts import Classification

Matrix = list[list[float]]
SAMPLES, FEATURES, LABELS = 7, 5, 3


def drawn() -> tuple[Matrix, Matrix, Matrix, list[int]]:
    """Weights [C, I], inputs [N, I], the bias model's probabilities [N, C], labels [N]."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(LABELS, FEATURES, generator=generator, dtype=torch.float64).tolist()
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64).tolist()
    p_b = torch.softmax(2 * torch.randn(SAMPLES, LABELS, generator=generator, dtype=torch.float64), dim=1).tolist()
    return weights, inputs, p_b, [0, 2, 1, 1, 0, 2, 1]


def dot(a: Matrix, b: Matrix) -> float:
    return math.fsum(x * y for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def plus(a: Matrix, b: Matrix, x: float = 1.0, y: float = 1.0) -> Matrix:
    return [[x * u + y * v for u, v in zip(left, right, strict=True)] for left, right in zip(a, b, strict=True)]


def gradients(tau: float) -> tuple[Matrix, Matrix]:
    """G and G_b, of the mean over the samples."""
    weights, inputs, p_b, labels = drawn()
    whole: Matrix = [[0.0] * FEATURES for _ in range(LABELS)]
    easy: Matrix = [[0.0] * FEATURES for _ in range(LABELS)]
    for x, p, label in zip(inputs, p_b, labels, strict=True):
        scores = [
            sum(w * v for w, v in zip(row, x, strict=True)) + tau * math.log(p[c]) for c, row in enumerate(weights)
        ]
        total = math.fsum(math.exp(score) for score in scores)
        for c in range(LABELS):
            residual = (math.exp(scores[c]) / total - (c == label)) / SAMPLES
            for i in range(FEATURES):
                whole[c][i] += residual * x[i]
                easy[c][i] += p[label] * residual * x[i]
    return whole, easy


def c1(whole: Matrix, easy: Matrix, alpha: float = 1.0) -> Matrix:
    shared = plus(whole, easy, 1 / math.sqrt(dot(whole, whole)), 1 / math.sqrt(dot(easy, easy)))
    length = math.sqrt(dot(shared, shared))
    unit = [[value / length for value in row] for row in shared]
    exclusive = plus(easy, unit, 1.0, -dot(easy, unit))
    return plus(whole, exclusive, 1.0, -alpha)


def c2(whole: Matrix, easy: Matrix) -> Matrix:
    hard = plus(whole, easy, 1.0, -1.0)
    half = math.sqrt(dot(whole, whole)) / 2
    return plus(easy, hard, half / math.sqrt(dot(easy, easy)), half / math.sqrt(dot(hard, hard)))


class Linear(torch.nn.Module):
    """W x, told as a classifier's logits."""

    def __init__(self, weights: Matrix) -> None:
        super().__init__()
        self.map = torch.nn.Linear(FEATURES, LABELS, bias=False, dtype=torch.float64)
        self.map.weight.data = torch.tensor(weights, dtype=torch.float64)

    def forward(self, features: torch.Tensor) -> Any:
        return type("Out", (), {"logits": self.map(features)})()


@pytest.mark.parametrize("gradients_", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("cuts", [[7], [3, 4]])
@pytest.mark.parametrize(
    ("method", "want"),
    [
        ({"name": "edge", "projection": "tensor"}, c1),
        ({"name": "edge", "projection": "tensor", "alpha": 0.4}, lambda g, b: c1(g, b, 0.4)),
        ({"name": "norm_balance"}, c2),
    ],
    ids=["c1", "c1_alpha", "c2"],
)
def test_the_update_is_that_of_the_formula(gradients_: str, cuts: list[int], method: dict[str, Any], want: Any) -> None:
    weights, inputs, p_b, labels = drawn()
    model = Linear(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hook = attach(model, optimizer, make_rule(method), gradients_, select=lambda name, parameter: True)
    loss, weight = LearningLoss(make_loss("logit_correction")), ModelWeight("confidence")
    facts = {"labels": torch.tensor(labels), "bias_log_p": torch.tensor(p_b, dtype=torch.float64).log()}
    start = 0
    for size in cuts:
        rows = slice(start, start + size)
        start += size
        known = {name: fact[rows] for name, fact in facts.items()}
        batch = {"inputs": {"features": torch.tensor(inputs, dtype=torch.float64)[rows]}, "facts": known}

        def forward(batch: Any = batch, known: Any = known) -> tuple[torch.Tensor, torch.Tensor]:
            said = Classification().said(model, batch, every_label=True)
            return loss(said, known), weight(said, known)

        hook.backward(*forward(), again=forward)
    hook.step()
    moved = (torch.tensor(weights, dtype=torch.float64) - model.map.weight.detach()).tolist()
    expected = want(*gradients(1.0))
    # The readout works in float32; both gradients are far from small.
    for got, right in zip(moved, expected, strict=True):
        assert got == pytest.approx(right, rel=2e-5, abs=2e-6)


def test_the_two_forms_are_not_plain_training_nor_each_other() -> None:
    whole, easy = gradients(1.0)
    updates = [whole, c1(whole, easy), c2(whole, easy)]
    for i, one in enumerate(updates):
        for other in updates[:i]:
            apart = plus(one, other, 1.0, -1.0)
            assert dot(apart, apart) > 1e-3 * dot(whole, whole)
