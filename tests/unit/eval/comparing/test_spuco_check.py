"""The arithmetic of `eval/spuco_check.py`, from made-up figures; that its trainers run is seen by running it."""

import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from debias.errors import InputError

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def check() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "eval" / "spuco_check.py")))


def figures(right, wrong):
    return {seed: {"right": one, "wrong": other} for seed, (one, other) in enumerate(zip(right, wrong, strict=True))}


def test_a_difference_is_taken_seed_by_seed(check):
    """Both sides move by ten points from seed to seed, and apart by one or two: by hand, t(0.975, 2) = 4.302653."""
    mean, low, high = check.paired([51.0, 62.0, 71.0], [50.0, 60.0, 70.0])
    half = 4.302653 * math.sqrt((2 * (1 - 4 / 3) ** 2 + (2 - 4 / 3) ** 2) / 2) / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((4 / 3, 4 / 3 - half, 4 / 3 + half), abs=1e-5)


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_has_no_interval(check, seeds):
    with pytest.raises(ValueError, match=f"{seeds} seeds"):
        check.paired([0.5] * seeds, [0.5] * seeds)


def test_the_table_is_of_the_seeds_that_both_have(check):
    theirs = {"erm": figures([0.9, 0.8, 0.7], [0.5, 0.6, 0.1]), "jtt": figures([0.9], [0.9])}
    ours = {"erm": figures([0.9, 0.9], [0.4, 0.5]), "jtt": figures([0.9, 0.9], [0.9, 0.9])}
    *_, row = lines = list(check.lines(theirs, ours))
    assert len(lines) == 3  # JTT has one seed, all else none
    cells = row.strip("| ").split(" | ")
    assert cells[:6] == ["`ERM`", "`erm`", "2", "55.0", "45.0", "+10.0 [10.0, 10.0]"]
    assert cells[6:] == ["85.0", "90.0", "-5.0 [-68.5, 58.5]"]


def test_dfr_is_held_against_another_row_of_the_same_file(check):
    theirs = {"dfr": figures([0.9, 0.9], [0.8, 0.8]), "dfr_last_layer": figures([0.8, 0.9], [0.8, 0.7])}
    *_, row = check.lines(theirs, check.ours_beside(theirs))
    assert row.startswith("| `DFR` | `dfr_last_layer` | 2 | 80.0 | 75.0 |")


def test_spuco_is_held_against_the_study_and_not_against_itself(check):
    """Its figures have the names of arms."""
    arms = check.of_arms()
    held = check.ours_beside({"erm": figures([0.0] * 5, [0.0] * 5), "dfr_last_layer": figures([0.1], [0.1])})
    assert held["erm"] == arms["erm"] != {}
    assert held["dfr_last_layer"] == figures([0.1], [0.1])


def test_the_page_shows_what_the_file_holds(check):
    page = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    shown = page.partition("\n## Colored MNIST: SpuCo's numbers\n")[2].partition("\n## ")[0]
    told = check.made(check.FIGURES)
    assert [line for line in shown.splitlines() if line.startswith("|")] == list(
        check.lines(told, check.ours_beside(told))
    )
    assert {name: sorted(seeds) for name, seeds in told.items()} == {name: list(check.SEEDS) for name in told}


def test_the_plain_run_of_a_seed_is_the_kept_one(check):
    """Its planted seed and its own, its settings, and data beside the recipe."""
    config = check.plain_run(3)
    assert (config.seed, config.data.planted_color.seed, config.max_steps) == (3, 3, 500)
    with pytest.raises(InputError, match="seed77 is not among the kept runs"):
        check.plain_run(77)


def test_a_run_ends_in_the_middle_of_an_epoch_and_its_gradients_are_clipped(check):
    """Adam's steps have one size whatever the gradient's, so the clip is looked at in its first moments."""
    model, config = torch.nn.Linear(1, 1, bias=False), check.plain_run(0)
    optimizer = check.Steps(model, config, steps=2)
    for ends in (False, True):
        model.weight.grad = torch.tensor([[300.0]])
        before = model.weight.item()
        try:
            optimizer.step()
        except check.Enough:
            assert ends
        else:
            assert not ends
        assert model.weight.item() == pytest.approx(before - config.learning_rate, rel=1e-3)
    (moments,) = optimizer.state.values()
    assert moments["exp_avg"].item() == pytest.approx(config.max_grad_norm * (1 - 0.9**2), rel=1e-5)


def test_without_spuco_it_says_so_in_one_line(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "spuco", None)
    with pytest.raises(InputError, match="pip install spuco"):
        check.load_spuco()
