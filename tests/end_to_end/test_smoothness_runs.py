"""Whole runs with a term of smoothness: resumed, of pictures, of a causal model on a 4-bit base; what is refused."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_digits import settings_for as digits_settings
from tiny_digits import write_digits
from tiny_runs import PROMPT, adapter_of, config_for, cut_off, largest_difference

from debias.building.idle_settings import without_effect
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.smoothness import SMOOTHNESS
from debias.train import train

DRAWS: dict[str, Any] = {"lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
FELT: dict[str, dict[str, Any]] = {
    "smart": {"name": "smart", "strength": 5.0, "step_size": 0.1, "radius": 0.1},
    "r3f": {"name": "r3f", "strength": 5.0},
}


@pytest.mark.parametrize("name", SMOOTHNESS)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(name: str, bert_dropout: Path, tmp_path: Path) -> None:
    """With dropout, accumulation and the weights moved up: all that is drawn."""
    asked = {"smoothness": FELT[name], "sharpness": "sam", "gradient_accumulation_steps": 2, **DRAWS}
    whole = train(config_for(bert_dropout, tmp_path / "whole", **asked))
    cut = cut_off(whole, tmp_path / "cut")
    train(config_for(bert_dropout, cut, resume=True, **asked))
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    none = train(config_for(bert_dropout, tmp_path / "none", **{**asked, "smoothness": None}))
    assert largest_difference(adapter_of(none), adapter_of(whole)) > 1e-4


def test_it_goes_with_losses_that_read_other_things(bert: Path, tmp_path: Path) -> None:
    """Hidden states, and groups; activations computed again; the loss in the log has the term."""
    data = {"train": {"source": "generated", "limit": 64}, "planted_bias": {}}
    for loss in ("blind", "coral", "group_dro"):
        asked = {"loss": loss, "data": data, "gradient_checkpointing": True, "method": "erm", "max_steps": 2}
        runs = [
            train(config_for(bert, tmp_path / f"{loss}_{name}", smoothness=one, **asked))
            for name, one in {"plain": None, "smooth": FELT["smart"]}.items()
        ]
        assert largest_difference(*map(adapter_of, runs)) > 1e-5, loss


def test_a_causal_model_in_4_bits_packed_and_padded(llama: Path, tmp_path: Path) -> None:
    causal: dict[str, Any] = {"head": "causal_lm", "prompt": PROMPT, "load_in_4bit": True, "smoothness": FELT["smart"]}
    for packing in (False, True):
        done = train(config_for(llama, tmp_path / f"{packing}", packing=packing, max_steps=2, **causal))
        assert (done / "adapter").is_dir()
    long = {**PROMPT, "verbalizers": {**PROMPT["verbalizers"], "neutral": " maybe no"}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="answers of one token each, the longest here has 2"):
        train(config_for(llama, tmp_path / "long", **{**causal, "prompt": long}))
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("model", ["vision:mlp", "vision:vit"])
def test_pictures(model: str, tmp_path: Path) -> None:
    """Of a perceptron the pixels move, of a transformer the embeddings of its patches."""
    digits = write_digits(tmp_path / "mnist")
    runs = [
        train(RunConfig.model_validate(digits_settings(digits, tmp_path / name, model=model, smoothness=one)))
        for name, one in {"plain": None, "smooth": FELT["smart"]}.items()
    ]
    weights = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) > 1e-5


def test_a_strength_of_zero_is_said_to_do_nothing(bert: Path, tmp_path: Path) -> None:
    config = config_for(bert, tmp_path / "run", smoothness={"name": "smart", "strength": 0})
    assert [line for line in without_effect(config) if line.endswith("strength is 0: what it costs is for nothing")]
    felt = config.model_copy(update={"smoothness": FELT["smart"]})
    assert not [line for line in without_effect(felt) if line.startswith("smoothness")]
