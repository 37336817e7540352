"""Methods by testbeds: made-up kept runs of two small studies, some arms and seeds missing."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from debias.bias import BIAS_MODELS
from debias.cli.app import app
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data.orders import ORDERS
from debias.errors import InputError
from debias.losses import LOSSES
from debias.runs.kept import keep
from debias.sweep.study import kept_beside, plan_study, read_study
from debias_eval.comparing.testbeds import TOLD_GROUPS, Bed, in_order, read_testbed, told_groups
from debias_eval.reading.suite import load_suite
from debias_eval.reporting.testbeds import Entry, findings, lines_of, markdown_of, notes_of

ERM, ORACLE, HALF = (50, 52, 51, 49, 48), (70, 74, 72, 71, 73), (60, 63, 61, 60, 62)
Right = Mapping[str, tuple[int, ...]]


@pytest.fixture
def bed(make_run_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Bed]:
    """A testbed whose arms are right so often where the shortcut misleads, a seed each; 3 points worse on `clean`."""

    def make(name: str, arms: Right, **more: object) -> Bed:
        for arm, rights in arms.items():
            for seed, right in enumerate(rights):
                suites = {"hard": {"bias-aligned": 95, "bias-conflicting": right}, "clean": {"all": 90}}
                if arm != "erm":
                    suites["clean"] = {"all": 87}
                run = make_run_in(tmp_path / name, f"{arm}/default/seed{seed}", "erm", seed, suites)
                seconds = {"seconds": 9.0, "cpu_seconds": (10.0 if arm == "erm" else 15.0 + seed) * (seed + 1)}
                (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | seconds))
        planned = tuple(dict.fromkeys([*arms, "erm", "oracle", "planned"]))
        said = {"floor": "erm", "ceiling": "oracle", "suite": "hard", "clean": ("clean", "all"), **more}
        return Bed(name, tmp_path / name, planned, **said)  # type: ignore[arg-type]

    return make


def settings_of(run: Path, **changes: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | changes
    (run / "config.yaml").write_text(dump_config(RunConfig.model_validate(config)))


def entry(line: object) -> Entry:
    (found,) = line.entries  # type: ignore[attr-defined]
    return found


def test_effect_and_cost_side_by_side(bed: Callable[..., Bed]) -> None:
    found = read_testbed(bed("one", {"erm": ERM, "half": HALF, "oracle": ORACLE}))
    effect = found.effects["half"]
    assert (effect.seeds, found.group, found.missing) == (5, "conflicting", ("planned",))
    assert effect.accuracy == pytest.approx(0.612)
    assert effect.closed.closed == pytest.approx((61.2 - 50) / (72 - 50))
    assert effect.closed.interval[0] < 11.2 / 22 < effect.closed.interval[1]
    assert (effect.clean.value, effect.clean.seeds) == (pytest.approx(-0.03), 5)
    # Seconds of one seed are held against those of the same seed: (15 + 16*2 + ...) / (10 + 20 + ...).
    assert effect.cost.cpu_over_floor == pytest.approx(sum((15 + s) * (s + 1) for s in range(5)) / 150)
    assert effect.cost.cpu_range == pytest.approx((1.5, 1.9))
    lines = {line.arm: entry(line) for line in lines_of([found])}
    assert list(lines) == ["erm", "oracle", "half"]
    assert lines["half"].closed.whole.startswith("0.51 [")
    assert lines["half"].closed.clear
    assert (lines["half"].clean.whole, lines["half"].seeds) == ("−3.0", "5")
    assert lines["half"].cost.whole == "1.77 [1.50, 1.90]"
    assert (lines["erm"].closed.whole, lines["erm"].clean.whole) == ("floor (50.0 %)", "–")
    assert lines["oracle"].closed.whole == "ceiling (72.0 %)"
    assert "of 1 methods 1 close some of the gap" in findings([found])[0]


def test_arms_that_only_one_testbed_has_and_the_order(bed: Callable[..., Bed]) -> None:
    """Ranked on the first testbed; what was not run there comes after, as the second ranks it."""
    more = tuple(right + 5 for right in HALF)
    beds = [
        read_testbed(bed("one", {"erm": ERM, "half": HALF, "more": more, "oracle": ORACLE})),
        read_testbed(bed("two", {"erm": ERM, "low": (51,) * 5, "half": more, "good": HALF, "oracle": ORACLE})),
    ]
    assert in_order(beds) == ["erm", "oracle", "more", "half", "good", "low"]
    lines = {line.arm: line.entries for line in lines_of(beds)}
    assert [one is None for one in lines["more"]] == [False, True]
    assert [one is None for one in lines["good"]] == [True, False]
    table = markdown_of(beds)
    (row,) = re.findall(r"^\| more .*", table, flags=re.MULTILINE)
    assert row.endswith("| – | – | – | – |")
    assert "one: no run is kept of planned" in table


def test_one_seed_has_a_number_and_no_claim(bed: Callable[..., Bed]) -> None:
    found = read_testbed(bed("one", {"erm": ERM, "lucky": (71,), "oracle": ORACLE}))
    line = {line.arm: entry(line) for line in lines_of([found])}["lucky"]
    assert (line.closed.text, line.closed.range, line.closed.clear) == ("0.95", "", False)
    assert (line.clean.range, line.cost.whole, line.seeds) == ("", "1.50", "1")
    assert "of 1 methods 0 close some of the gap" in findings([found])[0]
    assert "lucky closes most, 0.95 (1 seed)" in findings([found])[0]
    assert any("one, lucky: one seed: no interval" in note for note in notes_of([found]))


@pytest.mark.parametrize(("gone", "role"), [("erm", "floor"), ("oracle", "ceiling")])
def test_without_floor_or_ceiling_there_is_accuracy_and_a_reason(bed: Callable[..., Bed], gone: str, role: str) -> None:
    arms = {"erm": ERM, "half": HALF, "oracle": ORACLE}
    found = read_testbed(bed("one", {arm: rights for arm, rights in arms.items() if arm != gone}))
    effect = found.effects["half"]
    assert effect.closed is None
    assert (effect.cost is None) == (effect.clean is None) == (gone == "erm")
    line = {line.arm: entry(line) for line in lines_of([found])}["half"]
    assert line.closed.whole == "– (61.2 %)"
    assert f"one: no run of {gone}, the {role}, is kept: there is no gap to measure" in notes_of([found])
    assert findings([found]) == ["one: no method has a number yet."]


def test_no_gap_to_close_is_said(bed: Callable[..., Bed]) -> None:
    found = read_testbed(bed("one", {"erm": ERM, "half": HALF, "oracle": ERM[::-1]}))
    assert {line.arm: entry(line) for line in lines_of([found])}["half"].closed.whole == "no gap to close"
    assert any("one, half: no gap to close" in note for note in notes_of([found]))


def test_seeds_that_coincide_have_no_interval_and_that_is_said(bed: Callable[..., Bed]) -> None:
    found = read_testbed(bed("one", {"erm": (50, 50), "half": (60, 60), "oracle": (70, 70)}))
    line = {line.arm: entry(line) for line in lines_of([found])}["half"]
    assert (line.closed.text, line.closed.range, line.closed.clear) == ("0.50", "", False)
    assert (line.clean.text, line.clean.range) == ("−3.0", "")
    notes = notes_of([found])
    assert "one, half: seeds coincide: they show no variance, so there is no interval" in notes
    assert any(note.startswith("one, half, oracle: clean: seeds coincide") for note in notes)


def test_other_examples_give_no_number(bed: Callable[..., Bed], put: Callable[..., Path]) -> None:
    plan = bed("one", {"erm": ERM, "half": HALF, "oracle": ORACLE})
    put(plan.folder / "half/default/seed2", "hard", {"bias-aligned": 9, "bias-conflicting": 9}, examples_sha256="x")
    found = read_testbed(plan)
    assert found.effects["half"].closed is None
    assert any("one, half: suite hard: not the same examples" in note for note in notes_of([found]))


def test_a_method_on_data_without_a_shortcut_is_held_against_the_ceiling(bed: Callable[..., Bed]) -> None:
    """Not on the ladder of what is closed: its training data has nothing to resist."""
    plan = bed("one", {"erm": ERM, "no_cue": HALF, "elsewhere": HALF, "oracle": ORACLE})
    planted = {"train": "t.jsonl", "planted_bias": {"cue": "!!", "label": "neutral"}}
    for arm, data in {"erm": planted, "elsewhere": planted | {"train": "u.jsonl"}}.items():
        for run in (plan.folder / arm / "default").iterdir():
            settings_of(run, data=data)
    found = read_testbed(plan)
    assert set(found.effects) == {"erm", "oracle"}
    (harm,) = found.harms
    assert (harm.arm, harm.on_group.value, harm.on_clean.value) == ("no_cue", pytest.approx(-0.108), pytest.approx(0))
    assert "one: elsewhere is trained on other data than floor and ceiling, and left out" in notes_of([found])
    assert "| one | no\\_cue | −10.8 [" in markdown_of([found])


def test_what_was_kept_knows_which_data_of_one_name_it_was_trained_on(bed: Callable[..., Bed], tmp_path: Path) -> None:
    """biased/train.csv and clean/train.csv: a kept run has the last name of a path, and the digest of the file."""
    plan = bed("one", {"erm": ERM, "half": HALF, "no_cue": HALF, "oracle": ORACLE})
    for arm, kind in {"erm": "biased", "half": "biased", "no_cue": "clean", "oracle": "clean"}.items():
        for run in (plan.folder / arm / "default").iterdir():
            settings_of(run, data={"train": f"/data/{kind}/train.csv"})
            told = json.loads((run / "run.json").read_text()) | {"data_files": {"train": {"train.csv": kind}}}
            (run / "run.json").write_text(json.dumps(told))
            keep(tmp_path / "kept.jsonl", run, f"{arm}/default/{run.name}")
    folders, kept = read_testbed(plan), read_testbed(dataclasses.replace(plan, folder=tmp_path / "kept.jsonl"))
    for found in (folders, kept):
        assert set(found.effects) == {"erm", "half", "oracle"}
        assert [harm.arm for harm in found.harms] == ["no_cue"]
    assert "/data/" not in (tmp_path / "kept.jsonl").read_text()


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"loss": {"name": "focal", "gamma": 3.0}}, "loss.name"),
        ({"weight_penalty": {"name": "pego", "strength": 10.0}}, "weight_penalty.name"),
        ({"weight_projection": {"name": "spd", "strength": 3.0}}, "weight_projection.name"),
        ({"gradient_mask": {"name": "gmt", "share": 0.5}}, "gradient_mask.name"),
        ({"sharpness": {"name": "sam", "rho": 2.0}}, "sharpness.name"),
        ({"smoothness": {"name": "smart", "strength": 3.0}}, "smoothness.name"),
        ({"head_dropout": 0.9}, "head_dropout"),
    ],
)
def test_one_name_with_two_settings_is_told(block: dict[str, Any], told: str, bed: Callable[..., Bed]) -> None:
    plans = [bed(name, {"erm": ERM, "half": HALF, "oracle": ORACLE}) for name in ("one", "two")]
    for run in (plans[1].folder / "half/default").iterdir():
        settings_of(run, **block)
    notes = notes_of([read_testbed(plan) for plan in plans])
    (note,) = [note for note in notes if "not the same on all testbeds" in note]
    assert note.startswith(f"half is not the same on all testbeds: {told}")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, False),
        ({"loss": {"name": "focal"}, "order": {"name": "shuffled"}, "bias_model": None}, False),
        ({"loss": "gerne"}, True),
        ({"loss": {"name": "group_dro"}}, True),
        ({"order": {"name": "resampled", "by": "group"}}, True),
        ({"order": {"name": "resampled", "by": "label"}}, False),
        ({"order": {"name": "expanding"}}, True),
        ({"order": {"name": "expanding"}, "groups": {"name": "eiil"}}, False),
        ({"bias_model": {"name": "groups"}}, True),
        ({"loss": {"name": "group_dro"}, "groups": {"name": "eiil"}, "bias_model": {"name": "lexical"}}, False),
        ({"order": {"name": "resampled", "by": "group"}, "groups": {"name": "eiil"}}, False),
        ({"loss": "group_dro", "groups": {"name": "eiil"}, "bias_model": {"name": "groups"}}, True),
        ({"bias_model": {"name": "product", "of": [{"name": "lexical"}, {"name": "groups"}]}}, True),
        ({"first_stage": {"keep": "log_p", "settings": {"loss": "group_dro"}}, "loss": "logit_correction"}, True),
        ({"first_stage": {"keep": "log_p", "settings": {"loss": {"name": "gce"}}}, "groups": {"name": "eiil"}}, False),
        ({"first_stage": {"settings": {"first_stage": {"settings": {"order": {"name": "expanding"}}}}}}, True),
        ({"first_stage": {"settings": {"order": "resampled"}}}, True),
        ({"first_stage": {"settings": {"order": "shuffled"}}}, False),
        ({"first_stage": None}, False),
    ],
)
def test_who_was_told_the_groups(config: dict[str, object], told: bool) -> None:
    assert told_groups(config) is told


def test_the_list_of_who_reads_groups_is_that_of_the_tables() -> None:
    for kind, table in {"loss": LOSSES, "order": ORDERS, "bias_model": BIAS_MODELS}.items():
        reads = {name for name, part in table.items() if "group" in getattr(part, "reads", ())}
        assert reads == set(TOLD_GROUPS[kind]), kind
    assert {name for name in ORDERS if "group" in str(getattr(ORDERS[name], "by", ""))} == {"resampled"}


STUDY = """
name: {name}
recipe: minilm_generated_erm
seeds: 5
floor: erm
ceiling: oracle
suites: [hans, generated]
clean: {clean}
arms: {{erm: {{}}, half: {{lora_r: 2}}, oracle: {{lora_r: 4}}}}
"""


@pytest.fixture
def study(bed: Callable[..., Bed], tmp_path: Path) -> Callable[..., Path]:
    """A study's file, and beside it what it keeps."""

    def make(name: str, arms: Right, clean: str = "generated") -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, clean=clean))
        folder = bed(name, arms).folder if arms else tmp_path
        for run in plan_study(read_study(file), file, tmp_path):
            made = folder / run.name
            if arms and made.is_dir():
                for old, new in {"hard": "hans", "clean": "generated"}.items():
                    result = json.loads((made / f"eval/{old}.json").read_text())
                    result |= {"suite": new, "version": load_suite(new).version}
                    (made / f"eval/{new}.json").write_text(json.dumps(result))
                shutil.rmtree(made / "stages", ignore_errors=True)
                keep(kept_beside(file), made, run.name, digest=run.digest, seed=run.seed)
        return file

    return make


def test_the_verb_lays_studies_side_by_side(study: Callable[..., Path], tmp_path: Path) -> None:
    files = [
        str(study("one", {"erm": ERM, "half": HALF, "oracle": ORACLE})),
        str(study("two", {"erm": ERM[:1], "oracle": ORACLE[:1]})),
    ]

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["study", *words])
        return done.stdout if done.exception is None else str(done.exception)

    page, table = tmp_path / "page.html", tmp_path / "table.md"
    assert run(*files, "--page", str(page), "--markdown", str(table)) == f"{page}\n"
    html = page.read_text()
    assert html.count("<section id=") == 4
    assert re.search(r"<b>0\.51</b> <span class=\"range\">\[0\.\d\d, 0\.\d\d\]</span>", html)
    assert "two: no run is kept of half" in html
    assert "| half |  | 0.51 [" in table.read_text()
    told = json.loads(run(*files, "--json"))
    assert told["order"] == ["erm", "oracle", "half"]
    assert told["testbeds"][0]["effects"]["half"]["closed"]["closed"] == pytest.approx(11.2 / 22)
    assert str(tmp_path) not in json.dumps(told)
    assert "Methods by testbeds" in run(*files)
    assert run(*files, "-o", "x").startswith("-o, --arm and --dry-run are of one study")
    assert run(str(study("none", {})), files[0]).startswith(f"{tmp_path}/none.jsonl keeps no run of the study yet")
    assert "clean is 'snli', on no suite of the study; they are hans, generated" in run(
        str(study("other", {"erm": ERM}, "snli")), files[0]
    )


def test_no_file_of_kept_runs_is_no_testbed(bed: Callable[..., Bed], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        read_testbed(Bed("none", tmp_path / "none", ("erm",), "erm", "oracle", "hard"))


def test_a_study_of_floor_and_ceiling_alone_ends_well(study: Callable[..., Path], tmp_path: Path) -> None:
    """Their runs are made, which was asked for, and the gap between them is told."""
    file = study("one", {"erm": ERM, "oracle": ORACLE})
    words = ["study", str(file), "--arm", "erm", "--arm", "oracle"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert "Gap from erm to oracle" in done.stdout
