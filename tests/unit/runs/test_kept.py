"""Runs without their weights in one file: what is kept, what comes back, and what no file may hold."""

import json

import pytest

from debias.errors import InputError
from debias.runs.kept import keep, kept, placeless, result_of, unpack


def a_run(folder, accuracy=0.5):
    pieces = {
        "config.yaml": f"model: m\noutput_dir: {folder}\n",
        "run.json": json.dumps({"seconds": 3.5, "command": f"debias train output_dir={folder}"}),
        "eval/hans.json": json.dumps({"suite": "hans", "version": 2, "accuracy": accuracy}),
        "stages/bias_1/run.json": "{}",
        "stages/bias_1/config.yaml": "{}",
        "adapter/adapter_model.safetensors": "weights",
        "eval/hans.predictions.jsonl.gz": "answers",
        "bias/log_p.npz": "x",
    }
    for name, text in pieces.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_run_comes_back_without_weights_answers_or_the_place_it_lay_in(tmp_path):
    folder = a_run(tmp_path / "here" / "erm" / "seed0")
    keep(tmp_path / "kept.jsonl", folder, "erm/default/seed0", digest="d", seed=0)
    assert str(tmp_path) not in (tmp_path / "kept.jsonl").read_text()
    unpack(tmp_path / "kept.jsonl", tmp_path / "back")
    back = tmp_path / "back" / "erm" / "default" / "seed0"
    found = sorted(file.relative_to(back).as_posix() for file in back.rglob("*") if file.is_file())
    assert found == ["config.yaml", "eval/hans.json", "run.json", "stages/bias_1/config.yaml", "stages/bias_1/run.json"]
    assert json.loads((back / "eval/hans.json").read_text()) == json.loads((folder / "eval/hans.json").read_text())
    assert "output_dir: erm/default/seed0" in (back / "config.yaml").read_text()


def test_places_of_the_machine_are_cut_to_names_and_nothing_else_is():
    held = {
        "command": "debias train '/home/Jane Doe/a.yaml' output_dir=/x/y 'prompt={a: /b/c}' seed=1",
        "data": {"train": {"source": "/home/Jane Doe/data/x.jsonl"}, "files": ["/a/b", "snli/train.jsonl.gz"]},
        "prompt": {"template": "/yes/no"},
        "hub": "https://hub.example/org/model",
        "text": "A {x} /yes/no",
        "n": 3,
    }
    assert placeless(held) == {
        "command": "debias train a.yaml output_dir=y 'prompt={a: /b/c}' seed=1",
        "data": {"train": {"source": "x.jsonl"}, "files": ["b", "snli/train.jsonl.gz"]},
        "prompt": {"template": "/yes/no"},
        "hub": "https://hub.example/org/model",
        "text": "A {x} /yes/no",
        "n": 3,
    }


def test_a_later_run_of_the_same_name_takes_the_place_of_the_earlier(tmp_path):
    for accuracy in (0.25, 0.75):
        keep(tmp_path / "kept.jsonl", a_run(tmp_path / "run", accuracy), "erm/default/seed0", digest="d", seed=0)
    (record,) = kept(tmp_path / "kept.jsonl")
    assert result_of(record, "hans")["accuracy"] == 0.75
    assert result_of(record, "snli") == {}
    assert kept(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"event": "planned", "run": "a"}',
        '{"event": "run", "run": "a"}',
        '{"event": "run", "run": "../a", "files": {}}',
        '{"event": "run", "run": "a", "files": {"/etc/x": "1"}}',
        '{"event": "run", "run": "a", "files": {"b/../../x": "1"}}',
        '{"event": "run", "run": "a", "files": {"config.yaml": 3}}',
    ],
)
def test_a_line_that_is_no_run_is_refused_and_nothing_is_written(tmp_path, line):
    keep(tmp_path / "kept.jsonl", a_run(tmp_path / "run"), "erm/default/seed0", digest="d", seed=0)
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="1 lines are no kept runs"):
        unpack(tmp_path / "kept.jsonl", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_result_that_cannot_be_read_is_none(tmp_path):
    folder = a_run(tmp_path / "run")
    (folder / "eval/hans.json").write_text("{")
    keep(tmp_path / "kept.jsonl", folder, "a", digest="d", seed=0)
    assert result_of(kept(tmp_path / "kept.jsonl")[0], "hans") == {}
