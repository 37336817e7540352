"""Whole runs on packed rows, and with the head in chunks: the adapters of padded runs in one piece."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PROMPT, adapter_of, config_for, largest_difference, save_llama, settings_for
from train_many import on_ranks

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.train import train

STEP = 12  # samples a step, on one or two ranks
# Of one to three tokens, so that chunks of two positions cut them apart.
ANSWERS = {"entailment": " yes", "neutral": " maybe no", "contradiction": " no yes maybe"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_llama(folder / "llama")
    return folder


def settings(place: Path, name: str, world: int = 1, accumulate: int = 1, **changes: Any) -> dict[str, Any]:
    """Six steps: the last one is of the four examples that are left of the epoch."""
    shared = {"head": "causal_lm", "prompt": {**PROMPT, "verbalizers": ANSWERS}, "max_steps": 6, "lora_dropout": 0.0}
    batch = {"per_device_train_batch_size": STEP // world // accumulate, "gradient_accumulation_steps": accumulate}
    return settings_for(place / "llama", place / name, **{**shared, **batch, **changes})


def run(place: Path, name: str, **changes: Any) -> Path:
    return train(RunConfig.model_validate(settings(place, name, **changes)))


def losses(folder: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def padded(place: Path) -> Path:
    return run(place, "padded", gradients="two_pass", loss_chunk_size=None)


@pytest.mark.parametrize("way", ["auto", "shared_forward", "two_pass"])
def test_one_process(place: Path, padded: Path, way: str) -> None:
    packed = run(place, f"packed_{way}", packing=True, gradients=way, loss_chunk_size=2)
    assert largest_difference(adapter_of(packed), adapter_of(padded)) < 1e-5
    assert losses(packed) == pytest.approx(losses(padded), abs=1e-5)


def test_accumulation_checkpointing_validation_and_tokens_as_the_denominator(place: Path) -> None:
    shared = {
        "loss_mean": "tokens",
        "gradient_checkpointing": True,
        "data": {"train": {"source": "generated", "limit": 64}, "validation": {"source": "generated", "limit": 20}},
        "eval_strategy": "epoch",
        "gradients": "two_pass",
    }
    want = run(place, "padded_tokens", **shared)
    got = run(place, "packed_tokens", packing=True, accumulate=3, **shared)
    assert largest_difference(adapter_of(got), adapter_of(want)) < 1e-5
    assert losses(got, "eval_loss") == pytest.approx(losses(want, "eval_loss"), abs=1e-5)
    assert len(losses(got, "eval_loss")) == 1


def test_bf16_runs(place: Path) -> None:
    """Autocast and a half-precision base, chunks included: as close as bf16 is."""
    want = run(place, "padded_half", bf16=True, gradients="two_pass")
    got = run(place, "packed_half", bf16=True, packing=True, loss_chunk_size=2, gradients="two_pass")
    assert losses(got) == pytest.approx(losses(want), rel=2e-2)


@pytest.mark.slow
def test_two_ranks(place: Path, padded: Path) -> None:
    """The epoch's end too, where accelerate fills up the last batch with samples from its start.

    Under ZeRO-3 the ranks have answers of unequal length, and must yet gather the head's weight equally often.
    """
    pytest.importorskip("deepspeed")
    runs = [
        settings(place, "ddp_padded", 2, gradients="two_pass"),
        settings(place, "ddp_packed", 2, packing=True, loss_chunk_size=2, gradients="two_pass"),
        settings(place, "zero3_packed", 2, packing=True, loss_chunk_size=2, deepspeed="zero3", gradients="two_pass"),
        settings(place, "zero3_auto", 2, packing=True, loss_chunk_size=2, deepspeed="zero3"),
    ]
    on_ranks(2, runs)
    want = adapter_of(place / "ddp_padded")
    for name in ("ddp_packed", "zero3_packed", "zero3_auto"):
        assert largest_difference(adapter_of(place / name), want) < 1e-5, name
    assert losses(place / "ddp_packed")[:5] == pytest.approx(losses(padded)[:5], abs=1e-5)


def test_what_it_saves_is_said(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(place, "said", packing=True, max_steps=1)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("packing: ")]
    assert len(said) == 1
    packed, rest = said[0].removeprefix("packing: ").split(" tokens an epoch in place of ")
    assert 64 * 10 < int(packed) < int(rest.split()[0]) < 64 * 48


def test_packing_is_refused_where_it_cannot_be(place: Path) -> None:
    with pytest.raises(ValueError, match="packing goes with head 'causal_lm'"):
        config_for(place / "llama", place / "no", packing=True)
    with pytest.raises(InputError, match=r"packing: LlamaForCausalLM .*attention is eager"):
        run(place, "eager", packing=True, attn_implementation="eager")
    assert not (place / "eager").exists()
