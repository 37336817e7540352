"""The plan of a sweep, and its runs with a stand-in for training: what is done, skipped, resumed, refused, stopped."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError, Interrupted
from debias.runs.data_files import BASE, changed_data, data_files
from debias.runs.digests import weights_digest
from debias.runs.records import read_records
from debias.runs.resume import check_same
from debias.sweep.grid import (
    changed_settings,
    changed_since,
    digest_of,
    folder_name,
    parse_grid,
    parse_seeds,
    plan_sweep,
    safe_name,
    state_of,
)
from debias.sweep.runner import RECORDS, Sweep, train_arguments

FAKE = Path(__file__).parents[2] / "fake_debias.py"
LAUNCHER = shlex.join([sys.executable, str(FAKE)])


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "edge.yaml")


def write_recipe(path, **changes):
    values = {"model": "m", "data": {"train": {"source": "generated", "limit": 9}}, "output_dir": "x", **changes}
    path.write_text(yaml.safe_dump(values))
    return path


class Suites:
    """A judge that wants a file for each suite."""

    def __init__(self, *names):
        self.names = names

    def missing(self, run):
        return [name for name in self.names if not (run / "eval" / f"{name}.json").exists()]

    def options(self):
        return ["--limit", "7"]


def sweep_of(runs, out, **options):
    return Sweep(runs, out, **{"launcher": LAUNCHER, **options})


def events(out):
    return [(one["event"], one["run"]) for one in read_records(out / RECORDS)[0]]


# --- seeds and settings


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("3,7", [3, 7]), ("7,", [7]), (" 4 , 2 ", [4, 2]), ("1", [0]), ("0,", [0])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "0", "-1", "1.5", "a", "1,a", "3,3", "10001", "4294967296,", "1;2", "²"])
def test_seeds_that_are_none(text):
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)


def test_a_grid_is_all_combinations():
    grid = parse_grid(["learning_rate=1e-3,0.01", "method.alpha=1"])
    assert grid == [("learning_rate=1e-3", "method.alpha=1"), ("learning_rate=0.01", "method.alpha=1")]
    assert parse_grid([]) == [()]


def test_a_block_is_set_before_what_is_in_it():
    """In whatever order they are given: else the block would take the setting away, and the folder be named by it."""
    expected = [("method=edge", "method.alpha=0.5"), ("method=subtract", "method.alpha=0.5")]
    assert parse_grid(["method.alpha=0.5", "method=edge,subtract"]) == expected
    assert parse_grid(["method=edge,subtract", "method.alpha=0.5"]) == expected
    assert parse_grid(["a.b.c=1", "d=2", "a.b=3", "a=4"]) == [("a=4", "a.b=3", "a.b.c=1", "d=2")]


def test_values_are_yaml():
    (axis,) = [[one[0] for one in parse_grid(['adapter.targets=[query, "a,b"],auto'])]]
    assert axis == ['adapter.targets=["query", "a,b"]', "adapter.targets=auto"]
    for text, value in [("true", True), ("null", None), ('"no"', "no"), ("{name: edge}", {"name": "edge"})]:
        ((item,),) = parse_grid([f"key={text}"])
        assert yaml.safe_load(item.partition("=")[2]) == value


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["learning_rate"], "expected key=value"),
        (["=3"], "expected key=value"),
        (["lora_r="], "no value"),
        (["lora_r=[1"], "not valid YAML"),
        (["lora_r=!!x"], "not valid YAML"),
        (["seed=1,2"], r"a sweep sets seed itself \(--seeds\)"),
        (["output_dir=x"], "a sweep sets output_dir itself"),
        (["resume=true"], "a sweep sets resume itself"),
        (["lora_r=1", "lora_r=2"], "lora_r is given twice"),
    ],
)
def test_grids_that_are_none(items, says):
    with pytest.raises(InputError, match=says):
        parse_grid(items)


# --- folders


@given(st.text(max_size=300))
def test_any_text_is_a_folder_name(text):
    name = safe_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_,=+][A-Za-z0-9._,=+-]*", name)
    assert len(name.encode()) <= 120
    assert name == text or name.endswith(name[-9:])


@given(st.lists(st.text(alphabet="./\\a\0\n ü=", max_size=6), min_size=2, max_size=6, unique=True))
def test_different_texts_have_different_folders(texts):
    assert len({safe_name(text) for text in texts}) == len(texts)


def test_names_that_are_nothing_special_stay():
    assert folder_name(["learning_rate=1e-3", "method.alpha=0.5"]) == "learning_rate=1e-3,method.alpha=0.5"
    assert folder_name([]) == "default"


@pytest.mark.parametrize(
    "value", ["../../etc", "/etc/passwd", "a b", "$(touch x)", "\u202eevil", "x" * 500, "-rf", "."]
)
def test_hostile_values_stay_below_the_sweep(recipe, tmp_path, value):
    grid = [(f"model={json.dumps(value)}",)]
    (run,) = plan_sweep([recipe], [0], grid, tmp_path / "out")
    assert run.folder.resolve().is_relative_to(tmp_path / "out")
    assert len(run.folder.relative_to(tmp_path / "out").parts) == 3
    done = sweep_of([run], tmp_path / "out")
    done.run()
    assert state_of(run.folder) == "finished"
    assert done.failed == {}


def test_a_folder_whose_name_is_yaml(recipe, tmp_path):
    out = tmp_path / 'o: "#'
    runs = plan_sweep([recipe], [0], [()], out)
    sweep_of(runs, out).run()
    assert state_of(runs[0].folder) == "finished"


# --- the plan


def test_seeds_change_slowest_and_numbers_do_not_move(tmp_path):
    recipes = [write_recipe(tmp_path / "a.yaml"), write_recipe(tmp_path / "b.yaml", method="erm")]
    grid = parse_grid(["lora_r=2,4"])
    two = plan_sweep(recipes, [0, 1], grid, tmp_path / "out")
    three = plan_sweep(recipes, [0, 1, 2], grid, tmp_path / "out")
    assert [run.name for run in two] == [run.name for run in three[:8]]
    assert [run.name for run in two][:5] == [
        "a/lora_r=2/seed0", "a/lora_r=4/seed0", "b/lora_r=2/seed0", "b/lora_r=4/seed0", "a/lora_r=2/seed1",
    ]  # fmt: skip
    assert [run.index for run in three] == list(range(12))


def test_settings_that_come_out_the_same_are_one_run(recipe, tmp_path):
    runs = plan_sweep([recipe, recipe], [0], parse_grid(["learning_rate=1e-3,0.001,3e-4"]), tmp_path / "out")
    assert [run.name for run in runs] == ["edge/learning_rate=1e-3/seed0", "edge/learning_rate=3e-4/seed0"]


def test_the_seed_is_the_training_seed_unless_said(tmp_path):
    recipe = write_recipe(
        tmp_path / "r.yaml", data={"train": {"source": "generated", "limit": 9}, "planted_bias": {"seed": 40}}
    )
    run = plan_sweep([recipe], [3], [()], tmp_path / "out")[0]
    assert run.overrides == ("seed=3",)
    run = plan_sweep([recipe], [3], [()], tmp_path / "out", new_data=True)[0]
    assert run.overrides == ("seed=3", "data.planted_bias.seed=3", "data.train.seed=3")


def test_recipes_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    recipes = [write_recipe(tmp_path / "a.yaml"), write_recipe(tmp_path / "other" / "a.yaml")]
    with pytest.raises(InputError, match="would share the folder a; rename one"):
        plan_sweep(recipes, [0], [()], tmp_path / "out")


def test_every_setting_is_checked_before_anything_runs(tmp_path):
    recipes = [write_recipe(tmp_path / "a.yaml"), write_recipe(tmp_path / "b.yaml", lerning_rate=1)]
    with pytest.raises(InputError, match=r"b\.yaml: lerning_rate: unknown key; did you mean learning_rate\?"):
        plan_sweep(recipes, [0], [()], tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        plan_sweep([tmp_path / "c.yaml"], [0], [()], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file"):
        plan_sweep(recipes[:1], [0], [()], tmp_path / "file")


def test_a_digest_of_settings_and_not_of_their_order():
    assert digest_of({"a": 1, "b": {"c": 2, "d": 3}}) == digest_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


# --- what runs


@pytest.mark.slow
def test_all_runs_and_then_none(tmp_path):
    out = tmp_path / "out"
    recipes = [write_recipe(tmp_path / "a.yaml"), write_recipe(tmp_path / "b.yaml", method="erm")]
    runs = plan_sweep(recipes, [0, 1], [()], out)
    done = sweep_of(runs, out, judge=Suites("s1", "s2"))
    done.run()
    assert done.failed == {}
    for run in runs:
        assert state_of(run.folder) == "finished"
        assert json.loads((run.folder / "eval" / "s2.json").read_text())[-2:] == ["--limit", "7"]
    planned = [("planned", run.name) for run in runs]
    each = [(e, run.name) for run in runs for e in ("started", "finished", "started", "judged")]
    assert events(out) == planned + each
    record = next(one for one in read_records(out / RECORDS)[0] if one["event"] == "finished")
    assert record["digest"] == runs[0].digest
    assert record["seconds"] >= 0
    assert record["seed"] == 0
    sweep_of(runs, out, judge=Suites("s1", "s2")).run()
    assert events(out) == planned + each
    sweep_of(runs, out, judge=Suites("s1", "s3")).run()
    assert [run for event, run in events(out)[len(planned + each) :] if event == "judged"] == [run.name for run in runs]
    assert all(len((run.folder / "calls.txt").read_text().splitlines()) == 1 for run in runs)


@pytest.mark.slow
def test_more_seeds_later_train_only_these(recipe, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        sweep_of(plan_sweep([recipe], [0, 1], [()], out), out).run()
    said = [line.partition("; the sweep: ")[2] for line in caplog.messages if ": done, " in line]
    assert re.fullmatch(r"\d+ s so far, about \d+ s left", said[0])
    assert re.fullmatch(r"\d+ s so far", said[1])
    sweep_of(plan_sweep([recipe], [0, 1, 2], [()], out), out).run()
    assert [run for event, run in events(out) if event == "started"] == [f"edge/default/seed{k}" for k in range(3)]


@pytest.mark.slow
def test_a_failing_run_is_recorded_and_the_others_go_on(recipe, tmp_path):
    out = tmp_path / "out"
    runs = plan_sweep([recipe], [0], parse_grid(["learning_rate=0.5,0.1", "weight_decay=0,0.5"]), out)
    done = sweep_of(runs, out, judge=Suites("s"))
    done.run()
    by_name = {run.name: done.failed.get(run.name) for run in runs}
    assert list(by_name.values()) == [
        "train: the learning rate is 0.5",
        "train: the learning rate is 0.5",
        None,
        "eval: RuntimeError: weight decay",
    ]
    failed = [one for one in read_records(out / RECORDS)[0] if one["event"] == "failed"]
    assert [(one["stage"], one["code"]) for one in failed] == [("train", 2), ("train", 2), ("eval", 1)]
    again = sweep_of(runs, out, judge=Suites("s"))
    again.run()  # what failed is tried again, from where it was; a finished training is not
    assert again.failed == done.failed
    assert "resume=true" in runs[0].log.read_text()


@pytest.mark.slow
def test_several_at_once(recipe, tmp_path):
    out = tmp_path / "out"
    runs = plan_sweep([recipe], range(5), [()], out)
    sweep_of(runs, out, jobs=3, judge=Suites("s")).run()
    assert all(state_of(run.folder) == "finished" for run in runs)
    assert sum(event == "judged" for event, _ in events(out)) == 5


@pytest.mark.slow
def test_what_a_killed_run_left_is_resumed(recipe, tmp_path):
    out = tmp_path / "out"
    (run,) = plan_sweep([recipe], [0], [()], out)
    sweep_of([run], out).run()
    (run.folder / "run.json").write_text('{"status": "running"}')
    sweep_of([run], out).run()
    assert "resume=true" in run.log.read_text().splitlines()[-1]
    (run.folder / "run.json").write_text('{"stat')
    assert state_of(run.folder) == "begun"
    (run.folder / "run.json").write_text('{"status": "finished"}')
    (run.folder / "adapter").rmdir()
    assert state_of(run.folder) == "begun"


def test_a_run_killed_before_it_had_a_config(recipe, tmp_path):
    out = tmp_path / "out"
    (run,) = plan_sweep([recipe], [0], [()], out)
    run.folder.mkdir(parents=True)
    (run.folder / ".config.yaml.123").write_text("half")
    sweep_of([run], out).run()
    assert state_of(run.folder) == "finished"
    assert not (run.folder / ".config.yaml.123").exists()


# --- what is refused


@pytest.mark.slow
def test_a_changed_recipe_is_refused_by_name(recipe, tmp_path):
    out = tmp_path / "out"
    sweep_of(plan_sweep([recipe], [0, 1], [()], out), out).run()
    write_recipe(recipe, learning_rate=0.01)
    runs = plan_sweep([recipe], [0, 1, 2], [()], out)
    says = (
        r"edge/default/seed0 was trained otherwise than edge\.yaml says now: learning_rate was the default, is"
        r" 0\.01 \(2 such runs\); give --overwrite"
    )
    with pytest.raises(InputError, match=says):
        sweep_of(runs, out).run()
    assert len(events(out)) == 6, "nothing was planned or run"
    sweep_of(runs, out, overwrite=True).run()
    assert [changed_settings(run) for run in runs] == [None] * 3
    assert "overwrite_output_dir=true" in runs[0].log.read_text()
    before = events(out)
    sweep_of(runs, out, overwrite=True).run()
    assert events(out) == before


def test_data_that_has_changed_since_is_another_run(recipe, tmp_path):
    """Of a finished run, which reads no data any more; one that was begun finds it out itself."""
    rows, out = tmp_path / "rows.csv", tmp_path / "out"
    rows.write_text("premise,hypothesis,label\na,b,neutral\n")
    write_recipe(recipe, data={"train": str(rows)})
    (run,) = plan_sweep([recipe], [0], [()], out)
    sweep_of([run], out).run()
    told = run.folder / "run.json"
    assert changed_settings(run) is None, "a run of a version that did not say what it read"
    told.write_text(json.dumps({"status": "finished", "data_files": data_files(load_config(recipe))}))
    assert json.loads(told.read_text())["data_files"]["train"].keys() == {"rows.csv"}
    assert changed_settings(run) is None
    rows.write_text("premise,hypothesis,label\na,b,entailment\n")
    assert changed_settings(run) == "data.train: rows.csv has changed since"
    with pytest.raises(InputError, match=r"otherwise than edge.yaml says now: data.train: rows.csv has changed"):
        sweep_of([run], out).run()
    told.write_text(told.read_text().replace("finished", "running"))
    assert changed_settings(run) is None
    told.write_text(told.read_text().replace("running", "finished"))
    rows.unlink()
    assert changed_settings(run) is None, "nobody can say"


def test_a_base_whose_weights_have_changed_since_is_another_run(recipe, tmp_path):
    """Which a sweep finds out, whoever takes its answers over, and a run that goes on."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"first")
    write_recipe(recipe, model=str(base))
    (run,) = plan_sweep([recipe], [0], [()], out)
    sweep_of([run], out).run()
    assert changed_settings(run) is None, "a run of a version that did not say of which weights it is"
    (run.folder / "run.json").write_text(json.dumps({"status": "finished", BASE: weights_digest(base)}))
    config = load_config(run.folder / "config.yaml")
    check_same(config, run.folder)
    assert changed_settings(run) is None
    (base / "model.safetensors").write_bytes(b"second")
    assert changed_settings(run) == changed_since(run) == f"model: the weights of {base} have changed since"
    with pytest.raises(InputError, match=r"resume: model: the weights of .*base have changed since the run in "):
        check_same(config, run.folder)
    (base / "model.safetensors").unlink()
    assert changed_settings(run) is None, "nobody can say"
    check_same(config, run.folder)


def test_a_run_before_it_whose_base_has_changed_since(recipe, tmp_path):
    """Its answers were another model's, and they are in the run."""
    small, out = tmp_path / "small", tmp_path / "out"
    small.mkdir()
    (small / "model.safetensors").write_bytes(b"first")
    (run,) = plan_sweep([recipe], [0], [()], out)
    sweep_of([run], out).run()
    stage = run.folder / "stages" / "1"
    stage.mkdir(parents=True)
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    (stage / "config.yaml").write_text(yaml.safe_dump({**settings, "model": str(small)}))
    (stage / "run.json").write_text(json.dumps({"status": "finished", BASE: weights_digest(small)}))
    assert changed_settings(run) is None
    (small / "model.safetensors").write_bytes(b"second")
    assert changed_settings(run) == f"stages/1: model: the weights of {small} have changed since"
    (stage / "config.yaml").write_text("{")
    assert changed_settings(run) is None, "nobody can say"


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for name in ("de", "en"):
        (tmp_path / "shards" / name).mkdir(parents=True)
        (tmp_path / "shards" / name / "train.jsonl").write_text(f'{{"text": "{name}"}}\n')
    validation = {"source": str(tmp_path / "shards" / "de" / "train.jsonl")}
    data = {"train": str(tmp_path / "shards" / "*" / "train.jsonl"), "validation": validation}
    run = {"model": "m", "output_dir": "x", "data": data}
    read = data_files(RunConfig.model_validate(run | {"eval_strategy": "epoch"}))
    assert {role: set(files) for role, files in read.items()} == {
        "train": {"de/train.jsonl", "en/train.jsonl"},
        "validation": {"train.jsonl"},
    }
    told = data_files(RunConfig.model_validate(run))
    assert told.keys() == {"train"}, "nobody read the validation data"
    (tmp_path / "shards" / "de" / "train.jsonl").write_text("other\n")
    assert changed_data(told, data) == "data.train: de/train.jsonl has changed since"
    (tmp_path / "shards" / "de" / "train.jsonl").unlink()
    assert changed_data(told, data) == "data.train: de/train.jsonl is gone since"
    folder = data_files(RunConfig.model_validate(run | {"data": {"train": str(tmp_path / "shards")}}))
    assert folder["train"].keys() == {"en/train.jsonl"}


def test_comments_and_order_of_a_recipe_are_no_change(recipe, tmp_path):
    out = tmp_path / "out"
    sweep_of(plan_sweep([recipe], [0], [()], out), out).run()
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text("# new\n" + yaml.safe_dump(dict(reversed(values.items())) | {"lora_r": 8}, sort_keys=False))
    assert changed_settings(plan_sweep([recipe], [0], [()], out)[0]) is None


@pytest.mark.slow
def test_records_are_no_authority(recipe, tmp_path):
    """Lost or damaged records change nothing: what is done is in the folders."""
    out = tmp_path / "out"
    runs = plan_sweep([recipe], [0, 1], [()], out)
    sweep_of(runs, out).run()
    (out / RECORDS).write_bytes((out / RECORDS).read_bytes()[:-30] + b"\xff\xfe{")
    sweep_of(runs, out).run()
    assert not any("resume" in run.log.read_text() for run in runs)
    (out / RECORDS).unlink()
    sweep_of(runs, out).run()
    assert [event for event, _ in events(out)] == ["planned", "planned"]
    write_recipe(recipe, lora_r=2)
    with pytest.raises(InputError, match="lora_r was the default, is 2"):
        sweep_of(plan_sweep([recipe], [0], [()], out), out).run()


def test_a_recipe_changed_while_the_sweep_runs(recipe, tmp_path):
    out = tmp_path / "out"
    runs = plan_sweep([recipe], [0], [()], out)
    write_recipe(recipe, lora_r=2)
    done = sweep_of(runs, out)
    done.run()
    assert "was changed while the sweep ran" in done.failed["edge/default/seed0"]
    assert not runs[0].folder.exists()


def test_a_damaged_config_is_named(recipe, tmp_path):
    out = tmp_path / "out"
    runs = plan_sweep([recipe], [0], [()], out)
    sweep_of(runs, out).run()
    (runs[0].folder / "config.yaml").write_text("{")
    with pytest.raises(InputError, match=r"config\.yaml: not valid YAML"):
        sweep_of(runs, out).run()
    sweep_of(runs, out, overwrite=True).run()
    assert state_of(runs[0].folder) == "finished"


# --- signals, kills, two sweeps at once


def in_background(recipe, out, rate, judge=""):
    script = (
        "import sys, logging; from pathlib import Path\n"
        "from debias.sweep.runner import Sweep; from debias.sweep.grid import plan_sweep\n"
        "logging.basicConfig(level='INFO')\n"
        f"runs = plan_sweep([Path({str(recipe)!r})], [0, 1], [('learning_rate={rate}',)], Path({str(out)!r}))\n"
        f"Sweep(runs, Path({str(out)!r}), launcher={LAUNCHER!r}).run()\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_run_which_saves(recipe, tmp_path, number):
    out = tmp_path / "out"
    process = in_background(recipe, out, 0.25)
    run = out / "edge" / "learning_rate=0.25" / "seed0"
    wait_for((run / "waiting").exists)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert "Interrupted" in err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert [event for event, _ in events(out)] == ["planned", "planned", "started", "interrupted"]
    runs = plan_sweep([recipe], [0], [("learning_rate=0.25",)], out)
    sweep_of(runs, out).run()
    assert state_of(run) == "finished"


@pytest.mark.slow
def test_a_second_signal_kills(recipe, tmp_path):
    out = tmp_path / "out"
    process = in_background(recipe, out, 0.125)
    wait_for((out / "edge" / "learning_rate=0.125" / "seed0" / "waiting").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode


def test_the_process_that_calls_run_gets_its_signals_back(recipe, tmp_path):
    out = tmp_path / "out"
    before = signal.getsignal(signal.SIGTERM)
    runs = plan_sweep([recipe], [0], [("learning_rate=0.25",)], out)
    waiting = runs[0].folder / "waiting"

    def stop():
        wait_for(waiting.exists)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=stop)
    helper.start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        sweep_of(runs, out).run()
    helper.join()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux alone")
def test_a_killed_sweep_takes_its_run_along_and_the_next_goes_on(recipe, tmp_path):
    out = tmp_path / "out"
    process = in_background(recipe, out, 0.25)
    run = out / "edge" / "learning_rate=0.25" / "seed0"
    wait_for((run / "waiting").exists)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: json.loads((run / "run.json").read_text())["status"] == "interrupted")
    runs = plan_sweep([recipe], [0], [("learning_rate=0.25",)], out)
    sweep_of(runs, out).run()
    assert state_of(run) == "finished"


@pytest.mark.slow
def test_two_sweeps_never_train_one_run(recipe, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    runs = plan_sweep([recipe], [0, 1], [()], out)
    runs[0].log.parent.mkdir(parents=True)
    with runs[0].log.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr("debias.sweep.runner.WAIT_FOR_LOCK", 0.5)
        done = sweep_of(runs, out)
        done.run()
    assert list(done.failed) == [runs[0].name]
    assert "another process is at it" in done.failed[runs[0].name]
    assert state_of(runs[1].folder) == "finished"
    sweep_of(runs, out).run()
    assert state_of(runs[0].folder) == "finished"


def test_the_arguments_train_the_planned_run(recipe, tmp_path):
    from debias.config.reading import load_config

    (run,) = plan_sweep([recipe], [4], [("lora_r=2",)], tmp_path / "out")
    path, *overrides = train_arguments(run)
    config = load_config(Path(path), overrides)
    assert (config.lora_r, config.seed, config.output_dir) == (2, 4, str(run.folder))
