"""Whole runs in which single elements move: resumed, cut otherwise, over ranks, beside a loop of one's own, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import adapter_of, config_for, cut_off, largest_difference, settings_for
from torch import Tensor
from train_many import on_ranks
from transformers import set_seed

from debias.building.arguments import training_arguments
from debias.building.examples import training_examples
from debias.building.model import build_model
from debias.building.task import build_task
from debias.config.run import RunConfig
from debias.data.encode import Collator
from debias.engines import attach
from debias.engines.hf_trainer import DebiasTrainer
from debias.errors import InputError
from debias.losses import Classification
from debias.masks import MASKS, make_mask
from debias.methods import MainOnly
from debias.models.load import load_tokenizer
from debias.train import train

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05}
SAFT: dict[str, Any] = {"gradient_mask": {"name": "saft", "share": 0.05}}


def difference(left: Path, right: Path) -> float:
    return largest_difference(adapter_of(left), adapter_of(right))


def test_a_run_that_goes_on_is_the_run_that_was_not_cut(bert: Path, tmp_path: Path) -> None:
    """And what was not chosen is, in its last checkpoint, what it was in its first, whatever AdamW's decay does."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "weight_decay": 0.5}
    whole = train(config_for(bert, tmp_path / "whole", **saving, **SAFT))
    cut = cut_off(whole, tmp_path / "cut")
    train(config_for(bert, cut, resume=True, **saving, **SAFT))
    assert difference(cut, whole) == 0.0
    first, last = (torch_file(whole / f"checkpoint-{at}") for at in (2, 4))
    moved = sum(int((first[name] != last[name]).sum()) for name in first)
    elements = sum(one.numel() for one in first.values())
    assert 0 < moved <= int(0.05 * elements)
    told = json.loads((whole / "run.json").read_text())
    assert (told["measured_steps"], told["skipped_steps"], told["steps"]) == (1, 0, 4)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["measured_steps"] for row in rows if "measured_steps" in row] == [1] * 4
    with pytest.raises(InputError, match=r"resume: gradient_mask"):
        train(config_for(bert, cut, resume=True, **saving))


def torch_file(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", MASKS)
def test_elements_are_chosen_once_a_step_however_that_is_cut(name: str, bert: Path, tmp_path: Path) -> None:
    mask = {"gradient_mask": {"name": name, "share": 0.05}, **SGD}
    whole = train(config_for(bert, tmp_path / "whole", per_device_train_batch_size=8, **mask))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert difference(train(config_for(bert, tmp_path / "parts", **parts, **mask)), whole) < 1e-6
    assert difference(train(config_for(bert, tmp_path / "plain", **SGD)), whole) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_two_ranks_are_one_process(name: str, bert: Path, tmp_path: Path) -> None:
    mask = {"gradient_mask": {"name": name, "share": 0.05}, **SGD}
    alone = train(config_for(bert, tmp_path / "alone", per_device_train_batch_size=8, **mask))
    on_ranks(2, [settings_for(bert, tmp_path / "ranks", per_device_train_batch_size=4, **mask)])
    assert difference(tmp_path / "ranks", alone) < 1e-6


def built(config: RunConfig) -> tuple[Any, Any, Any]:
    words = load_tokenizer(config.model, config.head)
    set_seed(config.seed)
    return (
        build_model(config),
        build_task(config, words).encode(training_examples(config, None), with_answer=True),
        words,
    )


@pytest.mark.parametrize("name", MASKS)
def test_a_loop_of_ones_own_is_the_trainer(name: str, bert: Path, tmp_path: Path) -> None:
    """Eight examples, all of them in each step."""
    block = {"name": name, "share": 0.2, **({"steps": 2} if name == "saft" else {"hold": True})}
    more = {"data": {"train": {"source": "generated", "limit": 8}}, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    config = config_for(bert, tmp_path / "run", method="erm", gradient_mask=block, weight_decay=0.1, **more, **SGD)
    model, data, words = built(config)
    common = {"rule": MainOnly(), "readout": Classification(), "gradient_mask": make_mask(block)}
    trainer = DebiasTrainer(
        model=model, args=training_arguments(config), train_dataset=data, data_collator=Collator(words), **common
    )
    trainer.train()
    own, data, words = built(config)
    batch = Collator(words)(list(data))
    decays = trainer.get_decay_parameter_names(own)
    trains = {n: p for n, p in own.train().named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for n, p in trains.items() if (n in decays) == of], "weight_decay": 0.1 * of} for of in (1, 0)
    ]
    hook = attach(own, torch.optim.SGD(groups, lr=0.05), MainOnly(), gradient_mask=make_mask(block))
    for _ in range(4):
        said = Classification().said(own, {**batch["inputs"], **batch["facts"]})
        hook.backward(-said.log_p_B, torch.ones(8))
        hook.step()
    got = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert largest_difference(got, {n: p.detach() for n, p in trains.items()}) < 1e-6
    assert trainer.hook is not None
    assert trainer.hook.measured == hook.measured == (2 if name == "saft" else 0)


def test_a_run_that_would_end_before_it_trains_is_refused(bert: Path, tmp_path: Path) -> None:
    more = {"max_steps": -1, "num_train_epochs": 1, "gradient_mask": {"name": "saft", "steps": 8}}
    with pytest.raises(InputError, match=r"gradient_mask\.steps is 8, and the run has 8 steps: none would train"):
        train(config_for(bert, tmp_path / "run", **more))
    assert not (tmp_path / "run").exists()
