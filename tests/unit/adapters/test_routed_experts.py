"""Adapted experts token by token against PEFT's own forward, which makes the adapted weights of all of them."""

import copy
import logging
import weakref

import pytest
import torch
from tiny_models import FAMILY_SIZES, answer_batch, llama4, qwen3_moe, randomize_lora, with_lora
from torch import nn

from debias.adapters.experts import Routing, route_experts
from debias.plan.live import fake_in_place

torch.set_num_threads(1)

MATRICES = ("gate_up_proj", "down_proj")
# Family and where its experts are; which of the four experts a token goes to (Qwen3-MoE: and to the next).
FAMILIES = {"qwen3_moe": (qwen3_moe, "mlp.experts"), "llama4": (llama4, "feed_forward.experts")}
SPREADS = {
    "even": lambda tokens: torch.arange(tokens) % 4,
    "one expert without a token": lambda tokens: torch.arange(tokens) % 3,
    "one token": lambda tokens: torch.where(torch.arange(tokens) == 4, 2, 0),
    "all to the last": lambda tokens: torch.full((tokens,), 3),
}


def adapted(family, matrices=MATRICES, dtype=torch.float64, **settings):
    make, where = FAMILIES[family]
    targets = {"target_modules": [], "target_parameters": [f"{where}.{name}" for name in matrices]}
    model = make()
    if dtype == torch.float64 and family == "qwen3_moe":
        model.set_experts_implementation("eager")  # torch's grouped products know no float64
    return with_lora(model, task_type="CAUSAL_LM", **targets, **settings).to(dtype)


def experts_of(model):
    """The outermost adapter of the last layer's experts."""
    return [m for m in model.modules() if type(m).__name__.endswith("Moe") or hasattr(m, "experts")][-1].experts


def inputs_of(family, spread, dtype=torch.float64, tokens=10):
    """What a block hands to its experts when the tokens go where `spread` says."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 32, generator=generator).to(dtype)
    first = SPREADS[spread](tokens)
    score = torch.rand(tokens, 2, generator=generator).to(dtype)
    if family == "qwen3_moe":
        return x.requires_grad_(), torch.stack([first, (first + 1) % 4], dim=1), score.requires_grad_()
    scores_EN = torch.zeros(4, tokens, dtype=dtype)
    scores_EN[first, torch.arange(tokens)] = score[:, 0]
    return ((x.repeat(4, 1) * scores_EN.reshape(-1, 1)).requires_grad_(),)


def outcome(experts, inputs):
    """Output, and the gradients of a loss that is not linear in it."""
    output = experts(*inputs)
    wanted = {n: p for n, p in experts.named_parameters() if p.requires_grad}
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    grads = torch.autograd.grad(output.square().sum() + output.sum(), [*wanted.values(), *leaves], allow_unused=True)
    return [output.detach(), *grads]


def assert_same(got, want, tolerance=1e-12):
    for ours, its in zip(got, want, strict=True):
        assert ours is not None
        assert its is not None
        assert float((ours - its).abs().max()) <= tolerance * max(1.0, float(its.abs().max()))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("matrices", [MATRICES, MATRICES[:1], MATRICES[1:]], ids="+".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_as_peft(family, matrices, spread):
    model = adapted(family, matrices)
    experts, inputs = experts_of(model), inputs_of(family, spread)
    want = outcome(experts, inputs)
    routed = route_experts(model)
    assert len(routed) == (2 if family == "qwen3_moe" else 1)
    assert_same(outcome(experts, inputs), want)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"r": 1}, {"r": 40}], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_settings_of_lora(family, settings):
    model = adapted(family, **settings)
    experts, inputs = experts_of(model), inputs_of(family, "even")
    want = outcome(experts, inputs)
    route_experts(model)
    assert_same(outcome(experts, inputs), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_weight_is_not_made(family):
    """Not by PEFT's parametrisation, and nothing of the size of a stack of experts is kept for the backward pass."""
    model = adapted(family, dtype=torch.float32)
    experts, inputs = experts_of(model), inputs_of(family, "even", torch.float32)
    stack = 4 * 32 * 24  # elements of the smaller one
    kept = []

    def note(tensor):
        # A leaf is the frozen weight itself.
        whole = tensor if tensor._base is None else tensor._base
        kept.append(0 if isinstance(whole, nn.Parameter) else whole.untyped_storage().nbytes() // 4)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        experts(*inputs)
        before, kept = kept, []
        route_experts(model)
        experts(*inputs)
    assert max(before) >= stack
    assert max(kept) < stack


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_that_get_nothing_at_all(family):
    """A rank may have no token for any expert: gradients of zero, not none."""
    model = adapted(family)
    route_experts(model)
    experts = experts_of(model)
    inputs = inputs_of(family, "even", tokens=0) if family == "qwen3_moe" else (torch.zeros(40, 32).double(),)
    output, *grads = outcome(experts, inputs)
    assert float(output.abs().sum()) == 0.0
    assert all(grad is not None and not bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_unusual_goes_pefts_way(family):
    """Disabled, merged, two adapters, one of another rank: all as PEFT does them, before and after."""
    from peft import LoraConfig

    model = adapted(family)
    _, where = FAMILIES[family]
    model.add_adapter(
        "second",
        LoraConfig(r=2, target_modules=[], target_parameters=[f"{where}.{n}" for n in MATRICES], task_type="CAUSAL_LM"),
    )
    randomize_lora(model)
    model.double()
    inputs = {k: v for k, v in answer_batch().items() if k in ("input_ids", "attention_mask")}

    def answers():
        with torch.no_grad():
            found = [model(**inputs).logits]
            with model.disable_adapter():
                found.append(model(**inputs).logits)
            model.set_adapter("second")
            found.append(model(**inputs).logits)
            model.base_model.set_adapter(["default", "second"])
            found.append(model(**inputs).logits)
            model.merge_adapter()
            found.append(model(**inputs).logits)
            model.unmerge_adapter()
            model.set_adapter("default")
        return found

    want = answers()
    route_experts(model)
    got = answers()
    for ours, its in zip(got, want, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-6, atol=1e-6)  # norms and routers are in float32
    assert all(not torch.allclose(want[0], other) for other in want[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_unloaded_experts_are_the_base_models(family):
    inputs = {k: v for k, v in answer_batch().items() if k in ("input_ids", "attention_mask")}
    model = adapted(family)
    route_experts(model)
    with torch.no_grad():
        with model.disable_adapter():
            want = model(**inputs).logits
        merged = copy.deepcopy(model)
        adapter = model(**inputs).logits
        torch.testing.assert_close(model.unload()(**inputs).logits, want)
        torch.testing.assert_close(merged.merge_and_unload()(**inputs).logits, adapter, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_a_model_of_its_own(family):
    model = adapted(family)
    route_experts(model)
    inputs = inputs_of(family, "even")
    twin = copy.deepcopy(model)
    before = outcome(experts_of(twin), inputs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    assert_same(outcome(experts_of(twin), inputs), before, 0.0)
    alive = weakref.ref(model)
    del model
    import gc

    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_against_float64(family, rank):
    """bf16, where torch's grouped product takes over: it rounds thrice where PEFT's way does once."""
    exact = adapted(family, r=rank)
    want = outcome(experts_of(exact), inputs_of(family, "even"))
    model = adapted(family, dtype=torch.bfloat16, r=rank)
    inputs = inputs_of(family, "even", torch.bfloat16)
    pefts = outcome(experts_of(model), inputs)
    route_experts(model)
    ours = outcome(experts_of(model), inputs)
    for got, its, truth in zip(ours, pefts, want, strict=True):
        error, usual = (float((one.double() - truth).norm() / truth.norm()) for one in (got, its))
        assert error <= 3 * usual, f"{error:.1e} against {usual:.1e}"


def test_autocast():
    model = adapted("qwen3_moe", dtype=torch.float32)
    experts, inputs = experts_of(model), inputs_of("qwen3_moe", "even", torch.float32)
    want = outcome(experts, inputs)
    route_experts(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(experts, inputs)
    for ours, its in zip(got, want, strict=True):
        assert ours.dtype == its.dtype
        assert float((ours - its).norm() / its.norm()) < 0.03


def test_the_grouped_product_is_a_loop_over_experts():
    """Sizes that torch's kernel takes and sizes it does not, in bf16, with empty experts; and both gradients."""
    generator = torch.Generator().manual_seed(0)
    for columns, rows in ((16, 24), (16, 3), (5, 24)):
        counts = torch.tensor([3, 0, 5, 0, 2])
        x, weight = (torch.randn(s, generator=generator) for s in ((10, columns), (5, rows, columns)))
        x, weight = x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
        routing = Routing(counts, torch.arange(10), 10)
        got = routing.linear(x, weight)
        expert = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 4, 4])
        want = torch.stack([weight[e].double() @ x[i].double() for i, e in enumerate(expert)])
        torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=1e-2)
        delta = torch.randn(10, rows, generator=generator).bfloat16()
        grads = torch.autograd.grad(got, [x, weight], delta)
        its = torch.autograd.grad(want, [x, weight], delta.double())
        for ours, other in zip([*grads, routing.outer(delta, x)], [*its, its[1]], strict=True):
            torch.testing.assert_close(ours.double(), other.double(), rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_without_values(family, dtype):
    """A step on tensors without memory, from which a plan reads sizes: the same shapes, and no value is asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = adapted(family, dtype=dtype, r=8).to("meta")
    route_experts(model)
    experts, inputs = experts_of(model), inputs_of(family, "even", dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_in_place(model)
        inputs = [mode.from_tensor(one.detach()) for one in inputs]
        output = experts(*inputs)
        output.sum().backward()
    assert output.shape == inputs[0].shape
    for p in experts.parameters():
        assert not p.requires_grad or p.grad.shape == p.shape


def test_llama4_without_adapters_on_its_experts():
    """Frozen or trained in full: the same, without sending every token through every expert."""
    for frozen in (True, False):
        model = llama4().double().requires_grad_(not frozen)
        experts, inputs = experts_of(model), inputs_of("llama4", "one expert without a token")
        want = outcome(experts, inputs)
        assert route_experts(model) == ["model.layers.1.feed_forward.experts"]
        assert len(want) == (2 if frozen else 4)
        assert_same(outcome(experts, inputs), want)
        assert route_experts(model) == []


def test_an_activation_that_is_not_zero_at_zero():
    """Then every token of every expert counts, as in the dense product."""
    model = adapted("llama4")
    experts, inputs = experts_of(model), inputs_of("llama4", "even")
    experts.get_base_layer().act_fn = nn.Sigmoid()
    want = outcome(experts, inputs)
    route_experts(model)
    assert_same(outcome(experts, inputs), want)


def test_routing_twice_and_models_without_experts():
    model = adapted("qwen3_moe")
    assert len(route_experts(model)) == 2
    assert route_experts(model) == []
    assert route_experts(nn.Linear(3, 3)) == []


def test_a_family_that_is_not_known_is_said(caplog):
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(**FAMILY_SIZES, num_local_experts=4, num_experts_per_tok=2)
    model = with_lora(
        transformers.MixtralForCausalLM(config), target_modules=[], target_parameters=["mlp.experts.down_proj"]
    )
    with caplog.at_level(logging.WARNING):
        assert route_experts(model) == []
    assert "MixtralExperts is not one of Qwen3MoeExperts, Llama4TextExperts" in caplog.text
