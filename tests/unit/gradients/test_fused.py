"""Plain runs with the fused LoRA branch against PEFT and autograd alone: relative error at most 1e-5 in fp32."""

import copy

import pytest
import torch
from gradient_checks import FP32, answer_loss, selected_of, text_loss, weights_for, worst
from tiny_models import (
    answer_batch,
    bert_lora,
    family,
    gpt2,
    llama,
    llama_lora,
    qwen3,
    randomize_lora,
    text_batch,
    with_lora,
)

from debias.gradients import Fused, MicroBatch, make_source
from debias.gradients.layers import is_replaced

torch.set_num_threads(1)


def checkpointed(model, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def lora_of(model):
    return with_lora(model, task_type="CAUSAL_LM")


CASES = {
    "bert": (bert_lora, text_loss, text_batch),
    "bert, dropout of base and adapter": (lambda: bert_lora(dropout=0.3), text_loss, text_batch),
    "llama": (llama_lora, answer_loss, answer_batch),
    "llama, dropout": (lambda: llama_lora(dropout=0.4), answer_loss, answer_batch),
    "llama, rank above the layer": (lambda: llama_lora(r=40), answer_loss, answer_batch),
    "llama, rank one": (lambda: llama_lora(r=1), answer_loss, answer_batch),
    "llama, scaled by rank": (lambda: llama_lora(lora_alpha=7, use_rslora=True), answer_loss, answer_batch),
    "llama, checkpointed": (lambda: checkpointed(llama_lora(dropout=0.4), False), answer_loss, answer_batch),
    "llama, reentrant": (lambda: checkpointed(llama_lora(dropout=0.4), True), answer_loss, answer_batch),
    "qwen3": (lambda: lora_of(qwen3()), answer_loss, answer_batch),
    "gpt2, whose linears are convolutions": (
        lambda: with_lora(gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"]),
        answer_loss,
        answer_batch,
    ),
}


def gradients_of(model, forward, batch, source=None, seed=3):
    """What lies in `p.grad`, of PEFT and autograd or of `source`, with the same random numbers."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss_B = forward(model, batch)
    if source is None:
        loss_B.sum().backward()
    else:
        source.backward(MicroBatch(loss_B, weights_for(len(loss_B))))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def fused(model):
    source = make_source("auto", model, selected_of(model), bias=False)
    assert isinstance(source, Fused)
    assert source.name == "plain"
    return source


def replaced(model):
    return [name for name, module in model.named_modules() if is_replaced(module)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_peft_alone(case):
    build, forward, batch = CASES[case]
    model, batch = build().train(), batch()
    want = gradients_of(model, forward, batch)
    source = fused(model)
    assert replaced(model)
    got = gradients_of(model, forward, batch, source)
    assert worst(got, want)[0] <= FP32
    assert not source.bias
    source.detach()
    assert not replaced(model)
    again = gradients_of(model, forward, batch)
    assert all(torch.equal(again[name], want[name]) for name in want)


def test_the_comparison_catches_another_scale():
    model, batch = llama_lora(), answer_batch()
    want = gradients_of(model, answer_loss, batch)
    source = fused(model)
    next(module for module in model.modules() if is_replaced(module)).scaling["default"] *= 1.001
    assert worst(gradients_of(model, answer_loss, batch, source), want)[0] > FP32


def test_bf16_autocast_loses_what_peft_loses():
    batch = answer_batch()
    exact = gradients_of(llama_lora(), answer_loss, batch)

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return answer_loss(model, batch)

    of_peft = worst(gradients_of(llama_lora(), autocast, batch), exact)[0]
    model = llama_lora()
    assert 1e-4 < of_peft < 0.1, "autocast did nothing"
    assert worst(gradients_of(model, autocast, batch, fused(model)), exact)[0] <= 1.5 * of_peft


def test_a_base_in_bf16():
    model, batch = with_lora(llama().bfloat16(), task_type="CAUSAL_LM"), answer_batch()
    want = gradients_of(model, answer_loss, batch)
    assert worst(gradients_of(model, answer_loss, batch, fused(model)), want)[0] <= 0.06


@pytest.mark.parametrize("what", ["hooked", "disabled", "merged", "another adapter"])
def test_what_is_unusual_later_takes_the_way_of_peft(what):
    """A hook on a matrix is called; a model whose adapter is off, merged or another says what it says without us."""
    from peft import LoraConfig

    model, batch, called = llama_lora(), answer_batch(), []
    source = fused(model)
    layer = next(module for module in model.modules() if is_replaced(module))
    if what == "hooked":
        layer.lora_A["default"].register_forward_hook(lambda *_: called.append(1))
    elif what == "disabled":
        model.base_model.disable_adapter_layers()
    elif what == "merged":
        model.merge_adapter()
    else:
        targets = [name.split(".")[-1] for name in replaced(model)]
        model.add_adapter("second", LoraConfig(target_modules=sorted(set(targets)), r=2, task_type="CAUSAL_LM"))
        model.set_adapter("second")
        randomize_lora(model)
    with torch.no_grad():
        got = answer_loss(model, batch)
        assert bool(called) == (what == "hooked")
        source.detach()
        want = answer_loss(model, batch)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_matrix_whose_forward_somebody_replaced_is_called():
    """As accelerate does to offload it: what it says then counts, in gradients too."""
    model, batch = llama_lora(), answer_batch()
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    usual = layer.lora_A["default"].forward
    layer.lora_A["default"].forward = lambda x: 2 * usual(x)
    want = gradients_of(model, answer_loss, batch)
    assert worst(gradients_of(model, answer_loss, batch, fused(model)), want)[0] <= FP32


def test_a_gradient_can_be_differentiated_again():
    """A penalty of somebody's own on gradients (create_graph) has the terms that it has without us."""
    model, batch = llama_lora(), answer_batch()
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    trained = [p for p in model.parameters() if p.requires_grad]

    def second():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fast one cannot
            first = torch.autograd.grad(answer_loss(model, batch).sum(), trained, create_graph=True)
            return torch.autograd.grad(sum(one.square().sum() for one in first), trained)

    want, source = second(), fused(model)
    for one, other in zip(second(), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    source.detach()


def test_one_vector_goes_through_a_layer():
    model = llama_lora()
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    x = torch.randn(layer.in_features)
    want = layer(x)
    fused(model)
    torch.testing.assert_close(layer(x), want)


def test_two_gradients_can_be_asked_for_afterwards():
    """A notebook's next cell: EDGE on the model that was attached to plainly, without a detach between."""
    model, batch = llama_lora(), answer_batch()
    want = gradients_of(model, answer_loss, batch)
    plain = fused(model)
    source = make_source("single_pass", model, selected_of(model), bias=True)
    assert worst(gradients_of(model, answer_loss, batch, source), want)[0] <= FP32
    source.detach()
    plain.detach()
    assert not replaced(model)
    assert worst(gradients_of(model, answer_loss, batch), want)[0] == 0


def test_layers_that_train_half_or_belong_to_another_keep_their_forward():
    model = llama_lora()
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and ("lora_B" in name or "q_proj" not in name))
    source = fused(model)
    found = replaced(model)
    assert found
    assert not any("q_proj" in name for name in found)
    fused(model).detach()  # a second one finds nothing to take, and takes nothing away
    assert replaced(model) == found
    source.detach()


def test_weights_that_are_sharded_are_left_to_modules():
    model = llama_lora()
    make_source("auto", model, selected_of(model), bias=False, stage=3)
    assert not replaced(model)


def test_a_copy_of_the_model_uses_its_own_weights():
    model, batch = llama_lora(), answer_batch()
    source = fused(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        want = answer_loss(copied, batch)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(answer_loss(copied, batch), want)
    source.detach()


def test_a_family_without_plain_lora_trains_as_before():
    model, batch = family("llama"), answer_batch()
    want = gradients_of(model, answer_loss, batch)
    got = gradients_of(model, answer_loss, batch, fused(model))
    assert all(torch.equal(got[name], want[name]) for name in want)
