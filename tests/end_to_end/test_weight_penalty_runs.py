"""Whole runs with a term of the weights: resumed, cut otherwise, over ranks, without effect, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import adapter_of, config_for, cut_off, largest_difference, settings_for
from train_many import on_ranks

from debias.building.idle_settings import without_effect
from debias.errors import InputError
from debias.penalties import PENALTIES
from debias.train import train

# lora_r is 4. Plain SGD: Adam makes a step of the rounding of a gradient that is almost zero.
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05}
STRONG: dict[str, Any] = {"strength": 0.01}


def difference(left: Path, right: Path) -> float:
    return largest_difference(adapter_of(left), adapter_of(right))


@pytest.mark.parametrize("name", PENALTIES)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(name: str, bert: Path, tmp_path: Path) -> None:
    """And what is saved is a LoRA as any other."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "lora_dropout": 0.1}
    saving["weight_penalty"] = {"name": name, **STRONG}
    whole = train(config_for(bert, tmp_path / "whole", **saving))
    cut = cut_off(whole, tmp_path / "cut")
    train(config_for(bert, cut, resume=True, **saving))
    assert difference(cut, whole) == 0.0
    plain = train(config_for(bert, tmp_path / "plain", lora_dropout=0.1))
    assert difference(plain, whole) > 1e-4
    told = [json.loads((run / "adapter" / "adapter_config.json").read_text()) for run in (whole, plain)]
    assert told[0]["r"] == 4
    assert told[0] == told[1]


def test_it_is_taken_once_a_step_however_that_is_cut(bert: Path, tmp_path: Path) -> None:
    pego = {"weight_penalty": {"name": "pego", **STRONG}, **SGD}
    whole = train(config_for(bert, tmp_path / "whole", per_device_train_batch_size=8, **pego))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert difference(train(config_for(bert, tmp_path / "parts", **parts, **pego)), whole) < 1e-6
    assert difference(train(config_for(bert, tmp_path / "plain", **SGD)), whole) > 1e-4


@pytest.mark.slow
def test_two_ranks_are_one_process(bert: Path, tmp_path: Path) -> None:
    pego = {"weight_penalty": {"name": "pego", **STRONG}, **SGD}
    alone = train(config_for(bert, tmp_path / "alone", per_device_train_batch_size=8, **pego))
    on_ranks(2, [settings_for(bert, tmp_path / "ranks", per_device_train_batch_size=4, **pego)])
    assert difference(tmp_path / "ranks", alone) < 1e-6


def test_a_strength_of_zero_is_the_plain_run(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "still", weight_penalty={"name": "pego", "strength": 0})
    assert difference(train(config), train(config_for(bert, tmp_path / "plain"))) == 0.0
    (idle,) = without_effect(config)
    assert idle.startswith("weight_penalty=")
    assert idle.endswith("strength is 0: what it costs is for nothing")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"adapter": "bitfit"}, r"weight_penalty pego needs linear layers with LoRA \(adapter: lora\)"),
        (
            {"adapter": "dora"},
            r"weight_penalty pego: .* has LoRA of another form \(DoraLinearVariant\); take adapter lora",
        ),
        ({"lora_r": 6}, r"weight_penalty\.adapters is 4, expected a divisor of the rank 6 \(lora_r\)"),
    ],
    ids=["bitfit", "dora", "rank"],
)
def test_what_it_cannot_take_is_an_error_before_anything_is_written(
    more: dict[str, Any], message: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(config_for(bert, tmp_path / "run", weight_penalty="pego", **more))
    assert not (tmp_path / "run").exists()
