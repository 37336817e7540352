"""Results of one method's seeds that are not of the same rows, or not scored alike, are no seeds of one mean."""

import itertools
from typing import Any

import pytest

from debias.errors import InputError
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.judging.missing import Missing
from debias_eval.reporting.report import grids, write_latex, write_markdown, write_report
from debias_eval.reporting.tables import terminal_table
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import read_runs
from debias_eval.results.selection import choices_in
from debias_eval.results.summary import Row, suite_notes, table

SUBSET = {"available": 900, "limit": 100}
EXCLUDED = {"rows": 3, "excluded": True}
# What two results differ in, and what is said of the second one.
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another draw": (
        {**SUBSET, "limit_seed": 0, "examples_sha256": "a"},
        {**SUBSET, "limit_seed": 7, "examples_sha256": "b"},
        "judged on other examples (100 of 900, drawn with seed 7)",
    ),
    "a draw and all": ({"available": 100}, {**SUBSET, "examples_sha256": "b"}, "judged on other examples (100 of 900"),
    "normalized": ({"judge": {"normalize": "none"}}, {"judge": {"normalize": "tokens"}}, "way (normalize tokens)"),
    "calibrated": ({"judge": {}}, {"judge": {"calibrate": "pmi"}}, "scored in another way (calibrate pmi)"),
    "by a harness": ({}, {"judge": {"by": "a harness"}}, "scored in another way (by a harness)"),
    "other labels": ({"gold_sha256": "a"}, {"gold_sha256": "b"}, "judged by other labels, groups or clusters"),
    "a version": ({}, {"version": 2}, "judged under version 2 of it"),
    "rows left out": ({}, {"overlap": EXCLUDED, "examples_sha256": "b"}, "examples (100, without rows it was trained"),
    "a draw of an older version": (
        {**SUBSET, "limit_seed": 0, "examples_sha256": None},
        {**SUBSET, "limit_seed": 7, "examples_sha256": None},
        "drawn with seed 7",
    ),
}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "how the work was spread": ({"judge": {"batch": 4, "ranks": 1}}, {"judge": {"batch": 8, "ranks": 2}}),
    "an older version that says nothing": ({"judge": {}, "examples_sha256": None}, {"judge": {"normalize": "none"}}),
    "labels that one does not name": ({"gold_sha256": "a"}, {"gold_sha256": None}),
    "each run's own rows": (
        {"overlap": EXCLUDED, "examples_sha256": "a", "gold_sha256": "a"},
        {"overlap": EXCLUDED, "examples_sha256": "b", "gold_sha256": "b"},
    ),
}


def rows_of(runs: Any) -> list[Row]:
    return table(group_runs(read_runs(list(runs))))


@pytest.mark.parametrize(("first", "second", "words"), OTHER.values(), ids=OTHER)
def test_what_is_judged_otherwise_is_no_further_seed(make_run, put, first, second, words):
    one, other = make_run("one", seed=0), make_run("other", seed=1)
    put(one, "s", {"x": 70}, **first)
    put(other, "s", {"x": 30}, **second)
    (row,) = rows_of([one, other])
    assert (row.accuracy.seeds, round(row.accuracy.value, 9)) == (1, 0.7), "the mean of both is 0.5"
    (note,) = [note for note in suite_notes([row], [row.method]) if note.endswith(": not pooled.")]
    assert note.startswith("shows edge without other, ")
    assert words in note


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_what_is_not_known_to_differ_is_a_seed_as_before(make_run, put, first, second):
    one, other = make_run("one", seed=0), make_run("other", seed=1)
    put(one, "s", {"x": 70}, **first)
    put(other, "s", {"x": 30}, **second)
    (row,) = rows_of([one, other])
    assert (row.accuracy.seeds, round(row.accuracy.value, 9), row.apart) == (2, 0.5, {})


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_what_most_seeds_have_is_what_counts(make_run, put, order):
    runs = [make_run(f"run{i}", seed=i) for i in range(3)]
    for run, (right, digest) in zip(runs, (["a", 60], ["b", 10], ["a", 80]), strict=True):
        put(run, "s", {"x": digest}, examples_sha256=right)
    (row,) = rows_of(runs[i] for i in order)
    assert (row.accuracy.seeds, round(row.accuracy.value, 9), list(row.apart)) == (2, 0.7, ["run1"])


def test_methods_that_were_judged_otherwise_are_named(make_run, put):
    plain, edge = make_run("plain", method="erm"), make_run("edge")
    put(plain, "s", {"x": 70})
    put(edge, "s", {"x": 30}, judge={"normalize": "tokens"})
    notes = [note for grid in grids(read_runs([plain, edge])) for note in grid.notes]
    wanted = "s has numbers of edge, scored in another way (normalize tokens): compare them with none of erm."
    assert wanted in notes
    put(edge, "s", {"x": 30})
    assert not [note for grid in grids(read_runs([plain, edge])) for note in grid.notes if "compare them" in note]


def test_every_table_says_it(make_run, put, tmp_path):
    one, other = make_run("one", seed=0), make_run("other", seed=1)
    put(one, "s", {"x": 70}, examples_sha256="a")
    put(other, "s", {"x": 30}, examples_sha256="b")
    said = "s shows edge without other, judged on other examples (100): not pooled."
    page, marked, latex = (
        write([one, other], tmp_path / write.__name__).read_text()
        for write in (write_report, write_markdown, write_latex)
    )
    terminal = str(terminal_table([one, other]).caption)
    assert [said in text for text in (page, marked, latex, terminal)] == [True] * 4


def test_an_oracle_does_not_choose_among_runs_that_were_judged_otherwise(make_run, put, tmp_path):
    for name, more in (("erm", {}), ("edge", {"judge": {"normalize": "tokens"}})):
        put(make_run(f"all/{name}", method="edge" if name == "edge" else "erm"), "s", {"x": 70}, **more)
    assert len(choices_in(tmp_path / "all", "oracle")) == 2, "each is the only one of its method"
    put(make_run("all/edge1", seed=1), "s", {"x": 70})
    for folder in ("edge", "edge1"):
        config = tmp_path / "all" / folder / "config.yaml"
        config.write_text(
            config.read_text().replace("alpha: 1.0", f"alpha: 0.{len(folder)}").replace("seed: 1", "seed: 0")
        )
    with pytest.raises(InputError, match=r"edge1 was scored in another way \(normalize none\), unlike edge: on s an"):
        choices_in(tmp_path / "all", "oracle")


@pytest.mark.parametrize(
    ("how", "missing"), [({}, []), ({"seed": 7}, ["generated"]), ({"tokens": True}, ["generated"])]
)
def test_a_sweep_judges_again_what_was_drawn_or_scored_otherwise(make_run, fake, how, missing):
    run, model = make_run("run"), fake()
    model.description = {"how": "answers", "normalize": "tokens" if "tokens" in how else "none", "calibrate": "none"}
    result = evaluate_run(run, "generated", limit=20, seed=how.get("seed", 0), predictor=model, floor=False)
    judge = Missing(["generated"], 20)
    assert (judge.missing(run), judge.of_its_rows("generated", result)) == (missing, not missing)
