"""Losses that read a bias model, through whole steps: main minus bias in every gradient mode, however a step is cut.

A linear model, whose gradients are written down in plain loops: of sample i `W` has `sum_c r_ic x_i`, with the residual
`r_i` of its loss.
"""

import math
from typing import Any

import pytest
import torch

from debias.bias import ModelWeight
from debias.engines import attach
from debias.losses import LearningLoss, make_loss
from debias.methods import make_rule
from debias.readouts import DONE, Classification

FEATURES, LABELS, SAMPLES, SHARE_DONE = 4, 3, 7, 0.25
Matrix = list[list[float]]


def drawn() -> tuple[Matrix, Matrix, Matrix, Matrix, list[int]]:
    """Weights, inputs, a bias model's and a teacher's probabilities, labels."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(LABELS, FEATURES, generator=generator, dtype=torch.float64)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    said = torch.softmax(2 * torch.randn(2, SAMPLES, LABELS, generator=generator, dtype=torch.float64), dim=-1)
    return weights.tolist(), inputs.tolist(), said[0].tolist(), said[1].tolist(), [0, 1, 2, 0, 0, 2, 1]


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(one) for one in logits)
    return [math.exp(one) / total for one in logits]


def powered(p: list[float], power: float) -> list[float]:
    total = math.fsum(one**power for one in p)
    return [one**power / total for one in p]


def residuals(name: str) -> Matrix:
    """What each sample's loss says of its logits; `anneal_to` is 0.2 where the loss has it."""
    weights, inputs, p_b, teacher, labels = drawn()
    found = []
    counted = [math.exp(-3 * p[y]) / labels.count(y) for p, y in zip(p_b, labels, strict=True)]
    for i, (x, label) in enumerate(zip(inputs, labels, strict=True)):
        p = softmax([math.fsum(w * one for w, one in zip(row, x, strict=True)) for row in weights])
        left = 1 - powered(p_b[i], 1 - 0.8 * SHARE_DONE)[label]
        right = [float(c == label) for c in range(LABELS)]
        if name == "confidence_regularization":
            found.append([a - b for a, b in zip(p, powered(teacher[i], left), strict=True)])
        else:
            weight = left**1.5 if name == "debiased_focal" else counted[i] * SAMPLES / math.fsum(counted)
            found.append([weight * (a - b) for a, b in zip(p, right, strict=True)])
    return found


def update_of(name: str) -> Matrix:
    """The mean gradient less half of the mean gradient under the bias model's confidence."""
    _, inputs, p_b, _, labels = drawn()
    total = [[0.0] * FEATURES for _ in range(LABELS)]
    for i, residual in enumerate(residuals(name)):
        for c in range(LABELS):
            for k in range(FEATURES):
                total[c][k] += (1 - 0.5 * p_b[i][labels[i]]) * residual[c] * inputs[i][k] / SAMPLES
    return total


class Linear(torch.nn.Module):
    """W x, told as a classifier's logits."""

    def __init__(self, weights: Matrix) -> None:
        super().__init__()
        self.map = torch.nn.Linear(FEATURES, LABELS, bias=False, dtype=torch.float64)
        self.map.weight.data = torch.tensor(weights, dtype=torch.float64)

    def forward(self, features: torch.Tensor) -> Any:
        return type("Out", (), {"logits": self.map(features)})()


@pytest.mark.parametrize("gradients", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("cuts", [[7], [3, 4], [1, 6]])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("debiased_focal", {"gamma": 1.5, "anneal_to": 0.2}),
        ("confidence_regularization", {"anneal_to": 0.2}),
        ("afr", {"gamma": 3.0}),
    ],
)
def test_the_update_is_that_of_the_formula(
    gradients: str, cuts: list[int], name: str, settings: dict[str, Any]
) -> None:
    weights, inputs, p_b, teacher, labels = drawn()
    model = Linear(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule = make_rule({"name": "subtract", "alpha": 0.5})
    hook = attach(model, optimizer, rule, gradients, select=lambda name, parameter: True)
    facts = {
        "labels": torch.tensor(labels),
        "bias_log_p": torch.tensor(p_b, dtype=torch.float64).log(),
        "teacher_log_p": torch.tensor(teacher, dtype=torch.float64).log(),
    }
    loss, weight = LearningLoss(make_loss({"name": name, **settings}), facts), ModelWeight("confidence")
    start = 0
    for size in cuts:
        rows = slice(start, start + size)
        start += size
        known = {key: fact[rows] for key, fact in facts.items()} | {DONE: torch.tensor(SHARE_DONE)}
        batch = {"inputs": {"features": torch.tensor(inputs, dtype=torch.float64)[rows]}, "facts": known}

        def forward(batch: Any = batch, known: Any = known) -> tuple[torch.Tensor, torch.Tensor]:
            said = Classification().said(model, batch, every_label=loss.every_label)
            return loss(said, known), weight(said, known)

        hook.backward(*forward(), again=forward)
    hook.step()
    moved = (torch.tensor(weights, dtype=torch.float64) - model.map.weight.detach()).tolist()
    # The readout works in float32.
    for got, right in zip(moved, update_of(name), strict=True):
        assert got == pytest.approx(right, rel=2e-5, abs=2e-6)
