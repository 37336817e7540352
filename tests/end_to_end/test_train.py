"""debias.train on tiny models: what a run leaves, what it is equal to, and that it comes back after a stop."""

import errno
import importlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tables import EXAMPLES, settings_of
from tiny_runs import PROMPT, adapter_of, config_for, largest_difference, settings_for

from debias.building.arguments import training_arguments
from debias.building.examples import training_examples
from debias.building.model import build_model
from debias.building.task import build_task
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import load_examples
from debias.data.encode import Collator
from debias.engines.checkpoints import RULE_STATE, _forget_older
from debias.engines.hf_trainer import DebiasTrainer
from debias.errors import InputError, Interrupted
from debias.gradients import NotExact
from debias.inference.loading import load_run
from debias.losses import Classification
from debias.methods import Edge, MainOnly, Rule
from debias.models.load import load_tokenizer
from debias.models.source import ModelSource
from debias.runs.metrics import read_metrics
from debias.runs.names import last_checkpoint
from debias.runs.resume import planned_steps
from debias.train import train

VALIDATION = {"source": "generated", "split": "validation", "limit": 48}
WITH_VALIDATION = {"train": {"source": "generated", "limit": 64}, "validation": VALIDATION}
CAUSAL: dict[str, Any] = {"head": "causal_lm", "prompt": PROMPT}


def metrics(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def summary(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "run.json").read_text())
    return loaded


def hidden(run: Path) -> list[str]:
    """What a save that was cut off would leave."""
    return [path.name for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


# What a run leaves.


def test_the_folder_of_a_run(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "run", data=WITH_VALIDATION, eval_strategy="steps", eval_steps=2)
    run = train(config)
    assert run == tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {"adapter", "config.yaml", "metrics.jsonl", "run.json", "seen.npz"}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "labels.json"} <= {
        path.name for path in (run / "adapter").iterdir()
    }
    assert load_config(run / "config.yaml") == config
    steps = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    keys = {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "cosine", "removed_share", "main_norm", "bias_norm",
        "skipped_steps", "samples_per_second", "peak_memory_mb",
    }  # fmt: skip
    for line in steps:
        assert keys <= line.keys()
        assert -1 <= line["cosine"] <= 1
        assert all(math.isfinite(line[key]) for key in keys)
        assert min(line["main_norm"], line["bias_norm"], line["samples_per_second"], line["peak_memory_mb"]) > 0
    evaluated = [line for line in metrics(run) if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert all(0 <= line["eval_accuracy"] <= 1 for line in evaluated)
    told = summary(run)
    assert told["status"] == "finished"
    assert told["method"] == {"name": "edge", "alpha": 1.0, "projection": "published"}
    assert told["gradients"] == "single_pass"
    assert (told["steps"], told["seed"], told["train_examples"], told["skipped_steps"]) == (4, 0, 64, 0)
    assert told["parameters"]["trainable"] > told["acts_on"]["elements"] > 0
    assert {"python", "torch", "transformers", "peft"} <= told["versions"].keys()
    assert told["seconds"] > 0


def test_loss_in_the_log_is_the_mean_of_the_batch(bert: Path, tmp_path: Path) -> None:
    one = train(config_for(bert, tmp_path / "one", per_device_train_batch_size=16, max_steps=1))
    parts = train(
        config_for(bert, tmp_path / "parts", gradient_accumulation_steps=4, per_device_train_batch_size=4, max_steps=1)
    )
    assert losses(one) == pytest.approx(losses(parts), rel=1e-5)


def test_evaluation_in_training_is_what_eval_says(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "run", data=WITH_VALIDATION, eval_strategy="steps", eval_steps=4)
    run = train(config)
    assert config.data.validation is not None
    examples = load_examples(config.data.validation, config.data)
    scores = load_run(run).label_scores(examples)
    gold = [example.label for example in examples]
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_accuracy"] == pytest.approx((scores.argmax(1) == gold).mean())
    assert last["eval_loss"] == pytest.approx(-scores[range(len(gold)), gold].mean(), rel=1e-4)


def test_tensorboard_gets_events(bert: Path, tmp_path: Path) -> None:
    run = train(config_for(bert, tmp_path / "run", report_to=["tensorboard"]))
    assert list(run.rglob("events.out.tfevents.*"))


def test_a_validation_set_that_is_not_used_is_said(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "debias")
    train(config_for(bert, tmp_path / "run", data=WITH_VALIDATION, max_steps=1))
    assert "data.validation is not read: eval_strategy is no" in caplog.text


def test_the_model_is_left_without_hooks(bert: Path, tmp_path: Path) -> None:
    trainer = trainer_for(config_for(bert, tmp_path / "run"))
    trainer.train()
    assert not any("forward" in vars(module) for name, module in trainer.model.named_modules() if "lora" in name)


# Same in, same out.


def test_the_same_seed_is_the_same_adapter_bit_for_bit(bert_dropout: Path, tmp_path: Path) -> None:
    runs = [train(config_for(bert_dropout, tmp_path / name, lora_dropout=0.1)) for name in ("a", "b")]
    assert largest_difference(*map(adapter_of, runs)) == 0
    assert (runs[0] / "adapter" / "adapter_model.safetensors").read_bytes() == (
        runs[1] / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_what_changes_the_run_changes_the_adapter(bert: Path, tmp_path: Path) -> None:
    """No setting of these is ignored."""
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "seed": {"seed": 1},
        "erm": {"method": "erm"},
        "alpha": {"method": {"name": "edge", "alpha": 0.5}},
        "projection": {"method": {"name": "edge", "projection": "row"}},
        "q": {"bias_weight": {"source": "self", "q": 0.3}},
        "head": {"debias_head": True},
        "lora_r": {"lora_r": 3},
        "lora_alpha": {"lora_alpha": 4},
        "lora_dropout": {"lora_dropout": 0.3},
        "head_dropout": {"head_dropout": 0.9},
        "sharpness": {"sharpness": "sam"},
        "smart": {"smoothness": {"name": "smart", "strength": 10}},
        "r3f": {"smoothness": {"name": "r3f", "noise": 0.1}},
        "pego": {"weight_penalty": "pego"},
        "spd": {"weight_projection": {"name": "spd", "strength": 10}},
        "saft": {"gradient_mask": "saft"},
        "gmt": {"gradient_mask": "gmt"},
        "asam": {"sharpness": {"name": "asam", "rho": 0.05}},
        "targets": {"adapter": {"targets": ["query"]}},
        "max_length": {"max_length": 10},
        "learning_rate": {"learning_rate": 2e-2},
        "scheduler": {"lr_scheduler_type": "constant"},
        "warmup": {"warmup_steps": 2},
        "decay": {"weight_decay": 0.5},
        "clip": {"max_grad_norm": 0.01, "optim": "sgd"},
        "optim": {"optim": "sgd"},
        "batch": {"per_device_train_batch_size": 7},
        "accumulation": {"gradient_accumulation_steps": 2},
        "steps": {"max_steps": 3},
        "epochs": {"max_steps": -1, "num_train_epochs": 0.25},
        "bf16": {"bf16": True},
        "limit": {"data": {"train": {"source": "generated", "limit": 63}}},
        "data_seed": {"data": {"train": {"source": "generated", "limit": 64, "seed": 1}}},
        "split": {"data": {"train": {"source": "generated", "limit": 64, "split": "test"}}},
        "planted": {"data": {"train": {"source": "generated", "limit": 64}, "planted_bias": {}}},
        "labels": {
            "data": {
                "train": {"source": "generated", "limit": 64},
                "labels": ["neutral", "entailment", "contradiction"],
            }
        },
        "fields": {"data": {"train": {"source": "generated", "limit": 64}, "text_fields": ["hypothesis", "premise"]}},
    }
    bytes_of = {}
    for name, change in changes.items():
        run = train(config_for(bert, tmp_path / name, **change))
        bytes_of[name] = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    twins = [(a, b) for a in changes for b in changes if a < b and bytes_of[a] == bytes_of[b]]
    assert twins == []


def test_what_changes_a_causal_run_changes_the_adapter(llama: Path, tmp_path: Path) -> None:
    verbalizers = {**PROMPT["verbalizers"], "neutral": " maybe yes no"}
    prompt = {**PROMPT, "verbalizers": verbalizers}
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "mean": {"loss_mean": "tokens"},
        "probability": {"answer_probability": "geometric_mean"},
        "template": {"prompt": {**prompt, "template": "{hypothesis} {premise}"}},
        "verbalizers": {"prompt": {**prompt, "verbalizers": {**verbalizers, "entailment": " question"}}},
    }
    found = {
        name: adapter_of(train(config_for(llama, tmp_path / name, **{**CAUSAL, "prompt": prompt, **change})))
        for name, change in changes.items()
    }
    assert all(largest_difference(found["plain"], found[name]) > 0 for name in changes if name != "plain")


# Equal to what it should be equal to.


class Listed(torch.utils.data.Dataset[dict[str, Any]]):
    """Features without a sampler of their own, so that both trainers draw the Trainer's order."""

    def __init__(self, features: list[dict[str, Any]]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]


def as_trainers_have_it(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch["inputs"], "labels": batch["facts"]["labels"]}


def trainer_for(config: RunConfig, *, rule: Any = None, plain: bool = False, **changes: Any) -> Any:
    """A DebiasTrainer of this run, or the plain Trainer with the same arguments."""
    from transformers import Trainer, set_seed

    words = load_tokenizer(config.model, config.head)
    task = build_task(config, words)
    set_seed(config.seed)
    model = build_model(config)
    arguments = training_arguments(config)
    for key, value in changes.items():
        setattr(arguments, key, value)
    data = Listed(list(task.encode(training_examples(config, None), with_answer=True)))
    shared = {"model": model, "args": arguments, "train_dataset": data, "data_collator": Collator(words)}
    if plain:
        return Trainer(**shared | {"data_collator": lambda rows: as_trainers_have_it(Collator(words)(rows))})
    return DebiasTrainer(**shared, eval_dataset=data, rule=rule or Edge(), readout=Classification())


def test_a_model_that_mixes_samples_is_found_out(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As an adapter that routes by the average of the batch would: the run goes another way, or ends in one line."""

    def trained(way: str) -> Any:
        trainer = trainer_for(config_for(bert, tmp_path / way, max_steps=3))
        trainer.gradients = way
        layer = trainer.model.get_submodule("base_model.model.bert.encoder.layer.0")
        layer.register_forward_hook(lambda module, inputs, output: output + 0.5 * output.mean(dim=0, keepdim=True))
        trainer.train()
        return trainer.hook.gradients, {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}

    (way, got), (_, want) = trained("auto"), trained("shared_forward")
    assert way == "shared_forward"
    assert "single_pass is not exact here: the bias gradient of base_model.model.bert.encoder.layer.0" in caplog.text
    assert largest_difference(got, want) <= 1e-7
    with pytest.raises(NotExact, match=r"encoder\.layer\.0.* is off by .*use auto or shared_forward$"):
        trained("single_pass")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_erm_is_the_plain_trainer(bert_dropout: Path, tmp_path: Path, accumulation: int) -> None:
    # The last batch of an epoch is short. Accumulated, it would count as much as a full one in the Trainer, and not in
    # ours, which takes the mean over samples.
    data = {"train": {"source": "generated", "limit": 60 if accumulation == 1 else 64}}
    config = config_for(
        bert_dropout, tmp_path / "x", data=data, gradient_accumulation_steps=accumulation, max_steps=6,
        weight_decay=0.1, max_grad_norm=0.5, lora_dropout=0.1,
    )  # fmt: skip
    ours, theirs = trainer_for(config, rule=MainOnly()), trainer_for(config, plain=True)
    logged = []
    theirs.model_accepts_loss_kwargs = False  # PEFT's **kwargs make it believe so: its loss would be twice the loss
    for trainer in (ours, theirs):
        torch.manual_seed(5)  # the same dropout masks
        trainer.train()
        logged.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    left, right = ({n: p for n, p in t.model.named_parameters() if p.requires_grad} for t in (ours, theirs))
    assert largest_difference(left, right) <= 1e-6
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


@pytest.mark.parametrize("method", ["edge", "erm"])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_accumulation_is_one_large_batch(
    method: str, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    changes = {"method": method, "optim": "sgd", "learning_rate": 0.1}
    if model == "llama":
        # Answers of unequal length, and a mean over their tokens: micro-batches weigh by their tokens.
        longer = {**PROMPT["verbalizers"], "neutral": " maybe yes no"}
        changes |= {"head": "causal_lm", "prompt": {**PROMPT, "verbalizers": longer}, "loss_mean": "tokens"}
    folder = request.getfixturevalue(model)
    whole = config_for(folder, tmp_path / "whole", per_device_train_batch_size=16, **changes)
    parts = config_for(
        folder, tmp_path / "parts", per_device_train_batch_size=4, gradient_accumulation_steps=4, **changes
    )
    assert largest_difference(adapter_of(train(whole)), adapter_of(train(parts))) <= 1e-5


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_three_ways_to_one_adapter(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    changes = CAUSAL if model == "llama" else {}
    found = {}
    for way in ("two_pass", "shared_forward", "single_pass"):
        config = config_for(
            request.getfixturevalue(model), tmp_path / way, gradients=way, optim="sgd", learning_rate=0.1, **changes
        )
        run = train(config)
        assert summary(run)["gradients"] == way
        found[way] = adapter_of(run)
    assert largest_difference(found["two_pass"], found["shared_forward"]) <= 1e-5
    assert largest_difference(found["two_pass"], found["single_pass"]) <= 1e-5


@pytest.mark.parametrize("way", ["single_pass", "shared_forward", "two_pass"])
def test_checkpointed_activations_change_nothing(bert_dropout: Path, tmp_path: Path, way: str) -> None:
    runs = [
        train(config_for(bert_dropout, tmp_path / str(on), gradient_checkpointing=on, gradients=way))
        for on in (False, True)
    ]
    assert largest_difference(*map(adapter_of, runs)) <= 1e-6


@pytest.mark.parametrize("head", ["classification", "causal_lm", "causal_lm, adapted"])
def test_very_large_dropout_is_one_mask_for_both_gradients(head: str, bert: Path, llama: Path, tmp_path: Path) -> None:
    """Of one seed both ways of one forward pass give one adapter, and so do activations that are computed again."""
    causal = head != "classification"
    adapted = {"adapter": {"targets": ["q_proj", "lm_head"]}} if head.endswith("adapted") else {}
    shared = {"head_dropout": 0.9, "optim": "sgd", "learning_rate": 0.1, **(CAUSAL if causal else {}), **adapted}
    changes: dict[str, dict[str, Any]] = {
        "single": {"gradients": "single_pass"},
        "shared": {"gradients": "shared_forward"},
        "again": {"gradients": "single_pass", "gradient_checkpointing": True},
        "none": {"gradients": "single_pass", "head_dropout": 0.0},
    }
    found = {
        name: adapter_of(train(config_for(llama if causal else bert, tmp_path / name, **{**shared, **change})))
        for name, change in changes.items()
    }
    assert largest_difference(found["single"], found["shared"]) <= 1e-5
    assert largest_difference(found["single"], found["again"]) <= 1e-5
    assert largest_difference(found["single"], found["none"]) > 1e-4


def test_a_column_of_ones_is_a_weight_of_one(bert: Path, tmp_path: Path) -> None:
    """With weight 1 the bias gradient is the main gradient."""
    write_rows(tmp_path / "data.jsonl", weight=1.0)
    run = train(with_column(bert, tmp_path, "w"), base=tmp_path)
    for line in metrics(run):
        if "loss" in line:
            assert line["cosine"] == pytest.approx(1)
            assert line["bias_norm"] == pytest.approx(line["main_norm"], rel=1e-5)


# Ways to train.


def test_epochs_differ_in_order_and_all_are_trained(bert: Path, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watched(Listed):
        def __getitem__(self, index: int) -> dict[str, Any]:
            seen.append(self.features[index]["tokens"]["input_ids"])
            return super().__getitem__(index)

        def sampler(self, size: int, seed: int) -> Any:
            from debias.data.order import LengthBuckets

            return LengthBuckets([len(feature["tokens"]["input_ids"]) for feature in self.features], size, seed)

    trainer = trainer_for(config_for(bert, tmp_path / "x", max_steps=-1, num_train_epochs=2))
    trainer.train_dataset = Watched(trainer.train_dataset.features)
    trainer.train()
    first, second = seen[:64], seen[64:128]
    known = sorted(one["tokens"]["input_ids"] for one in trainer.train_dataset.features[:64])
    assert sorted(first) == sorted(second) == known
    assert first != second


def test_bf16_trains(bert: Path, llama: Path, tmp_path: Path) -> None:
    run = train(config_for(bert, tmp_path / "a", bf16=True))
    assert all(math.isfinite(loss) for loss in losses(run))
    assert {tensor.dtype for tensor in adapter_of(run).values()} == {torch.float32}
    config = load_config(run / "config.yaml")
    assert load_run(run).label_scores(load_examples(config.data.train, config.data)[:3]).shape == (3, 3)
    assert losses(train(config_for(llama, tmp_path / "b", bf16=True, **CAUSAL)))[-1] < 6


def test_bf16_evaluates_as_it_trained(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "run", bf16=True, data=WITH_VALIDATION, eval_strategy="steps", eval_steps=4)
    run = train(config)
    assert config.data.validation is not None
    examples = load_examples(config.data.validation, config.data)
    scores = load_run(run).label_scores(examples)
    gold = [example.label for example in examples]
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_loss"] == pytest.approx(-scores[range(len(gold)), gold].mean(), abs=5e-3)


def test_causal_training_lowers_the_loss(llama: Path, tmp_path: Path) -> None:
    run = train(
        config_for(llama, tmp_path / "run", max_steps=8, learning_rate=3e-2, per_device_train_batch_size=32, **CAUSAL)
    )
    assert losses(run)[-1] < 0.8 * losses(run)[0]


def test_qlora_trains_saves_reloads_and_scores(llama: Path, tmp_path: Path) -> None:
    config = config_for(
        llama, tmp_path / "run", load_in_4bit=True, bf16=True, max_steps=6, learning_rate=3e-2,
        data=WITH_VALIDATION, eval_strategy="steps", eval_steps=6, **CAUSAL,
    )  # fmt: skip
    run = train(config)
    assert losses(run)[-1] < losses(run)[0]
    told = summary(run)
    assert told["parameters"]["four_bit"] > 0
    assert told["gradients"] == "single_pass"
    assert config.data.validation is not None
    examples = load_examples(config.data.validation, config.data)
    scores = load_run(run).label_scores(examples)
    assert scores.shape == (48, 3)
    gold = [example.label for example in examples]
    last = [line for line in metrics(run) if "eval_loss" in line][-1]
    assert last["eval_loss"] == pytest.approx(-scores[range(48), gold].mean(), abs=2e-2)


@pytest.mark.parametrize("kind", ["bitfit", "full"])
def test_without_lora_the_model_is_saved(
    kind: str, bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForSequenceClassification

    caplog.set_level(logging.INFO, "debias")
    run = train(config_for(bert, tmp_path / "run", adapter=kind, max_steps=3))
    assert "lora_r, lora_alpha and lora_dropout have no effect" in caplog.text
    assert summary(run)["gradients"] == "shared_forward"  # embeddings and norms are not linear layers
    assert not (run / "adapter").exists()
    config = load_config(run / "config.yaml")
    examples = load_examples(config.data.train, config.data)[:4]
    first, second = (load_run(run).label_scores(examples) for _ in range(2))
    assert (first == second).all()
    saved, base = (
        AutoModelForSequenceClassification.from_pretrained(path).state_dict() for path in (run / "model", bert)
    )
    moved = {name for name in base if not torch.equal(saved[name], base[name]) and "classifier" not in name}
    assert moved
    assert kind == "full" or all(name.endswith("bias") for name in moved)


def test_full_causal_training_reloads(llama: Path, tmp_path: Path) -> None:
    run = train(config_for(llama, tmp_path / "run", adapter="full", max_steps=2, learning_rate=1e-3, **CAUSAL))
    config = load_config(run / "config.yaml")
    assert load_run(run).label_scores(load_examples(config.data.train, config.data)[:4]).shape == (4, 3)


# The weight from a file.


def write_rows(path: Path, weight: float) -> None:
    from debias.data import generate

    rows = [
        {**row, "w": weight if i % 2 else 0.5 * weight, "ones": 1.0} for i, row in enumerate(generate("train", 64, 0))
    ]
    if weight == 1.0:
        rows = [{**row, "w": 1.0} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def with_column(model: Path, folder: Path, column: str, **changes: Any) -> RunConfig:
    weight = {"source": "file", "column": column}
    return config_for(model, folder / f"run_{column}", data={"train": "data.jsonl"}, bias_weight=weight, **changes)


def test_the_column_of_the_data_is_the_weight(bert: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", weight=0.8)
    halves = train(with_column(bert, tmp_path, "w"), base=tmp_path)
    ones = train(with_column(bert, tmp_path, "ones"), base=tmp_path)
    assert largest_difference(adapter_of(halves), adapter_of(ones)) > 1e-4


# Gradients that are not finite.


def test_a_weight_beyond_float32_stops_the_run(bert: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", weight=1e39)
    with pytest.raises(
        InputError, match=r"3 steps had non-finite gradients, more than max_nonfinite_steps=2"
    ) as caught:
        train(with_column(bert, tmp_path, "w", max_nonfinite_steps=2, max_steps=8), base=tmp_path)
    assert "no checkpoint had been saved" in str(caught.value)
    assert summary(tmp_path / "run_w")["status"] == "failed"


def test_a_huge_learning_rate_stops_the_run(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"non-finite gradients.*lower the learning rate"):
        train(config_for(bert, tmp_path / "run", learning_rate=1e30, max_nonfinite_steps=1, max_steps=8))


def test_skipped_steps_are_counted(bert: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", weight=1.0)
    first, *others = (tmp_path / "data.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(json.loads(first) | {"w": 1e39}), *others]))
    run = train(with_column(bert, tmp_path, "w", max_steps=16), base=tmp_path)  # of 8: the row comes twice
    assert summary(run)["skipped_steps"] == 2
    lines = [line for line in metrics(run) if "loss" in line]
    skipped = [line["skipped_steps"] for line in lines]
    assert skipped[-1] == 2
    took = [now == before for before, now in pairwise([0, *skipped])]
    taken = [line["loss"] for line, one in zip(lines, took, strict=True) if one]
    assert len(taken) == 14
    assert summary(run)["train_loss"] == pytest.approx(sum(taken) / 14, rel=1e-6)


def test_a_run_that_trained_nothing_has_failed(bert: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", weight=1e39)
    config = with_column(bert, tmp_path, "w", max_nonfinite_steps=4, save_strategy="steps", save_steps=2)
    run = Path(config.output_dir)
    # Gone on with after its last step, where no step is left to be looked at, and before it.
    for at in (None, "checkpoint-4", "checkpoint-2"):
        for later in () if at is None else sorted(set(run.glob("checkpoint-*")) - {run / at}):
            shutil.rmtree(later)
        with pytest.raises(InputError, match="no gradient was finite in 4 steps, nothing was trained"):
            train(config.model_copy(update={"resume": at is not None}), base=tmp_path)
        assert summary(run)["status"] == "failed"
        assert not (run / "adapter").exists()


# Stop and go on.


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize(
    "plan", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 1.5}], ids=["steps", "epochs"]
)
def test_a_finished_run_is_left_as_it_is(bert: Path, tmp_path: Path, plan: dict[str, Any], resume: Any) -> None:
    run = train(config_for(bert, tmp_path / "run", save_strategy="steps", save_steps=2, **plan))
    before = contents(run)
    train(config_for(bert, run, save_strategy="steps", save_steps=2, resume=resume, **plan))
    assert contents(run) == before


def test_fewer_steps_than_there_were_are_refused(bert: Path, tmp_path: Path) -> None:
    run = train(config_for(bert, tmp_path / "run", save_strategy="steps", save_steps=2))
    before = contents(run)
    with pytest.raises(InputError, match="is at step 4 already, and max_steps or num_train_epochs plan 2"):
        train(config_for(bert, run, save_strategy="steps", save_steps=2, max_steps=2, resume=True))
    assert contents(run) == before


@pytest.mark.parametrize(
    ("examples", "batch", "accumulation"), [(10, 4, 1), (10, 4, 2), (10, 3, 3), (3, 8, 4), (17, 2, 5)]
)
def test_steps_are_planned_as_they_are_taken(
    bert: Path, tmp_path: Path, examples: int, batch: int, accumulation: int
) -> None:
    config = config_for(
        bert,
        tmp_path / "run",
        data={"train": {"source": "generated", "limit": examples}},
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=-1,
        num_train_epochs=1.4,
    )
    assert summary(train(config))["steps"] == planned_steps(config, examples, 1)


def test_settings_without_effect_are_said(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(config_for(bert, tmp_path / "run", eval_steps=3, save_steps=7, warmup_steps=2))
    assert [record.message for record in caplog.records if "no effect" in record.message] == [
        "no effect: eval_steps=3: eval_strategy is no",
        "no effect: save_steps=7: save_strategy is no",
    ]


class Stop(Exception):
    """In the place of a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    usual = DebiasTrainer.training_step

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= step:
            raise Stop
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(DebiasTrainer, "training_step", dying)


@pytest.mark.parametrize(
    ("stop", "optim", "rule"),
    [
        (4, "sgd", Edge()),
        (4, "adamw_torch", Edge()),
        (7, "sgd", Edge()),
        *((7, "adamw_torch", rule) for rule in EXAMPLES),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else str(value),
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    stop: int, optim: str, rule: Rule, bert_dropout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first epoch and in the second; every method."""
    data = {"train": {"source": "generated", "limit": 36}}
    changes: dict[str, Any] = {
        "data": data, "max_steps": 8, "save_strategy": "steps", "save_steps": 2, "lora_dropout": 0.1, "optim": optim,
        "gradient_accumulation_steps": 1, "method": settings_of(rule),
    }  # fmt: skip
    whole = train(config_for(bert_dropout, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stop):
            train(config_for(bert_dropout, tmp_path / "run", **changes))
    run = tmp_path / "run"
    assert summary(run)["status"] == "failed"
    kept = last_checkpoint(run)
    assert kept is not None
    assert kept.name == f"checkpoint-{stop // 2 * 2}"
    train(config_for(bert_dropout, run, **changes, resume=True))
    assert largest_difference(adapter_of(whole), adapter_of(run)) == 0
    assert losses(whole) == losses(run)
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 9))
    assert summary(run)["status"] == "finished"


def test_a_run_in_several_wordings_is_another_one_and_goes_on_as_if_never_stopped(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**PROMPT, "more_templates": ["question : {hypothesis} premise : {premise} answer :"]}
    changes: dict[str, Any] = {
        "data": {"train": {"source": "generated", "limit": 36}}, "max_steps": 8, "save_strategy": "steps",
        "save_steps": 2, "head": "causal_lm", "prompt": more, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    whole = train(config_for(llama, tmp_path / "whole", **changes))
    assert load_config(whole / "config.yaml").prompt.more_templates == tuple(more["more_templates"])
    with monkeypatch.context() as patch:
        stop_after(patch, 7)  # in the second epoch
        with pytest.raises(Stop):
            train(config_for(llama, tmp_path / "run", **changes))
    run = train(config_for(llama, tmp_path / "run", **changes, resume=True))
    assert largest_difference(adapter_of(whole), adapter_of(run)) == 0
    one = train(config_for(llama, tmp_path / "one", **{**changes, "prompt": PROMPT}))
    assert losses(one) != losses(whole)
    assert "more_templates" not in (one / "config.yaml").read_text()  # as versions without it wrote it


def test_what_a_rule_remembers_is_saved_and_counts(bert: Path, tmp_path: Path) -> None:
    """DiGraP holds weights back, its checkpoint has what it goes on from, and the log says what it removed."""
    changes: dict[str, Any] = {"max_steps": 12, "learning_rate": 0.3, "save_strategy": "steps", "save_steps": 12}
    digrap = {"name": "digrap", "mu": 0.3, "beta1": 0.5, "beta2": 0.5}
    run = train(config_for(bert, tmp_path / "digrap", method=digrap, **changes))
    plain = train(config_for(bert, tmp_path / "erm", method="erm", **changes))
    assert largest_difference(adapter_of(run), adapter_of(plain)) > 1e-3
    assert summary(run)["gradients"] == "plain"
    assert summary(run)["method"] == digrap
    kept = load_file(run / "checkpoint-12" / RULE_STATE)
    assert int(kept["steps"]) == 12
    for name in (name for name in kept if name.endswith("/start")):
        # LoRA begins with B at zero and A as it was drawn.
        assert bool(kept[name].any()) == ("lora_A" in name)
    assert max(float(tensor[1]) for name, tensor in kept.items() if name.endswith("/memory")) > 0.1
    assert not (plain / "checkpoint-12" / RULE_STATE).exists()
    lines = [line for line in metrics(run) if "loss" in line]
    assert lines[0]["removed_share"] == 0  # nothing has moved yet
    assert max(line["removed_share"] for line in lines) > 1e-3
    assert all("cosine" not in line and "main_norm" in line for line in lines)
    assert any("removed_share_by_layer" in line for line in metrics(run))
    assert not any("cosine_by_layer" in line for line in metrics(run))


def test_a_checkpoint_without_what_the_rule_remembers_is_refused(bert: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "method": "digrap"}
    run = train(config_for(bert, tmp_path / "run", **changes))
    (run / "checkpoint-4" / RULE_STATE).unlink()
    shutil.rmtree(run / "adapter")
    with pytest.raises(ValueError, match=f"there is no {RULE_STATE}, which digrap goes on from"):
        train(config_for(bert, run, resume=True, **changes | {"max_steps": 6}))


def test_more_steps_after_the_last(bert: Path, tmp_path: Path) -> None:
    """A run of N steps, resumed to 2N, is a run of 2N where the learning rate does not depend on the end."""
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = train(config_for(bert, tmp_path / "whole", max_steps=6, **changes))
    train(config_for(bert, tmp_path / "run", max_steps=3, **changes))
    run = train(config_for(bert, tmp_path / "run", max_steps=6, resume=True, **changes))
    assert largest_difference(adapter_of(whole), adapter_of(run)) == 0
    assert summary(run)["train_loss"] == pytest.approx(summary(whole)["train_loss"], rel=1e-12)


def test_resume_with_nothing_left_to_do(bert: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    run = train(config_for(bert, tmp_path / "run", **changes))
    before = adapter_of(run)
    train(config_for(bert, tmp_path / "run", resume=True, **changes))
    assert largest_difference(before, adapter_of(run)) == 0
    assert summary(run)["steps"] == 4
    assert summary(run)["status"] == "finished"


def test_resume_before_the_first_checkpoint_starts_again(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stop):
            train(config_for(bert, tmp_path / "run"))
    run = train(config_for(bert, tmp_path / "run", resume=True))
    assert largest_difference(adapter_of(run), adapter_of(train(config_for(bert, tmp_path / "fresh")))) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-3}, "resume: learning_rate is 0.001, the run in .* was started with 0.01"),
        ({"method": "erm"}, "resume: method is .*erm"),
        ({"seed": 3}, "resume: seed is 3"),
        ({"data": {"train": {"source": "generated", "limit": 63}}}, "resume: data is"),
    ],
)
def test_resume_with_another_setting_is_refused(change: dict[str, Any], says: str, bert: Path, tmp_path: Path) -> None:
    run = train(config_for(bert, tmp_path / "run", max_steps=1))
    before = (run / "config.yaml").read_text()
    with pytest.raises(InputError, match=says):
        train(config_for(bert, run, resume=True, max_steps=2, **change))
    assert (run / "config.yaml").read_text() == before
    assert (run / "adapter").is_dir()


def test_a_run_is_not_overwritten_unless_asked(bert: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run = train(config_for(bert, tmp_path / "run", adapter="full", **changes))
    (run / "eval").mkdir()
    (run / "eval" / "snli.json").write_text("{}")
    with pytest.raises(InputError, match="holds another run"):
        train(config_for(bert, run, max_steps=1))
    assert (run / "model").is_dir()
    train(config_for(bert, run, max_steps=1, overwrite_output_dir=True))
    # Nothing of the old run is left to be taken for the new one's.
    assert {path.name for path in run.iterdir()} == {"adapter", "config.yaml", "metrics.jsonl", "run.json", "seen.npz"}
    assert len(losses(run)) == 1


def test_a_folder_of_something_else_is_never_touched(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run"):
            train(config_for(bert, tmp_path / "home", overwrite_output_dir=overwrite))
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("settings", ["a: 1\n", "model: x\n", "[]\n", "{\n"])
def test_a_config_of_something_else_is_no_run(settings: str, bert: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text(settings)
    shutil.copytree(bert, project / "model")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty and holds no run"):
            train(config_for(project / "model", project, overwrite_output_dir=overwrite))
    assert (project / "config.yaml").read_text() == settings
    assert (project / "model" / "model.safetensors").is_file()


def test_what_is_read_is_never_deleted(bert: Path, tmp_path: Path) -> None:
    """A model trained in full is the next run's base: it lies in the folder that is to be replaced."""
    run = train(config_for(bert, tmp_path / "run", adapter="full", max_steps=1))
    with pytest.raises(InputError, match=r"holds .*model, which this run reads; choose another folder"):
        train(config_for(run / "model", run, overwrite_output_dir=True))
    write_rows(run / "data.jsonl", 1.0)
    with pytest.raises(InputError, match=r"holds .*data.jsonl, which this run reads"):
        train(config_for(bert, run, data={"train": str(run / "data.jsonl")}, overwrite_output_dir=True))
    assert (run / "model" / "model.safetensors").is_file()


def test_a_signal_while_the_model_is_loaded(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(config: RunConfig, source: ModelSource) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build_model(config, source)

    monkeypatch.setattr("debias.building.run.build_model", load)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 1, saved"):
        train(config_for(bert, tmp_path / "run"))
    assert summary(tmp_path / "run")["status"] == "interrupted"
    assert last_checkpoint(tmp_path / "run") is not None


class ScheduleFree(torch.optim.SGD):
    """As `schedulefree`'s optimizers: they must be told when training begins and when evaluation does."""

    training = False

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def step(self, closure: Any = None) -> None:
        assert self.training, "not in train mode when step is called"
        super().step(closure)


def test_an_optimizer_with_modes_is_told(bert: Path, tmp_path: Path) -> None:
    trainer = trainer_for(config_for(bert, tmp_path / "x", max_steps=2))
    trainer.optimizer = ScheduleFree([p for p in trainer.model.parameters() if p.requires_grad], lr=0.1)
    trainer.train()
    assert trainer.state.global_step == 2


class TwoPlaces(ScheduleFree):
    """Judged a whole number away from where it trains."""

    def train(self) -> None:
        self._move(-1.0 if not self.training else 0.0)
        super().train()

    def eval(self) -> None:
        self._move(1.0 if self.training else 0.0)
        super().eval()

    def _move(self, by: float) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data += by


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_what_is_saved_is_what_such_an_optimizer_is_judged_by(bert: Path, tmp_path: Path, strategy: str) -> None:
    """What a training leaves, and checkpoints between whose steps it goes on."""
    changes: dict[str, Any] = {"max_steps": 3, "save_strategy": strategy, "save_steps": 1, "learning_rate": 1e-9}
    trainer = trainer_for(config_for(bert, tmp_path / "x", **changes))
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    judged = {name: p.detach().clone() for name, p in trained.items()}
    trainer.optimizer = optimizer = TwoPlaces(list(trained.values()), lr=1e-9)
    trainer.train()
    assert not optimizer.training
    for name, p in trained.items():
        torch.testing.assert_close(p.detach(), judged[name], atol=1e-5, rtol=0)
    saved = list(tmp_path.glob("x/checkpoint-*/adapter_model.safetensors"))
    assert bool(saved) == (strategy == "steps")
    for name, tensor in (item for file in saved for item in load_file(file).items()):
        own = next(p for key, p in judged.items() if re.sub(r"\.(default|modules_to_save)\b", "", key) == name)
        torch.testing.assert_close(tensor, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_in_the_backward_pass_are_refused(name: str, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"optim is '{name}', which steps inside the backward pass"):
        train(config_for(bert, tmp_path / "run", optim=name))
    assert not (tmp_path / "run").exists()


# Checkpoints.


@pytest.mark.parametrize("limit", [1, None])
def test_a_checkpoint_that_somebody_keeps(limit: int | None, bert: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": limit}
    run = train(config_for(bert, tmp_path / "run", max_steps=2, **changes))
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-2-keep")
    train(config_for(bert, run, max_steps=3, resume=True, **changes))
    assert (run / "checkpoint-2-keep").is_dir()
    assert (run / "checkpoint-3").is_dir()


@pytest.mark.parametrize("limit", [2, 4, 5, 10])
def test_none_goes_before_there_are_too_many(limit: int, tmp_path: Path) -> None:
    for step in range(1, 13):
        saved = tmp_path / f"checkpoint-{step}"
        saved.mkdir()
        _forget_older(tmp_path, saved, limit, None)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {f"checkpoint-{one}" for one in range(max(1, step - limit + 1), step + 1)}


@pytest.mark.parametrize("limit", [1, 2, None])
def test_as_many_checkpoints_as_asked(limit: int | None, bert: Path, tmp_path: Path) -> None:
    run = train(config_for(bert, tmp_path / "run", save_strategy="steps", save_steps=1, save_total_limit=limit))
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == [f"checkpoint-{step}" for step in range(5 - (limit or 4), 5)]
    assert hidden(run) == []


def test_the_best_checkpoint_is_kept_and_loaded(bert: Path, tmp_path: Path) -> None:
    """As users of the Trainer know it: load_best_model_at_end with a limit of one keeps the best and the last."""
    config = config_for(
        bert, tmp_path / "run", data=WITH_VALIDATION, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, max_steps=5, learning_rate=0.3, save_total_limit=1,
    )  # fmt: skip
    trainer = trainer_for(
        config, load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False
    )
    trainer.train()
    scores = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    best = tmp_path / "run" / f"checkpoint-{scores.index(min(scores)) + 1}"
    assert trainer.state.best_model_checkpoint == str(best)
    assert best.is_dir()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(scores), rel=1e-5)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)


def fail_in(monkeypatch: pytest.MonkeyPatch, name: str, step: int, error: Exception) -> None:
    """Let the saving of a checkpoint at `step` fail halfway through."""
    if name == "safetensors":
        import peft.peft_model as owner

        attribute = "safe_save_file"
    else:
        owner, attribute = torch, "save"  # type: ignore[assignment]
    usual = getattr(owner, attribute)

    def failing(*args: Any, **kwargs: Any) -> Any:
        target = str(args[1] if len(args) > 1 else kwargs.get("filename", ""))
        if f"checkpoint-{step}" in target:
            Path(target).write_bytes(b"half")
            raise error
        return usual(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, failing)


def safetensors_error() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FAILURES = {
    "OSError": ("safetensors", OSError(errno.ENOSPC, "No space left on device")),
    "safetensors": ("safetensors", safetensors_error()),
    "torch.save": ("torch", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
    "torch OSError": ("torch", OSError(errno.ENOSPC, "No space left on device")),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_save_that_fails_leaves_the_last_good_checkpoint(
    kind: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = train(config_for(bert, tmp_path / "whole", **changes))
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        where, error = FAILURES[kind]
        fail_in(patch, where, 4, error)
        with pytest.raises(InputError, match=r"saving failed: .*the last good checkpoint is .*checkpoint-2$") as caught:
            train(config_for(bert, run, **changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert hidden(run) == []
    assert not (run / "adapter").exists()
    assert summary(run)["status"] == "failed"
    with pytest.raises(InputError, match="has not finished"):
        load_run(run)
    train(config_for(bert, run, **changes, resume=True))
    assert largest_difference(adapter_of(whole), adapter_of(run)) == 0


def test_a_bug_is_not_called_a_full_disk(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in(monkeypatch, "torch", 2, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        train(config_for(bert, tmp_path / "run", save_strategy="steps", save_steps=2))


def test_the_adapter_that_cannot_be_saved_replaces_nothing(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.peft_model

    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    run = train(config_for(bert, tmp_path / "run", **changes))
    before = adapter_of(run)
    (run / "run.json").write_text(json.dumps(summary(run) | {"status": "running"}))  # killed while it saved
    usual = peft.peft_model.safe_save_file

    def failing(tensors: Any, path: Any, **more: Any) -> None:
        if ".adapter.part" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(tensors, path, **more)

    monkeypatch.setattr(peft.peft_model, "safe_save_file", failing)
    with pytest.raises(InputError, match=r"No space left on device; the last good checkpoint is .*checkpoint-4"):
        train(config_for(bert, run, resume=True, **changes))
    assert largest_difference(before, adapter_of(run)) == 0
    assert hidden(run) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# In shares of what a checkpoint takes: the disk fills in safetensors, in torch.save, or in the small files after them.
@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.3, 0.5, 0.8, 0.95])
def test_a_disk_that_is_full(share: float, bert: Path, small_disk: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "lora_r": 16}
    run = small_disk / "run"
    hog = small_disk / "hog"

    def fill(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3 and not hog.exists():
            blocks = sum(path.stat().st_blocks for path in (run / "checkpoint-2").rglob("*"))
            left = shutil.disk_usage(small_disk).free
            hog.write_bytes(b"x" * max(left - int(share * blocks * 512), 0))
        return usual(self, *args, **kwargs)

    usual = DebiasTrainer.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DebiasTrainer, "training_step", fill)
        with pytest.raises(
            InputError, match=r"saving failed: .*; the last good checkpoint is .*checkpoint-2$"
        ) as caught:
            train(config_for(bert, run, **changes))
    assert "\n" not in str(caught.value)
    assert hidden(run) == []
    kept = last_checkpoint(run)
    assert kept is not None
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= {path.name for path in kept.iterdir()}
    assert not (run / "adapter").exists()
    hog.unlink()
    train(config_for(bert, run, **changes, resume=True))
    assert summary(run)["steps"] == 6
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size > 0


# The real thing.


@pytest.mark.weights
@pytest.mark.slow
def test_minilm_and_its_ways_to_two_gradients(tmp_path: Path) -> None:
    settings = settings_for(Path("package:minilm"), tmp_path, max_steps=2, optim="sgd", learning_rate=1e-2)
    found = {}
    for way in ("shared_forward", "single_pass"):
        config = RunConfig.model_validate({**settings, "gradients": way, "output_dir": str(tmp_path / way)})
        # MiniLM has dropout: the same seed draws the same masks for both, as both run one forward pass.
        found[way] = adapter_of(train(config))
    assert largest_difference(*found.values()) <= 1e-5


def test_what_is_known_is_not_asked_again(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the model's name, once a run; the walks over all modules for a router's loss, when the trainer is
    made and when the model is wrapped, not in each step.
    """
    seen: Counter[str] = Counter()

    def counting(name: str) -> None:
        usual = getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])

        def count(*given: Any, **settings: Any) -> Any:
            seen[name] += 1
            return usual(*given, **settings)

        monkeypatch.setattr(name, count)

    asked = {"debias.train.look": 1, "debias.models.source.model_path": 1, "debias.engines.own_terms.router_loss_of": 4}
    for name in asked:
        counting(name)
    train(config_for(bert, tmp_path / "run", max_steps=3, gradient_accumulation_steps=2))
    assert seen == asked
