"""debias.adapters.families: what `auto` adapts of each architecture, and what is said where it cannot."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
from torch import nn

from debias.adapters import make_adapter
from debias.adapters.families import choose_targets, expert_parameters, is_sparse, linear_names, sparse_blocks
from debias.adapters.lora import add_lora
from debias.building.model import base_model
from debias.errors import InputError
from debias.models.quantized import prepare_quantized

SPARSE = ("qwen3_moe", "llama4_text")
DECODER = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    """One model of each family; not to be changed."""
    return {name: tiny_models.family(name) for name in tiny_models.FAMILIES}


def lora(model: Any, targets: Any = "auto", **settings: Any) -> Any:
    given = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": targets, "classification": False, **settings}
    return add_lora(model, **given)


def adapted(model: Any) -> set[str]:
    """Where LoRA matrices are, without PEFT's own names; a fused parameter's by its wrapper's parameter."""
    found = set()
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            own = getattr(module, "parameter_name", None)
            clean = path.removeprefix("base_model.model.").replace(".base_layer", "")
            found.add(clean if own is None else f"{clean}.{own}")
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_auto_is_every_linear_layer_of_a_dense_family(bare: dict[str, Any], name: str) -> None:
    kinds = {path for path, module in bare[name].named_modules() if isinstance(module, nn.Linear)}
    assert adapted(lora(tiny_models.family(name))) == kinds - {"lm_head"}


def test_auto_on_qwen3_moe() -> None:
    attention = {f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}
    experts = {f"model.layers.{i}.mlp.experts.{p}_proj" for i in (0, 1) for p in ("gate_up", "down")}
    assert adapted(lora(tiny_models.qwen3_moe())) == attention | experts
    assert adapted(lora(tiny_models.qwen3_moe(), experts=False)) == attention
    assert adapted(lora(tiny_models.qwen3_moe(), "all-linear")) == attention  # PEFT alone would take the router too


def test_auto_on_llama4() -> None:
    attention = {f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}
    dense = {f"model.layers.0.feed_forward.{p}_proj" for p in ("gate", "up", "down")}
    shared = {f"model.layers.1.feed_forward.shared_expert.{p}_proj" for p in ("gate", "up", "down")}
    experts = {f"model.layers.1.feed_forward.experts.{p}_proj" for p in ("gate_up", "down")}
    assert adapted(lora(tiny_models.llama4())) == attention | dense | shared | experts
    assert adapted(lora(tiny_models.llama4(), "all-linear")) == attention | dense | shared


def test_explicit_targets_with_experts() -> None:
    model = lora(tiny_models.qwen3_moe(), ["q_proj"], experts=True)
    assert {path.rpartition(".")[2] for path in adapted(model)} == {"q_proj", "gate_up_proj", "down_proj"}
    assert {path.rpartition(".")[2] for path in adapted(lora(tiny_models.qwen3_moe(), ["q_proj"]))} == {"q_proj"}


def test_classification_of_a_sparse_model_keeps_its_head() -> None:
    model = lora(tiny_models.qwen3_moe(classify=True), classification=True)
    assert any("score.modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)
    assert not any("lora" in name for name, _ in model.named_parameters() if "score" in name or ".gate." in name)


@pytest.mark.parametrize("name", SPARSE)
def test_the_rank_of_an_expert(name: str) -> None:
    model = lora(tiny_models.family(name), r=4, alpha=6, experts_r=3)
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    ranks = {(type(one).__name__, one.r["default"]) for one in layers.values()}
    assert ranks == {("Linear", 4), ("ParamWrapper", 3)}
    assert {one.scaling["default"] for one in layers.values()} == {6 / 4}
    outer = next(one for path, one in layers.items() if path.endswith("experts"))
    assert outer.lora_A["default"].weight.shape[0] == 4 * 3  # experts x rank


@pytest.mark.parametrize("name", SPARSE)
def test_an_expert_adapter_changes_what_its_expert_says(name: str) -> None:
    """Against the product of its factors, written out, added to a copy of the weights."""
    plain, model = tiny_models.family(name).eval(), lora(tiny_models.family(name)).eval()
    tiny_models.randomize_lora(model)
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        clean = path.removeprefix("base_model.model.").replace(".base_layer", "")
        a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
        own = getattr(module, "parameter_name", None)
        target = plain.get_submodule(clean).weight if own is None else getattr(plain.get_submodule(clean), own)
        if own is None:
            target.data += (2 * b @ a).float()
            continue
        count = target.shape[0]
        for expert in range(count):  # A holds expert after expert, B rank after rank
            rows, columns = slice(expert * 2, expert * 2 + 2), slice(expert, None, count)
            target.data[expert] += (2 * b[:, columns] @ a[rows]).float()
    batch = {key: tiny_models.answer_batch()[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(plain(**batch).logits, model(**batch).logits, atol=1e-4)


# What is refused.


def test_dropout_and_experts() -> None:
    with pytest.raises(
        InputError, match=r"^lora_dropout is 0.1, and adapters on fused experts .*adapter.experts: false$"
    ):
        lora(tiny_models.qwen3_moe(), dropout=0.1)
    assert adapted(lora(tiny_models.qwen3_moe(), dropout=0.1, experts=False))


def test_expert_rank_without_experts() -> None:
    with pytest.raises(InputError, match=r"adapter.experts_r is 3, but no expert gets an adapter"):
        lora(tiny_models.qwen3(), experts_r=3)


def test_experts_of_a_dense_model() -> None:
    with pytest.raises(
        InputError, match=r"adapter.experts: true, but qwen3 has no fused experts that are known; known"
    ):
        lora(tiny_models.qwen3(), experts=True)


@pytest.mark.parametrize("name", SPARSE)
def test_routers_are_no_targets(bare: dict[str, Any], name: str) -> None:
    assert linear_names(bare[name]) == (DECODER if name == "llama4_text" else ["k_proj", "o_proj", "q_proj", "v_proj"])
    router = "router" if name == "llama4_text" else "gate"
    with pytest.raises(InputError, match=f"'{router}' matches no linear layer; there are"):
        choose_targets(bare[name], [router])


def test_a_parameter_that_is_not_there(bare: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"'mlp.experts.w1' matches no parameter; fused experts: mlp.experts.down_proj, m"
    ):
        choose_targets(bare["qwen3_moe"], ["q_proj"], ["mlp.experts.w1"])
    with pytest.raises(InputError, match="fused experts: none"):
        choose_targets(bare["qwen3"], ["q_proj"], ["mlp.experts.down_proj"])


@pytest.mark.parametrize(
    ("given", "missed"),
    [
        (["mlp.experts.gate_up_proj"], "2 of 4 expert stacks get no adapter, model.layers.0.mlp.experts.down_proj"),
        (["layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"], "2 of 4 .* model.layers.0"),
    ],
)
def test_expert_stacks_that_would_be_missed(given: list[str], missed: str) -> None:
    with pytest.raises(InputError, match=missed):
        lora(tiny_models.qwen3_moe(), ["q_proj"], target_parameters=given)
    model = lora(tiny_models.qwen3_moe(), ["q_proj"], target_parameters=given, experts="partial")
    assert sum("experts" in path for path in adapted(model)) == 4 - 2


def test_peft_would_turn_dense_layers_into_experts(caplog: pytest.LogCaptureFixture) -> None:
    """Layer 0 has a plain MLP; PEFT reads `gate_proj` of a Qwen3-MoE as the fused experts, at twice the rank."""
    mixed = {"mlp_only_layers": [0]}
    with pytest.raises(
        InputError, match="PEFT takes down_proj, gate_proj, up_proj of a qwen3_moe for its fused experts"
    ):
        lora(tiny_models.qwen3_moe(**mixed), ["gate_proj", "up_proj", "down_proj"])
    caplog.set_level("WARNING", logger="debias")
    assert {path.split(".")[2] for path in adapted(lora(tiny_models.qwen3_moe(**mixed))) if "mlp" in path} == {"1"}
    assert "auto: 3 linear layers get no adapter, model.layers.0.mlp.gate_proj the first" in caplog.text


def test_many_whole_paths_that_peft_shortens() -> None:
    """From 20 on it keeps a few ends that name the same modules."""
    model = tiny_models.llama(layers=3)
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path != "lm_head"]
    assert len(paths) == 21
    assert adapted(lora(model, paths)) == set(paths)


def mixtral(kind: str = "mixtral") -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**tiny_models.FAMILY_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


def test_an_unknown_sparse_architecture() -> None:
    model = mixtral()
    assert is_sparse(model)
    with pytest.raises(InputError) as caught:
        lora(model)
    assert str(caught.value).startswith("adapter.targets: 'auto' knows no mixtral, which has experts or routers; known")
    assert "llama, qwen3, gemma3_text, qwen3_moe, llama4_text" in str(caught.value)
    by_hand = lora(model, ["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    assert sum("experts" in path for path in adapted(by_hand)) == 4


def test_an_unknown_dense_architecture_is_adapted_everywhere() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo2", **tiny_models.FAMILY_SIZES))
    assert choose_targets(model, "auto").modules == "all-linear"
    assert len(adapted(lora(model))) == 2 * 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["a"]}, "goes with targets given by hand"),
        ({"targets": ["q"], "target_parameters": ["a"], "experts": False}, "experts is false, but"),
        ({"targets": ["q"], "experts": "partial"}, "experts is 'partial', but"),
        ({"type": "bitfit", "experts": True}, "adapter.experts: bitfit has no such setting"),
        ({"type": "full", "experts_r": 2}, "adapter.experts_r: full has no such setting"),
        ({"type": "dora", "target_parameters": ["a"]}, "adapter.target_parameters: dora has no such setting"),
        ({"experts_r": 0}, "adapter.experts_r is 0, expected a rank greater than 0"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_adapter({"type": "lora", **settings})


# Sparse blocks and their weights.


def test_the_block_that_routes(bare: dict[str, Any]) -> None:
    names = {name: [kind.__name__ for kind in sparse_blocks(model)] for name, model in bare.items()}
    assert names == {
        "llama": [],
        "qwen3": [],
        "qwen3_moe": ["Qwen3MoeSparseMoeBlock"],
        "llama4_text": ["Llama4TextMoe"],
        "gemma3_text": [],
    }
    assert len(list(expert_parameters(bare["qwen3_moe"]))) == 4


@pytest.mark.parametrize("name", SPARSE)
def test_4_bit_leaves_experts_as_they_were(name: str, tmp_path: Path) -> None:
    """bitsandbytes quantizes linear layers alone; nothing then may blow the experts up to float32."""
    from debias.models.load import load_model

    tiny_models.family(name).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "causal_lm", (), dtype=torch.bfloat16, load_in_4bit=True)
    prepared = prepare_quantized(model)
    kinds = {path: type(module).__name__ for path, module in prepared.named_modules()}
    assert "Linear4bit" in kinds.values()
    assert {prepared.get_parameter(path).dtype for path in expert_parameters(prepared)} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    given = lora(prepared)
    batch = tiny_models.answer_batch()
    logits = given(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits.float().pow(2).mean().backward()
    gradients = [p.grad for name, p in given.named_parameters() if "experts" in name and "lora_B" in name]
    assert gradients
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients)
    assert any(float(grad.abs().max()) > 0 for grad in gradients if grad is not None)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_blocks_are_leaves_of_zero_3(name: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.utils.z3_leaf_module import z3_leaf_module

    tiny_models.family(name).save_pretrained(tmp_path / "model")
    prompt = {"template": "{premise} {hypothesis}", "verbalizers": dict.fromkeys(("entailment", "neutral"), "x")}
    prompt["verbalizers"] |= {"contradiction": "y"}
    settings = {"head": "causal_lm", "prompt": prompt, "attn_implementation": "sdpa"}
    for engine, leaves in ((None, 0), ("zero3", 2 if name == "qwen3_moe" else 1)):
        config = tiny_runs.config_for(tmp_path / "model", tmp_path / "run", deepspeed=engine, **settings)
        model = base_model(config, config.model)
        marked = [module for module in model.modules() if z3_leaf_module(module)]
        assert [type(module).__name__ for module in marked] == [kind.__name__ for kind in sparse_blocks(model)] * leaves
        attached = add_lora(model, r=2, alpha=4, dropout=0.0, targets="auto", classification=False)
        assert sum(z3_leaf_module(module) for module in attached.modules()) == leaves
