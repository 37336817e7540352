"""launch/SETTINGS.md names every setting, and its default as it is."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from debias.adapters import ADAPTERS
from debias.config import blocks
from debias.config.reading import key_names
from debias.config.run import RunConfig

PAGE = (Path(__file__).parents[1] / "launch" / "SETTINGS.md").read_text(encoding="utf-8")
ROWS = {
    key: default
    for keys, default in re.findall(r"^\| (`.*?`) \|(.*?)\| ", PAGE, flags=re.MULTILINE)
    for key in re.findall(r"`(.*?)`", keys)
}
# Blocks, which stand there by their keys, and the same block a second time.
BLOCKS = {"data", "prompt", "bias_weight", "adapter"}
AS_TRAIN = "data.validation."


def default_of(key: str) -> Any:
    model: type[BaseModel] = RunConfig
    *inside, last = key.split(".")
    if inside == ["adapter"]:
        return blocks.KINDS["adapter"].default if last == "type" else getattr(of_row(last), last)
    for block in inside:
        kinds = [model.model_fields[block].annotation, *getattr(model.model_fields[block].annotation, "__args__", ())]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    field = model.model_fields[last]
    return ... if field.is_required() else field.default


def of_row(setting: str) -> Any:
    """The first adapter that has the setting; where others have it too, its default is the same."""
    rows = [row for row in ADAPTERS.values() if setting in row.__dataclass_fields__]
    assert len({getattr(row, setting) for row in rows}) == 1
    return rows[0]


def test_every_setting_is_there_and_no_other():
    tables = {key for key in blocks.setting_names() if key.startswith("adapter.")}
    keys = {key for key in key_names(RunConfig) if key not in BLOCKS and not key.startswith(AS_TRAIN)}
    assert set(ROWS) == keys | tables


def test_defaults_are_those_of_the_code():
    for key, told in ROWS.items():
        default = default_of(key)
        shown = [yaml.safe_load(text) for text in re.findall(r"`(.*?)`", told)]
        if default is ... or key in ("prompt", "data.validation"):
            assert shown == [], key
        else:
            assert shown == [list(default) if isinstance(default, tuple) else default], key
