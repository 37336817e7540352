"""eval/README.md names every setting of a suite and of a study; of a suite its default as it is."""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from debias.sweep.study import Study
from debias_eval.reading.suite import Suite, Task

PAGE, STUDY = (Path(__file__).parents[1] / "eval" / "README.md").read_text(encoding="utf-8").split("### A study")
ROWS = dict(re.findall(r"^\| `([a-z_.]+)` \|(.*?)\| ", PAGE, flags=re.MULTILINE))
# Blocks whose keys stand on another page, or above: a run's own, and a second `hub`.
ELSEWHERE = ("planted_bias.", "planted_color.", "group_rule.partial_input.hub.")


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every dotted key and its default; PydanticUndefined where it has to be given, or follows from another."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        key, kinds = prefix + name, [info.annotation, *get_args(info.annotation)]
        block = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if key != "group_rule":
            found[key] = {} if info.default_factory is dict else info.default
        if block is not None and not f"{key}.".startswith(ELSEWHERE):
            found |= fields(block, f"{key}.")
    return found


def test_every_setting_is_there_and_no_other() -> None:
    assert set(ROWS) == set(fields(Suite))


def test_defaults_are_those_of_the_code() -> None:
    for key, default in fields(Suite).items():
        shown = [yaml.safe_load(text) for text in re.findall(r"`(.*?)`", ROWS[key])]
        expected = list(default) if isinstance(default, tuple) else default
        assert shown == ([] if default is PydanticUndefined else [expected]), key


def test_every_task_is_named() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `task` |"))
    assert re.findall(r"`([a-z_]+)`", row)[1:] == list(get_args(Task))


def test_every_setting_of_a_study_is_there_and_no_other() -> None:
    cells = re.findall(r"^\| (`.*?`) \|", STUDY, flags=re.MULTILINE)
    assert {key for cell in cells for key in re.findall(r"`(.*?)`", cell)} == set(Study.model_fields)
