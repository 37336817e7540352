"""`debias sweep` with real runs: killed and gone on with, a failing run, a choice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command_line import runs_of_sweeps_here
from tiny_runs import adapter_of, largest_difference, settings_for

from debias.runs.names import last_checkpoint
from debias.runs.records import read_records
from debias_eval.judging.missing import Missing

pytestmark = pytest.mark.slow
VALIDATED = {
    "data": {
        "train": {"source": "generated", "limit": 64},
        "validation": {"source": "generated", "limit": 30, "split": "validation"},
    },
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
}


def write_recipe(path, model, **changes):
    path.write_text(yaml.safe_dump({**settings_for(model, path.parent / "unused"), **VALIDATED, **changes}))
    return path


def command(*arguments):
    return [sys.executable, "-m", "debias.cli", *map(str, arguments)]


def events(folder):
    return [(one["event"], one["run"]) for one in read_records(folder / "records.jsonl")[0]]


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_killed_in_the_middle_and_gone_on_with(bert_dropout, tmp_path, debias):
    """kill -9 of the sweep while its first run trains: the same command ends with what an undisturbed run gives."""
    steps = 150
    recipe = write_recipe(tmp_path / "edge.yaml", bert_dropout, max_steps=steps, save_steps=10, eval_strategy="no")
    out = tmp_path / "out"
    arguments = ("sweep", recipe, "--seeds", 1, "-o", out)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    run = out / "edge" / "default" / "seed0"
    wait_for(lambda: last_checkpoint(run) is not None, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with (out / "records.jsonl").open("ab") as file:
        file.write(b'{"event": "fin')
    done = debias(*arguments)
    assert done.code == 0, done.err
    assert "1 unreadable lines" in done.err or [event for event, _ in events(out)][-1] == "finished"
    assert json.loads((run / "run.json").read_text())["steps"] == steps
    log = run.with_name("seed0.log").read_text()
    assert log.count("\n$ ") + log.startswith("$ ") == 2
    assert "resume=true" in log
    alone = debias("train", recipe, "seed=0", f"output_dir={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    assert largest_difference(adapter_of(run), adapter_of(tmp_path / "alone")) == 0.0


def test_a_grid_with_a_run_that_fails_then_tables_and_a_choice(bert, tmp_path, debias, monkeypatch):
    """The runs in this process: how processes end, `test_cli.py` and `unit/sweep/test_sweep.py` know."""
    runs_of_sweeps_here(monkeypatch, debias)
    recipe = write_recipe(tmp_path / "erm.yaml", bert, method="erm")
    out = tmp_path / "a folder: with 'a' #name"
    arguments = ("sweep", recipe, "--seeds", "1", "--set", "adapter.targets=auto,[nowhere]")
    judging = ("--suite", "generated", "--limit", "20", "-o", out)
    done = debias(*arguments, *judging)
    assert done.code == 1
    failed = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert "'nowhere' matches no linear layer" in failed[0]
    assert "generated" in done.out
    assert "20 of" in done.out
    good = "erm/adapter.targets=auto/seed0"
    assert [event for event, run in events(out) if run == good] == [
        "planned",
        "started",
        "finished",
        "started",
        "judged",
    ]
    assert (out / good / "eval" / "generated.json").is_file()
    before = (out / good / "run.json").stat().st_mtime_ns
    todo = debias(*arguments, *judging, "--dry-run")
    assert todo.code == 0, todo.err
    assert "finished" in todo.out
    assert "new" in todo.out
    again = debias(*arguments, *judging, "--only", "0")
    assert again.code == 0, again.err
    assert (out / good / "run.json").stat().st_mtime_ns == before
    chosen = debias("select", out, "--json")
    assert chosen.code == 0, chosen.err
    assert json.loads(chosen.out)[0]["runs"] == [str(out / good)]
    assert Missing(["generated"], 20).missing(out / good) == []
    assert Missing(["generated"], 10).missing(out / good) == ["generated"]
    assert Missing(["generated", "generated_ood"], 20).missing(out / good) == ["generated_ood"]
    (out / good / "eval" / "generated.json").write_text('{"suite"')
    assert Missing(["generated"], 20).missing(out / good) == ["generated"]


def test_ctrl_c_saves_and_the_same_command_goes_on(bert, tmp_path):
    recipe = write_recipe(tmp_path / "edge.yaml", bert, max_steps=100_000, save_steps=100_000, eval_strategy="no")
    out = tmp_path / "out"
    arguments = command("sweep", recipe, "--seeds", 2, "-o", out)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = out / "edge" / "default" / "seed0"
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    summary = json.loads((run / "run.json").read_text())
    assert summary["status"] == "interrupted"
    assert last_checkpoint(run) == run / f"checkpoint-{summary['steps']}"
    assert [event for event, _ in events(out)][-1] == "interrupted"
    assert not (out / "edge" / "default" / "seed1").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "method.alhpa=1"], "method.alhpa"),
        (["--set", "method=egde"], "did you mean edge?"),
        (["--seeds", "x"], "--seeds is 'x'"),
        (["--suite", "hnas"], "hnas"),
        (["--only", "9"], "--only 9: the sweep has 5 runs, 0 to 4"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(arguments, says, bert, tmp_path, debias):
    recipe = write_recipe(tmp_path / "edge.yaml", bert)
    done = debias("sweep", recipe, "-o", tmp_path / "out", *arguments)
    assert says in done.error
    assert not (tmp_path / "out").exists()


def test_a_command_for_each_item_of_a_job_array(bert, tmp_path, debias):
    recipe = write_recipe(tmp_path / "edge.yaml", bert)
    done = debias("sweep", recipe, "--seeds", "2", "--set", "lora_r=2,4", "-o", tmp_path / "out", "--print-commands")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("--only 2  # edge/lora_r=2/seed1")
    assert lines[2].startswith(f"debias sweep {recipe} --seeds 2 --set lora_r=2,4 -o {tmp_path / 'out'}")
    assert not Path(tmp_path / "out").exists()
