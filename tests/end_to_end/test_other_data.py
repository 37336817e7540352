"""A run is gone on with on the data that it was begun with, or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import config_for

from debias.data import generate
from debias.errors import InputError
from debias.train import SAID, train

pytestmark = pytest.mark.slow
LABELS = ["entailment", "neutral", "contradiction"]


def settings(place: Path, **changes: Any) -> dict[str, Any]:
    data = {"train": str(place / "train.jsonl"), "validation": str(place / "dev.jsonl"), "group_field": "kind"}
    kept = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    weight = {"bias_weight": {"source": "file", "column": "w"}, "order": {"name": "upsampled", "times": 2}}
    return {"data": data, "max_steps": 2, "first_stage": {"settings": {"max_steps": 1}}, **kept, **weight, **changes}


def rows_of(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def write(place: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def begun(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a first stage, a bias column and validation."""
    place = tmp_path_factory.mktemp("begun")
    for name, seed in (("train.jsonl", 0), ("dev.jsonl", 1)):
        write(place, name, [{**row, "w": 0.5, "kind": "x"} for row in generate("train", 24, seed)])
    train(config_for(bert, place / "run", **settings(place)))
    return place


def goes_on(bert: Path, place: Path) -> None:
    train(config_for(bert, place / "run", **settings(place, max_steps=3, resume=True)))


CHANGES = {
    "row": ("train.jsonl", 4, {"premise": "Another text."}, r"data\.train has changed: 24 .* 24 .* example 5 "),
    "weight": ("train.jsonl", 7, {"w": 0.25}, r"data\.train has changed: 24 .* example 8 "),
    "group": ("train.jsonl", 0, {"kind": "y"}, r"data\.train has changed: .* example 1 "),
    "dev": ("dev.jsonl", 2, {"hypothesis": "Another text."}, r"data\.validation has changed: 24 .* example 3 "),
    "appended": ("train.jsonl", None, {}, r"data\.train has changed: 25 examples now, 24 when .* example 25 "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_data(bert: Path, begun: Path, name: str) -> None:
    file, place, change, says = CHANGES[name]
    before, run = rows_of(begun, file), begun / "run"
    changed = [{**row, **change} if number == place else row for number, row in enumerate(before)]
    held = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    try:
        write(begun, file, [*changed, *([before[0]] if place is None else [])])
        with pytest.raises(InputError, match=f"resume: {says}"):
            goes_on(bert, begun)
    finally:
        write(begun, file, before)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == held


def test_what_a_first_stage_said_and_the_same_data(bert: Path, begun: Path, tmp_path: Path) -> None:
    import numpy as np

    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "stages" / "1")  # what it said is kept, and asked no more
    with np.load(tmp_path / "run" / "stages" / SAID) as kept:
        log_p, digest = kept["log_p"].copy(), kept["digest"]
    label = LABELS.index(rows_of(begun, "train.jsonl")[5]["label"])
    likely = label if log_p[5].argmax() != label else (label + 1) % 3
    swapped = log_p.copy()
    swapped[5] = np.log(np.where(np.arange(3) == likely, 0.8, 0.1))
    run = config_for(bert, begun / "run", **settings(begun, max_steps=3, resume=True))
    elsewhere = run.model_copy(update={"output_dir": str(tmp_path / "run")})
    np.savez(tmp_path / "run" / "stages" / SAID, log_p=swapped, digest=digest)
    with pytest.raises(InputError, match=r"resume: first_stage has changed: .* example 6 "):
        train(elsewhere)
    np.savez(tmp_path / "run" / "stages" / SAID, log_p=log_p, digest=digest)
    train(elsewhere)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 3
