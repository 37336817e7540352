"""debias.models.load: base models with their heads, and what is said when there is none."""

import builtins
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch

from debias.errors import InputError
from debias.models.adapters import add_lora
from debias.models.load import NOT_QUANTIZED, load_model, load_tokenizer, longest_input

LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_llama(tmp_path_factory.mktemp("models") / "llama")


def test_the_head_has_the_labels_in_their_order(bert: Path) -> None:
    model = load_model(str(bert), "classification", ("b", "a"))
    assert model.config.id2label == {0: "b", 1: "a"}
    assert model.config.label2id == {"b": 0, "a": 1}
    assert model.classifier.out_features == 2


def test_what_the_checkpoint_lacks_is_named(bert: Path, llama: Path) -> None:
    assert load_model(str(bert), "classification", LABELS).fresh_modules == ["classifier"]
    assert load_model(str(llama), "classification", LABELS).fresh_modules == ["score"]
    assert load_model(str(llama), "causal_lm", LABELS).fresh_modules == []


def test_a_decoder_is_padded_with_its_end_on_the_left(llama: Path) -> None:
    words = load_tokenizer(str(llama), "causal_lm")
    assert (words.pad_token, words.padding_side) == ("[EOS]", "left")
    assert load_model(str(llama), "causal_lm", LABELS).config.pad_token_id == words.pad_token_id


def test_a_tokenizer_that_cannot_pad(tmp_path: Path) -> None:
    folder = tiny_runs.save_llama(tmp_path / "llama")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("eos_token", "pad_token")})
    )
    with pytest.raises(InputError, match="neither a pad nor an end token"):
        load_tokenizer(str(folder), "causal_lm")


# What cannot be loaded.


@pytest.mark.parametrize(
    "load",
    [lambda name: load_tokenizer(name, "classification"), lambda name: load_model(name, "classification", LABELS)],
    ids=["tokenizer", "model"],
)
def test_a_folder_that_does_not_exist(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model: .*nope' is no folder"):
        load(str(tmp_path / "nope"))


@pytest.mark.parametrize(
    "load",
    [lambda name: load_tokenizer(name, "classification"), lambda name: load_model(name, "classification", LABELS)],
    ids=["tokenizer", "model"],
)
def test_a_folder_without_a_model(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_weights(tmp_path: Path) -> None:
    folder = tiny_runs.save_bert(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(folder), "classification", LABELS)


def test_a_head_of_another_size(bert: Path, tmp_path: Path) -> None:
    load_model(str(bert), "classification", ("a", "b")).save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(tmp_path / "two"), "classification", LABELS)


def test_an_encoder_cannot_answer(bert: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    with pytest.raises(InputError, match="no causal language model"):
        load_model(str(bert), "causal_lm", LABELS)
    # With a masked-LM head nothing is missing, and it would see the answers that it is asked for.
    small = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(small).save_pretrained(tmp_path / "masked")
    with pytest.raises(InputError, match="use head 'classification'"):
        load_model(str(tmp_path / "masked"), "causal_lm", LABELS)


def test_a_decoder_without_its_head_cannot_answer(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    small = LlamaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    LlamaModel(small).save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match="it lacks lm_head"):
        load_model(str(tmp_path / "headless"), "causal_lm", LABELS)


# Length.


def test_longest_input(bert: Path, llama: Path) -> None:
    from transformers import GPT2Config, GPT2Model, RobertaConfig, RobertaModel

    assert longest_input(load_model(str(bert), "classification", LABELS)) == 64
    assert longest_input(load_model(str(llama), "causal_lm", LABELS)) is None
    roberta = RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
    )
    assert longest_input(RobertaModel(roberta)) == 32
    gpt2 = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=0, eos_token_id=0)
    assert longest_input(GPT2Model(gpt2)) == 16


# 4 bit.


def test_4_bit_without_bitsandbytes(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"load_in_4bit: bitsandbytes is not installed; pip install 'debias\[quant\]'"):
        load_model(str(bert), "classification", LABELS, load_in_4bit=True)


def test_4_bit_leaves_the_head_alone(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    model = load_model(str(bert), "classification", LABELS, load_in_4bit=True)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["classifier"] == "Linear"
    assert kinds["bert.encoder.layer.0.attention.self.query"] == "Linear4bit"
    assert all(
        module.support_avx512bf16_for_cpu is False
        for module in model.modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    )
    adapted = add_lora(model, r=2, alpha=4, dropout=0.0, targets="auto", classification=True, fresh=model.fresh_modules)
    head = {name: p for name, p in adapted.named_parameters() if "classifier.modules_to_save" in name}
    assert [p.dtype for p in head.values()] == [torch.float32, torch.float32]
    assert {"classifier", "score", "lm_head"} <= set(NOT_QUANTIZED)


def test_4_bit_leaves_the_language_model_head_alone(llama: Path) -> None:
    model = load_model(str(llama), "causal_lm", LABELS, load_in_4bit=True, dtype=torch.bfloat16)
    assert type(model.lm_head).__name__ == "Linear"
    assert type(model.model.layers[0].mlp.down_proj).__name__ == "Linear4bit"


@pytest.mark.weights
@pytest.mark.slow
def test_minilm_lacks_nothing_but_its_head() -> None:
    model = load_model("package:minilm", "classification", LABELS)
    assert model.fresh_modules == ["classifier"]
    assert longest_input(model) == 512
    assert model.config.hidden_size == 384


@pytest.mark.weights
@pytest.mark.slow
def test_smollm2_lacks_nothing() -> None:
    model = load_model("package:smollm2", "causal_lm", LABELS, dtype=torch.bfloat16)
    assert model.fresh_modules == []
