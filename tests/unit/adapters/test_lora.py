"""debias.adapters.lora: what trains, and that it can be loaded again."""

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from debias.adapters import ADAPTERS, RunFacts, make_adapter
from debias.adapters.bitfit import train_biases
from debias.adapters.families import linear_names
from debias.adapters.loading import attach_adapter
from debias.adapters.lora import add_lora
from debias.adapters.survey import describe
from debias.building.model import build_model
from debias.config.run import RunConfig
from debias.data import load_examples
from debias.engines import select_parameters
from debias.errors import InputError
from debias.inference.loading import load_run
from debias.models.activations import checkpoint_activations
from debias.models.load import load_model
from debias.train import train

LABELS = ("entailment", "neutral", "contradiction")
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_llama(tmp_path_factory.mktemp("models") / "llama")


def lora(model: Any, targets: Any, *, classification: bool = True) -> Any:
    return add_lora(model, r=2, alpha=4, dropout=0.0, targets=targets, classification=classification)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    settings = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0, pad_token_id=0, num_labels=3
    )
    return GPT2ForSequenceClassification(settings)


def trainable(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_linear_names(bert: Path, llama: Path) -> None:
    assert linear_names(load_model(str(bert), "classification", LABELS)) == ["dense", "key", "query", "value"]
    decoder = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert linear_names(load_model(str(llama), "causal_lm", LABELS)) == decoder
    assert linear_names(gpt2()) == ["c_attn", "c_fc", "c_proj"]  # its layers are Conv1D, not nn.Linear


def test_linear_names_in_4_bit(llama: Path) -> None:
    four = load_model(str(llama), "causal_lm", LABELS, load_in_4bit=True)
    assert "q_proj" in linear_names(four)
    assert "lm_head" not in linear_names(four)


def test_targets_that_match_nothing_are_told_what_there_is(bert: Path) -> None:
    with pytest.raises(InputError) as caught:
        lora(load_model(str(bert), "classification", LABELS), ["query", "q_proj"])
    assert str(caught.value) == "adapter.targets: 'q_proj' matches no linear layer; there are dense, key, query, value"


@pytest.mark.parametrize("target", ["embeddings", "word_embeddings", "uery", "LayerNorm", ""])
def test_targets_that_are_no_linear_layers(bert: Path, target: str) -> None:
    with pytest.raises(InputError, match="matches no linear layer"):
        lora(load_model(str(bert), "classification", LABELS), [target])


def test_targets_by_ending_and_by_path(bert: Path) -> None:
    names = trainable(lora(load_model(str(bert), "classification", LABELS), ["query", "layer.1.output.dense"]))
    layers = {name.split(".lora_")[0].split("bert.encoder.")[1] for name in names if "lora_" in name}
    assert layers == {"layer.0.attention.self.query", "layer.1.attention.self.query", "layer.1.output.dense"}


def test_auto_takes_every_linear_layer_but_the_head(bert: Path, llama: Path) -> None:
    names = trainable(lora(load_model(str(bert), "classification", LABELS), "auto"))
    assert sum("lora_A" in name for name in names) == 2 * 6 + 1  # six a layer, and the pooler
    assert not any("lora" in name for name in names if "classifier" in name)
    assert [name for name in names if "classifier" in name] != []
    causal = trainable(lora(load_model(str(llama), "causal_lm", LABELS), "auto", classification=False))
    assert sum("lora_A" in name for name in causal) == 2 * 7
    assert not any("lm_head" in name for name in causal)


def test_gpt2_takes_named_targets() -> None:
    assert sum("lora_A" in name for name in trainable(lora(gpt2(), ["c_attn"]))) == 1


@pytest.mark.parametrize("bits", [False, True])
def test_what_trains_is_float32_whatever_the_base(bert: Path, tmp_path: Path, bits: bool) -> None:
    config = tiny_runs.config_for(bert, tmp_path / "run", bf16=True, load_in_4bit=bits)
    parameters = dict(build_model(config).named_parameters())
    assert {p.dtype for p in parameters.values() if p.requires_grad} == {torch.float32}
    assert any("classifier.modules_to_save" in name for name, p in parameters.items() if p.requires_grad)
    if not bits:
        assert parameters["base_model.model.bert.embeddings.word_embeddings.weight"].dtype == torch.bfloat16


def test_4_bit_goes_with_lora_alone(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="load_in_4bit: a 4-bit base cannot be trained itself"):
        build_model(tiny_runs.config_for(bert, tmp_path / "run", adapter="bitfit", load_in_4bit=True))


def test_bitfit_without_biases(llama: Path) -> None:
    with pytest.raises(InputError, match="trains bias vectors, and this model has none"):
        train_biases(load_model(str(llama), "causal_lm", LABELS))


def test_bitfit_does_not_count_the_bias_of_a_head() -> None:
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2, bias=False), "classifier": torch.nn.Linear(2, 2)})
    with pytest.raises(InputError, match="this model has none"):
        train_biases(model)


def test_bitfit_trains_biases_and_the_head(bert: Path) -> None:
    names = trainable(train_biases(load_model(str(bert), "classification", LABELS)))
    assert [name for name in names if not name.endswith("bias")] == ["classifier.weight"]
    assert any("LayerNorm.bias" in name for name in names)


def test_describe_counts_packed_elements(bert: Path, llama: Path) -> None:
    plain = describe(load_model(str(llama), "causal_lm", LABELS))
    packed = describe(load_model(str(llama), "causal_lm", LABELS, load_in_4bit=True))
    assert plain["all"] == packed["all"] == plain["trainable"]
    assert packed["four_bit"] == 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
    assert plain["four_bit"] == 0


def test_checkpointing_reaches_the_model(bert: Path) -> None:
    model = load_model(str(bert), "classification", LABELS)
    checkpoint_activations(model)
    assert (
        any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        or model.is_gradient_checkpointing
    )


# Back from the disk.


def test_the_adapter_is_plain_peft(bert: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    config = tiny_runs.config_for(bert, tmp_path / "run")
    run = train(config)
    examples = load_examples(config.data.train, config.data)[:9]
    predictor = load_run(run)
    ours = torch.tensor(predictor.label_scores(examples))
    torch.manual_seed(99)  # the fresh head drawn here must not matter
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    theirs = PeftModel.from_pretrained(base, run / "adapter").eval()
    words = predictor.task.tokenizer
    for index, one in enumerate(examples):
        logits = theirs(**words(*one.texts, return_tensors="pt")).logits
        assert torch.allclose(torch.log_softmax(logits, -1)[0].double(), ours[index], atol=1e-5)


def encoders() -> list[Any]:
    from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2Model, DistilBertConfig, DistilBertModel

    def poolerless(config: Any) -> Any:
        return BertModel(config, add_pooling_layer=False)

    return [
        pytest.param(poolerless, BertConfig, SMALL, "bert.pooler.dense", id="bert-without-pooler"),
        pytest.param(
            DebertaV2Model, DebertaV2Config, {**SMALL, "pooler_hidden_size": 16}, "pooler.dense", id="deberta"
        ),
        pytest.param(
            DistilBertModel, DistilBertConfig, {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
            "pre_classifier", id="distilbert",
        ),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bits", [False, True], ids=["", "nf4"])
@pytest.mark.parametrize(("kind", "settings", "sizes", "fresh"), encoders())
def test_layers_drawn_at_random_train_whole_and_are_saved(
    kind: Any, settings: Any, sizes: dict[str, int], fresh: str, bits: bool, tmp_path: Path
) -> None:
    words = tiny_runs.tokenizer(causal=False)
    words.save_pretrained(tmp_path / "model")
    kind(settings(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "model")
    config = tiny_runs.config_for(tmp_path / "model", tmp_path / "run", load_in_4bit=bits)
    run = train(config)
    tensors = tiny_runs.adapter_of(run)
    assert f"base_model.model.{fresh}.weight" in tensors
    assert not any("lora" in name for name in tensors if fresh in name)
    examples = load_examples(config.data.train, config.data)[:5]
    first, second = (load_run(run).label_scores(examples) for _ in range(2))
    assert (first == second).all()  # nothing of the model is drawn anew when it is loaded


@pytest.mark.parametrize("row", [name for name, kind in ADAPTERS.items() if kind.frozen_base])
@pytest.mark.parametrize(("kind", "settings", "sizes", "fresh"), encoders())
def test_a_loop_of_ones_own_saves_layers_drawn_at_random(
    kind: Any, settings: Any, sizes: dict[str, int], fresh: str, row: str, tmp_path: Path
) -> None:
    """Nobody names them: `load_model` has found them, and plain PEFT answers alike on a base that is drawn anew."""
    kind(settings(vocab_size=50, **sizes)).save_pretrained(tmp_path / "model")
    torch.manual_seed(1)
    model = load_model(str(tmp_path / "model"), "classification", ["a", "b"])
    adapted = make_adapter(row).attach(model, RunFacts(True, lora_r=2, lora_alpha=4.0)).eval()
    batch = {"input_ids": torch.arange(1, 25).view(4, 6)}
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(parameter.requires_grad * torch.randn_like(parameter))
        expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(**batch).logits, expected, atol=1e-6)
    assert any(f"{fresh}.modules_to_save" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_add_lora_and_train_biases_read_what_load_model_found(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=50, **SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "model")
    with_lora = functools.partial(add_lora, r=2, alpha=4, dropout=0.0, targets="auto", classification=True)
    for attach in (with_lora, train_biases):
        model = attach(load_model(str(tmp_path / "model"), "classification", ["a", "b"]))
        trains = [name for name, p in model.named_parameters() if p.requires_grad and "pooler" in name]
        assert any(name.endswith("weight") for name in trains)
        assert not any("lora" in name for name in trains)
    model = load_model(str(tmp_path / "model"), "classification", ["a", "b"])
    with_lora(model, fresh=()).save_pretrained(tmp_path / "a")  # LoRA on the random layer, which is not saved
    with pytest.raises(InputError, match=r"lacks the weights of bert\.pooler\.dense"):
        attach_adapter(load_model(str(tmp_path / "model"), "classification", ["a", "b"]), str(tmp_path / "a"))


def test_the_rule_leaves_layers_drawn_at_random_alone(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    words = tiny_runs.tokenizer(causal=False)
    words.save_pretrained(tmp_path / "model")
    BertModel(BertConfig(vocab_size=len(words), **SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "model")
    config = RunConfig.model_validate(tiny_runs.settings_for(tmp_path / "model", tmp_path / "run"))
    assert not any("pooler" in name for name in select_parameters(build_model(config)))
