"""A study: its file, the order of its runs, and that no run is made twice, here or on another machine."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from command_line import command_line

from debias.errors import InputError
from debias.losses import LOSSES
from debias.runs.kept import keep, kept
from debias.sweep.grid import plan_sweep
from debias.sweep.runner import Sweep
from debias.sweep.study import Keeper, kept_beside, plan_study, read_study, suites_of
from debias_eval.judging.missing import Missing
from debias_eval.reading.examples import all_examples
from debias_eval.reading.suite import load_suite
from debias_eval.results.files import examples_sha256, gold_sha256

FAKE = Path(__file__).parents[2] / "fake_debias.py"
STUDIES = Path(__file__).parents[3] / "eval" / "studies"
ARMS = {"erm": {}, "oracle": {"data.planted_bias": None}, "fast": {"learning_rate": 0.01}}


@pytest.fixture
def file(tmp_path):
    recipe = {"model": "m", "output_dir": "x", "method": "erm"}
    recipe["data"] = {"train": {"source": "generated", "limit": 9}, "planted_bias": {"cue": "!!", "label": "neutral"}}
    (tmp_path / "bed.yaml").write_text(yaml.safe_dump(recipe))
    return study_file(tmp_path)


def study_file(folder, **changes):
    study = {"name": "bed", "recipe": "bed.yaml", "seeds": [4, 2], "arms": ARMS, "new_data": True, **changes}
    (folder / "bed_study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "bed_study.yaml"


def runs_of(file, out, *arms):
    return plan_study(read_study(file), file, out, arms)


def test_every_arm_of_a_seed_before_the_next_seed(file, tmp_path):
    runs = runs_of(file, tmp_path / "out")
    assert [run.name for run in runs] == [f"{arm}/default/seed{seed}" for seed in (4, 2) for arm in ARMS]
    assert [run.index for run in runs] == list(range(6))
    assert runs[2].folder == tmp_path / "out/fast/default/seed4"
    assert runs[2].settings["learning_rate"] == 0.01
    assert runs[0].settings["data"]["planted_bias"]["seed"] == runs[0].settings["data"]["train"]["seed"] == 4
    assert "planted_bias" not in runs[1].settings["data"]
    assert [run.name for run in runs_of(file, tmp_path, "fast")] == ["fast/default/seed4", "fast/default/seed2"]


def test_an_arm_is_what_a_sweep_of_its_settings_would_be(file, tmp_path):
    (alone,) = plan_sweep([file.parent / "bed.yaml"], [4], [("learning_rate=0.01",)], tmp_path, new_data=True)
    assert alone.digest == runs_of(file, tmp_path, "fast")[0].digest


def test_an_arms_own_settings_are_not_those_of_all(file, tmp_path):
    """A whole block of its own is all that is in that block; a setting in a shared block changes that one alone."""
    shared = {"loss": {"name": "focal", "gamma": 3.0}, "learning_rate": 0.5, "lora_r": 4}
    arms = {
        "half": {"loss.gamma": 0.5},
        "whole": {"loss": {"name": "focal", "gamma": 1.0}},
        "dotted": {"learning_rate": 0.25},
    }
    file = study_file(tmp_path, settings=shared, arms=arms, seeds=1)
    found = {run.name.partition("/")[0]: run.settings for run in runs_of(file, tmp_path / "out")}
    assert [found[arm]["loss"].get("gamma") for arm in arms] == [0.5, 1.0, 3.0]
    assert [found[arm]["learning_rate"] for arm in arms] == [0.5, 0.5, 0.25]
    file = study_file(tmp_path, settings={"loss": "focal", "loss.gamma": 3.0, "lora_r": 4}, arms=arms, seeds=1)
    found = {run.name.partition("/")[0]: run.settings for run in runs_of(file, tmp_path / "other")}
    assert [found[arm]["loss"].get("gamma") for arm in arms] == [0.5, 1.0, 3.0]
    file = study_file(tmp_path, settings={"loss.gamma": 3.0, "loss": "focal"}, arms=arms, seeds=1)
    with pytest.raises(InputError, match=r"takes the place of the block in which loss\.gamma was set; give loss first"):
        runs_of(file, tmp_path / "lost")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"floor": "erm"}, "floor and ceiling go together"),
        ({"floor": "emr", "ceiling": "oracle"}, "floor is 'emr', no arm of the study; the arms are erm, oracle, fast"),
        ({"arms": {"a": {"seed": 3}}}, "a: seed is the study's own"),
        ({"settings": {"output_dir": "x"}}, "settings: output_dir is the study's own"),
        ({"arms": {}}, "arms: "),
        ({"arms": {"../x": {}}}, "arms"),
        ({"seeds": 0}, "seeds: expected a number of seeds"),
        ({"seeds": [1, 1]}, "seeds: expected a number of seeds"),
        ({"suite": ["hans"]}, "suite: unknown key"),
    ],
)
def test_a_study_that_is_none_is_one_line(tmp_path, changes, says):
    with pytest.raises(InputError, match=says) as error:
        read_study(study_file(tmp_path, **changes))
    assert "\n" not in str(error.value)
    assert "bed_study.yaml" in str(error.value)


def test_an_arm_that_is_none_and_settings_that_are_none(file, tmp_path):
    with pytest.raises(InputError, match=r"--arm 'orcale': the arms of .* are erm, oracle, fast"):
        runs_of(file, tmp_path, "orcale")
    with pytest.raises(InputError, match="learning_rat"):
        runs_of(study_file(tmp_path, arms={"a": {"learning_rat": 1}}), tmp_path)


def test_no_run_is_made_twice_and_a_changed_arm_is_made_anew(file, tmp_path):
    """The kept file alone decides: the second machine has no folder of the first."""

    def make(out):
        keeper = Keeper(kept_beside(file), {}, None)
        left = [run for run in runs_of(file, tmp_path / out) if not keeper.holds(run)]
        work = Sweep(left, tmp_path / out, launcher=shlex.join([sys.executable, str(FAKE)]), jobs=3, done=keeper.add)
        work.run()
        return [run.name for run in left], work.failed

    made, failed = make("one")
    assert (len(made), failed) == (6, {})
    assert {record["run"] for record in kept(kept_beside(file))} == set(made)
    assert make("two") == ([], {})
    study_file(tmp_path, arms={**ARMS, "fast": {"learning_rate": 0.02}})
    assert make("two")[0] == ["fast/default/seed4", "fast/default/seed2"]
    assert len(kept(kept_beside(file))) == 6


def test_a_method_that_gets_one_more_setting_is_the_same_method(file, tmp_path, monkeypatch):
    """What was kept stays kept; a place on another machine is another place."""
    (run,) = runs_of(study_file(tmp_path, seeds=[4], arms={"a": {"loss": {"name": "focal", "gamma": 3.0}}}), tmp_path)
    assert run.settings["loss"] == {"name": "focal", "gamma": 3.0}
    (plain,) = runs_of(study_file(tmp_path, seeds=[4], arms={"a": {"loss": {"name": "focal", "gamma": 2.0}}}), tmp_path)
    assert plain.settings["loss"] == {"name": "focal"}
    (least,) = runs_of(study_file(tmp_path, seeds=[4], arms={"a": {"loss": "cross_entropy"}}), tmp_path)
    assert "loss" not in least.settings

    @dataclasses.dataclass(frozen=True)
    class Later(LOSSES["focal"]):
        sharpness: float = 1.0

    monkeypatch.setitem(LOSSES, "focal", Later)
    (later,) = runs_of(study_file(tmp_path, seeds=[4], arms={"a": {"loss": {"name": "focal", "gamma": 3.0}}}), tmp_path)
    assert later.digest == run.digest


def test_a_failed_run_is_not_kept(file, tmp_path):
    study_file(tmp_path, arms={"erm": {}, "breaks": {"learning_rate": 0.5}}, seeds=1)
    keeper = Keeper(kept_beside(file), {}, None)
    work = Sweep(runs_of(file, tmp_path / "out"), tmp_path / "out", done=keeper.add)
    work.launcher = shlex.join([sys.executable, str(FAKE)])
    work.run()
    assert list(work.failed) == ["breaks/default/seed0"]
    assert [record["run"] for record in kept(kept_beside(file))] == ["erm/default/seed0"]


@pytest.mark.parametrize(("version", "limit", "held"), [(2, None, True), (1, None, False), (2, 50, False)])
def test_a_result_of_another_version_or_limit_is_to_be_made(file, tmp_path, version, limit, held):
    (run,) = runs_of(study_file(tmp_path, seeds=[4], arms={"erm": {}}), tmp_path / "out")
    (run.folder / "eval").mkdir(parents=True)
    (run.folder / "eval" / "hans.json").write_text(json.dumps({"version": version, "limit": limit}))
    keep(kept_beside(file), run.folder, run.name, digest=run.digest, seed=run.seed)
    assert Keeper(kept_beside(file), {"hans": 2}, None).holds(run) is held
    assert not Keeper(kept_beside(file), {"hans": 2, "snli": 1}, None).holds(run)


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_studies_of_the_project_can_be_planned(file, tmp_path):
    study = read_study(file)
    runs = plan_study(study, file, tmp_path)
    assert len(runs) == len(study.arms) * len(study.seeds)
    assert len({run.digest for run in runs if run.seed == 0}) == len(study.arms)
    if kept_beside(file).is_file():
        assert {record["run"] for record in kept(kept_beside(file))} <= {run.name for run in runs}


def _suite(folder, turned=0, name="mine"):
    """Rows of a suite of one's own; the labels turned by as many places. A kept result of the rows as they are."""
    names = ("entailment", "neutral", "contradiction")
    rows = [{"id": f"{i}", "premise": f"a {i}", "hypothesis": "b", "label": names[(i + turned) % 3]} for i in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"name": name, "version": 1, "description": "d", "licence": "x", "task": "nli", "source": "rows.jsonl"}
    (folder / "mine.yaml").write_text(json.dumps(settings))
    suite = load_suite(folder / "mine.yaml")
    examples = all_examples(suite)
    digests = {"examples_sha256": examples_sha256(examples), "gold_sha256": gold_sha256(examples, suite.labels)}
    return {"version": 1, "limit": None, **digests}


def kept_of_mine(file, tmp_path):
    """The one run of a study, kept with its result of a suite of the user's own."""
    study_file(tmp_path, seeds=[4], arms={"erm": {}}, suites=["mine.yaml"])
    (run,) = runs_of(file, tmp_path / "out")
    (run.folder / "eval").mkdir(parents=True)
    (run.folder / "eval" / "mine.json").write_text(json.dumps(_suite(tmp_path)))
    keep(kept_beside(file), run.folder, run.name, digest=run.digest, seed=run.seed)
    return run


@pytest.mark.parametrize(
    ("change", "held"),
    [
        (lambda folder: None, True),
        (lambda folder: _suite(folder, turned=1), False),
        (lambda folder: (folder / "rows.jsonl").unlink(), True),  # a shipped study without its data
    ],
)
def test_a_result_of_rows_that_have_changed_since_is_to_be_made(file, tmp_path, change, held):
    """As the sweep's own judge has it, which would judge the run again."""
    run = kept_of_mine(file, tmp_path)
    change(tmp_path)
    judge = Missing(suites_of(read_study(file), file), None)
    keeper = Keeper(kept_beside(file), {"mine": 1}, None, judge.of_its_rows)
    assert keeper.holds(run) is held
    assert keeper.unpack([run], tmp_path / "held") == ([] if held else [run.name])
    assert (tmp_path / "held" / run.name / "eval").exists() is held


def test_the_verb_says_which_kept_runs_are_to_be_judged_again(file, tmp_path, monkeypatch, capsys):
    kept_of_mine(file, tmp_path)
    debias = command_line(monkeypatch, capsys)
    assert "1 of 1 runs are kept" in debias("study", file, "--dry-run").out
    _suite(tmp_path, turned=1)
    assert "0 of 1 runs are kept" in debias("study", file, "--dry-run").out
