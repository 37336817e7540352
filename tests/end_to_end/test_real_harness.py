"""The real lm-evaluation-harness on exported tasks: it reads our prompts, scores our answers and gets our numbers."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from command_line import Command

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.data import generate
from debias.errors import InputError
from debias_eval.harness.bench import JudgeSetting, bench_judge, table_of
from debias_eval.harness.export import export, task_of
from debias_eval.harness.samples import import_samples, read_samples
from debias_eval.harness.tokens import check_tokens
from debias_eval.reading.suite import load_suite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval"),
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SINGLE = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
LONG = {"entailment": " yes yes", "neutral": " maybe", "contradiction": " no ! yes"}
HOSTILE = ("{{ 7 * 7 }} a\r\nb", "{% raw %} is \u2028 in", "<b>&amp;</b> [BOS] :", "2024-01-01", "'\"\\n\\")
EACH = 6
NLI = ("hans", "snli", "cad_nli")


def lm_eval(tasks: Path, names: list[str], model: str, *, chat: bool = False) -> Path:
    """What `lm_eval --log_samples` does, without indexing its 12,000 own tasks; the folder of its samples."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(tasks / "logged"))
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=list(names),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
        apply_chat_template=chat,
        evaluation_tracker=tracker,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in names:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return tasks / "logged"


def ours(config: RunConfig, suite: str, **options: Any) -> np.ndarray:
    """The run's own scores of the exported examples, [N, C]."""
    from debias.inference.answers import Scoring
    from debias.inference.loading import load

    task = task_of(load_suite(suite), config, **options)
    return np.asarray(load(config, config.model, None, Scoring()).label_scores(task.examples))


def theirs(logged: Path, config: RunConfig, suite: str, **options: Any) -> np.ndarray:
    """What the harness logged for the same examples, [N, C]."""
    (path,) = logged.rglob(f"samples_debias_{load_suite(suite).name}_*.jsonl")
    examples = task_of(load_suite(suite), config, **options).examples
    return np.asarray(read_samples(path).label_scores(examples))


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(os.environ.get("DEBIAS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no local data: set DEBIAS_DATA")
    monkeypatch.setenv("DEBIAS_DATA", str(folder))
    return folder


@pytest.fixture
def tiny_suite(tmp_path: Path) -> Path:
    """Pairs of words that the tiny tokenizer knows, and hostile ones that it takes for unknown words."""
    known = generate("train", 40, 0)
    rows = [
        {"id": f"g{i}", **{key: row[key] for key in ("premise", "hypothesis", "label")}} for i, row in enumerate(known)
    ]
    rows += [
        {"id": f"h{i}", "premise": text, "hypothesis": text[::-1], "label": "neutral"} for i, text in enumerate(HOSTILE)
    ]
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row | {"group": row["id"][0]}) + "\n" for row in rows))
    settings = {"name": "tiny", "version": 1, "description": "d", "licence": "l", "task": "nli", "source": "rows.jsonl"}
    (folder / "suite.yaml").write_text(json.dumps(settings | {"group_field": "group"}))
    return folder


def tiny_config(llama: Path, verbalizers: dict[str, str], **changes: Any) -> RunConfig:
    prompt = {"template": "premise : {premise} {{so}} : {hypothesis}\nanswer :", "verbalizers": verbalizers, **changes}
    return tiny_runs.config_for(llama, Path("none"), head="causal_lm", prompt=prompt, max_length=128)


@pytest.mark.parametrize("verbalizers", [SINGLE, LONG], ids=["one token", "several tokens"])
def test_a_tiny_model_gets_our_numbers(
    verbalizers: dict[str, str], llama: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    config = tiny_config(llama, verbalizers)
    export([str(tiny_suite)], config, tmp_path / "tasks")
    moved = (tmp_path / "tasks").rename(tmp_path / "moved")  # the folder may go to another machine
    logged = lm_eval(moved, ["debias_tiny"], str(llama))
    found, expected = theirs(logged, config, str(tiny_suite)), ours(config, str(tiny_suite))
    assert np.abs(found - expected).max() < 1e-4
    (result,) = import_samples([logged], tmp_path / "run", [str(tiny_suite)])
    (summary,) = logged.rglob("results_*.json")
    reported = json.loads(summary.read_text())["results"]["debias_tiny"]
    assert result["accuracy"] == pytest.approx(reported["acc,none"])
    assert set(result["groups"]) == {"g", "h"}
    assert result["judge"]["changed_prompts"] == 0


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SmolLM2's tokenizer and the first six of its thirty layers: numbers of real weights in a quarter of the time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from debias.hub.packages import model_path

    path, folder = model_path("package:smollm2"), str(tmp_path_factory.mktemp("smollm2"))
    AutoModelForCausalLM.from_pretrained(path, num_hidden_layers=6).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return folder


@pytest.mark.weights
def test_smollm2_gets_our_numbers(tmp_path: Path, data_folder: Path, smollm2: str) -> None:
    """18 examples of three suites, two of them of fewer labels or with groups: the same answers, scores to 1e-3."""
    words = {"entailment": " True", "neutral": " Neither", "contradiction": " False, it cannot be"}
    template = "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:"
    config = RunConfig.model_validate(
        {
            "model": smollm2,
            "head": "causal_lm",
            "data": {"train": "generated"},
            "output_dir": "none",
            "max_length": 512,
            "prompt": {"template": template, "verbalizers": words},
        }
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    done = export(NLI, config, tmp_path / "tasks", limit=EACH)
    logged = lm_eval(tmp_path / "tasks", list(done.tasks), smollm2)
    same = []
    for suite in NLI:
        found, expected = theirs(logged, config, suite, limit=EACH), ours(config, suite, limit=EACH)
        assert np.abs(found - expected).max() < 1e-3, suite
        same += (found.argmax(1) == expected.argmax(1)).tolist()
    assert len(same) == pytest.approx(len(NLI) * EACH, abs=4)  # whole pairs: a few places may stay empty
    assert np.mean(same) >= 0.99
    results = {result["suite"]: result for result in import_samples([logged], tmp_path / "run")}
    (summary,) = logged.rglob("results_*.json")
    reported = json.loads(summary.read_text())["results"]
    for suite in NLI:
        assert results[suite]["accuracy"] == pytest.approx(reported[f"debias_{suite}"]["acc,none"])
    assert results["hans"]["gap"] is not None


@pytest.mark.weights
def test_smollm2_in_a_chat(tmp_path: Path, data_folder: Path, smollm2: str) -> None:
    """The harness counts the newline that ends the chat's frame as the answer's: one number more for all labels."""
    words = {"entailment": "True", "neutral": "Neither", "contradiction": "False"}
    template = "{premise}\nQuestion: {hypothesis} True, False or Neither?"
    prompt = {"template": template, "verbalizers": words, "chat": True}
    values = {"model": smollm2, "head": "causal_lm", "data": {"train": "generated"}, "output_dir": "none"}
    config = RunConfig.model_validate(values | {"prompt": prompt, "max_length": 512})
    done = export(["snli"], config, tmp_path / "tasks", limit=4)
    chat = lm_eval(tmp_path / "tasks", list(done.tasks), smollm2, chat=True)
    difference_NC = theirs(chat, config, "snli", limit=4) - ours(config, "snli", limit=4)
    assert np.abs(difference_NC - difference_NC.mean(1, keepdims=True)).max() < 1e-3


def test_tokens_that_the_harness_would_read_otherwise(llama: Path, tmp_path: Path) -> None:
    """An answer that melts into the prompt's last word is another token to who reads both as one text."""
    glued = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
    config = tiny_config(llama, glued, template="{premise} {hypothesis} answer")
    with pytest.raises(InputError, match="the harness would read 'yes' after the prompt as other tokens") as caught:
        check_tokens(config, ["a dog sleeps answer"])
    assert "\n" not in str(caught.value)
    check_tokens(tiny_config(llama, SINGLE, template="{premise} {hypothesis} answer"), ["a dog sleeps answer"])


def test_prompts_that_debias_cuts_are_counted(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(llama, SINGLE).model_copy(update={"max_length": 8})
    check_tokens(config, ["yes", "yes " * 7, "yes " * 20])
    assert "of the 3 longest prompts, debias cuts 2 to max_length=8" in caplog.text


def test_the_verbs(
    llama: Path, tiny_suite: Path, tmp_path: Path, debias: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's adapter, judged; export, the printed lm_eval command as it stands, import: the same answers."""
    tiny_runs.save_foreign_adapter(llama, tmp_path / "theirs")
    prompt = tiny_config(llama, SINGLE).prompt
    assert prompt is not None
    (tmp_path / "prompt.yaml").write_text(json.dumps(prompt.model_dump()))
    monkeypatch.chdir(tmp_path)
    asked = ("--model", llama, "--adapter", "theirs", "--prompt", "prompt.yaml", "--limit", 20)
    judged = debias("eval", *asked, "--suite", tiny_suite, "--overlap", "ignore", "-o", "judged", "--json")
    assert judged.code == 0, judged.err
    made = debias("export-harness", tiny_suite, "--prompt", "judged", "-o", "tasks", "--limit", 20)
    assert made.code == 0, made.err
    judge, back = made.out.splitlines()
    environment = os.environ | OFFLINE | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(shlex.split(judge), capture_output=True, check=True, cwd=tmp_path, env=environment)
    brought = debias(*shlex.split(back)[1:], "--json")
    assert brought.code == 0, brought.err
    run = tmp_path / "tasks" / "run"
    assert (run / "eval" / "tiny.json").is_file()
    theirs, own = json.loads(brought.out)[0], json.loads(judged.out)[0]
    assert (theirs["n"], theirs["accuracy"]) == (20, own["accuracy"])
    assert theirs["groups"] == own["groups"]
    again = debias("import-harness", "tasks", "-o", run)
    assert again.error.startswith("error: unknown suite 'tiny'")
    assert again.err.count("\n") == 1


def test_the_benchmark(llama: Path, tiny_suite: Path) -> None:
    setting = JudgeSetting(suite=str(tiny_suite), limit=30, rounds=2, trial=6, batch_sizes=("1", "4", "auto"))
    result = bench_judge(setting, tiny_config(llama, LONG))
    (row,) = result["rows"]
    assert row["examples"] == 30
    assert row["same_answer"] == 1.0
    assert row["largest_difference"] < 1e-4
    assert row["fewer_products"] > 1
    assert row["harness_trials"].keys() == {"1", "4", "auto"}
    assert row["harness_batch_size"] == max(row["harness_trials"], key=row["harness_trials"].get)
    for way, ratio in row["ratio"].items():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"], way
    assert table_of(result).row_count == 1


def test_the_benchmark_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        "debias_eval.harness.bench.find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
    )
    with pytest.raises(InputError, match=r"pip install 'debias\[harness\]'"):
        bench_judge(JudgeSetting())


def test_the_benchmark_has_no_such_kind() -> None:
    with pytest.raises(InputError, match="--kind: 'riddle' is none of 'one token', 'sentence', 'one token, shown'"):
        bench_judge(JudgeSetting(kinds=("riddle",)))
