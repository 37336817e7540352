"""A graph that cannot be run backward twice is found, named, and run once.

The kernels here write into what they saved, past autograd's version counter, as fused ones do from Triton. The oracle
is autograd in float64, sample by sample, on a model of torch's own operations.
"""

import logging

import pytest
import torch
from gradient_checks import FP32, by_samples, mlp_loss, selected_of, weights_for, worst
from tiny_models import Mlp, rows
from torch import nn

from debias.engines import attach
from debias.gradients import MicroBatch, NotExact, make_source
from debias.methods import Edge

torch.set_num_threads(1)

B = 6
KERNELS = ("writes its result", "gives up what it saved", "scales what it saved")


class Gate(torch.autograd.Function):
    """`silu(a) b`."""

    @staticmethod
    def forward(ctx, a, b, kernel):
        ctx.kernel = kernel
        s = torch.sigmoid(a)
        ctx.save_for_backward(s * (1 + a * (1 - s)) * b, a * s)
        return a * s * b

    @staticmethod
    def backward(ctx, delta):
        saved = ctx.saved_tensors
        grads = [delta * slope for slope in saved]
        for slope, grad in zip(saved, grads, strict=True):
            if ctx.kernel == "writes its result":
                slope.data.copy_(grad)
            elif ctx.kernel == "gives up what it saved":
                slope.data.zero_()
            elif ctx.kernel == "scales what it saved":  # nothing happens where the scale is 1
                slope.data.mul_(delta / delta.abs().amax(dim=1, keepdim=True).clamp(min=1e-30).log2().round().exp2())
        return *grads, None


class Gated(Mlp):
    def __init__(self, kernel=None, shared=False):
        super().__init__()
        torch.manual_seed(3)
        self.gate, self.up = nn.Linear(7, 7), nn.Linear(7, 7)
        self.kernel = kernel
        self.norm = nn.MultiheadAttention(7, 1) if shared else None  # which single_pass refuses

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        a, b = self.gate(hidden), self.up(hidden)
        gated = a * torch.sigmoid(a) * b if self.kernel is None else Gate.apply(a, b, self.kernel)
        return self.classifier(hidden + self.second(gated))


def numbers(seed=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(B, 5, generator=generator),
        "labels": torch.randint(0, 3, (B,), generator=generator),
    }


def micro_batch(model, batch, weight_B):
    return MicroBatch(mlp_loss(model, batch), weight_B, again=lambda: (mlp_loss(model, batch), weight_B))


def taken(source, model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, source.bias


@pytest.mark.parametrize("refused", [False, True], ids=["from single_pass", "from shared_forward"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_auto_comes_to_two_pass_and_every_step_is_right(kernel, refused, caplog):
    model, batch, weight_B = Gated(kernel, refused), numbers(), weights_for(B)
    want = by_samples(Gated(), mlp_loss, batch, weight_B)
    source = make_source("auto", model, selected_of(model))
    assert source.name == ("shared_forward" if refused else "single_pass")
    for _ in range(3):
        with caplog.at_level(logging.WARNING, logger="debias"):
            source.backward(micro_batch(model, batch, weight_B))
        for ours, theirs in zip(taken(source, model), want, strict=True):
            assert worst({name: ours[name] for name in theirs}, theirs)[0] <= FP32
        source.reset()
        model.zero_grad(set_to_none=True)
    assert source.name == "two_pass"
    assert caplog.text.count("auto falls back to two_pass; the graph of this model's forward pass cannot be run") == 1


class Recomputed(Gated):
    def __init__(self, kernel, reentrant):
        super().__init__(kernel)
        self.reentrant = reentrant

    def middle(self, hidden):
        return self.second(Gate.apply(self.gate(hidden), self.up(hidden), self.kernel))

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        gated = torch.utils.checkpoint.checkpoint(self.middle, hidden, use_reentrant=self.reentrant)
        return self.classifier(hidden + gated)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", ["auto", "shared_forward"])
def test_checkpointing_makes_it_anew(way, reentrant):
    """So that `use_liger_kernel` may keep such kernels there."""
    model, batch, weight_B = Recomputed(KERNELS[0], reentrant), numbers(), weights_for(B)
    source = make_source(way, model, selected_of(model))
    source.backward(micro_batch(model, batch, weight_B))
    assert source.name == ("single_pass" if way == "auto" else way)
    for ours, theirs in zip(taken(source, model), by_samples(Gated(), mlp_loss, batch, weight_B), strict=True):
        assert worst(ours, theirs)[0] <= FP32


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_asked_for_by_name_it_is_refused_with_its_cure(way, kernel):
    model = Gated(kernel)
    source = make_source(way, model, selected_of(model))
    with pytest.raises(NotExact, match=f"'{way}' .* cannot be run backward twice.*two_pass, or switch that kernel off"):
        source.backward(micro_batch(model, numbers(), weights_for(B)))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("refused", [False, True])
def test_auto_without_a_second_forward_names_it(refused):
    model = Gated(KERNELS[0], refused)
    hook = attach(model, None, Edge())
    with pytest.raises(NotExact, match=r"cannot be run backward twice.*call backward\(\.\.\., again=f\)"):
        hook.backward(mlp_loss(model, numbers()), weights_for(B))


def test_two_micro_batches_add_up_where_the_first_brings_it_to_light():
    model, batch, weight_B = Gated(KERNELS[0]), numbers(), weights_for(B)
    source = make_source("auto", model, selected_of(model))
    for part in ((0, 4), (4, 6)):
        source.backward(micro_batch(model, rows(batch, *part), weight_B[slice(*part)]))
    for ours, theirs in zip(taken(source, model), by_samples(Gated(), mlp_loss, batch, weight_B), strict=True):
        assert worst(ours, theirs)[0] <= FP32


def test_without_the_proof_it_is_garbage():
    """Otherwise the tests above would say nothing about it."""
    for kernel in KERNELS:
        model, batch, weight_B = Gated(kernel), numbers(), weights_for(B)
        source = make_source("shared_forward", model, selected_of(model), verify=False)
        source.backward(micro_batch(model, batch, weight_B))
        assert worst(source.bias, by_samples(Gated(), mlp_loss, batch, weight_B)[1])[0] > 0.05, kernel


class Passes(Gated):
    """Counts backward passes."""

    passes = 0

    def forward(self, x):
        out = super().forward(x)
        out.register_hook(lambda delta: setattr(self, "passes", self.passes + 1))
        return out


def test_shared_forward_is_looked_at_once():
    model = Passes()
    source, counts = make_source("shared_forward", model, selected_of(model)), []
    for seed in range(4):
        before, batch = model.passes, numbers(seed)
        if seed == 0:
            batch["x"][0, 0] = torch.nan  # of which nothing can be told
        source.backward(micro_batch(model, batch, weights_for(B)))
        counts.append(model.passes - before)
    assert counts == [4, 4, 2, 2]
    assert source.name == "shared_forward"
