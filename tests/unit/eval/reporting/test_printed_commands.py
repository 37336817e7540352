"""Every command that a report, a card or an export prints is one that its program takes, and names what is there."""

import html
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from debias.config.places import find_recipe
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias_eval.harness.asked import Asked
from debias_eval.harness.export import Exported, command_line, export
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.judging.models import judge_given
from debias_eval.reading.suite import load_suite
from debias_eval.reporting.card import write_cards
from debias_eval.reporting.report import write_report
from debias_eval.reporting.reproduce import commands
from debias_eval.results.runs import read_runs

ROWS = [(str(i), f"premise {i}", f"ends in {label}", label, None) for i, label in enumerate(["yes", "no"] * 6)]
ANSWERS = {"yes": " yes", "no": " no"}


def arguments(line: str) -> tuple[str, dict[str, Any]]:
    """The verb of a line for `debias` and what its own parser makes of the rest."""
    import typer.main

    from debias.cli.app import app

    program, verb, *rest = shlex.split(line)
    assert program == "debias"
    command = typer.main.get_command(app)
    return verb, command.commands[verb].make_context(verb, rest).params  # type: ignore[attr-defined]


def printed(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r'<pre class="commands"[^>]*>(.*?)</pre>', text, re.DOTALL)
    blocks += re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [html.unescape(line) for block in blocks for line in block.splitlines() if line.strip()]


def check(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A command parses, and the files it names are there from the folder of the runs."""
    monkeypatch.chdir(place)
    verb, told = arguments(line)
    if verb == "train":
        config = load_config(find_recipe(Path(told["config"])), told["overrides"])
        assert not Path(config.output_dir).exists()  # one that holds a run is refused
    else:
        assert verb == "eval"
        assert [load_suite(name) for name in told["suite"]]
        assert told["runs"] or told["model"] or told["adapter"]
        for folder in told["runs"] or [told["out"]]:
            assert folder.is_dir()
    return told


@pytest.fixture
def mine(write_suite: Callable[..., Path]) -> Path:
    return write_suite(ROWS, labels=["yes", "no"])


def test_a_run_judged_on_a_suite_that_is_a_file(
    make_run: Callable[..., Path], mine: Path, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(name, seed=seed) for seed, name in enumerate(("runs/a b'c", "runs/1e5"))]
    for run in runs:
        evaluate_run(run, mine, predictor=fake(("yes", "no")), limit=6, seed=2, overlap="ignore")
        (run / "adapter").mkdir()
    pages = [write_report(runs, tmp_path / "page.html"), *(path for path, _ in write_cards(runs))]
    told = [check(line, tmp_path / "runs", monkeypatch) for page in pages for line in printed(page)]
    judged = [one for one in told if "runs" in one]
    assert len(told) == 2 * len(judged) == 8
    assert {one["suite"][0] for one in judged} == {str(mine)}
    assert {(one["limit"], one["seed"]) for one in judged} == {(6, 2)}
    assert {one["overrides"][0] for one in told if "overrides" in one} == {
        'output_dir="a b\'c-again"',
        'output_dir="1e5-again"',
    }


def test_a_model_that_no_run_of_ours_made(
    mine: Path, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked here").mkdir()
    (tmp_path / "asked here" / "prompt.yaml").write_text(
        json.dumps({"template": "{premise} {hypothesis}", "verbalizers": ANSWERS})
    )
    monkeypatch.chdir(tmp_path / "asked here")
    monkeypatch.setattr("debias.inference.any_model.check_base", lambda adapter, model: None)
    monkeypatch.setattr("debias.inference.any_model.load_given", lambda given, scoring: fake(("yes", "no")))
    given = {"model": "some/model", "adapter": "its/adapter", "prompt": Path("prompt.yaml"), "tokenizer": "other/words"}
    given |= {"bf16": False, "load_in_4bit": False, "labels": None, "deepspeed": None}
    out = tmp_path / "out" / "judged"
    judge_given(out, [str(mine)], given, normalize="tokens")
    # The fake says nothing of how it scored; a real predictor does.
    path = out / "eval" / "mine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "judge": {"normalize": "tokens", "calibrate": "none"}}))
    ((card, said),) = write_cards([out])
    assert (card, said) == (out / "README.md", "")  # beside the results: the adapter is somebody else's
    for page in (write_report([out], tmp_path / "page.html"), card):
        (line,) = printed(page)
        told = check(line, out.parent, monkeypatch)
        wanted = {**given, "prompt": tmp_path / "asked here" / "prompt.yaml", "normalize": "tokens"}
        wanted["out"] = Path("judged")
        assert {key: told[key] for key in wanted} == wanted
    text = card.read_text()
    for part in ("base_model: some/model", "the adapter its/adapter", "- Answers normalized: tokens", "torch 2"):
        assert part in text
    for part in ("## Training", "One training seed", "config.yaml", "has no ", "unknown"):
        assert part not in text
    code = text.split("```python\n")[1].split("```")[0]
    assert "AutoTokenizer.from_pretrained('other/words')" in code
    compile(code, "card", "exec")


def test_results_of_nobody_knows_what_print_no_command(put: Callable[..., Path], tmp_path: Path) -> None:
    put(tmp_path / "bare", "s", {"x": 70})
    assert printed(write_report([tmp_path / "bare"], tmp_path / "page.html")) == []


@pytest.mark.parametrize(
    ("machine", "line", "said"),
    [
        ({"world_size": 16, "local_world_size": 16}, ["debias", "launch", "local", "--nproc", "16"], None),
        ({"world_size": 16, "local_world_size": 8}, ["debias", "launch", "local", "--nproc", "16"], "16 ranks, 8 on a"),
        ({"world_size": 4}, ["debias", "launch", "local", "--nproc", "4"], "# trained by 4 ranks; the line below"),
        ({"world_size": 1, "local_world_size": 1}, ["debias", "train"], None),
        ({"world_size": True}, ["debias", "train"], None),
        ("unknown", ["debias", "train"], None),
    ],
)
def test_a_run_on_ranks_is_trained_again_on_as_many(
    make_run: Callable[..., Path], machine: Any, line: list[str], said: str | None
) -> None:
    """One process would take a sixteenth of the batch of sixteen."""
    run = make_run("x")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"machine": machine}))
    *words, train = commands(read_runs([run])[0])
    assert shlex.split(train) == [*line, "x/config.yaml", 'output_dir="x-again"']
    assert len(words) == (said is not None)
    assert all(word.startswith("# ") and str(said) in word for word in words)


@pytest.mark.parametrize("folder", ["run", "a, b=c"])
@pytest.mark.parametrize("four", [True, False], ids=["4 bit", "whole"])
def test_the_line_of_the_harness(
    mine: Path, tmp_path: Path, folder: str, four: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the harness's own parser where it is installed; transformers takes none of the arguments that 4 bits had."""
    run = tmp_path / folder
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "tokenizer_config.json").write_text("{}")
    values = {
        "model": "m",
        "head": "causal_lm",
        "data": {"train": "t.jsonl", "labels": ["yes", "no"]},
        "output_dir": "o",
    }
    values |= {"prompt": {"template": "{premise} {hypothesis}:", "verbalizers": ANSWERS}, "load_in_4bit": four}
    config = RunConfig.model_validate(values)
    done: Exported = export([str(mine)], config, tmp_path / "tasks", compare_tokens=False)
    judge, back = command_line(done, Asked(config, str(run / "adapter"), run=run)).splitlines()
    verb, told = arguments(back)
    assert (verb, told["out"], told["suite"]) == ("import-harness", run, [str(mine)])
    harness = pytest.importorskip("lm_eval._cli")
    monkeypatch.setattr(sys, "argv", shlex.split(judge))
    asked = harness.HarnessCLI().parse_args()
    assert asked.tasks == ["debias_mine"]
    assert asked.model_args == {
        "pretrained": "m",
        "dtype": "bfloat16" if four else "float32",
        "peft": str(run / "adapter"),
        "tokenizer": str(run / "adapter"),
    }
