"""How rules rank runs against a suite: made by hand, where every figure is known."""

import json
import math

import pytest
from rich.console import Console
from typer.testing import CliRunner

from debias.cli.app import app
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.kept import keep
from debias_eval.results.ranking import ranking_table, rankings_in
from debias_eval.results.selection import choices_in
from debias_eval.scores.ranks import spearman

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RIGHT = (10, 20, 30, 40, 60, 50)  # of the conflicting group of the suite
CELLS = (0.30, 0.35, 0.40, 0.50, 0.60, 0.55)  # in the order of the above
PLAIN = (0.90, 0.80, 0.85, 0.70, 0.60, 0.65)
BOTH = {"eval_accuracy": 0.5, "eval_pseudo_group_accuracy": 0.1}


@pytest.fixture
def runs(tmp_path, make_run, put):
    """Runs that pseudo groups rank as the suite does, and validation the other way about."""
    folder = tmp_path / "runs"
    for rate, right, cells, plain in zip(RATES, RIGHT, CELLS, PLAIN, strict=True):
        write(folder / f"rate{rate}", rate, {"eval_accuracy": plain, "eval_pseudo_group_accuracy": cells}, make_run)
        put(folder / f"rate{rate}", "hans", {"bias-conflicting": right, "bias-aligned": 90})
    return folder


def write(run, rate, figures, make_run, **changes):
    make_run(str(run.relative_to(run.parents[1])), "erm")
    config = {"model": "m", "data": {"train": "t"}, "output_dir": "x", "method": "erm", "learning_rate": rate}
    (run / "config.yaml").write_text(
        dump_config(RunConfig.model_validate({**config, "bias_model": "lexical", **changes}))
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, **figures}) + "\n")


def plain_spearman(first, second):
    """Pearson's correlation of ranks, in plain loops; without ties."""
    ranks = [[sum(other < one for other in values) for one in values] for values in (first, second)]
    middle = (len(first) - 1) / 2
    products = [math.fsum((a - middle) * (b - middle) for a, b in zip(x, y, strict=True)) for x in ranks for y in ranks]
    return products[1] / math.sqrt(products[0] * products[3])


def test_spearman_in_plain_loops():
    first, second = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0], [2.0, 7.0, 1.0, 8.0, 2.8, 1.8, 2.9]
    found = spearman(first, second)
    assert found is not None
    rho, (low, high) = found
    assert rho == pytest.approx(plain_spearman(first, second), abs=1e-12)
    # Bonett and Wright (2000), by hand.
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 4)
    assert math.atanh(low) == pytest.approx(math.atanh(rho) - half, abs=1e-5)
    assert math.atanh(high) == pytest.approx(math.atanh(rho) + half, abs=1e-5)
    tied = spearman([1, 1, 2, 3], [1, 2, 2, 3])
    assert tied is not None
    assert tied[0] == pytest.approx(5 / 6, abs=1e-9)  # by hand: ranks 1.5 1.5 3 4 and 1 2.5 2.5 4


def test_perfect_order_is_not_certainty():
    rho, (low, high) = spearman(range(6), range(6))  # type: ignore[misc]
    assert (rho, high) == (1.0, 1.0)
    assert 0 < low < 0.9
    assert spearman(range(6), range(6, 0, -1)) == (-1.0, (-1.0, pytest.approx(-low)))
    more, fewer = spearman(range(20), range(20)), spearman(range(4), range(4))
    assert more is not None
    assert fewer is not None
    assert fewer[1][0] < low < more[1][0]


def test_what_cannot_be_ranked():
    assert spearman([1, 2, 3], [1, 2, 3]) is None
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_pseudo_groups_beside_validation(runs):
    found = rankings_in(runs, "pseudo_groups", "hans")
    assert (found.suite, found.group, found.runs) == ("hans", "conflicting", 6)
    assert (found.best, found.mean) == (pytest.approx(0.6), pytest.approx(0.35))
    first, second = found.rows
    assert (first.rule.name, first.rho, first.first, first.reached) == ("pseudo_groups", 1.0, "rate0.5", 0.6)
    assert (second.rule.name, second.first, second.reached) == ("validation", "rate0.1", 0.1)
    assert second.rho == pytest.approx(plain_spearman(PLAIN, RIGHT))
    assert second.rho < -0.9
    (choice,) = choices_in(runs, "pseudo_groups")
    assert (choice.name, choice.score) == ("rate0.5", pytest.approx(0.6))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(ranking_table(found))
    text = console.export_text()
    for piece in ("6 runs by validation against hans, conflicting", "+1.00", "best run 60.0 %, mean of all 35.0 %"):
        assert piece in text


def test_another_group_of_the_suite(runs):
    assert rankings_in(runs, "pseudo_groups", "hans", "worst_group").rows[0].rho == 1.0
    even = rankings_in(runs, "pseudo_groups", "hans", "bias-aligned")
    assert [row.rho for row in even.rows] == [None, None]
    assert "all equal" in str([list(column.cells) for column in ranking_table(even).columns])


def test_runs_without_a_figure_are_named(runs, make_run, put):
    write(runs / "bare", 0.7, {"eval_accuracy": 0.5}, make_run)
    put(runs / "bare", "hans", {"bias-conflicting": 99, "bias-aligned": 90})
    write(runs / "other", 0.8, BOTH, make_run, bias_model={"name": "lexical", "longest": 1})
    put(runs / "other", "hans", {"bias-conflicting": 5, "bias-aligned": 90})
    found = rankings_in(runs, "pseudo_groups", "hans")
    assert (found.runs, found.left_out) == (7, ("bare",))
    assert any("2 different bias models" in note for note in found.notes)


def test_runs_before_a_run_are_no_candidates(runs, make_run):
    write(
        runs / "rate0.1" / "stages" / "bias_1", 0.1, {}, lambda name, method: make_run(f"runs/rate0.1/{name}", method)
    )
    assert rankings_in(runs, "pseudo_groups", "hans").runs == 6
    assert choices_in(runs, "pseudo_groups")[0].candidates == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("last", "hans"), "rule last has no figure of it; use pseudo_groups"),
        (("oracle", "hans"), "rule oracle has no figure of it"),
        (("pseudo_groups", "hens"), "--against-suite 'hens': no run was judged on it; there is hans"),
        (("pseudo_groups", "hans", "nobody"), "--group 'nobody': rate0.1 has no such group on hans; its groups are"),
        (("worst_class", "hans"), "0 runs have eval_worst_class_accuracy and a result on hans; it takes 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(runs, arguments, says):
    with pytest.raises(InputError, match=says) as caught:
        rankings_in(runs, *arguments)
    assert "\n" not in str(caught.value)


def test_other_bias_models_are_not_compared(runs, make_run):
    write(runs / "other", 0.8, BOTH, make_run, bias_model={"name": "lexical", "longest": 1})
    with pytest.raises(InputError, match=r"have other pseudo groups: bias_model.longest is 1 and 2"):
        choices_in(runs, "pseudo_groups")
    assert choices_in(runs, "validation")[0].name == "rate0.1"


def test_without_a_bias_model_it_is_said(runs, make_run):
    write(runs / "bare", 0.7, {"eval_accuracy": 0.5}, make_run)
    with pytest.raises(InputError, match=r"bare has no eval_pseudo_group_accuracy .* and name a bias_model"):
        choices_in(runs, "pseudo_groups")


def test_the_command(runs):
    told = CliRunner().invoke(
        app, ["select", str(runs), "--rule", "pseudo_groups", "--against-suite", "hans", "--json"]
    )
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert found["choices"][0]["configuration"] == "rate0.5"
    assert found["ranking"]["rules"][0]["spearman"] == 1.0
    shown = CliRunner().invoke(app, ["select", str(runs), "--rule", "pseudo_groups", "--against-suite", "hans"])
    assert "Spearman" in shown.output
    alone = CliRunner().invoke(app, ["select", str(runs), "--group", "all"])
    assert "--group goes with --against-suite" in str(alone.exception)


def test_kept_runs_of_a_study_are_one_choice_among_its_arms(runs, tmp_path):
    """A kept run has no metrics: what its summary says of pseudo groups is what it is chosen by."""
    kept = tmp_path / "study.jsonl"
    for rate, cells, plain in zip(RATES, CELLS, PLAIN, strict=True):
        run = runs / f"rate{rate}"
        summary = json.loads((run / "run.json").read_text())
        summary["pseudo_groups"] = {"step": 40, "eval_accuracy": plain, "eval_pseudo_group_accuracy": cells}
        (run / "run.json").write_text(json.dumps(summary))
        keep(kept, run, f"rate{rate}/default/seed0", digest="d", seed=0)
    (choice,) = choices_in(kept, "pseudo_groups")
    assert (choice.method, choice.name, choice.candidates) == ("study", "rate0.5", 6)
    assert choice.score == pytest.approx(0.6)
    found = rankings_in(kept, "validation", "hans")
    assert [row.rho for row in found.rows] == [pytest.approx(plain_spearman(PLAIN, RIGHT)), 1.0]
    words = ["select", str(kept), "--rule", "validation", "--arm", "rate0.2", "--arm", "rate0.4"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "rate0.2" in told.output
    assert rankings_in(kept, "validation", "hans", arms=[f"rate{rate}" for rate in RATES[:4]]).runs == 4
    with pytest.raises(InputError, match=r"--arm 'rate9': has no finished run in study; there are rate0.1, rate0.2"):
        choices_in(kept, "validation", arms=["rate9"])


def test_one_run_has_no_arms(runs):
    with pytest.raises(InputError, match=r"--arm: \S*rate0.1 is one run, whose arms would lie below it"):
        choices_in(runs / "rate0.1", "validation", arms=["rate0.1"])
