"""Adapters that others made, put on their base by debias and by plain PEFT: the same model, or a line that says why."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import save_llama, tokenizer

from debias.adapters.loading import adapter_tensors, attach_adapter
from debias.adapters.words import fit_embeddings, saved_rows
from debias.errors import InputError
from debias.models.load import load_model

IDS = torch.arange(5, 45).view(4, 10)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=request.param, initializer_range=0.2)


def saved(base: Path, folder: Path, settings: Any, new_tokens: int = 0, **saving: Any) -> Path:
    """An adapter off its start, with the tokenizer that has the new tokens."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    words = tokenizer(causal=True)
    words.add_tokens([f"<new{index}>" for index in range(new_tokens)])
    model = AutoModelForCausalLM.from_pretrained(base)
    if new_tokens:
        model.resize_token_embeddings(len(words), mean_resizing=False)
    torch.manual_seed(5)
    adapted = get_peft_model(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, **saving)
    words.save_pretrained(folder)
    return folder


def lora(**changes: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **changes})


def ours(base: Path, folder: Path) -> Any:
    from transformers import AutoTokenizer

    model = load_model(str(base), "causal_lm", [])
    fit_embeddings(model, AutoTokenizer.from_pretrained(folder), str(folder))
    return attach_adapter(model, str(folder)).eval()


def plain(base: Path, folder: Path, rows: int) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, folder).eval()


def says(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


# What PEFT makes anew as it attaches.


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga"])
def test_a_start_that_cannot_be_made_again_is_refused(base: Path, tmp_path: Path, start: str) -> None:
    """Of random numbers (PEFT draws others), or of data that are not there."""
    folder = saved(base, tmp_path, lora(init_lora_weights="pissa_niter_4"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": start}))
    with pytest.raises(InputError, match=f"init_lora_weights is '{start}'.*path_initial_model_for_weight_conv") as told:
        ours(base, folder)
    assert "\n" not in str(told.value)


def test_pissa_that_was_saved_as_plain_lora_is_taken(base: Path, tmp_path: Path) -> None:
    """The way out that the refusal names."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(init_lora_weights="pissa_niter_4"))
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa_niter_4"
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    want = says(adapted.eval())
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    tokenizer(causal=True).save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(says(ours(base, tmp_path / "plain")), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", [True, "pissa", "olora", "orthogonal"])
def test_starts_that_are_the_same_each_time(base: Path, tmp_path: Path, start: Any) -> None:
    folder = saved(base, tmp_path, lora(init_lora_weights=start))
    want = says(plain(base, folder, len(tokenizer(causal=True))))
    torch.testing.assert_close(says(ours(base, folder)), want, rtol=0, atol=1e-5)


# How many tokens it is of.


def kinds() -> dict[str, Any]:
    from peft import OFTConfig, PsoftConfig, ShiraConfig

    where = {"target_modules": ["lm_head", "q_proj"], "task_type": "CAUSAL_LM"}
    return {
        "lora": lora(target_modules=["lm_head", "q_proj"]),
        "oft": OFTConfig(oft_block_size=4, **where),
        "psoft": PsoftConfig(r=4, **where),
        "shira": ShiraConfig(r=2, **where),
    }


@pytest.mark.parametrize("kind", ["lora", "oft", "psoft", "shira"])
def test_an_adapter_on_the_head_leaves_the_embeddings_as_many(
    base: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """OFT's blocks and SHiRA's elements were taken for tokens, and the embeddings cut to as many."""
    folder = saved(base, tmp_path, kinds()[kind], save_embedding_layers=False)
    rows = len(tokenizer(causal=True))
    want = says(plain(base, folder, rows))
    with caplog.at_level(logging.INFO):
        model = ours(base, folder)
    assert "embeddings" not in caplog.text
    assert "the tokenizer has" not in caplog.text
    torch.testing.assert_close(says(model), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("whole", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["lora", "whole"])
def test_rows_are_counted_where_there_are_some(base: Path, tmp_path: Path, whole: Any) -> None:
    folder = saved(base, tmp_path, lora(**(whole or {"target_modules": ["embed_tokens", "q_proj"]})), 3)
    assert (
        saved_rows(load_model(str(base), "causal_lm", []), adapter_tensors(str(folder)))
        == len(tokenizer(causal=True)) + 3
    )


# Single tokens.


@pytest.mark.parametrize("named", [False, True], ids=["listed", "named"])
@pytest.mark.parametrize("new", [0, 2])
def test_trainable_tokens_of_a_tied_head_stand_in_the_file_twice(
    base: Path, tmp_path: Path, new: int, named: bool
) -> None:
    """PEFT writes a copy for the head, which it does not read: it was taken for weights of another model."""
    have = len(tokenizer(causal=True))
    tokens = [have, have + 1] if new else [20, 21]
    settings = lora(trainable_token_indices={"embed_tokens": tokens} if named else tokens)
    folder = saved(base, tmp_path, settings, new)
    ids = torch.cat([IDS, torch.tensor([tokens * 5])])
    want = says(plain(base, folder, have + new), ids)
    torch.testing.assert_close(says(ours(base, folder), ids), want, rtol=0, atol=1e-5)


def test_tokens_of_another_model_are_still_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(base, tmp_path, lora(trainable_token_indices=[20, 21]))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "trainable_tokens" in key)
    tensors[key.replace("model.embed_tokens", "wte")] = tensors[key] + 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match="was trained on another model"):
        ours(base, folder)
