"""Runs whose blocks lack settings that came later: the same method as newer runs with those at their defaults."""

import json
from pathlib import Path
from typing import Any

import yaml

from debias.config import blocks
from debias_eval.results.grouped import group_runs
from debias_eval.results.older import completed
from debias_eval.results.runs import read_runs

OLD_LOSS = {"name": "logit_correction", "tau": 1.0}


def config_of(seed: int, **changes: Any) -> dict[str, Any]:
    held = {"model": "m", "data": {"train": "generated"}, "output_dir": "o", "seed": seed, "method": {"name": "erm"}}
    return {**held, **changes}


def test_settings_that_came_later_are_their_defaults() -> None:
    new = blocks.read("loss", OLD_LOSS)
    assert len(new) > len(OLD_LOSS)
    old, newer, other = completed([{"loss": OLD_LOSS}, {"loss": new}, {"loss": {"name": "focal"}}])
    assert old == newer == {"loss": new}
    assert other == {"loss": {"name": "focal"}}  # nobody has more of it
    unnamed, named = completed([{"adapter": {}}, {"adapter": blocks.read("adapter", "lora")}])
    assert unnamed == named


def test_what_cannot_be_read_any_longer_stays() -> None:
    gone = {"loss": {"name": "logit_correction", "abandoned": 1}}
    assert completed([gone, {"loss": OLD_LOSS}])[0] == gone
    strange: dict[str, Any] = {"loss": {"name": ["a list"]}}
    assert completed([strange, {"loss": "focal"}, {}]) == [strange, {"loss": "focal"}, {}]


def test_old_and_new_seeds_are_one_method(tmp_path: Path) -> None:
    new = blocks.read("loss", OLD_LOSS)
    for seed, loss in enumerate([OLD_LOSS, new, {**new, "tau": 0.5}]):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config_of(seed, loss=loss)))))
    methods = group_runs(read_runs([tmp_path / f"run{seed}" for seed in range(3)]))
    assert [method.seeds for method in methods] == [2, 1]
