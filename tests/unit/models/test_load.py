"""debias.models.load: base models with their heads, and what is said when there is none."""

import builtins
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch

from debias.adapters.lora import add_lora
from debias.errors import InputError
from debias.inference.loading import hub_config
from debias.models.load import load_model, load_tokenizer, longest_input
from debias.models.quantized import NOT_QUANTIZED
from debias.plan.shapes import find_config

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
    with pytest.raises(InputError, match=r"could not be loaded|has no tokenizer") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_weights(tmp_path: Path) -> None:
    folder = tiny_runs.save_bert(tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(folder), "classification", LABELS)


def without(folder: Path, *parts: str) -> Path:
    """The folder of a model, without the weights in whose names a part occurs."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {key: value for key, value in tensors.items() if not any(part in key for part in parts)}
    assert len(kept) < len(tensors)
    save_file(kept, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("save", "head", "lost", "named"),
    [
        (tiny_runs.save_llama, "classification", "layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight"),
        (tiny_runs.save_llama, "causal_lm", "layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight"),
        (tiny_runs.save_bert, "classification", "word_embeddings", "bert.embeddings.word_embeddings.weight"),
        (tiny_runs.save_bert, "classification", "layer.1.", "bert.encoder.layer.1.attention.*.bias and 13 more"),
    ],
)
def test_a_backbone_with_a_hole(save: Any, head: Any, lost: str, named: str, tmp_path: Path) -> None:
    folder = without(save(tmp_path / "model"), lost)
    with pytest.raises(InputError, match=f"lacks the weights {named}; its files are damaged"):
        load_model(str(folder), head, LABELS)


def test_what_encoders_often_lack(tmp_path: Path) -> None:
    folder = without(tiny_runs.save_bert(tmp_path / "bert"), "pooler")
    assert load_model(str(folder), "classification", LABELS).fresh_modules == ["bert.pooler.dense", "classifier"]


def test_only_the_head_may_be_missing_of_a_class_that_does_not_name_its_backbone(tmp_path: Path) -> None:
    words = tiny_runs.tokenizer(causal=True)
    model = tiny_models.family("llama4_text", vocab_size=len(words), bos_token_id=4, eos_token_id=5)
    assert not hasattr(model, model.base_model_prefix)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "causal_lm", LABELS).fresh_modules == []
    with pytest.raises(InputError, match=r"lacks the weights model\.norm\.weight; its files are damaged"):
        load_model(str(without(tmp_path, "model.norm")), "causal_lm", LABELS)


@pytest.mark.parametrize("save", [tiny_runs.save_bert, tiny_runs.save_llama], ids=["bert", "llama"])
def test_a_folder_without_a_tokenizer(save: Any, tmp_path: Path) -> None:
    """transformers makes an empty one for it, and all text would be [UNK]."""
    folder = save(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"model: .* has no tokenizer \(tokenizer\.json\)$"):
        load_tokenizer(str(folder), "classification")


def test_a_tokenizer_of_another_kind_of_file(tmp_path: Path) -> None:
    folder = tiny_runs.save_bert(tmp_path / "bert")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    assert load_tokenizer(str(folder), "classification")("a b")["input_ids"] == [2, 5, 6, 3]


@pytest.mark.parametrize(
    ("file", "text"), [("config.json", "[]"), ("config.json", "{"), ("tokenizer.json", "{}"), ("tokenizer.json", "[")]
)
def test_a_file_of_settings_that_is_none(file: str, text: str, tmp_path: Path) -> None:
    folder = tiny_runs.save_bert(tmp_path / "bert")
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=r"could not be loaded: .*[a-z]") as caught:
        load_tokenizer(str(folder), "classification")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["classification", "causal_lm"])
def test_code_in_a_models_folder_is_not_run(head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked either: here the answer would be yes."""
    folder = tiny_runs.save_llama(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    words = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **words}))
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.setattr(builtins, "input", lambda _: "y")
    loads: list[Callable[[], Any]] = [
        lambda: load_tokenizer(str(folder), head),
        lambda: load_model(str(folder), head, LABELS),
        lambda: find_config(str(folder)),
        lambda: hub_config(str(folder)),
    ]
    for load in loads:
        with pytest.raises(InputError, match="it needs code of its own, which is not run unless"):
            load()
    assert not ran.exists()


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


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TABLES: dict[str, dict[str, Any]] = {  # of positions, in the many ways that models keep them
    "opt": {**SIZES, "ffn_dim": 8, "word_embed_proj_dim": 8, "max_position_embeddings": 19},
    "biogpt": {**SIZES, "max_position_embeddings": 19},
    "codegen": {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 19, "n_ctx": 19},
    "gptj": {"n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 19},
    "ctrl": {"n_embd": 8, "n_layer": 1, "n_head": 2, "dff": 8, "n_positions": 19},
    "openai-gpt": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 19},
    "mpt": {"d_model": 8, "n_layers": 1, "n_heads": 2, "max_seq_len": 19},
    "ibert": {**SIZES, "max_position_embeddings": 21},
    "nystromformer": {**SIZES, "max_position_embeddings": 19, "num_landmarks": 19, "segment_means_seq_len": 19},
    "xglm": {"d_model": 8, "num_layers": 1, "attention_heads": 2, "ffn_dim": 8, "max_position_embeddings": 19},
    "gpt_neox": {**SIZES, "max_position_embeddings": 19},
}


@pytest.mark.parametrize("name", TABLES)
def test_the_limit_is_where_a_model_breaks(name: str) -> None:
    """Of 19 positions a row of 19 tokens is read, one of 20 is not; tables that grow have no limit."""
    from transformers import AutoConfig, AutoModel

    special = {"vocab_size": 30, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    model = AutoModel.from_config(AutoConfig.for_model(name, **{**TABLES[name], **special})).eval()
    limit = longest_input(model)
    ids = torch.full((1, 40), 7)
    with torch.no_grad():
        if name in ("xglm", "gpt_neox"):
            assert limit is None
            model(input_ids=ids)
            return
        assert limit == 19
        model(input_ids=ids[:, :19])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids[:, :20])


def test_a_learned_prompt_takes_its_part_of_the_positions() -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=0, eos_token_id=0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    assert longest_input(get_peft_model(GPT2LMHeadModel(gpt2), config)) == 11


@pytest.mark.parametrize("named", [None, -1])
def test_a_classifier_pools_by_an_id_that_it_can_read(tmp_path: Path, named: int | None) -> None:
    """One that names no padding, or no row of its own, takes its tokenizer's."""
    from transformers import AutoConfig

    folder = tiny_runs.save_llama(tmp_path / "llama")
    config = AutoConfig.from_pretrained(folder)
    config.pad_token_id = named
    config.save_pretrained(folder)
    model = load_model(str(folder), "classification", LABELS)
    assert model.config.pad_token_id == load_tokenizer(str(folder), "classification").pad_token_id == 5


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
