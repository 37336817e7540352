"""Whole runs whose weights are projected after each step: resumed, held elsewhere, and without effect."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import adapter_of, config_for, cut_off, largest_difference

from debias.building.facts import told_of
from debias.building.idle_settings import without_effect
from debias.engines.checkpoints import RULE_STATE
from debias.projections import PROJECTIONS
from debias.train import train

# Steps that are too long, so that gradients lead back soon.
LONG: dict[str, Any] = {"save_strategy": "steps", "save_total_limit": None, "learning_rate": 0.2}


def difference(left: Path, right: Path) -> float:
    return largest_difference(adapter_of(left), adapter_of(right))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(name: str, bert: Path, tmp_path: Path) -> None:
    """To the bit, beside a rule that looks at the start, too; where the run began is what the checkpoint says."""
    saving: dict[str, Any] = {
        **LONG,
        "save_steps": 2,
        "lora_dropout": 0.1,
        "weight_projection": name,
        "method": "l2_sp",
    }
    whole = train(config_for(bert, tmp_path / "whole", **saving))
    cut = cut_off(whole, tmp_path / "cut")
    train(config_for(bert, cut, resume=True, **saving))
    assert difference(cut, whole) == 0.0
    plain = train(config_for(bert, tmp_path / "plain", **saving | {"weight_projection": None}))
    assert difference(plain, whole) > 1e-3
    kept = [load_file(run / "checkpoint-4" / RULE_STATE) for run in (whole, cut)]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    held = {key: tensor for key, tensor in kept[0].items() if key.endswith("/held_at")}
    assert any("classifier" in key for key in held)  # all that trains, and not only what the rule acts on
    for key, tensor in held.items():
        assert bool(tensor.any()) != ("lora_B" in key or "bias" in key), key


def test_zero_and_strength_are_other_runs_and_keep_nothing(bert: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = {**LONG, "save_steps": 4}
    blocks: dict[str, Any] = {
        "start": {"name": "spd"},
        "zero": {"name": "spd", "towards": "zero"},
        "strong": {"name": "spd", "strength": 3},
    }
    runs = {
        name: train(config_for(bert, tmp_path / name, method="erm", weight_projection=one, **saving))
        for name, one in blocks.items()
    }
    assert difference(runs["start"], runs["zero"]) > 1e-4
    assert difference(runs["start"], runs["strong"]) > 1e-4
    assert [(run / "checkpoint-4" / RULE_STATE).exists() for run in runs.values()] == [True, False, True]
    (runs["start"] / "checkpoint-4" / RULE_STATE).unlink()
    shutil.rmtree(runs["start"] / "adapter")
    more = saving | {"max_steps": 6, "resume": True}
    with pytest.raises(ValueError, match=f"there is no {RULE_STATE}, which spd goes on from"):
        train(config_for(bert, runs["start"], method="erm", weight_projection="spd", **more))


def test_a_strength_of_zero_is_the_plain_run(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "still", weight_projection={"name": "spd", "strength": 0})
    assert difference(train(config), train(config_for(bert, tmp_path / "plain"))) == 0.0
    (idle,) = without_effect(config)
    assert idle.startswith("weight_projection=")
    assert idle.endswith("strength is 0: what it costs is for nothing")


def test_what_older_versions_told_of_a_run_is_told_of_it_now(bert: Path, tmp_path: Path) -> None:
    """A stage without one has the digest that it had."""
    plain, held = (config_for(bert, tmp_path / "run", weight_projection=one) for one in (None, "spd"))
    assert "weight_projection" not in told_of(plain)
    assert "weight_projection" in told_of(held)
