"""Whole runs of a tiny mixture of experts: one way to two gradients is another, packed or not, balanced or not."""

import json

import pytest
import torch
from tiny_models import FAMILY_SETTINGS, FAMILY_SIZES
from tiny_runs import PROMPT, adapter_of, config_for, largest_difference, tokenizer

from debias.config.reading import load_config
from debias.data import load_examples
from debias.errors import InputError
from debias.inference.loading import load_run
from debias.train import train

torch.set_num_threads(1)


def save(folder, family):
    from transformers import AutoConfig, AutoModelForCausalLM

    words = tokenizer(causal=True)
    settings = {**FAMILY_SIZES, **FAMILY_SETTINGS[family], "vocab_size": len(words)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for parameter in model.parameters():
        if parameter.ndim == 3:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    return {family: save(folder / family, family) for family in ("qwen3_moe", "llama4_text")}


def run(model, folder, **changes):
    config = config_for(model, folder, head="causal_lm", prompt=PROMPT, optim="sgd", **{"max_steps": 2, **changes})
    train(config)
    return adapter_of(folder), json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3_moe", {}),
        ("qwen3_moe", {"packing": True}),
        ("qwen3_moe", {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
        ("llama4_text", {}),
        ("llama4_text", {"gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_auto_is_one_pass_and_the_same_as_two(models, tmp_path, family, settings):
    got, summary = run(models[family], tmp_path / "auto", **settings)
    assert summary["gradients"] == "single_pass"
    assert any("experts" in name for name in got)
    want, _ = run(models[family], tmp_path / "two", gradients="two_pass", **settings)
    assert largest_difference(got, want) <= 1e-6


@pytest.mark.parametrize("family", ["qwen3_moe", "llama4_text"])
def test_training_in_full_is_saved_and_judged(models, tmp_path, family):
    """transformers writes each expert of a stack as a matrix of its own."""
    from transformers import AutoModelForCausalLM

    settings = {"head": "causal_lm", "prompt": PROMPT, "adapter": "full", "max_steps": 2, "learning_rate": 1e-3}
    run = train(config_for(models[family], tmp_path / "run", save_strategy="epoch", **settings))
    saved, base = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (run / "model", models[family]))
    moved = {name for name in base if not torch.equal(saved[name], base[name])}
    assert {name for name in base if "experts" in name} <= moved
    config = load_config(run / "config.yaml")
    examples = load_examples(config.data.train, config.data)[:4]
    assert load_run(run).label_scores(examples).shape == (4, 3)


def test_the_balancing_loss_changes_the_run_and_auto_says_why_not_one_pass(models, tmp_path, caplog):
    got, summary = run(models["qwen3_moe"], tmp_path / "auto", router_aux_loss_coef=0.5)
    assert summary["gradients"] == "shared_forward"
    assert "router_aux_loss_coef" in caplog.text
    want, _ = run(models["qwen3_moe"], tmp_path / "two", gradients="two_pass", router_aux_loss_coef=0.5)
    assert largest_difference(got, want) <= 1e-6
    without, _ = run(models["qwen3_moe"], tmp_path / "without")
    assert largest_difference(got, without) > 1e-5


def test_what_cannot_be_is_one_line(models, tmp_path):
    with pytest.raises(InputError, match=r"router_aux_loss_coef is 0\.5, but this model computes no load balancing"):
        run(models["llama4_text"], tmp_path / "a", router_aux_loss_coef=0.5)
    with pytest.raises(InputError, match=r"single_pass.*load balancing loss.*use auto or shared_forward"):
        run(models["qwen3_moe"], tmp_path / "b", router_aux_loss_coef=0.5, gradients="single_pass")
    assert not any(tmp_path.iterdir())
