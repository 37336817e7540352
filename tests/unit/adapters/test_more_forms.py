"""Forms by PEFT beside LoRA, DoRA and BEFT against their papers' equations, in plain loops."""

import copy
import math
from typing import Any

import pytest
import tiny_models
import torch

from debias.adapters import RunFacts, make_adapter
from debias.adapters.ia3 import _back_to_hidden
from debias.building.model import adapt
from debias.config.run import RunConfig
from debias.errors import InputError

FACTS = RunFacts(classification=True, lora_r=4, lora_alpha=6)
WIDTH, WIDE = 16, 32


def attached(block: Any) -> Any:
    torch.manual_seed(1)
    return make_adapter(block).attach(tiny_models.bert(), FACTS)


def layer_of(model: Any) -> Any:
    return model.base_model.model.bert.encoder.layer[0]


def rows(tensor: torch.Tensor) -> Any:
    return tensor.detach().double().tolist()


def given(width: int) -> torch.Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(5))


def low_rank(x: list[float], a: list[list[float]], b: list[list[float]], scaling: float) -> list[float]:
    narrow = [math.fsum(row[i] * x[i] for i in range(len(x))) for row in a]
    return [scaling * math.fsum(row[r] * narrow[r] for r in range(len(narrow))) for row in b]


@pytest.mark.parametrize(("row", "scaling"), [("rslora", 6 / 4**0.5), ("lora_fa", 6 / 4)])
def test_low_rank_forms_add_what_they_say(row: str, scaling: float) -> None:
    query = layer_of(tiny_models.randomized(attached({"type": row, "targets": ["query"]}))).attention.self.query
    x = given(WIDTH)
    a, b = (rows(getattr(query, name)["default"].weight) for name in ("lora_A", "lora_B"))
    plain, got = rows(query.base_layer(x)), rows(query(x))
    for n, one in enumerate(rows(x)):
        change = low_rank(one, a, b, scaling)
        assert got[n] == pytest.approx([p + c for p, c in zip(plain[n], change, strict=True)], abs=1e-5)


def test_of_lora_fa_a_stays_as_it_was_drawn() -> None:
    model = attached("lora_fa")
    drawn = {path: p.clone() for path, p in model.named_parameters() if ".lora_A." in path}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    model(**tiny_models.text_batch()).loss.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert drawn
    assert all(torch.equal(after[path], tensor) and tensor.abs().sum() > 0 for path, tensor in drawn.items())
    assert all(float(p.detach().abs().sum()) > 0 for path, p in after.items() if ".lora_B." in path and ".0." in path)


def test_vera_is_two_vectors_around_shared_matrices() -> None:
    """`diag(b) B diag(d) A x`, and every layer has the same A and B."""
    model = tiny_models.randomized(attached({"type": "vera", "rank": 5, "targets": ["query", "key"]}))
    attention = layer_of(model).attention.self
    query, key = attention.query, attention.key
    assert query.vera_A["default"].data_ptr() == key.vera_A["default"].data_ptr()
    a, b = (rows(getattr(query, name)["default"]) for name in ("vera_A", "vera_B"))
    d, left = (rows(getattr(query, name)["default"]) for name in ("vera_lambda_d", "vera_lambda_b"))
    x = given(WIDTH)
    plain, got = rows(query.base_layer(x)), rows(query(x))
    for n, one in enumerate(rows(x)):
        narrow = [d[r] * math.fsum(a[r][i] * one[i] for i in range(WIDTH)) for r in range(5)]
        change = [left[o] * math.fsum(b[o][r] * narrow[r] for r in range(5)) for o in range(WIDTH)]
        assert got[n] == pytest.approx([p + c for p, c in zip(plain[n], change, strict=True)], abs=1e-5)


def test_ia3_is_a_factor_of_keys_values_and_what_the_mlp_ends_with() -> None:
    base = tiny_models.bert()
    before = layer_of_base(copy.deepcopy(base))
    model = tiny_models.randomized(make_adapter("ia3").attach(base, FACTS))
    layer = layer_of(model)
    adapted = {path.split(".encoder.")[1] for path, _ in model.named_parameters() if ".ia3_l." in path}
    names = ("attention.self.key", "attention.self.value", "output.dense")
    assert adapted == {f"layer.{n}.{name}.ia3_l.default" for n in range(2) for name in names}
    for name in ("key", "value"):
        adapted_layer, plain = getattr(layer.attention.self, name), getattr(before.attention.self, name)
        factor, x = rows(adapted_layer.ia3_l["default"].flatten()), given(WIDTH)
        for got, want in zip(rows(adapted_layer(x)), rows(plain(x)), strict=True):
            assert got == pytest.approx([f * w for f, w in zip(factor, want, strict=True)], abs=1e-5)
    x = given(layer.output.dense.in_features)
    factor = layer.output.dense.ia3_l["default"].detach().flatten()
    torch.testing.assert_close(layer.output.dense(x), before.output.dense(x * factor))


def tiny(kind: str, **settings: Any) -> Any:
    """A model of any architecture of transformers, two layers of 16."""
    from transformers import AutoConfig, AutoModel

    sizes = {"vocab_size": 61, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModel.from_config(AutoConfig.for_model(kind, **{**sizes, "intermediate_size": 24, **settings}))


WIDER = {"head_dim": 24}  # heads times their size are not the hidden size, as in Qwen3-0.6B and Gemma 3 4B
T5 = {"d_model": WIDTH, "d_kv": 12, "d_ff": 24, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
ENDS: dict[str, tuple[Any, str]] = {
    "bert": (tiny_models.bert, "output.dense"),
    "llama": (lambda: tiny_models.family("llama", **WIDER), "down_proj"),
    "qwen3": (lambda: tiny_models.family("qwen3", **WIDER), "down_proj"),
    "qwen3_moe": (lambda: tiny_models.family("qwen3_moe", **WIDER), "no linear layer: its experts are fused"),
    "gemma3_text": (lambda: tiny_models.family("gemma3_text", **WIDER), "down_proj"),
    "llama4_text": (lambda: tiny_models.family("llama4_text", **WIDER), "down_proj"),
    "phi3": (lambda: tiny("phi3", pad_token_id=0, num_key_value_heads=1, **WIDER), "down_proj"),
    "t5": (lambda: tiny("t5", **T5), "wo"),
    "opt": (lambda: tiny("opt", ffn_dim=24, word_embed_proj_dim=8), "fc2"),
    "electra": (lambda: tiny("electra", embedding_size=8), "output.dense"),
    "albert": (lambda: tiny("albert", embedding_size=8), "ffn_output"),
    "distilbert": (lambda: tiny("distilbert", dim=WIDTH, hidden_dim=24, n_heads=2, n_layers=2), "lin2"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_ends_an_mlp_is_what_peft_says(kind: str) -> None:
    """In PEFT's map, where it has the architecture; of layers as wide as the hidden size there is nothing to end."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as KNOWN

    make, name = ENDS[kind]
    assert KNOWN.get(kind.removesuffix("_text"), KNOWN.get(kind, [name])) == [name]
    model = make()
    linears = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    widths = {path: (one.in_features, one.out_features) for path, one in linears.items() if path.endswith("." + name)}
    wanted = {path for path, (before, after) in widths.items() if before != after}
    assert set(_back_to_hidden(model)) == wanted
    assert len(wanted) >= (kind != "qwen3_moe")
    others = [path for path, one in linears.items() if one.in_features != one.out_features == model.config.hidden_size]
    assert len(others) > len(wanted) or kind in ("bert", "distilbert")  # there is something to be mistaken for one


def test_ia3_takes_the_layers_that_are_named_and_no_others() -> None:
    block = {"type": "ia3", "targets": ["layer.1.attention.self.key"], "feedforward": []}
    model = make_adapter(block).attach(tiny_models.bert(), FACTS)
    adapted = {path.split(".encoder.")[1] for path, _ in model.named_parameters() if ".ia3_l." in path}
    assert adapted == {"layer.1.attention.self.key.ia3_l.default"}


def layer_of_base(base: Any) -> Any:
    return base.bert.encoder.layer[0]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "ia3", "targets": ["output.dense"]}, "adapter.feedforward: bert.encoder.layer.0.output.dense is one"),
        ({"type": "ia3", "targets": ["nothing"]}, "adapter.targets: 'nothing' matches no linear layer"),
        ({"type": "ia3", "feedforward": ["nothing"]}, "adapter.feedforward: 'nothing' matches no linear layer"),
    ],
)
def test_what_ia3_cannot_take_is_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attached(block)


@pytest.mark.parametrize("row", ["lora_fa", "vera"])
def test_what_deepspeed_would_not_save_is_refused(row: str) -> None:
    from planned_runs import run_of

    run: RunConfig = run_of(adapter=row).model_copy(update={"deepspeed": "zero2"})
    with pytest.raises(InputError, match=f"deepspeed: adapter.type {row} saves tensors that do not train"):
        adapt(run, tiny_models.bert())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "vera", "rank": 0}, "adapter.rank is 0, expected a rank greater than 0"),
        ({"type": "ia3", "targets": []}, r"adapter.targets is \[\], expected auto or a list"),
    ],
)
def test_wrong_settings_are_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_adapter(block)
