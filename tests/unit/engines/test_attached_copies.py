"""A model with a hook, copied (EMA, the best of a run) or saved whole: what comes of it is a model of its own."""

import copy
import io

import pytest
import torch
from gradient_checks import selected_of
from tiny_models import Mlp, bert_lora, llama_lora, qwen3_moe, with_lora

from debias import attach
from debias.gradients.layers import takes_two_gradients
from debias.methods import DiGraP, Edge, MainOnly
from debias.sharpness import SAM

torch.set_num_threads(1)


def experts():
    from debias.adapters.experts import route_experts

    model = with_lora(
        qwen3_moe(vocab_size=61), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    route_experts(model)
    return model


MODELS = {"linear": Mlp, "bert": bert_lora, "llama": llama_lora, "experts": experts}
WAYS = {
    "single_pass": (Edge(), "auto", {}),
    "shared_forward": (Edge(), "shared_forward", {}),
    "a rule that remembers": (DiGraP(), "auto", {}),
    "plain": (MainOnly(), "auto", {}),
    "sharpness": (Edge(), "auto", {"sharpness": SAM()}),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def inputs_of(model):
    draw = torch.Generator().manual_seed(4)
    if isinstance(model, Mlp):
        return {"x": torch.randn(4, 5, generator=draw)}
    return {"input_ids": torch.randint(1, 61, (4, 6), generator=draw)}


def answers(model):
    said = model(**inputs_of(model))
    said = getattr(said, "logits", said)
    return said if said.ndim == 2 else said[:, -1]


def a_step(model, hook):
    def forward():
        loss_B = torch.logsumexp(answers(model), dim=1) - answers(model)[:, 1]
        return loss_B, torch.exp(-loss_B.detach())

    hook.backward(*forward(), again=forward)
    return hook.step()


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("of", [copy.deepcopy, saved], ids=["copy", "file"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", MODELS)
def test_a_copy_of_an_attached_model_can_be_attached_to(build, way, of):
    """It says what the model says, trains as a model that nobody attached to, and leaves the first one alone."""
    rule, gradients, more = WAYS[way]
    model, plain = MODELS[build](), MODELS[build]()
    hook = attach(model, sgd(model), rule, gradients, **more)
    twin = of(model)
    torch.testing.assert_close(answers(twin), answers(model))
    before = weights(model)
    hooks = [attach(one, sgd(one), rule, gradients, **more) for one in (twin, plain)]
    assert hooks[0].gradients == hooks[1].gradients == hook.gradients
    for one, its in zip((twin, plain), hooks, strict=True):
        a_step(one, its)
    torch.testing.assert_close(weights(twin), weights(plain))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    a_step(model, hook)
    torch.testing.assert_close(weights(model), weights(plain))
    hooks[0].detach()
    assert not any(takes_two_gradients(module) for module in twin.modules())


def test_what_a_copy_is_made_of_is_the_model_alone():
    """Neither the optimizer nor the hook's gradients go along: a copy of a large model is large enough."""
    model = llama_lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hook = attach(model, optimizer, Edge())
    a_step(model, hook)
    loss_B = torch.logsumexp(answers(model), dim=1)
    hook.backward(loss_B, torch.exp(-loss_B.detach()))
    assert hook.source.bias
    model.zero_grad()
    copied = {}
    copy.deepcopy(model, copied)
    kinds = {type(one).__name__ for one in copied.values()}
    assert not kinds & {"TorchHook", "AdamW", "Verified"}


def test_a_copy_without_a_hook_trains_by_itself():
    model = bert_lora()
    attach(model, sgd(model), Edge())
    twin, plain = copy.deepcopy(model), bert_lora()
    for one in (twin, plain):
        torch.logsumexp(answers(one), dim=1).sum().backward()
    ours, theirs = ({name: p.grad for name, p in selected_of(one).items()} for one in (twin, plain))
    torch.testing.assert_close(ours, theirs)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_is_attached_to_is_still_no_copy():
    model = bert_lora()
    hook = attach(model, sgd(model), Edge())
    with pytest.raises(ValueError, match="a hook is attached to"):
        attach(model, sgd(model), Edge(), "single_pass")
    copy.deepcopy(model)
    assert a_step(model, hook).finite
