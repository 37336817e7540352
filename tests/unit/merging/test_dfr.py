"""Deep feature reweighting: by the conditions of its optimum in plain loops, and by where its rows come from."""

import dataclasses
import math

import pytest
import torch
from last_layers import with_a_cue

from debias.errors import InputError
from debias.merging import dfr_last_layer
from debias.merging.dfr_last_layer import DFRLastLayer, balanced, lasso
from debias.merging.editing import make_edit
from debias.merging.edits import LastLayer

Rows = list[list[float]]


def layer(rows: int = 48, labels: int = 3, columns: int = 4, *, bias: bool = True) -> LastLayer:
    """Every label with two groups, one of which is rare; columns of many means and lengths, one of them all alike."""
    generator = torch.Generator().manual_seed(2)
    label_N = torch.arange(rows) % labels
    inputs_ND = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    inputs_ND[:, 0] += 1.5 * label_N
    inputs_ND = inputs_ND * torch.tensor([1.0, 20.0, 0.1, 0.0], dtype=torch.float64)[:columns] + 3.1
    weight_CD = torch.randn(labels, columns, generator=generator, dtype=torch.float64)
    group_N = (torch.arange(rows) % 8 == 0).long()
    return LastLayer(inputs_ND, label_N, weight_CD, weight_CD[:, 0].clone() if bias else None, group_N)


def slopes(inputs: Rows, labels: list[int], weight: Rows, bias: list[float], c: float) -> tuple[Rows, list[float]]:
    """Of `c sum CE` by W and b, by loops."""
    by_weight = [[0.0] * len(inputs[0]) for _ in bias]
    by_bias = [0.0] * len(bias)
    for x, y in zip(inputs, labels, strict=True):
        logits = [
            math.fsum(w * one for w, one in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]
        whole = math.fsum(math.exp(one) for one in logits)
        for label, logit in enumerate(logits):
            left = c * (math.exp(logit) / whole - (label == y))
            by_bias[label] += left
            for column, one in enumerate(x):
                by_weight[label][column] += left * one
    return by_weight, by_bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("c", [1.0, 0.15])
def test_a_fit_is_where_its_objective_is_smallest(c: float, bias: bool) -> None:
    """At the smallest |W|_1 + c sum CE the slope of the second term is -sign(W), and within +-1 where W is zero.

    Of all rows, as every cell has equally many; in the columns as they are scaled.
    """
    whole = layer(bias=bias)
    last = dataclasses.replace(whole, group_N=None)
    made = DFRLastLayer(c=(c,), retrainings=1).retrained(last)
    columns = [[row[d] for row in last.inputs_ND.tolist()] for d in range(4)]
    mean = [math.fsum(column) / 48 if bias else 0.0 for column in columns]
    spread = [math.sqrt(math.fsum((one - math.fsum(column) / 48) ** 2 for one in column) / 48) for column in columns]
    spread = [one if one > 1e-12 else 1.0 for one in spread]
    scaled = [[(x - m) / s for x, m, s in zip(row, mean, spread, strict=True)] for row in last.inputs_ND.tolist()]
    weight = [[w * s for w, s in zip(row, spread, strict=True)] for row in made.weight_CD.tolist()]
    own = made.bias_C.tolist() if made.bias_C is not None else [0.0] * 3
    intercept = [
        b + math.fsum(w * m for w, m in zip(row, mean, strict=True))
        for b, row in zip(own, made.weight_CD.tolist(), strict=True)
    ]
    by_weight, by_bias = slopes(scaled, last.label_N.tolist(), weight, intercept, c)
    tolerance = 1e-5 * 48 * c
    for row, slope in zip(weight, by_weight, strict=True):
        for w, one in zip(row, slope, strict=True):
            assert one == pytest.approx(-math.copysign(1, w), abs=tolerance) if w else abs(one) <= 1 + tolerance
    assert any(w == 0 for row in weight for w in row)
    assert any(w != 0 for row in weight for w in row)
    assert (made.bias_C is None) == (not bias)
    if bias:
        assert by_bias == pytest.approx([0.0] * 3, abs=tolerance)


def test_rows_are_drawn_from_every_cell_alike() -> None:
    last = layer()
    rows_N = torch.arange(48)
    drawn = balanced(rows_N, last.cell_N, torch.Generator().manual_seed(0))
    assert last.cell_sizes_K.tolist() == [14, 2, 14, 2, 14, 2]
    pairs = list(zip(last.label_N[drawn].tolist(), (last.group_N)[drawn].tolist(), strict=True))
    assert {pair: pairs.count(pair) for pair in pairs} == {(y, g): 2 for y in range(3) for g in range(2)}
    assert len(set(drawn.tolist())) == 12
    other = balanced(rows_N, last.cell_N, torch.Generator().manual_seed(1))
    assert set(drawn.tolist()) != set(other.tolist())
    part = balanced(rows_N[:30], last.cell_N, torch.Generator().manual_seed(0))
    assert set(part.tolist()) <= set(range(30))


def test_the_layer_is_the_mean_of_its_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a draw of its own, of the columns scaled by all rows; the old layer does not count."""
    last, seen = layer(), []

    def spied(inputs_MD: torch.Tensor, *arguments: object, **named: object) -> tuple[torch.Tensor, bool]:
        made = lasso(inputs_MD, *arguments, **named)  # type: ignore[arg-type]
        seen.append((inputs_MD, made[0]))
        return made

    monkeypatch.setattr(dfr_last_layer, "lasso", spied)
    made = DFRLastLayer(c=(0.3,), retrainings=4).retrained(last)
    assert [len(inputs) for inputs, _ in seen] == [12] * 4
    assert len({tuple(inputs.flatten().tolist()) for inputs, _ in seen}) == 4
    # What the layer says of a row is the mean of what the fits say of it scaled.
    row_D = last.inputs_ND[5]
    spread_D = last.inputs_ND.std(dim=0, correction=0)
    scaled_D = (row_D - last.inputs_ND.mean(dim=0)) / torch.where(spread_D > 0, spread_D, 1.0)
    said = sum(fit[:, :-1] @ scaled_D + fit[:, -1] for _, fit in seen) / 4
    assert made.bias_C is not None
    torch.testing.assert_close(made.weight_CD @ row_D + made.bias_C, said)
    again = DFRLastLayer(c=(0.3,), retrainings=4).retrained(dataclasses.replace(last, weight_CD=-5 * last.weight_CD))
    assert torch.equal(again.weight_CD, made.weight_CD)
    other = DFRLastLayer(c=(0.3,), retrainings=4, seed=1).retrained(last)
    assert not torch.equal(other.weight_CD, made.weight_CD)


def test_it_leaves_the_cue_where_groups_are_alike() -> None:
    last = with_a_cue(400)
    made = DFRLastLayer(retrainings=5).retrained(last)
    assert (last.worst, last.right) == (0.0, 0.9)
    assert made.worst > 0.7
    assert (made.weight_CD[:, 0].abs() < 0.2 * made.weight_CD[:, 1].abs()).all()
    assert made.told["of_each_cell"] == 20
    # The same without groups learns the cue: the labels alone are balanced.
    blind = DFRLastLayer(retrainings=5).retrained(dataclasses.replace(last, group_N=None))
    assert dataclasses.replace(blind, group_N=last.group_N).worst < 0.5


def test_c_is_chosen_by_the_worst_cell(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of equals the first; with one value nothing is chosen, and one fit less is made of each other value."""
    last = layer(rows=480)
    tried: list[float] = []

    def spied(inputs: torch.Tensor, label: torch.Tensor, labels: int, c: float, steps: int, **named: bool) -> object:
        tried.append(c)
        return lasso(inputs, label, labels, c, steps, **named)

    monkeypatch.setattr(dfr_last_layer, "lasso", spied)
    made = DFRLastLayer(c=(1e-6, 1.0, 0.9), retrainings=2).retrained(last)
    assert made.told["c"] in (1.0, 0.9)  # at 1e-6 all is zero, and one label is said of every row
    assert tried == [1e-6, 1.0, 0.9, made.told["c"], made.told["c"]]
    tried.clear()
    DFRLastLayer(c=(1e-6,), retrainings=2).retrained(last)
    assert tried == [1e-6] * 2
    assert DFRLastLayer(c=(1e-6, 1e-7), retrainings=1).retrained(last).told["c"] == 1e-6
    DFRLastLayer(c=(1.0,), retrainings=1, steps=1).retrained(last)
    assert "a fit has not settled after 1 steps; take more" in caplog.text


def test_what_cannot_be_fitted_is_refused() -> None:
    last = layer(labels=3)
    two = dataclasses.replace(last, label_N=last.label_N % 2)
    with pytest.raises(InputError, match="no row held out has label number 2; give more of them"):
        DFRLastLayer().retrained(two)
    lonely = dataclasses.replace(last, group_N=(torch.arange(48) == 0).long())
    with pytest.raises(InputError, match="the rarest pair of label and group has one row held out, of which no half"):
        DFRLastLayer().retrained(lonely)
    assert DFRLastLayer(c=(0.1,), retrainings=1).retrained(lonely).told["of_each_cell"] == 1
    for name, value, message in (
        ("c", [], "edit.c is \\[\\], expected numbers above 0"),
        ("c", [1, 0], "edit.c is \\[1.0, 0.0\\], expected numbers above 0"),
        ("retrainings", 0, "edit.retrainings is 0, expected 1 or more"),
        ("steps", 0, "edit.steps is 0, expected 1 or more"),
        ("seed", -1, "edit.seed is -1, expected a whole number from 0"),
    ):
        with pytest.raises(InputError, match=message):
            make_edit("dfr_last_layer", {name: value})
