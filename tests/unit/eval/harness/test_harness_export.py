"""debias_eval.harness.export: suites as tasks of lm-evaluation-harness, which is not needed here."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias_eval.harness.asked import Asked, asked_of, read_prompt
from debias_eval.harness.export import (
    LOADER,
    Origin,
    column_names,
    command_line,
    export,
    jinja_template,
    sha256,
    task_of,
)
from debias_eval.reading.suite import load_suite

ROWS = [
    ("a", "A dog sleeps.", "An animal sleeps.", "entailment", "easy"),
    ("b", "A dog sleeps.", "A cat runs.", "contradiction", "hard"),
    ("c", "A dog sleeps.", "It is brown.", "neutral", None),
]
HOSTILE = [
    "{{ 7 * 7 }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# gone #} {premise} }}",
    "a\r\nb\rc\nd\te",
    "quote \" and ' and \\n and \\",
    "\u2028 line \u0085 separators \x0b \x0c",
    "null \x00 and <script>alert(1)</script> &amp;",
    "emoji \U0001f600 and \u202eright to left",
    "2024-01-01",
    "- yaml: [a, b]\n# no comment",
]
# What the harness does with a template (`lm_eval.utils.apply_template`), written down a second time.
HARNESS = Environment(undefined=StrictUndefined, keep_trailing_newline=True)


def config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": "m",
        "head": "causal_lm",
        "data": {"train": "t.jsonl"},
        "output_dir": "o",
        "prompt": {
            "template": "{premise}\nSo: {hypothesis}\nAnswer:",
            "verbalizers": {"entailment": " yes", "neutral": " maybe", "contradiction": " no"},
        },
    }
    for key, value in changes.items():
        inner = values.get(key)
        values[key] = {**inner, **value} if isinstance(inner, dict) else value
    return RunConfig.model_validate(values)


def exported(path: Path, out: Path, settings: RunConfig, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    export([str(path)], settings, out, compare_tokens=False, **options)
    text = (out / "debias_mine.yaml").read_text(encoding="utf-8").replace("!function", "")
    with (out / "debias_mine.jsonl").open(encoding="utf-8") as lines:
        return yaml.safe_load(text), [json.loads(line) for line in lines]


def prompts(task: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    return [HARNESS.from_string(task["doc_to_text"]).render(**row) for row in rows]


def test_a_suite_becomes_a_task(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    path = write_suite(ROWS, group_field="group")
    task, rows = exported(path, tmp_path / "out", config())
    assert task["task"] == "debias_mine"
    assert task["output_type"] == "multiple_choice"
    assert task["doc_to_choice"] == [" yes", " maybe", " no"]
    assert task["target_delimiter"] == ""
    assert (task["num_fewshot"], task["test_split"], task["metadata"]["version"]) == (0, "test", 1)
    assert prompts(task, rows)[1] == "A dog sleeps.\nSo: A cat runs.\nAnswer:"
    assert [row[task["doc_to_target"]] for row in rows] == [0, 2, 1]
    assert [row["debias"]["group"] for row in rows] == ["easy", "hard", None]
    assert [row["debias"]["id"] for row in rows] == ["a", "b", "c"]
    assert all(row["debias"]["rows"] == 3 for row in rows)
    assert (tmp_path / "out" / LOADER.name).read_bytes() == LOADER.read_bytes()


def test_answers_come_in_the_models_order_and_texts_in_its_fields(
    write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    data = {"labels": ["contradiction", "entailment", "neutral"], "text_fields": ["hypothesis", "premise"]}
    task, rows = exported(write_suite(ROWS), tmp_path / "out", config(data=data))
    assert task["doc_to_choice"] == [" no", " yes", " maybe"]
    assert [row["debias_target"] for row in rows] == [1, 0, 2]
    assert list(rows[1])[:2] == ["hypothesis", "premise"]
    assert rows[1]["premise"] == "A dog sleeps."


def test_two_way_suite_of_a_three_way_model(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    """Choices are the model's; every row has a list of right ones, for the harness looks at the first row alone."""
    rows = [("a", "p", "h", "entailment", None), ("b", "p", "i", "not_entailment", None)]
    path = write_suite(
        rows,
        labels=["entailment", "not_entailment"],
        merge={"neutral": "not_entailment", "contradiction": "not_entailment"},
    )
    task, made = exported(path, tmp_path / "out", config())
    assert task["doc_to_choice"] == [" yes", " maybe", " no"]
    assert [row["debias_target"] for row in made] == [[0], [1, 2]]
    assert [row["debias"]["label"] for row in made] == ["entailment", "not_entailment"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_arrive_as_they_are(text: str, write_suite: Callable[..., Path], tmp_path: Path) -> None:
    path = write_suite([("a", text, "h", "neutral", text), *ROWS], group_field="group")
    task, rows = exported(path, tmp_path / "out", config())
    assert rows[0]["premise"] == text
    assert rows[0]["debias"]["group"] == text
    assert prompts(task, rows)[0] == f"{text}\nSo: h\nAnswer:"
    assert rows[0]["debias"]["prompt_sha256"] == sha256(f"{text}\nSo: h\nAnswer:")


@pytest.mark.parametrize("literal", [text.replace("{", "{{").replace("}", "}}") for text in HOSTILE])
def test_templates_arrive_as_they_are(literal: str, write_suite: Callable[..., Path], tmp_path: Path) -> None:
    template = literal + "{premise}" + literal + "{hypothesis}" + literal
    task, rows = exported(write_suite(ROWS), tmp_path / "out", config(prompt={"template": template}))
    assert prompts(task, rows)[0] == template.format(premise=ROWS[0][1], hypothesis=ROWS[0][2])


@given(st.lists(st.sampled_from([*"{}%#-+'\"\\ \n\r\tax", "{{", "}}", "{%", "%}", "{#", "#}", "raw"]), max_size=12))
@example(["{", "{", "{"])
@example(["\r", "\n"])
def test_any_literal_survives_jinja(pieces: list[str]) -> None:
    literal = "".join(pieces)
    template = literal.replace("{", "{{").replace("}", "}}")
    made = jinja_template(f"{template}{{a}}{template}{{b}}{template}", {"a": "a", "b": "text_1"})
    assert HARNESS.from_string(made).render(a="{{1}}", text_1="\r") == f"{literal}{{{{1}}}}{literal}\r{literal}"


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (["premise", "hypothesis"], ["premise", "hypothesis"]),
        (["sentence-1", "sentence-2"], ["text_1", "text_2"]),
        (["self", "text_1"], ["text_2", "text_1"]),
        (["debias", "debias_target"], ["text_1", "text_2"]),
        (["not", "none", "True", "a b"], ["text_1", "text_2", "text_3", "text_4"]),
        (["range", "loop", "class"], ["range", "loop", "class"]),
    ],
)
def test_columns_have_names_that_jinja_reads(fields: list[str], columns: list[str]) -> None:
    assert column_names(fields) == columns
    for name in columns:
        assert HARNESS.from_string("{{" + name + "}}").render(**{name: "value"}) == "value"


def test_a_limit_is_the_subset_that_eval_draws(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    from debias_eval.reading.examples import suite_examples

    many = [(f"id{i}", f"premise {i}", f"hypothesis {i}", "neutral", None) for i in range(50)]
    path = write_suite(many)
    _, rows = exported(path, tmp_path / "out", config(), limit=7, seed=3)
    drawn = [one.id for one in suite_examples(load_suite(path), 7, 3)]
    assert [row["debias"]["id"] for row in rows] == drawn
    assert {(row["debias"]["rows"], row["debias"]["limit"], row["debias"]["seed"]) for row in rows} == {(7, 7, 3)}


def test_a_chat_prompt_says_so(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    settings = config(prompt={"chat": True})
    done = export([str(write_suite(ROWS))], settings, tmp_path / "out", compare_tokens=False)
    assert "--apply_chat_template" in command_line(done, Asked(settings))
    assert task_of(load_suite(tmp_path / "mine"), settings).rows[0]["debias"]["chat"] is True


def test_the_command_line_can_be_pasted(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "adapter").mkdir(parents=True)
    settings = config(load_in_4bit=True, bf16=True)
    done = export([str(write_suite(ROWS))], settings, tmp_path / "out dir", compare_tokens=False)
    judge, back = (
        shlex.split(line) for line in command_line(done, Asked(settings, str(run / "adapter"), run=run)).splitlines()
    )
    assert judge[judge.index("--model_args") + 1] == f"pretrained=m,dtype=bfloat16,peft={run}/adapter"
    assert judge[judge.index("--include_path") + 1] == str(tmp_path / "out dir")
    assert judge[judge.index("--tasks") + 1] == "debias_mine"
    assert "--log_samples" in judge
    suite = ["--suite", str(tmp_path / "mine" / "suite.yaml")]
    assert back == ["debias", "import-harness", str(tmp_path / "out dir" / "logged"), "-o", str(run), *suite]


def test_what_cannot_be_exported_is_named(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    def refusal(path: Path, settings: RunConfig) -> str:
        with pytest.raises(InputError) as caught:
            export([str(path)], settings, tmp_path / "out", compare_tokens=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    other = {"labels": ["entailment", "neutral", "no"], "label_map": {"contradiction": "no"}}
    assert "contradiction" in refusal(write_suite(ROWS, **other), config())
    one = config(data={"text_fields": ["text"]}, prompt={"template": "{text}"})
    assert "text_fields" in refusal(write_suite(ROWS), one)
    digits = config(prompt={"template": "{premise}{hypothesis}"})
    assert "takes digits alone for a number" in refusal(write_suite([("a", "12", "34", "neutral", None)]), digits)
    half = refusal(write_suite([("a", "half \ud83d", "h", "neutral", None)]), config())
    assert "half of a character" in half


def test_a_collection_leaves_out_what_does_not_fit(
    write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = str(write_suite(ROWS))
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.jsonl").write_text('{"text": "x", "label": "good"}\n{"text": "y", "label": "bad"}\n')
    (other / "suite.yaml").write_text(
        '{"name": "other", "version": 1, "description": "d", "licence": "l", "task": "sentiment",'
        '"source": "rows.jsonl", "text_fields": ["text"], "labels": ["good", "bad"]}'
    )
    monkeypatch.setattr("debias_eval.reading.collection.collection_names", lambda: ["both"])
    monkeypatch.setattr("debias_eval.reading.collection.members", lambda name: (fits, str(other)))
    done = export(["both"], config(), tmp_path / "out", compare_tokens=False)
    assert done.tasks == ("debias_mine",)
    assert list(done.left_out) == ["other"]
    with pytest.raises(InputError, match="the suite cannot map"):  # by its own name it is no member, but asked for
        export(["both", str(other)], config(), tmp_path / "out", compare_tokens=False)


def test_a_classification_run_has_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text('{"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o"}')
    with pytest.raises(InputError, match=r"head is 'classification'.*causal_lm"):
        read_prompt(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_prompt(tmp_path / "nothing.yaml")


def test_whoever_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, what `eval --model -o` judged, an adapter with a file of template and answers: a model and a prompt."""
    monkeypatch.setattr("debias.inference.any_model.check_base", lambda adapter, model: None)
    answers = {"yes": " yes", "no": " no"}
    short = tmp_path / "prompt.yaml"
    short.write_text(json.dumps({"template": "{premise} {hypothesis}", "verbalizers": answers}))
    run, folder = tmp_path / "run", tmp_path / "judged"
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config()))
    folder.mkdir()
    options = {"model": "their/model", "adapter": "their/adapter", "prompt": str(short), "tokenizer": "other/words"}
    (folder / "run.json").write_text(json.dumps({"judged": {}, "asked": options}))

    trained = asked_of(run)
    assert (trained.config.model, trained.adapter, trained.run) == ("m", str(run / "adapter"), run)
    judged = asked_of(folder)
    assert (judged.config.model, judged.adapter, judged.tokenizer) == ("their/model", "their/adapter", "other/words")
    assert judged.run is None  # its results are of another judge
    assert judged.config.prompt is not None
    assert judged.config.prompt.verbalizers == answers
    named = asked_of(short, "their/model", "their/adapter")
    assert (named.config.model, named.adapter, named.run) == ("their/model", "their/adapter", None)
    assert asked_of(run, "other/model").config.model == "other/model"

    for told, says in (
        ((short,), "names no model; give --model or --adapter"),
        ((None,), "--prompt is missing"),
        ((folder, "x"), "says which model it judged"),
    ):
        with pytest.raises(InputError, match=says):
            asked_of(*told)
    (folder / "run.json").write_text(json.dumps({"asked": {"endpoint": "http://localhost:1", "model": "served"}}))
    with pytest.raises(InputError, match="was judged through a server"):
        asked_of(folder)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(InputError, match="neither a run nor a folder of"):
        asked_of(folder)


def test_rows_go_through_datasets_unchanged(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    """The loader that lies beside the tasks, in a process that knows nothing of debias."""
    rows = [(str(i), text, "2024-01-01", "neutral", None) for i, text in enumerate(HOSTILE)]
    _, written = exported(write_suite(rows), tmp_path / "out", config())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import json, debias_tasks\n"
        "print(json.dumps(list(debias_tasks.load('debias_mine.jsonl', version=1)['test'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == written


def test_an_origin_forgets_its_row() -> None:
    one = Origin("s", 1, ("t",), ("a", "b"), (" a", " b"), 2, None, 0, chat=False, id="x", label="a", group="g")
    other = Origin("s", 1, ("t",), ("a", "b"), (" a", " b"), 2, None, 0, chat=False, id="y", label="b", cluster="c")
    assert one != other
    assert one.export == other.export
