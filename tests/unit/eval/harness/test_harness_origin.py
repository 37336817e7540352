"""What samples that a harness logged are of: which weights, and chats of nothing but the exported prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import config_for, save_llama

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.digests import weights_digest
from debias_eval.harness.asked import asked_of
from debias_eval.harness.export import chat_sha256, export
from debias_eval.harness.samples import import_samples, read_samples
from debias_eval.reporting.reproduce import commands
from debias_eval.results.files import read_result
from debias_eval.results.runs import read_runs

ANSWERS = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
PROMPT = {"template": "premise : {premise} question : {hypothesis} answer :", "verbalizers": ANSWERS}
ROWS = [(str(i), f"a {i}", f"b {i}", tuple(ANSWERS)[i % 3], None) for i in range(9)]


def logged(tasks: Path, target: Path, asked: Callable[[str], str] = lambda prompt: prompt) -> Path:
    """As the harness logs them: a model that finds each answer less likely than the one before."""
    lines = []
    for line in (tasks / "debias_mine.jsonl").read_text(encoding="utf-8").splitlines():
        doc = json.loads(line)
        prompt = asked(PROMPT["template"].format(**doc))
        pairs = [[str(-1.0 - i), "False"] for i in range(3)]
        arguments = {f"gen_args_{i}": {"arg_0": prompt, "arg_1": a} for i, a in enumerate(doc["debias"]["answers"])}
        lines.append(json.dumps({"doc": doc, "arguments": arguments, "filtered_resps": pairs}) + "\n")
    target.mkdir()
    (target / "samples_debias_mine_1.jsonl").write_text("".join(lines), encoding="utf-8")
    return target / "samples_debias_mine_1.jsonl"


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> str:
    return str(write_suite(ROWS))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    values = {"model": "m", "head": "causal_lm", "data": {"train": "t.jsonl"}, "output_dir": "o", "prompt": PROMPT}
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(dump_config(RunConfig.model_validate(values)))
    train(tmp_path / "run", b"first")
    return tmp_path / "run"


def train(run: Path, weights: bytes) -> str | None:
    (run / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    return weights_digest(run / "adapter")


def exported(run: Path, suite: str, tasks: Path, **options: Any) -> Path:
    asked = asked_of(run)
    export([suite], asked.config, tasks, compare_tokens=False, weights=asked.weights, **options)
    assert str(run) not in (tasks / "debias_mine.jsonl").read_text(encoding="utf-8"), "no path of this machine"
    return tasks


def test_samples_are_of_the_weights_that_were_exported(run: Path, suite: str, tmp_path: Path) -> None:
    first = weights_digest(run / "adapter")
    samples = logged(exported(run, suite, tmp_path / "tasks"), tmp_path / "log")
    (result,) = import_samples([samples], run, [suite])
    assert result["weights_sha256"] == read_result(run / "eval" / "mine.json").weights_sha256 == first
    (elsewhere,) = import_samples([samples], tmp_path / "no weights here", [suite])
    assert elsewhere["weights_sha256"] == first
    train(run, b"second")
    with pytest.raises(InputError, match=r"is of other weights than lie in .*run now"):
        read_result(run / "eval" / "mine.json")
    written = (run / "eval" / "mine.json").read_bytes()
    with pytest.raises(
        InputError, match=r"samples_debias_mine_1.jsonl: is of other weights than lie in .*run now; run"
    ):
        import_samples([samples], run, [suite])
    assert (run / "eval" / "mine.json").read_bytes() == written


def test_samples_of_an_older_export_are_taken_to_be_of_the_weights_that_lie_there(
    run: Path, suite: str, tmp_path: Path
) -> None:
    tasks = exported(run, suite, tmp_path / "tasks")
    rows = [json.loads(line) for line in (tasks / "debias_mine.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["debias"]["weights"], row["debias"]["chat_sha256"]
    (tasks / "debias_mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    second = train(run, b"second")
    (result,) = import_samples([logged(tasks, tmp_path / "log")], run, [suite])
    assert (result["weights_sha256"], result["judge"]["changed_prompts"]) == (second, 0)


def test_an_adapter_that_is_named_has_weights_too(run: Path, tmp_path: Path) -> None:
    (run / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "m", "peft_type": "LORA"}')
    assert asked_of(run, None, str(run / "adapter")).weights == weights_digest(run / "adapter")
    assert asked_of(run, "some/model").weights is None


CHANGED: dict[str, tuple[Callable[[str], str], int]] = {
    "as exported": (lambda prompt: f"[BOS]<user>{prompt}<assistant>", 0),
    "a system prompt": (lambda prompt: f"[BOS]<system>be brief<user>{prompt}<assistant>", 9),
    "examples": (lambda prompt: f"[BOS]<user>a shot yes<assistant>yes<user>{prompt}<assistant>", 9),
    "an instruction": (lambda prompt: f"[BOS]<user>say yes. {prompt}<assistant>", 9),
}


def test_a_chat_holds_the_exported_prompt_and_nothing_else(
    suite: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_llama(tmp_path / "model")
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(model)
    words.chat_template = (
        "[BOS]{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    words.save_pretrained(model)
    config = config_for(model, tmp_path / "run", head="causal_lm", prompt={**PROMPT, "chat": True})
    export([suite], config, tmp_path / "tasks")
    for name, (asked, wanted) in CHANGED.items():
        caplog.clear()
        samples = read_samples(logged(tmp_path / "tasks", tmp_path / name, asked))
        assert samples.changed_prompts == samples.description["changed_prompts"] == wanted, name
        assert ("9 prompts are not as exported" in caplog.text) == (wanted == 9), name


def test_the_command_of_what_a_harness_judged_goes_through_it(run: Path, suite: str, tmp_path: Path) -> None:
    samples = logged(exported(run, suite, tmp_path / "tasks", limit=6, seed=3), tmp_path / "log")
    import_samples([samples], run, [suite])
    assert commands(read_runs([run])[0])[1:] == [
        f"debias export-harness {suite} -o run-tasks --prompt run --limit 6 --seed 3",
        "# the lm_eval command that the line above prints, and then:",
        f"debias import-harness run-tasks/logged -o run --suite {suite}",
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Today Date: 26 Jul 2024\n\n{prompt}", "Today Date: 1 December 2026\n\n{prompt}", True),
        ("[2026-12-01] {prompt}", "[2026-12-02] {prompt}", True),
        ("Today is December 1, 2026. {prompt}", "Today is May 31, 2027. {prompt}", True),
        ("Today Date: 26 Jul 2024\n\n{prompt}", "Today Date: 26 Jul 2024\n\nbe brief {prompt}", False),
        ("in 2024 {prompt}", "in 2025 {prompt}", False),
    ],
)
def test_a_chat_that_says_which_day_it_is_is_the_same_on_another(one: str, other: str, same: bool) -> None:
    assert (chat_sha256(one) == chat_sha256(other)) is same
