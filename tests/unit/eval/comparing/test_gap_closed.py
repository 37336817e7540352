"""How much of a gap methods close: which runs are meant, on which group, at what cost, and what is said where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import debias_eval
from debias.cli.app import app
from debias.errors import InputError
from debias.runs.kept import keep
from debias.sweep.study import kept_beside, plan_study, read_study
from debias_eval.comparing.closing import closings_in
from debias_eval.reporting.closing import closing_lines, closing_markdown

WRONG = {"erm": (50, 52, 51, 49, 48), "edge": (62, 63, 61, 60, 64), "pcgrad": (71, 74, 72, 70, 73)}


@pytest.fixture(scope="module")
def judged(make_run_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three methods, `hard` and `plain` judged; pcgrad is the ceiling."""
    place = tmp_path_factory.mktemp("judged")
    for method, wrong in WRONG.items():
        for seed, right in enumerate(wrong):
            suites = {"hard": {"bias-aligned": 95, "bias-conflicting": right}, "plain": {"all": right, "odd": 90}}
            make_run_in(place, f"recipe_{method}/default/seed{seed}", method, seed, suites)
    return place


@pytest.fixture
def sweep(judged: Path, tmp_path: Path) -> Path:
    """A copy of them, for each test to change."""
    return Path(shutil.copytree(judged, tmp_path / "sweep"))


def change(run: Path, **info: object) -> None:
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(known | info))


def only(found, suite="hard"):
    (row,) = [row for row in found.rows if row.suite == suite]
    return row


def test_edge_closes_half_of_the_gap(sweep: Path) -> None:
    found = closings_in([sweep], "erm", "pcgrad")
    row = only(found)
    assert (found.floor, found.ceiling, row.method, row.group, row.n) == ("erm", "pcgrad", "edge", "conflicting", 100)
    assert (row.floor, row.ceiling, row.value) == pytest.approx((0.5, 0.72, 0.62))
    assert row.closed.closed == pytest.approx(12 / 22)
    assert row.closed.interval[0] > 0.4
    assert (row.closed.seeds, row.closed.pairing) == ((5, 5, 5), "5 paired seeds")
    assert only(found, "plain").group == "worst_group"  # it has no conflicting one


@pytest.mark.parametrize(
    ("group", "suite", "floor", "n"),
    [
        ("bias-aligned", "hard", 0.95, 100),
        ("aligned", "hard", 0.95, 100),
        ("worst_group", "hard", 0.5, 100),
        ("adjusted", "hard", 0.725, 200),  # two groups of one size
        ("balanced", "hard", 0.725, 200),
        ("all", "hard", 0.725, 200),
        ("all", "plain", 0.5, 100),  # a group that is called so comes first
    ],
)
def test_a_group_by_its_name(sweep: Path, group: str, suite: str, floor: float, n: int) -> None:
    row = only(closings_in([sweep], "erm", "pcgrad", group), suite)
    assert (row.group, row.floor, row.n) == (group, pytest.approx(floor), n)
    assert (row.closed.closed is None) == (floor == 0.95)


@pytest.mark.parametrize("word", ["edge", "EDGE", "recipe_edge", "{}/recipe_edge/default/seed3", "{}/recipe_edge"])
def test_a_method_a_recipe_or_a_run_names_it(sweep: Path, word: str) -> None:
    found = closings_in([sweep], word.format(sweep), "pcgrad")
    assert (found.floor, only(found).method) == ("edge", "erm")


def test_a_floor_from_elsewhere_is_no_method_to_judge(sweep: Path, tmp_path: Path) -> None:
    (sweep / "recipe_erm").rename(tmp_path / "other")
    found = closings_in([sweep], str(tmp_path / "other"), "recipe_pcgrad")
    assert (found.floor, [row.method for row in found.rows]) == ("erm", ["edge", "edge"])


@pytest.mark.parametrize(
    ("floor", "ceiling", "group", "message"),
    [
        ("emr", "pcgrad", None, "--floor 'emr' is no method, recipe or run of these; did you mean 'erm'"),
        ("erm", "recipe_pgrad", None, "--ceiling 'recipe_pgrad' is no .* did you mean 'recipe_pcgrad'"),
        ("erm", "zzz", None, "there are 'erm', 'edge', 'pcgrad'"),
        ("erm", "recipe_erm", None, "--ceiling 'recipe_erm' is erm, which --floor is as well"),
        ("erm", "pcgrad", "bias-conflict", "--group 'bias-conflict' is no group of hard, plain; .*'bias-conflicting'"),
    ],
)
def test_unknown_words_name_the_nearest(sweep: Path, floor: str, ceiling: str, group: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        closings_in([sweep], floor, ceiling, group)
    assert "\n" not in str(caught.value)


def test_nothing_in_common_is_one_line(sweep: Path) -> None:
    for run in (sweep / "recipe_erm").glob("*/seed*"):
        for file in (run / "eval").glob("*"):
            file.rename(file.with_name(file.name.replace("hard", "soft").replace("plain", "mild")))
        for file in (run / "eval").glob("*.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"suite": file.stem}))
    with pytest.raises(
        InputError, match="no gap to measure: the floor erm was judged on mild, soft, the ceiling pcgrad"
    ):
        closings_in([sweep], "erm", "pcgrad")
    with pytest.raises(InputError, match="floor and ceiling were judged on hard, plain, erm was not"):
        closings_in([sweep], "edge", "pcgrad")


@pytest.mark.parametrize(("left_out", "half"), [((), 2.15063), ((3,), 3.01214)])
def test_floor_and_ceiling_alone_have_a_gap(sweep: Path, left_out: tuple[int, ...], half: float) -> None:
    """Its interval is Student's of 21, 22, 21, (21,) 25: half of it by hand, with 2.776 and 3.182 for t."""
    shutil.rmtree(sweep / "recipe_edge")
    for seed in left_out:
        shutil.rmtree(sweep / f"recipe_pcgrad/default/seed{seed}")
        shutil.rmtree(sweep / f"recipe_erm/default/seed{seed}")
    found = closings_in([sweep], "erm", "pcgrad")
    row = only(found)
    apart = [high - low for low, high in zip(WRONG["erm"], WRONG["pcgrad"], strict=True)]
    kept = [one for seed, one in enumerate(apart) if seed not in left_out]
    gap = sum(kept) / len(kept)
    assert 100 * row.closed.gap == pytest.approx(gap)
    assert row.closed.gap_interval is not None
    assert [100 * end for end in row.closed.gap_interval] == pytest.approx([gap - half, gap + half], abs=1e-3)
    table = closing_markdown(found)
    assert "Gap from erm to pcgrad" in table
    assert "There is no method beside these two" in table
    assert [cost.method for cost in found.costs] == ["erm", "pcgrad"]


def test_what_a_reader_may_object(sweep: Path) -> None:
    """Few seeds, more steps, more seconds, stages before the run, another machine."""
    assert not [one for one in closings_in([sweep], "erm", "pcgrad").objections if "compute" in one or "cost" in one]
    shutil.rmtree(sweep / "recipe_edge" / "default" / "seed4")
    for seed in range(4):
        run = sweep / f"recipe_edge/default/seed{seed}"
        stage = run / "stages" / "1"
        stage.mkdir(parents=True)
        for name in ("config.yaml", "run.json"):
            shutil.copy(run / name, stage / name)
        change(stage, steps=10, seconds=50.0)
        change(run, seconds=150.8, steps=80, machine={"device": "H100", "world_size": 1})
    found = closings_in([sweep], "erm", "pcgrad")
    said = "\n".join(found.objections)
    assert "edge has 4 seeds, fewer than 5" in said
    assert "unequal compute: erm saw 1,280 examples in training, edge 2,560" in said
    assert "unequal compute: edge saw 320 examples more in runs before the run" in said
    # A run that took another's answers over has no such folder, and says it itself.
    shutil.rmtree(sweep / "recipe_edge/default/seed0/stages")
    change(sweep / "recipe_edge/default/seed0", examples_before=640)
    assert "edge saw 400 examples more in runs before the run" in "\n".join(
        closings_in([sweep], "erm", "pcgrad").objections
    )
    assert "unequal cost: edge took 2.00 times the floor's seconds" in said  # stages are in them: not counted twice
    assert "seconds of different machines are not to be compared: erm: unknown" in said
    assert only(found).closed.pairing == "4 paired seeds, 2 runs without a pair left out"
    assert only(found).floor == pytest.approx(0.505)  # of the seeds that count
    change(sweep / "recipe_erm/default/seed0", seconds="long")
    assert "unknown cost: a run of erm has no seconds" in "\n".join(closings_in([sweep], "erm", "pcgrad").objections)


def test_seconds_are_held_against_those_of_the_same_seed(sweep: Path) -> None:
    """A busy machine is slow for all runs of a seed; a method of few seeds must not pay for the floor's other ones."""
    for seed, busy in enumerate((1.0, 2.0, 4.0, 1.0, 1.0)):
        change(sweep / f"recipe_erm/default/seed{seed}", seconds=100 * busy, cpu_seconds=80 * busy)
        change(sweep / f"recipe_edge/default/seed{seed}", seconds=150 * busy, cpu_seconds=(88 + 8 * seed) * busy)
    for seed in (0, 3, 4):
        shutil.rmtree(sweep / f"recipe_edge/default/seed{seed}")
    (cost,) = [one for one in closings_in([sweep], "erm", "pcgrad").costs if one.method == "edge"]
    assert cost.over_floor == pytest.approx(1.5)
    assert cost.seconds == pytest.approx(450)
    assert cost.cpu_over_floor == pytest.approx((96 * 2 + 104 * 4) / (80 * 6))
    assert cost.cpu_range == pytest.approx((1.2, 1.3))
    # Without a seed in common there are only the means.
    for seed in (1, 2):
        shutil.rmtree(sweep / f"recipe_erm/default/seed{seed}")
    (cost,) = [one for one in closings_in([sweep], "erm", "pcgrad").costs if one.method == "edge"]
    assert (cost.over_floor, cost.cpu_range) == (pytest.approx(4.5), None)


def test_other_examples_give_no_number(sweep: Path) -> None:
    file = sweep / "recipe_pcgrad/default/seed2/eval/hard.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"examples_sha256": "others"}))
    found = closings_in([sweep], "erm", "pcgrad")
    assert [row.suite for row in found.rows] == ["plain"]
    assert any("suite hard: not the same examples" in one for one in found.objections)


def test_a_suite_without_the_group_is_left_out_with_a_word(sweep: Path) -> None:
    found = closings_in([sweep], "erm", "pcgrad", "odd")
    assert [row.suite for row in found.rows] == ["plain"]
    assert "suite hard: left out, not every run has the group 'odd' there" in found.objections


def test_no_gap_is_said_in_place_of_a_number(sweep: Path) -> None:
    found = closings_in([sweep], "pcgrad", "erm")
    assert only(found).closed.closed is None
    assert "| no gap to close |" in closing_markdown(found)
    assert any(
        "edge on hard, edge on plain: no gap to close: the ceiling is below" in one for one in closing_lines(found)
    )


def test_the_verb(sweep: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["compare", *words])
        return done.stdout if done.exception is None else str(done.exception)

    roles = ("--floor", "erm", "--ceiling", "pcgrad")
    table = run(str(sweep), *roles, "--markdown", str(tmp_path / "gap.md"))
    assert "0.55 [" in table
    assert "Fieller" in table
    assert "| hard | edge | conflicting | 100 | 50.0 | 72.0 | 62.0 |" in (tmp_path / "gap.md").read_text()
    told = json.loads(run(str(sweep), *roles, "--json"))
    assert told["rows"][0]["closed"] == pytest.approx(12 / 22)
    assert told["costs"][0] == {
        **{"method": "erm", "seconds": pytest.approx(75.4), "over_floor": pytest.approx(1)},
        **{"cpu_seconds": None, "cpu_over_floor": None, "cpu_range": None},
        **{"examples": 1280, "before": 0, "machines": ["unknown"]},
    }
    assert run(str(sweep), "--floor", "erm").startswith("--ceiling is missing")
    assert run(str(sweep), "--group", "all").startswith("--group: of --floor and --ceiling alone")
    assert run(str(sweep), "--against", str(sweep), *roles).startswith("--against: not with --floor")


STUDY = """
name: bed
recipe: minilm_generated_erm
seeds: 5
floor: plain_one
ceiling: best_one
arms: {plain_one: {}, half: {lora_r: 2}, best_one: {lora_r: 4}}
"""


def test_a_study_shows_what_its_kept_runs_close_by_the_names_of_its_arms(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as from the folders, which may be gone."""
    monkeypatch.delenv("DEBIAS_DATA", raising=False)  # a suite's rows that are here would be looked at
    file = tmp_path / "bed.yaml"
    file.write_text(STUDY)

    def study(*words: str) -> str:
        done = CliRunner().invoke(app, ["study", str(file), *words])
        return done.stdout if done.exception is None else str(done.exception)

    assert study().startswith(f"{tmp_path}/bed.jsonl keeps no run of the study yet")
    recipes = {"plain_one": "recipe_erm", "half": "recipe_edge", "best_one": "recipe_pcgrad"}
    for run in plan_study(read_study(file), file, tmp_path):
        arm = run.name.split("/")[0]
        keep(kept_beside(file), sweep / recipes[arm] / f"default/seed{run.seed}", run.name, digest=run.digest)
    want = [row.closed for row in closings_in([sweep], "erm", "pcgrad").rows]
    shutil.copytree(sweep / "recipe_edge/default/seed2", tmp_path / "two")
    shutil.rmtree(sweep)
    assert [row.closed for row in closings_in([kept_beside(file)], "plain_one", "best_one").rows] == want
    told = json.loads(study("--json"))
    assert {row["method"] for row in told["rows"]} == {"half"}
    assert [cost["method"] for cost in told["costs"]] == ["plain_one", "best_one", "half"]
    assert "15 of 15 runs are kept" in study("--dry-run")
    assert "Gap closed, from plain_one to best_one" in study()
    # A suite that is a file beside the study is known by its own name, wherever the command is given.
    (tmp_path / "of").mkdir()
    own = (Path(debias_eval.__file__).parent / "suites" / "qqp" / "suite.yaml").read_text()
    (tmp_path / "of" / "own.yaml").write_text(own.replace("name: qqp\n", "name: hard\n", 1))
    file.write_text(f"{STUDY}suites: [of/own.yaml]\n")
    assert "15 of 15 runs are kept" in study("--dry-run")
    # An arm whose settings change has no results any more, until it is made anew; nor has one that is gone.
    file.write_text(STUDY.replace("half: {lora_r: 2}", "half: {lora_r: 3}, more: {lora_r: 6}"))
    assert "Gap from plain_one to best_one" in study()
    keep(kept_beside(file), tmp_path / "two", "half/default/seed2", digest=made_anew(file, "half/default/seed2"))
    told = json.loads(study("--json"))
    assert {(row["method"], row["seeds"][2]) for row in told["rows"]} == {("half", 1)}


def made_anew(file: Path, name: str) -> str:
    return next(run.digest for run in plan_study(read_study(file), file, file.parent) if run.name == name)
