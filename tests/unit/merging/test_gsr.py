"""Group-robust sample reweighting: by fitting again with scipy after a weight has moved, and by plain loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from last_layers import with_a_cue
from scipy.optimize import minimize

from debias.errors import InputError
from debias.merging.editing import make_edit
from debias.merging.edits import LastLayer
from debias.merging.gsr_last_layer import GSRLastLayer, Rows, slope


def layer(rows: int = 60, *, bias: bool = True, seed: int = 0) -> LastLayer:
    """Three labels, each with two groups, one of which is rare."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(rows) % 3
    inputs_ND = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    inputs_ND[:, 0] += label_N
    weight_CD = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    group_N = (torch.arange(rows) % 10 == 0).long()
    return LastLayer(inputs_ND, label_N, weight_CD, weight_CD[:, 0].clone() if bias else None, group_N)


def cross_entropy(theta: np.ndarray, x: list[float], y: int) -> float:
    logits = [math.fsum(w * one for w, one in zip(row, x, strict=True)) for row in theta]
    most = max(logits)
    return most + math.log(math.fsum(math.exp(one - most) for one in logits)) - logits[y]


def refitted(inputs: list[list[float]], labels: list[int], weights: list[float], decay: float) -> np.ndarray:
    """By scipy, of a sum in plain loops; weights divided by their sum."""
    whole, shape = math.fsum(weights), (max(labels) + 1, len(inputs[0]))

    def objective(flat: np.ndarray) -> float:
        theta = flat.reshape(shape)
        told = zip(inputs, labels, weights, strict=True)
        return math.fsum(w / whole * cross_entropy(theta, x, y) for x, y, w in told) + decay * float((flat**2).sum())

    found = minimize(objective, np.zeros(shape[0] * shape[1]), method="BFGS", options={"gtol": 1e-7})
    return found.x.reshape(shape)


def test_the_fit_and_the_influence_are_those_of_fitting_again() -> None:
    last = layer(rows=12)
    generator = torch.Generator().manual_seed(1)
    weight_M = torch.rand(12, generator=generator, dtype=torch.float64)
    weight_M = weight_M / weight_M.sum()
    rows = Rows(last.inputs_ND, last.label_N, 3, 0.05)
    theta_CE = rows.fit(weight_M, torch.zeros(3, 4, dtype=torch.float64))
    inputs, labels, weights = last.inputs_ND.tolist(), last.label_N.tolist(), weight_M.tolist()
    np.testing.assert_allclose(theta_CE.numpy(), refitted(inputs, labels, weights, 0.05), atol=1e-5)

    judged = layer(rows=7, seed=5)
    share_T = torch.rand(7, generator=generator, dtype=torch.float64)
    got = rows.influence(weight_M, theta_CE, slope(theta_CE, judged.inputs_ND, judged.label_N, share_T))

    def fares(moved: list[float]) -> float:
        theta = refitted(inputs, labels, moved, 0.05)
        told = zip(judged.inputs_ND.tolist(), judged.label_N.tolist(), share_T.tolist(), strict=True)
        return math.fsum(share * cross_entropy(theta, x, y) for x, y, share in told)

    for row in (0, 5, 11):
        up, down = list(weights), list(weights)
        up[row] += 0.002
        down[row] -= 0.002
        assert float(got[row]) == pytest.approx(-(fares(up) - fares(down)) / 0.004, rel=0.01)
    assert float(got.abs().max()) > 0.1


def steps_by_hand(last: LastLayer, edit: GSRLastLayer) -> tuple[np.ndarray, int]:
    """The whole of it, the fits by scipy and the influences by an inverse of the Hessian, a row at a time."""
    order = torch.randperm(len(last.label_N), generator=torch.Generator().manual_seed(edit.seed)).tolist()
    cells = sorted({*zip(last.label_N.tolist(), last.group_N.tolist(), strict=True)})
    of = [cells.index(pair) for pair in zip(last.label_N.tolist(), last.group_N.tolist(), strict=True)]
    by_cell = [[row for row in order if of[row] == cell] for cell in range(len(cells))]
    fitted, judged = ([row for rows in by_cell for row in rows[half::2]] for half in (0, 1))
    inputs, labels = [[*row, 1.0] for row in last.inputs_ND.tolist()], last.label_N.tolist()
    count, size = len(fitted), 3 * len(inputs[0])
    weights, shares = [1 / count] * count, [1 / len(cells)] * len(cells)
    best, kept, rate = -1.0, (np.zeros((3, 5)), 0), edit.learning_rate
    for step in range(1, edit.steps + 1):
        theta = refitted([inputs[i] for i in fitted], [labels[i] for i in fitted], weights, edit.weight_decay)

        def p(i: int, theta: np.ndarray = theta) -> np.ndarray:
            return np.array([math.exp(-cross_entropy(theta, inputs[i], label)) for label in range(3)])

        def by_theta(i: int) -> np.ndarray:
            return np.outer(p(i) - np.eye(3)[labels[i]], inputs[i]).ravel()

        right = [[int(p(i).argmax()) == labels[i] for i in judged if of[i] == cell] for cell in range(len(cells))]
        accuracy = [sum(one) / len(one) for one in right]
        if min(accuracy) > best:
            best, kept = min(accuracy), (theta, step)
        shares = [share * math.exp(1 - one) for share, one in zip(shares, accuracy, strict=True)]
        shares = [share / sum(shares) for share in shares]
        hessian = 2 * edit.weight_decay * np.eye(size)
        for weight, i in zip(weights, fitted, strict=True):
            hessian += weight * np.kron(np.diag(p(i)) - np.outer(p(i), p(i)), np.outer(inputs[i], inputs[i]))
        ahead = sum(shares[of[i]] / len(right[of[i]]) * by_theta(i) for i in judged)
        through = np.linalg.inv(hessian) @ ahead
        moves = [(by_theta(i) + 2 * edit.weight_decay * theta.ravel()) @ through / count for i in fitted]
        length = math.sqrt(sum(move**2 for move in moves))
        cut = min(1.0, edit.max_norm / length) if edit.max_norm else 1.0
        if step in (31, 61, 91):
            rate /= 10
        weights = [max(0.0, weight + rate * cut * move) for weight, move in zip(weights, moves, strict=True)]
        weights = [weight / sum(weights) for weight in weights]
    return kept[0], kept[1]


@pytest.mark.parametrize("settings", [{}, {"max_norm": 0.002}, {"learning_rate": 4.0, "max_norm": 0.0, "seed": 3}])
def test_every_step_is_that_of_plain_loops(settings: dict[str, float]) -> None:
    edit = GSRLastLayer(steps=3, **settings)  # type: ignore[arg-type]
    last = layer()
    made = edit.retrained(last)
    theta, step = steps_by_hand(last, edit)
    assert made.bias_C is not None
    np.testing.assert_allclose(torch.cat([made.weight_CD, made.bias_C.unsqueeze(1)], 1).numpy(), theta, atol=2e-5)
    assert made.told["step"] == step


def test_the_rate_falls_to_a_tenth_after_thirty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def moved(self: GSRLastLayer, weight_M: torch.Tensor, rate: float, move_M: torch.Tensor) -> torch.Tensor:
        rates.append(rate)
        return weight_M

    monkeypatch.setattr(GSRLastLayer, "_moved", moved)
    GSRLastLayer(steps=62).retrained(layer())
    assert rates == pytest.approx([1.0] * 30 + [0.1] * 30 + [0.01] * 2)


def test_the_worst_cell_gains(caplog: pytest.LogCaptureFixture) -> None:
    last = with_a_cue(600)
    with caplog.at_level("INFO"):
        made = GSRLastLayer().retrained(last)
    first = GSRLastLayer(steps=1).retrained(last)  # every row weighs the same
    assert last.worst == 0.0
    assert made.worst > max(0.6, first.worst + 0.2)
    assert made.told["fitted"] == 300
    assert f"step {made.told['step']} of 100 answers the worst cell" in caplog.text
    # The old layer does not count.
    again = GSRLastLayer().retrained(dataclasses.replace(last, weight_CD=-5 * last.weight_CD))
    assert torch.equal(again.weight_CD, made.weight_CD)
    assert not torch.equal(GSRLastLayer(seed=1).retrained(last).weight_CD, made.weight_CD)


def test_a_layer_without_an_intercept() -> None:
    last = layer(bias=False)
    made = GSRLastLayer(steps=2).retrained(last)
    assert made.bias_C is None
    assert made.weight_CD.shape == last.weight_CD.shape


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("weight_decay", 0.0),
        ("max_norm", -1.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name} is {value}, expected "):
        make_edit("gsr_last_layer", {name: value})


def test_too_few_rows() -> None:
    last = layer(rows=13)
    assert last.cell_sizes_K.min() == 1
    with pytest.raises(InputError, match="the rarest pair of label and group has one row held out, and each half"):
        GSRLastLayer().retrained(last)
    missing = dataclasses.replace(layer(), label_N=torch.arange(60) % 2)
    with pytest.raises(InputError, match="no row held out has label number 2"):
        GSRLastLayer().retrained(missing)
