"""Whole runs whose gradients are taken elsewhere than at the weights: resumed, cut, over ranks, on a 4-bit base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tables import EXAMPLES, settings_of
from tiny_runs import PROMPT, adapter_of, config_for, cut_off, largest_difference, settings_for
from train_many import on_ranks

from debias.building.idle_settings import without_effect
from debias.sharpness import SHARPNESS
from debias.train import train

# Groups that say something, for a loss that learns of them: its memory must move once in a step, and not twice.
DATA = {
    "train": {"source": "generated", "limit": 120},
    "planted_bias": {"cue": "!!", "prevalence": 0.5, "strength": 0.6},
}
LEARNS: dict[str, Any] = {
    "data": DATA,
    "loss": {"name": "group_dro", "step_size": 2.0},
    "lora_dropout": 0.1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": None,
}


def memory(checkpoint: Path) -> torch.Tensor:
    held: torch.Tensor = torch.load(checkpoint / "loss_state.pt")["memory"]
    return held


@pytest.mark.parametrize("name", SHARPNESS)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(name: str, bert_dropout: Path, tmp_path: Path) -> None:
    whole = train(config_for(bert_dropout, tmp_path / "whole", sharpness=name, **LEARNS))
    cut = cut_off(whole, tmp_path / "cut")
    train(config_for(bert_dropout, cut, sharpness=name, resume=True, **LEARNS))
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    assert torch.equal(memory(cut / "checkpoint-4"), memory(whole / "checkpoint-4"))


def test_a_radius_of_zero_is_the_plain_run(bert_dropout: Path, tmp_path: Path) -> None:
    """To the bit, what a loss has learned as well: the second pass teaches it nothing, and draws nothing of its own."""
    still = {"name": "sam", "rho": 0.0}
    config = config_for(bert_dropout, tmp_path / "still", sharpness=still, **LEARNS)
    runs = [train(config_for(bert_dropout, tmp_path / "plain", **LEARNS)), train(config)]
    assert largest_difference(*map(adapter_of, runs)) == 0.0
    plain, other = (memory(run / "checkpoint-4") for run in runs)
    assert torch.equal(plain, other)
    assert not torch.equal(plain, memory(runs[0] / "checkpoint-2"))
    (idle,) = without_effect(config)
    assert idle.startswith("sharpness=")
    assert idle.endswith("rho is 0: gradients are taken at the weights, twice")
    moved = config.model_copy(update={"sharpness": {"name": "sam", "rho": 0.05}})
    assert without_effect(moved) == []


@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: rule.name)
def test_it_goes_with_every_rule(rule: Any, bert: Path, tmp_path: Path) -> None:
    runs = {
        name: train(config_for(bert, tmp_path / name, method=settings_of(rule), max_steps=2, **more))
        for name, more in {"plain": {}, "sharp": {"sharpness": {"name": "sam", "rho": 0.5}}}.items()
    }
    assert largest_difference(adapter_of(runs["plain"]), adapter_of(runs["sharp"])) > 1e-5


@pytest.mark.slow
def test_two_ranks_are_one_process_that_cuts_its_steps_alike(bert: Path, tmp_path: Path) -> None:
    """A rank's micro-batch has a way up of its own, as a micro-batch of one process has; a step that is not cut is
    another one.
    """
    alike: dict[str, Any] = {"data": DATA, "sharpness": {"name": "sam", "rho": 0.5}, "optim": "sgd"}
    alike |= {"learning_rate": 0.1}
    sizes = {"alone": (6, 2), "whole": (12, 1)}
    alone, whole = (
        train(
            config_for(
                bert, tmp_path / name, per_device_train_batch_size=size, gradient_accumulation_steps=parts, **alike
            )
        )
        for name, (size, parts) in sizes.items()
    )
    on_ranks(2, [settings_for(bert, tmp_path / "ranks", per_device_train_batch_size=6, **alike)])
    assert largest_difference(adapter_of(tmp_path / "ranks"), adapter_of(alone)) < 1e-6
    assert largest_difference(adapter_of(whole), adapter_of(alone)) > 1e-4


def test_full_training_of_a_causal_model_and_a_4_bit_base(llama: Path, tmp_path: Path) -> None:
    """Only what trains moves: a 4-bit base stays as it is."""
    causal: dict[str, Any] = {"head": "causal_lm", "prompt": PROMPT, "sharpness": {"name": "sam", "rho": 0.1}}
    train(config_for(llama, tmp_path / "full", adapter="full", learning_rate=1e-3, max_steps=2, **causal))
    four_bit: dict[str, Any] = {"load_in_4bit": True, "gradient_checkpointing": True, **causal}
    runs = {
        name: train(config_for(llama, tmp_path / name, packing=name == "packed", **four_bit))
        for name in ("padded", "packed")
    }
    assert largest_difference(adapter_of(runs["padded"]), adapter_of(runs["packed"])) < 1e-3
