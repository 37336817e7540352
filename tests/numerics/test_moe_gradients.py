"""Mixtures of experts in one pass: against two_pass, and against one backward pass for each sample, in float64."""

import contextlib
import functools
import logging

import pytest
import torch
from gradient_checks import answer_loss, assert_same, by_samples, take, weights_for, worst
from tiny_models import answer_batch, llama4, qwen3_moe, rows, with_lora
from torch.overrides import TorchFunctionMode

from debias.adapters.experts import route_experts
from debias.engines import attach
from debias.gradients import MicroBatch, SinglePass, make_source
from debias.losses import add_router_loss
from debias.methods import MainOnly, Subtract

torch.set_num_threads(1)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
# Family and what LoRA sits on.
CASES = {
    "qwen3_moe, attention": (qwen3_moe, {"target_modules": ATTENTION}),
    "qwen3_moe, attention and experts": (
        qwen3_moe,
        {"target_modules": ATTENTION, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    "qwen3_moe, one matrix of the experts": (
        qwen3_moe,
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]},
    ),
    "llama4, attention": (llama4, {"target_modules": ATTENTION}),
    "llama4, attention and shared expert": (llama4, {"target_modules": DENSE}),
    "llama4, one chunk": (functools.partial(llama4, attention_chunk_size=64), {"target_modules": DENSE}),
    "llama4, everything": (
        llama4,
        {
            "target_modules": DENSE,
            "target_parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
        },
    ),
}


def build(name, dtype=torch.float64, checkpointing=None):
    make, settings = CASES[name]
    model = make()
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # torch's grouped products know no float64
    model = with_lora(model, task_type="CAUSAL_LM", **settings).to(dtype)
    route_experts(model)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    return model


class AllFloat64(TorchFunctionMode):
    """Norms, softmax, losses and sums that go to float32 whatever they are given go to float64 instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def precision(dtype):
    """A context and what is asked of gradients in it."""
    return (AllFloat64(), 1e-10) if dtype == torch.float64 else (contextlib.nullcontext(), 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_against_one_backward_pass_for_each_sample(name):
    model, batch, weight_B = build(name), answer_batch(), weights_for(5).double()
    with AllFloat64():
        want = by_samples(model, answer_loss, batch, weight_B)
        assert_same(take("single_pass", model, answer_loss, [batch], [weight_B]), want, 1e-10)


# What checkpointing recomputes runs in the backward pass, where no mode reaches: in float32.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "checkpointing"),
    [(torch.float64, None), (torch.float32, None), (torch.float32, True), (torch.float32, False)],
)
@pytest.mark.parametrize("name", CASES)
def test_two_micro_batches_against_two_pass(name, checkpointing, dtype):
    batch, weight_B = answer_batch(), weights_for(5).to(dtype)
    parts, weights = [rows(batch, 0, 2), rows(batch, 2, 5)], [weight_B[:2], weight_B[2:]]
    context, tolerance = precision(dtype)
    with context:
        want = take("two_pass", build(name, dtype), answer_loss, parts, weights)
        got = take("single_pass", build(name, dtype, checkpointing), answer_loss, parts, weights)
    assert_same(got, want, tolerance)


def test_auto_takes_one_pass():
    for name in CASES:
        model = build(name)
        selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
        source = make_source("auto", model, selected)
        assert isinstance(source, SinglePass), name
        source.detach()
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_weight_on_the_wrong_token_is_seen():
    model, batch, weight_B = build("llama4, attention and shared expert", torch.float32), answer_batch(), weights_for(5)
    want = take("two_pass", model, answer_loss, [batch], [weight_B])
    got = take("single_pass", model, answer_loss, [batch], [weight_B.roll(1)])
    shared = {name for name in want[1] if "shared_expert" in name}
    assert len(shared) == 6
    assert all(worst({n: got[1][n]}, {n: want[1][n]})[0] > 1e-2 for n in shared)


def packed(batch):
    """The samples of a batch in one row, without padding, and -1 at two tokens of padding at its end."""
    real = batch["attention_mask"].bool()
    lengths = real.sum(dim=1)
    end = torch.zeros(2, dtype=torch.long)
    sample = torch.arange(len(lengths)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    answers = torch.cat([batch["answer_mask"][real], end.bool()])
    return {
        "input_ids": torch.cat([batch["input_ids"][real], end]).unsqueeze(0),
        "position_ids": torch.cat([positions, end]).unsqueeze(0),
        "sample_index": torch.cat([sample, end - 1]).unsqueeze(0),
        "answer_mask": answers.unsqueeze(0),
    }


def packed_loss(model, batch):
    """Each sample's summed loss, by its own definition: the log-probability of each answer token, gathered."""
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    log_p_TV = torch.log_softmax(model(**inputs, use_cache=False).logits[0], dim=-1)
    where = batch["answer_mask"][0].nonzero().squeeze(1)
    losses = -log_p_TV[where - 1, batch["input_ids"][0, where]]
    return torch.stack([losses[batch["sample_index"][0, where] == i].sum() for i in range(5)])


@pytest.mark.parametrize("name", ["qwen3_moe, attention", "qwen3_moe, attention and experts", "llama4, one chunk"])
def test_packed_samples_against_one_backward_pass_for_each(name):
    model, batch, weight_B = build(name), answer_batch(), weights_for(5).double()
    row = packed(batch)
    selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    source = make_source("single_pass", model, selected)
    with AllFloat64():
        source.backward(MicroBatch(packed_loss(model, row), weight_B, sample_index=row["sample_index"]))
    got = {n: p.grad for n, p in selected.items()}, dict(source.bias)
    source.detach()
    with AllFloat64():
        assert_same(got, by_samples(model, answer_loss, batch, weight_B), 1e-10)


@pytest.mark.parametrize("name", ["qwen3_moe, attention and experts", "llama4, everything"])
def test_bf16_weights(name):
    """Ranks that torch's grouped product takes; both ways round, and a weight on the wrong sample is far off."""
    make, settings = CASES[name]
    model = with_lora(make().bfloat16(), task_type="CAUSAL_LM", **settings, r=8)
    route_experts(model)
    batch, weight_B = answer_batch(), weights_for(5)
    want = take("two_pass", model, answer_loss, [batch], [weight_B])
    assert_same(take("single_pass", model, answer_loss, [batch], [weight_B]), want, 0.06)
    wrong = take("single_pass", model, answer_loss, [batch], [weight_B.roll(1)])
    assert worst(wrong[1], want[1])[0] > 0.2


# --- the routers' load balancing loss, which is of the batch


COEFFICIENT = 0.3


def balancing_oracle(logits_of_layers, mask_BT, experts=4, chosen=2):
    """Switch Transformer's loss by its own words: experts * sum over them of share of tokens * mean probability."""
    shares, means = torch.zeros(experts).double(), torch.zeros(experts).double()
    tokens = 0
    for logits_NE in logits_of_layers:
        for row_E, real in zip(logits_NE.double(), mask_BT.flatten().tolist(), strict=True):
            if real:
                p_E = torch.exp(row_E) / torch.exp(row_E).sum()
                means = means + p_E
                for e in p_E.detach().argsort(descending=True)[:chosen].tolist():
                    shares[e] += 1
                tokens += 1
    return experts * (shares / tokens * means / tokens).sum()


def with_balance(model, batch, coefficient=COEFFICIENT):
    """(loss_B, the balancing loss by the oracle) of one forward pass."""
    seen = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        for module in model.modules()
        if type(module).__name__ == "Qwen3MoeTopKRouter"
    ]
    loss_B = answer_loss(model, batch)
    for handle in handles:
        handle.remove()
    return loss_B, coefficient * balancing_oracle(seen, batch["attention_mask"])


@pytest.mark.parametrize("checkpointing", [None, False])
@pytest.mark.parametrize("way", ["auto", "shared_forward", "two_pass"])
def test_the_balancing_loss_goes_into_main_alone(way, checkpointing, caplog):
    name = "qwen3_moe, attention and experts"
    batch, weight_B = answer_batch(), weights_for(5)
    plain = build(name, torch.float32)
    _, want_bias = take("two_pass", plain, answer_loss, [batch], [weight_B])
    loss_B, balance = with_balance(plain, batch)
    (loss_B.sum() + 5 * balance).backward()
    want_main = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}

    model = build(name, torch.float32, checkpointing)
    router = add_router_loss(model, COEFFICIENT)
    selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(list(selected.values()), lr=0.0)
    with caplog.at_level(logging.WARNING, logger="debias"):
        hook = attach(model, optimizer, Subtract(), way)
    loss_B = answer_loss(model, batch)
    hook.backward(loss_B, weight_B, again=lambda: (answer_loss(model, batch), weight_B), batch_loss=router.take())
    got = {n: p.grad.clone() for n, p in selected.items()}, dict(hook.source.bias)
    assert_same(got, (want_main, want_bias))
    if way == "auto":
        assert hook.gradients == "shared_forward"
        assert "router_aux_loss_coef" in caplog.text
    hook.detach()
    # It is large enough to be seen in main, and adapters below the routers get it.
    without, _ = take("two_pass", plain, answer_loss, [batch], [weight_B])
    assert worst(without, want_main)[0] > 1e-3


def test_the_balancing_loss_of_unequal_micro_batches_counts_by_samples():
    name = "qwen3_moe, attention"
    model, batch, weight_B = build(name, torch.float32), answer_batch(), weights_for(5)
    router = add_router_loss(model, COEFFICIENT)
    selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hook = attach(model, torch.optim.SGD(list(selected.values()), lr=0.0), MainOnly())
    for part in ((0, 2), (2, 5)):
        loss_B = answer_loss(model, rows(batch, *part))
        hook.backward(loss_B, weight_B[slice(*part)], batch_loss=router.take())
    hook.combine()
    got = {n: p.grad.clone() for n, p in selected.items()}
    hook.detach()
    plain = build(name, torch.float32)
    for part in ((0, 2), (2, 5)):
        loss_B, balance = with_balance(plain, rows(batch, *part))
        ((loss_B.sum() + len(loss_B) * balance) / 5).backward()
    want = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert worst(got, want)[0] <= 1e-5


def test_a_balancing_loss_that_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"router_aux_loss_coef is 0\.1, but this model computes no load balancing"):
        add_router_loss(build("llama4, attention", torch.float32), 0.1)
    model = build("qwen3_moe, attention", torch.float32)
    router = add_router_loss(model, 0.1)
    with pytest.raises(RuntimeError, match="gave no load balancing loss"):
        router.take()
    batch = answer_batch()
    model.eval()
    answer_loss(model, batch)
    with pytest.raises(RuntimeError, match="gave no load balancing loss"):
        router.take()
    model.train()
    selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="not exact here: the load balancing loss of the routers"):
        make_source("single_pass", model, selected)
    plain = build("qwen3_moe, attention", torch.float32)
    source = make_source("single_pass", plain, {n: p for n, p in plain.named_parameters() if p.requires_grad})
    with pytest.raises(ValueError, match="cannot keep a loss of the whole batch"):
        source.backward(MicroBatch(answer_loss(plain, batch), weights_for(5), batch_loss=torch.tensor(1.0)))
    reentrant = build("qwen3_moe, attention", torch.float32, True)
    router = add_router_loss(reentrant, 0.1)
    answer_loss(reentrant, batch)
    with pytest.raises(RuntimeError, match="reentrant"):
        router.take()


def test_experts_without_a_token_and_one_token():
    """One short sample among sixteen experts: most get nothing; their parts of both gradients are zero."""
    make = functools.partial(qwen3_moe, num_experts=16)
    settings = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    model = with_lora(make(), task_type="CAUSAL_LM", **settings)
    route_experts(model)
    batch = {key: value[:1, -4:] for key, value in answer_batch().items() if key != "labels"}
    weight_B = torch.tensor([0.3])
    got = take("single_pass", model, answer_loss, [batch], [weight_B])
    assert_same(got, take("two_pass", model, answer_loss, [batch], [weight_B]))
    first = next(gradient for name, gradient in got[1].items() if "lora_A" in name)
    empty = first.unflatten(0, (16, -1)).abs().sum(dim=(1, 2)) == 0
    assert 1 <= int(empty.sum()) < 16
    peft = with_lora(make(), task_type="CAUSAL_LM", **settings)
    assert_same(got, take("two_pass", peft, answer_loss, [batch], [weight_B]))
