"""The command line as a new user meets it: what is wrong is one line and exit code 2, and leaves nothing behind."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from tiny_runs import PROMPT, settings_for

from debias.data import generate
from debias.engines.hf_trainer import DebiasTrainer


@pytest.fixture
def recipe(bert: Path, tmp_path: Path) -> Path:
    """A run that works, from a file of 60 rows."""
    rows = generate("train", 60, 0)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings_for(bert, tmp_path / "run", data={"train": "data.jsonl"}, max_steps=2)))
    return path


@pytest.fixture
def run_folder(debias: Command, recipe: Path) -> Path:
    """A finished run."""
    said = debias("train", recipe)
    assert said.code == 0, said.err
    return recipe.parent / "run"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["learning_rat=1"], ["learning_rat: unknown key; did you mean learning_rate?"]),
        (["data.lables=[a]"], ["data.lables: unknown key", "data.labels"]),
        (["lora_r=big"], ["lora_r", "'big'"]),
        (["lora_r"], ["'lora_r': expected key=value"]),
        (["data.train=nope.jsonl"], ["nope.jsonl: no such file; looked for", "DEBIAS_DATA"]),
        (["data.text_fields=[premise, claim]"], ["row 1", "no column 'claim' (text_fields)", "premise, hypothesis"]),
        (["data.label_field=gold"], ["row 1", "no column 'gold' (label_field)"]),
        (["data.labels=[entailment, neutral]"], ["row ", "is not in labels", "data.label_map says"]),
        (["data.labels=[entailment, neutral, contradiction, other]"], ["no example of other among 60"]),
        (["data.train={source: data.jsonl, limit: 2}"], ["no example of ", "among 2"]),
        (["data.train={source: generated, split: tests}"], ["split is 'tests'", "train, validation, test, ood"]),
        (["data.planted_bias={prevalence: 0.9, strength: 1}"], ["planted_bias", "the largest prevalence that works"]),
        (["bias_weight={source: file, column: w}"], ["row 1", "no column 'w' (bias_weight.column)"]),
        (["method=egde"], ["method.name is 'egde'", "did you mean edge?"]),
        (["method={name: edge, aplha: 1}"], ["method.aplha", "did you mean alpha?"]),
        (["method={name: edge, projection: col}"], ["method.projection is 'col'", "published, row, tensor"]),
        (["adapter.targets=[q_proj]"], ["'q_proj' matches no linear layer; there are dense, key, query, value"]),
        (["adapter=bitfit", "load_in_4bit=true"], ["load_in_4bit", "'bitfit'"]),
        (["adapter=full", "gradients=single_pass"], ["'single_pass' is not exact here", "Embedding"]),
        (["lr_scheduler_type=liner"], ["lr_scheduler_type is 'liner'", "did you mean linear?"]),
        (["optim=adamw"], ["optim is 'adamw'", "adamw_torch"]),
        (["report_to=tensorbord"], ["report_to is 'tensorbord'", "did you mean tensorboard?"]),
        (["report_to=wandb"], ["wandb"]),
        (["max_length=65"], ["max_length is 65", "at most 64 tokens"]),
        (["model=./nope"], ["model: './nope' is no folder"]),
        (["model=package:nope"], ["'package:nope' is not a known package", "package:minilm"]),
        (["resume=true"], ["resume: ", "holds no run to resume"]),
        (["output_dir=run.yaml/x"], ["output_dir: ", "run.yaml is a file, expected a folder"]),
        (
            ["head=causal_lm", f"prompt={json.dumps(PROMPT)}"],
            ["no causal language model", "use head 'classification'"],
        ),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_settings(
    overrides: list[str], parts: list[str], recipe: Path, debias: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    before = sorted(recipe.parent.rglob("*"))
    error = debias("train", recipe, *overrides).error
    for part in parts:
        assert part in error
    assert sorted(recipe.parent.rglob("*")) == before


def row(**changes: Any) -> str:
    return json.dumps({"premise": "a", "hypothesis": "b", "label": "neutral", **changes}) + "\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no examples", "it is empty"]),
        ("\n\n", ["no examples"]),
        (row(label=-1) + row(label="-") + row(label=None), ["all rows lack a gold label"]),
        (row() + '{"premise": "a", \n' + row(), ["row 2: broken JSON"]),
        (row() + row() + "[1]\n", ["row 3: holds a JSON list"]),
        (row() + row(label="unsure"), ["row 2: label 'unsure' is not in labels"]),
        (row() * 3, ["no example of entailment, contradiction among 3"]),
        (row() + json.dumps({"premise": "a", "label": "neutral"}) + "\n", ["row 2: no column 'hypothesis'"]),
        (row() + row(premise=3), ["row 2: premise is 3, expected text"]),
        (row() + row(hypothesis=" "), ["row 2: hypothesis is empty"]),
    ],
)
def test_bad_data(text: str, parts: list[str], recipe: Path, debias: Command) -> None:
    data = recipe.parent / "data.jsonl"
    data.write_text(text)
    error = debias("train", recipe).error
    assert str(data) in error
    for part in parts:
        assert part in error
    assert not (recipe.parent / "run").exists()


def test_data_that_is_no_text(recipe: Path, debias: Command) -> None:
    (recipe.parent / "data.jsonl").write_bytes(b"\xff\xfe" + row().encode())
    assert "not UTF-8 text" in debias("train", recipe).error
    (recipe.parent / "half.jsonl.gz").write_bytes(gzip.compress(row().encode() * 99)[:40])
    assert "damaged gzip file" in debias("train", recipe, "data.train=half.jsonl.gz").error


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["bad.yaml: no such file"]),
        ("a: [1", ["bad.yaml: not valid YAML"]),
        ("- a\n", ["bad.yaml: holds list, expected a mapping of settings"]),
        ("extends: gone.yaml\n", ["gone.yaml: no such file"]),
        ("extends: bad.yaml\n", ["bad.yaml: extends itself"]),
        ("model: m\noutput_dir: o\n", ["data: missing, and it has no default"]),
    ],
)
def test_bad_files(text: str | None, parts: list[str], debias: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    error = debias("train", path).error
    for part in parts:
        assert part in error


def test_a_folder_that_holds_another_run(run_folder: Path, recipe: Path, debias: Command) -> None:
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert (
        "holds another run (finished at step 2); choose another, or give resume=true" in debias("train", recipe).error
    )
    assert "resume: lora_r is 5, the run" in debias("train", recipe, "resume=true", "lora_r=5").error
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    assert debias("train", recipe, "overwrite_output_dir=true", "max_steps=1").code == 0
    assert json.loads((run_folder / "run.json").read_text())["steps"] == 1


def test_output_folder_is_refused_before_the_model_is_loaded(run_folder: Path, recipe: Path, debias: Command) -> None:
    """A user waits for data and model only when the run can start."""
    assert "holds another run" in debias("train", recipe, "model=./nope", "data.train=nope.jsonl").error


def test_a_run_that_diverges(recipe: Path, debias: Command) -> None:
    said = debias("train", recipe, "learning_rate=1e30", "max_nonfinite_steps=0", "max_steps=4")
    assert "non-finite gradients" in said.error
    assert "lower the learning rate" in said.error


def test_a_full_disk(recipe: Path, debias: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = DebiasTrainer._save_optimizer_and_scheduler

    def failing(self: Any, folder: Any) -> None:
        if self.state.global_step > 1:
            raise OSError(28, "No space left on device")
        usual(self, folder)

    monkeypatch.setattr(DebiasTrainer, "_save_optimizer_and_scheduler", failing)
    error = debias("train", recipe, "save_strategy=steps", "save_steps=1").error
    assert "saving failed: No space left on device; the last good checkpoint is" in error
    assert error.endswith("checkpoint-1")


# eval and report


@pytest.mark.parametrize("suite", ["snil", "hanss"])
def test_unknown_suite(suite: str, run_folder: Path, debias: Command) -> None:
    error = debias("eval", run_folder, "--suite", suite).error
    assert f"unknown suite {suite!r}; did you mean {'snli' if suite == 'snil' else 'hans'}?" in error
    assert not (run_folder / "eval").exists()


def test_a_suite_that_is_not_there(run_folder: Path, debias: Command, tmp_path: Path) -> None:
    assert "no such file" in debias("eval", run_folder, "--suite", tmp_path / "nope.yaml").error


def test_no_suite_is_judged_when_one_name_is_wrong(run_folder: Path, debias: Command) -> None:
    assert "unknown suite" in debias("eval", run_folder, "--suite", "generated", "--suite", "x").error
    assert not (run_folder / "eval").exists()


@pytest.mark.parametrize("missing", ["folder", "config", "adapter"])
def test_a_run_that_cannot_be_judged(missing: str, run_folder: Path, debias: Command, tmp_path: Path) -> None:
    says = {"folder": "nope", "config": "holds no config.yaml", "adapter": "holds no adapter/ or model/"}[missing]
    if missing == "folder":
        run_folder = tmp_path / "nope"
    elif missing == "config":
        (run_folder / "config.yaml").unlink()
    else:
        (run_folder / "adapter").rename(run_folder / "elsewhere")
    assert says in debias("eval", run_folder, "--suite", "generated").error


def test_a_report_of_what_is_no_run(debias: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nope", tmp_path / "empty"):
        assert str(folder) in debias("report", folder, "-o", tmp_path / "page.html").error
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "arguments", [["train"], ["eval", "x"], ["report"], ["trian"], ["eval", "x", "--suite", "snli", "--limit", "0"]]
)
def test_a_command_that_is_not_complete(arguments: list[str], debias: Command) -> None:
    said = debias(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["bench", "step", "--help"]])
def test_help(arguments: list[str], debias: Command) -> None:
    assert debias(*arguments).code == 0


def test_train_eval_report(run_folder: Path, recipe: Path, debias: Command, tmp_path: Path) -> None:
    said = debias("train", recipe, "method=erm", f"output_dir={tmp_path / 'erm'}")
    assert said.out.strip() == str(tmp_path / "erm")
    results = []
    for run in (run_folder, tmp_path / "erm"):
        said = debias("eval", run, "--suite", "generated", "--suite", "generated_ood", "--limit", 60, "--json")
        assert said.code == 0, said.err
        results.append(json.loads(said.out))
    for result in results[0]:
        written = json.loads((run_folder / "eval" / f"{result['suite']}.json").read_text())
        assert written == result
        assert result["n"] == 60
        assert {"suite", "version", "accuracy", "ci95", "groups", "worst_group", "gap", "ece"} <= result.keys()
        low, high = result["ci95"]
        assert 0 <= low <= result["accuracy"] <= high <= 1
    page = tmp_path / "report.html"
    said = debias("report", run_folder, tmp_path / "erm", "-o", page)
    assert said.out.strip() == str(page)
    text = page.read_text()
    assert "generated_ood" in text
    # Self-contained: nothing is fetched.
    assert "<svg" in text
    assert not any(word in text for word in ("<script src", "<link", "@import", 'src="http', "url(http"))
    table = debias("eval", run_folder, "--suite", "generated", "--limit", 60)
    assert "generated" in table.out


def test_all_runs_of_a_folder_are_judged(run_folder: Path, recipe: Path, debias: Command, tmp_path: Path) -> None:
    runs = tmp_path / "sweep"
    for name in ("a", "b"):
        shutil.copytree(run_folder, runs / name / "seed0")
    said = debias("report", runs, "-o", tmp_path / "page.html")
    assert "not judged yet: a/seed0, b/seed0; debias eval RUN --suite NAME" in said.err
    said = debias("eval", runs, run_folder, "--suite", "generated", "--limit", 20, "--json")
    found = json.loads(said.out)
    assert list(found) == [str(runs / "a" / "seed0"), str(runs / "b" / "seed0"), str(run_folder)]
    for folder, (result,) in found.items():
        assert json.loads((Path(folder) / "eval" / "generated.json").read_text()) == result
    assert "not judged" not in debias("report", runs, "-o", tmp_path / "page.html").err
    # A folder that holds one run is a folder of runs all the same.
    said = debias("eval", runs / "a", "--suite", "generated", "--limit", 20, "--json")
    assert list(json.loads(said.out)) == [str(runs / "a" / "seed0")]
    assert debias("eval", runs, "--suite", "generated", "--limit", 20).out.count("generated") >= 2


def test_steps_are_lines_where_there_is_no_terminal(recipe: Path, debias: Command, caplog: Any) -> None:
    assert debias("train", recipe, "logging_steps=1", "max_steps=3").code == 0
    said = [line for line in caplog.messages if line.startswith("step ")]
    # The first and the last; what lies between is within ten seconds.
    assert [line.partition(":")[0] for line in said] == ["step 1 of 3", "step 3 of 3"]
    assert all("loss " in line for line in said)


def test_the_same_evaluation_is_the_same(run_folder: Path, debias: Command) -> None:
    first, second = (
        json.loads(
            debias("eval", run_folder, "--suite", "generated", "--limit", 50, "--batch-size", size, "--json").out
        )[0]
        for size in (3, 50)
    )
    assert first["accuracy"] == second["accuracy"]
    assert first["ece"] == pytest.approx(second["ece"], abs=1e-6)


# A process of its own: what only the whole program shows.


@pytest.mark.slow
def test_a_whole_process(recipe: Path) -> None:
    def debias(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "debias.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=recipe.parent)

    trained = debias("train", recipe)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == f"{recipe.parent / 'run'}\n"  # a script can read the folder
    for noise in ("Traceback", "Warning", "LOAD REPORT", "MISSING"):
        assert noise not in trained.stderr
    assert "the rule acts on" in trained.stderr
    refused = debias("train", recipe, "max_stepz=1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"error: {recipe}: max_stepz: unknown key")
    assert sum(line.startswith("error: ") for line in refused.stderr.splitlines()) == 1
