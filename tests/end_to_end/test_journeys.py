"""Four people from their first command to their last, each on a tiny model: what one step prints, the next one runs."""

import csv
import html
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml
from command_line import Command, Said, runs_of_sweeps_here
from train_many import on_ranks

from debias.data import generate
from debias.doctor import all_reduce
from debias.doctor.check import fine

pytestmark = pytest.mark.slow
PROMPT = tiny_runs.PROMPT
CAUSAL = {"head": "causal_lm", "prompt": PROMPT}
Run = Callable[..., Said]


@pytest.fixture
def run(debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Words for `debias`, or a line as it was printed; in the person's folder, or `at` another. It must succeed."""
    monkeypatch.chdir(tmp_path)

    def ran(*words: object, at: Path = tmp_path) -> Said:
        if len(words) == 1:
            program, *words = shlex.split(str(words[0]))
            assert program == "debias"
        monkeypatch.chdir(at)
        said = debias(*words)
        assert said.code == 0, said.err
        monkeypatch.chdir(tmp_path)
        return said

    return ran


def commands(page: Path) -> list[str]:
    """The lines that a report or a card says to run."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r'<pre class="commands"[^>]*>(.*?)</pre>', text, re.DOTALL)
    blocks += re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [html.unescape(line) for block in blocks for line in block.splitlines() if line.strip()]


def result(folder: Path, suite: str = "generated") -> dict[str, Any]:
    """All that was found on a suite, but for how long it took."""
    found: dict[str, Any] = json.loads((folder / "eval" / f"{suite}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "seconds"}


def recipe(file: Path, model: Path, **changes: Any) -> None:
    """A run's YAML file, as a person writes it: paths as they are seen from its folder."""
    settings = {**tiny_runs.settings_for(model, Path("runs") / file.stem), **changes}
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")


# A researcher who compares methods on one machine


def test_a_researcher_compares_methods(
    bert: Path, tmp_path: Path, run: Run, debias: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YAML -> sweep over methods and seeds -> comparison -> report, whose commands make the numbers again."""
    shutil.copytree(bert, tmp_path / "model")
    recipe(tmp_path / "mine.yaml", Path("./model"))
    grid = ("sweep", "mine.yaml", "--set", "method=erm,edge", "--seeds", 2, "--suite", "generated", "--limit", 24)
    grid = (*grid, "-o", "sweep")
    assert run(*grid, "--dry-run").out.count(" new ") == 4
    first, *_, last = run(*grid, "--print-commands").out.splitlines()
    assert last.endswith("--only 3  # mine/method=edge/seed1")
    runs_of_sweeps_here(monkeypatch, debias)
    run(first.partition("  #")[0])
    assert run(*grid, "--dry-run").out.count(" finished ") == 1
    run(*grid)  # goes on
    assert "2 seeds, fewer than 5" in run("compare", "sweep").out

    page, *cards = run("report", "sweep", "-o", "report.html", "--card").out.splitlines()
    again, judge = commands(tmp_path / page)[:2]
    plain = tmp_path / "sweep" / "mine" / "method=erm" / "seed0"
    assert commands(plain / "adapter" / "README.md") == [again, judge]
    assert str(plain / "adapter" / "README.md") in cards
    place = plain.parents[1]  # the folder that the runs lie in, by the names they have on the page
    made = place / run(again, at=place).out.strip()
    assert tiny_runs.largest_difference(tiny_runs.adapter_of(made), tiny_runs.adapter_of(plain)) == 0.0
    before = result(plain)
    (plain / "eval" / "generated.json").unlink()
    run(judge, at=place)
    assert result(plain) == before


# An engineer with a cluster


def test_an_engineer_brings_a_run_to_a_cluster(
    llama: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan, job scripts, doctor, two processes that are stopped and gone on with, a merged model, the harness."""
    shutil.copytree(llama, tmp_path / "model")
    steps = {"max_steps": 100, "save_strategy": "steps", "save_steps": 5, "per_device_train_batch_size": 4}
    recipe(tmp_path / "big.yaml", Path("./model"), **CAUSAL, **steps)
    assert "fits: " in run("plan", "big.yaml", "--gpus", 2, "--gpu-memory", "24GB").out
    job = ("big.yaml", "--nodes", 1, "--gpus-per-node", 2)
    submit = run("launch", "slurm", *job, "--time", "1:00:00").out.splitlines()[-1]
    script = Path(submit.partition("submit it with: sbatch ")[2])
    subprocess.run(["bash", "-n", script], check=True)
    pods = run("launch", "k8s", *job, "--image", "some/image:1", "--volume", f"data:{tmp_path}")
    manifest = tmp_path / pods.out.splitlines()[0].partition("kubectl apply -f ")[2]
    assert "JobSet" in [one["kind"] for one in yaml.safe_load_all(manifest.read_text())]

    config = script.parent / "config.yaml"
    for step in ('doctor "$config"', 'train "$config"'):  # what the job does
        assert f"-m debias.cli {step}" in script.read_text()
    monkeypatch.setattr(all_reduce, "local", lambda: fine(all_reduce.NAME, "two processes more, in a test of its own"))
    assert run("doctor", config).out.count("\nok ") > 10
    settings = yaml.safe_load(config.read_text())
    folder = Path(settings["output_dir"])
    assert stopped_at_a_checkpoint(config, folder) == 75  # the job goes back to the queue
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert settings["resume"] == "auto"
    undisturbed = tmp_path / "undisturbed"
    on_ranks(2, [settings, {**settings, "output_dir": str(undisturbed)}])  # the first goes on
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert tiny_runs.largest_difference(tiny_runs.adapter_of(folder), tiny_runs.adapter_of(undisturbed)) == 0.0
    logs = folder.with_name(f"{folder.name}.logs")
    assert len(list(logs.rglob("stderr.log"))) == 2  # of each rank its own

    run("merge", folder, "-o", "merged")
    suite = ("--suite", "generated", "--limit", 24)
    run("eval", folder, *suite)
    run("eval", "--model", "merged", "--prompt", folder / "config.yaml", *suite, "-o", "judged")
    assert result(tmp_path / "judged")["accuracy"] == result(folder)["accuracy"]
    judge, back = run("export-harness", *suite[1:], "--prompt", folder, "-o", "tasks").out.splitlines()
    assert f"peft={folder}/adapter" in judge
    assert shlex.split(back) == ["debias", "import-harness", "tasks/logged", "-o", str(folder)]


def stopped_at_a_checkpoint(config: Path, folder: Path) -> int:
    """The exit code of `launch local` on two ranks, to which SIGTERM comes once a checkpoint is there."""
    words = [sys.executable, "-m", "debias.cli", "launch", "local", str(config), "--nproc", "2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert "go on with resume=true" in said, said[-3000:]
    return process.returncode


# An evaluator, who trains nothing


def test_an_evaluator_judges_an_adapter(llama: Path, tmp_path: Path, run: Run) -> None:
    """Somebody's PEFT adapter and its base -> results -> page and cards -> the same again -> the harness."""
    tiny_runs.save_foreign_adapter(llama, tmp_path / "their_adapter")
    (tmp_path / "prompt.yaml").write_text(yaml.safe_dump(PROMPT))
    asked = ("--model", llama, "--prompt", "prompt.yaml", "--suite", "generated", "--limit", 24)
    run("eval", *asked, "-o", "judged/base")
    run("eval", *asked, "--adapter", "their_adapter", "-o", "judged/adapted")
    assert "No claim" in run("compare", "judged/base", "--against", "judged/adapted").out
    page, *cards = run("report", "judged", "-o", "report.html", "--card").out.splitlines()
    assert cards == [str(tmp_path / "judged" / name / "README.md") for name in ("adapted", "base")]
    assert not (tmp_path / "their_adapter" / "README.md").read_text().count("debias card")
    before = result(tmp_path / "judged" / "adapted")
    (line,) = commands(Path(cards[0]))
    assert line in commands(tmp_path / page)
    shutil.rmtree(tmp_path / "judged" / "adapted")
    run(line, at=tmp_path / "judged")
    assert result(tmp_path / "judged" / "adapted") == before
    lines = run("export-harness", "generated", "--limit", 24, "--prompt", "judged/adapted", "-o", "tasks").out
    named = (*asked[:4], "--adapter", tmp_path / "their_adapter", "--limit", 24, "-o", "tasks")
    assert run("export-harness", "generated", *named).out == lines
    judge, back = lines.splitlines()
    assert f"pretrained={llama},dtype=float32,peft={tmp_path / 'their_adapter'}" in judge
    assert back == "debias import-harness tasks/logged -o tasks/run"


# Somebody with a table


def test_somebody_with_a_table(bert: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """audit -> init -> train -> predict -> card, whose lines answer as `predict` does."""
    pytest.importorskip("sklearn")
    write_table(tmp_path / "train.csv", 96, "train", ("text_a", "text_b", "verdict"))
    write_table(tmp_path / "new.csv", 12, "test", ("text_a", "text_b"))
    *_, told, first, second = run("audit", "train.csv").out.splitlines()
    begin = told[told.index("debias init ") :].replace("package:minilm", str(bert))
    file = tmp_path / run(begin).out.strip()
    text = file.read_text()
    file.write_text(f"{text}{first}\n{second}\n")  # what the audit says corrects for what it found
    train = re.search(r"# A first run\. (debias train \S+) begins it", text)
    assert train is not None
    folder = run(f"{train[1]} max_steps=2").out.strip()
    answers = run("predict", folder, "--data", "new.csv", "-o", "answers.csv").out.strip()
    with (tmp_path / answers).open(newline="") as lines:
        labels = [row["label"] for row in csv.DictReader(lines)]
    assert len(labels) == 12
    card = Path(run("card", folder).out.strip())
    (code,) = re.findall(r"## Use\n\n```python\n(.*?)```", card.read_text(), re.DOTALL)
    with (tmp_path / "new.csv").open(newline="") as lines:
        row = next(csv.DictReader(lines))
    for field, value in row.items():
        code = code.replace(repr(f"({field})"), repr(value))
    scope: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / folder)
    exec(compile(code.replace("print(", "said = str("), "card", "exec"), scope)
    assert scope["said"] == labels[0]


def write_table(file: Path, rows: int, split: str, header: tuple[str, ...]) -> None:
    """A .csv file of pairs, and of their labels where the header has a third column."""
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(header)
        for row in generate(split, rows, 0):
            table.writerow([row["premise"], row["hypothesis"], row["label"]][: len(header)])
