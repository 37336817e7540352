"""DISPEL: what each fit was given, traced back to its rows by loops; scikit-learn's solver; and what it is for."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from last_layers import with_a_cue
from sklearn.linear_model import LogisticRegression

from debias.errors import InputError
from debias.merging import dispel_last_layer
from debias.merging.dispel_last_layer import DISPELLastLayer
from debias.merging.editing import make_edit
from debias.merging.edits import LastLayer

RARE = (4, 2, 3)  # rows of each label's second group


def layer(common: int = 12, rare: tuple[int, ...] = RARE, *, bias: bool = True) -> LastLayer:
    """Of every label two groups, one of them rare; three columns of several means and lengths. No two rows are alike,
    nor are two mixtures.
    """
    generator = torch.Generator().manual_seed(3)
    cells = [cell for label, few in enumerate(rare) for cell in [(label, 0)] * (common - few) + [(label, 1)] * few]
    label_N, group_N = torch.tensor(cells).T
    inputs_ND = torch.randn(len(cells), 3, generator=generator, dtype=torch.float64)
    inputs_ND[:, 0] += 1.5 * label_N
    inputs_ND = inputs_ND * torch.tensor([1.0, 20.0, 0.1], dtype=torch.float64) + 3.1
    weight_CD = torch.randn(len(rare), 3, generator=generator, dtype=torch.float64)
    return LastLayer(inputs_ND, label_N, weight_CD, weight_CD[:, 0].clone() if bias else None, group_N)


@dataclass
class Fit:
    """What a fit was given, and what came of it."""

    inputs: np.ndarray
    labels: list[int]
    c: float
    made: np.ndarray


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Every fit that was made."""
    seen: list[Fit] = []
    real: Callable[..., tuple[torch.Tensor, bool]] = dispel_last_layer.lasso

    def spied(
        inputs: torch.Tensor, label: torch.Tensor, labels: int, c: float, steps: int, *, free: bool
    ) -> tuple[torch.Tensor, bool]:
        made = real(inputs, label, labels, c, steps, free=free)
        seen.append(Fit(inputs.numpy(), label.tolist(), c, made[0].numpy()))
        return made

    monkeypatch.setattr(dispel_last_layer, "lasso", spied)
    return seen


def scaled(last: LastLayer) -> np.ndarray:
    rows = last.inputs_ND.numpy()
    return (rows - (rows.mean(axis=0) if last.bias_C is not None else 0.0)) / rows.std(axis=0)


def traced(row: np.ndarray, rows: np.ndarray, s: float) -> tuple[int, int | None]:
    """The row that this one was, and the one that was mixed into it, or None."""
    found: list[tuple[int, int | None]] = [(int(i), None) for i in np.flatnonzero(np.abs(rows - row).max(1) < 1e-9)]
    pairs = s * rows[None] + (1 - s) * rows[:, None]
    both = np.argwhere(np.abs(pairs - row).max(-1) < 1e-9).tolist()
    found += [(i, j) for i, j in both if i != j]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("alpha", "s"), [(1.0, 0.7), (0.4, 0.9)])
def test_a_fit_is_given_mixtures_with_balanced_rows(fits: list[Fit], alpha: float, s: float, bias: bool) -> None:
    """Rows of labels alike, none twice; partners have their label, and are of at most two rows of every cell."""
    last = layer(bias=bias)
    label, group = last.label_N.tolist(), (last.group_N if last.group_N is not None else last.label_N).tolist()
    DISPELLastLayer(alpha=(alpha,), s=(s,), c=(0.3,), retrainings=6).retrained(last)
    rows, mixed, drawn = scaled(last), 0, []
    for fit in fits:
        of = [traced(row, rows, s) for row in fit.inputs]
        assert [label[i] for i, _ in of] == fit.labels
        assert Counter(fit.labels) == dict.fromkeys(range(3), 12)
        assert len({i for i, _ in of}) == 36
        partners = [(i, j) for i, j in of if j is not None]
        assert all(label[i] == label[j] for i, j in partners)
        used = Counter((label[j], group[j]) for j in {j for _, j in partners})
        assert all(count <= 2 for count in used.values())  # the smallest cell has two rows
        mixed += len(partners)
        drawn.append(frozenset(partners))
    assert len(set(drawn)) == 6  # each fit of a draw of its own
    share = mixed / (6 * 36)
    alone = 1 / 10  # of a row that is mixed with itself nothing is to be seen
    assert abs(share - alpha * (1 - alone)) < (0.12 if alpha < 1 else 0.1)


def test_partners_are_of_every_group_alike(fits: list[Fit]) -> None:
    """Of a label whose second group is a sixth of its rows, half of the partners are of it."""
    last = layer()
    DISPELLastLayer(s=(1.0,), c=(1e-3,), retrainings=60).retrained(last)  # with s at 1 the partner is all that is left
    rows, group = scaled(last), (last.group_N if last.group_N is not None else last.label_N).tolist()
    places = [int(np.abs(rows - row).sum(axis=1).argmin()) for fit in fits for row in fit.inputs]
    assert all(np.abs(rows[place] - row).max() < 1e-9 for place, row in zip(places[:36], fits[0].inputs, strict=True))
    assert np.mean([group[place] for place in places]) == pytest.approx(0.5, abs=0.04)


def test_the_size_of_the_mixture(fits: list[Fit]) -> None:
    """Without one, of every label as many as the rarest has; with one, its share of each, some rows twice."""
    last = layer()
    kept = torch.cat([torch.arange(24), torch.arange(24, 36)[-7:]])  # of the last label seven rows
    cut = {name: getattr(last, name)[kept] for name in ("inputs_ND", "label_N", "group_N")}
    fewer = dataclasses.replace(last, **cut)
    one = DISPELLastLayer(s=(0.7,), c=(0.3,), retrainings=1)
    one.retrained(fewer)
    dataclasses.replace(one, size_of_mixed=92).retrained(fewer)
    assert [Counter(fit.labels) for fit in fits] == [dict.fromkeys(range(3), 7), dict.fromkeys(range(3), 30)]
    first = [traced(row, scaled(fewer), 0.7)[0] for row in fits[1].inputs]
    assert len(set(first)) < 90
    assert len(set(first)) > 20


@pytest.mark.parametrize(("c", "bias"), [(1.0, True), (0.15, True), (1.0, False)])
def test_a_fit_is_scikit_learns(fits: list[Fit], c: float, bias: bool) -> None:
    """Whose objective is this one, intercepts free."""
    last = layer(bias=bias)
    made = DISPELLastLayer(s=(0.8,), c=(c,), retrainings=3, steps=50_000).retrained(last)
    theirs = []
    for fit in fits:
        settings = {"l1_ratio": 1.0, "solver": "saga", "tol": 1e-10, "max_iter": 50_000, "fit_intercept": bias}
        found = LogisticRegression(C=c, **settings).fit(fit.inputs, fit.labels)
        np.testing.assert_allclose(
            fit.made[:, :3] - fit.made[:, :3].mean(0), found.coef_ - found.coef_.mean(0), atol=2e-3
        )
        theirs.append(found)
    # What the layer says of rows as they were is the mean of what these say of scaled ones, but for what all share.
    said = np.mean([found.decision_function(scaled(last)) for found in theirs], axis=0)
    ours = made.logits_NC.numpy()
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), said - said.mean(1, keepdims=True), atol=1e-2)
    assert (made.bias_C is None) == (not bias)


def test_the_old_layer_does_not_count_and_the_seed_does() -> None:
    last, edit = layer(), DISPELLastLayer(s=(0.8,), c=(0.3,), retrainings=2)
    made = edit.retrained(last)
    again = edit.retrained(dataclasses.replace(last, weight_CD=-5 * last.weight_CD))
    assert torch.equal(again.weight_CD, made.weight_CD)
    assert not torch.equal(dataclasses.replace(edit, seed=1).retrained(last).weight_CD, made.weight_CD)


def test_a_setting_is_chosen_by_the_worst_cell_of_rows_that_were_not_fitted(
    fits: list[Fit], caplog: pytest.LogCaptureFixture
) -> None:
    """Every setting on one draw. The half that is judged is all that the first fit did not mix."""
    caplog.set_level(logging.INFO, "debias")
    last = layer(40, (8, 8, 8))
    label, group = last.label_N.tolist(), (last.group_N if last.group_N is not None else last.label_N).tolist()
    alphas, shares, cs = (0.5, 1.0), (0.9, 0.7), (1e-6, 0.05, 1.0)
    made = DISPELLastLayer(alpha=alphas, s=shares, c=cs, retrainings=2).retrained(last)
    settings = [(alpha, s, c) for alpha in alphas for s in shares for c in cs]
    assert [fit.c for fit in fits[:-2]] == [c for *_, c in settings]
    rows = scaled(last)
    first = [traced(row, rows, 0.9) for row in fits[0].inputs]
    fitted = {i for i, _ in first}
    assert fitted >= {j for _, j in first if j is not None}
    assert len(fitted) == 60
    judged = [place for place in range(len(rows)) if place not in fitted]
    assert Counter((label[i], group[i]) for i in judged) == {(y, g): (16, 4)[g] for y in range(3) for g in range(2)}
    worst = []
    for fit, (alpha, s, _) in zip(fits[:-2], settings, strict=True):
        share = np.mean([j is not None for _, j in (traced(row, rows, s) for row in fit.inputs[:20])])
        assert share > 0.7 if alpha == 1 else share < 0.8
        answers: dict[tuple[int, int], list[bool]] = {}
        for place in judged:
            said = [float(np.dot(row[:3], rows[place]) + row[3]) for row in fit.made]
            answers.setdefault((label[place], group[place]), []).append(said.index(max(said)) == label[place])
        worst.append(min(sum(one) / len(one) for one in answers.values()))
    chosen = settings[worst.index(max(worst))]
    assert tuple(made.told[name] for name in ("alpha", "s", "c")) == chosen
    assert len(set(worst)) > 2
    assert [fit.c for fit in fits[-2:]] == [chosen[2]] * 2
    assert all(len(fit.labels) == 120 for fit in fits[-2:])  # of all rows, once it is chosen
    assert f"dispel_last_layer: alpha is {chosen[0]:g}, s {chosen[1]:g}, c {chosen[2]:g}" in caplog.text


def test_it_leaves_the_cue_where_groups_are_alike() -> None:
    last = with_a_cue(400)
    made = DISPELLastLayer(c=(0.3, 0.03), retrainings=5).retrained(last)
    assert (last.worst, last.right) == (0.0, 0.9)
    assert made.worst > 0.7
    assert (made.told["cells"], made.told["of_each_cell"]) == (4, 20)
    # As few are mixed, the cue is back; so it is where little of a balanced row is in the mixture.
    for alpha, s in ((0.05, 1.0), (1.0, 0.05)):
        cue = DISPELLastLayer((alpha,), (s,), (0.3,), retrainings=5).retrained(last)
        assert cue.worst < 0.5
        assert cue.right > made.right  # and yet it is not chosen
    both = DISPELLastLayer((0.05, 1.0), (0.05, 1.0), (0.3,), retrainings=1).retrained(last)
    assert (both.told["alpha"], both.told["s"]) == (1.0, 1.0)


def test_what_cannot_be_fitted_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    last = layer()
    two = dataclasses.replace(last, label_N=last.label_N % 2)
    with pytest.raises(InputError, match="no row held out has label number 2; give more of them"):
        DISPELLastLayer().retrained(two)
    for alone, told in (
        (None, "1 group in the rows held out"),
        (torch.zeros_like(last.label_N), "1 group in the rows held out"),
        (last.label_N, "3 groups in the rows held out, and no label with rows of two"),
    ):
        with pytest.raises(InputError, match=f"^edit: dispel_last_layer: {told}") as caught:
            DISPELLastLayer().retrained(dataclasses.replace(last, group_N=alone))
        assert "\n" not in str(caught.value)
    lonely = dataclasses.replace(last, group_N=(torch.arange(36) == 0).long())
    with pytest.raises(InputError, match="the rarest pair of label and group has one row held out, of which no half"):
        DISPELLastLayer(s=(0.8,)).retrained(lonely)
    one = DISPELLastLayer(s=(0.8,), c=(0.1,), retrainings=1, steps=1)
    assert one.retrained(lonely).told == {"alpha": 1.0, "s": 0.8, "c": 0.1, "cells": 4, "of_each_cell": 1}
    assert "a fit has not settled after 1 steps; take more" in caplog.text
    with pytest.raises(InputError, match=r"^edit.size_of_mixed is 2, expected 3 or more: a row of each label$"):
        dataclasses.replace(one, size_of_mixed=2).retrained(last)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", [], r"edit.alpha is \[\], expected shares above 0 and up to 1"),
        ("alpha", [1, 0], r"edit.alpha is \[1.0, 0.0\], expected shares above 0 and up to 1"),
        ("s", [1.1], r"edit.s is \[1.1\], expected shares above 0 and up to 1"),
        ("c", [1, 0], r"edit.c is \[1.0, 0.0\], expected numbers above 0"),
        ("c", [], r"edit.c is \[\], expected numbers above 0"),
        ("retrainings", 0, "edit.retrainings is 0, expected 1 or more"),
        ("size_of_mixed", 0, "edit.size_of_mixed is 0, expected 1 or more"),
        ("steps", 0, "edit.steps is 0, expected 1 or more"),
        ("seed", -1, "edit.seed is -1, expected a whole number from 0"),
    ],
)
def test_settings_that_are_wrong(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_edit("dispel_last_layer", {name: value})


def test_settings_are_the_published_ones() -> None:
    edit = make_edit("dispel_last_layer", {})
    assert edit == DISPELLastLayer((1.0,), (1.0, 0.9, 0.8, 0.7), (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01), 20, None)
