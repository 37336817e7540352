"""single_pass proves itself on several ranks: what one of them finds, all of them act on; what is right stays so.

The fault is in the samples of the last rank alone: the model sorts them, and those of the other ranks are in order.
"""

import functools

import pytest
import torch
import torch.distributed as dist
from gradient_checks import mlp_loss, text_loss, weights_for
from tiny_models import Mlp, RunsOnce, bert, text_batch, with_lora
from torch.nn.parallel import DistributedDataParallel

from debias.engines import attach
from debias.gradients import NotExact
from debias.methods import Subtract

pytest.importorskip("deepspeed")

from zero_runs import (
    CPU,
    SAMPLES,
    alone,
    assert_same_run,
    ds_config,
    engine_of,
    feed,
    largest_difference,
    optimizer_of,
    parts_of,
    same_on_all_ranks,
    sharded,
    weights_of,
)


class Sorted(Mlp):
    def forward(self, x):
        order = x[:, 0].argsort()
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))[order]))
        return self.classifier(hidden[order.argsort()])


def in_order_but_the_last(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 5, generator=generator)
    last = parts_of(dist.get_world_size() - 1, 1)[0][0]
    x[:, 0] = torch.arange(SAMPLES) / SAMPLES
    x[last:, 0] *= -1
    return {"x": x, "labels": torch.randint(0, 3, (SAMPLES,), generator=generator)}


@functools.cache
def want():
    model = Sorted()
    return alone(model, optimizer_of(model), Subtract(), mlp_loss, in_order_but_the_last, "shared_forward", steps=2)


def over_ranks(model, way, **settings):
    """Two steps in DistributedDataParallel, each rank on its part."""
    hook = attach(DistributedDataParallel(model), optimizer_of(model), Subtract(), way, max_grad_norm=1.0, **settings)
    reports, ways = [], []
    for step in range(2):
        parts = parts_of(dist.get_rank(), 1)
        feed(hook, hook.model, mlp_loss, in_order_but_the_last(step), weights_for(SAMPLES, seed=step), parts)
        ways.append(hook.gradients)
        reports.append(hook.step())
    hook.detach()
    return ({name: p.detach().clone() for name, p in model.named_parameters()}, reports), ways, hook.gradients


def test_ranks_in_ddp_leave_single_pass_together():
    got, ways, way = over_ranks(Sorted(), "auto")
    found_it = dist.get_rank() == dist.get_world_size() - 1
    assert ways == ["shared_forward" if found_it else "single_pass", "shared_forward"]
    assert way == "shared_forward"
    assert_same_run(got, want(), 1e-6)
    silent, _, _ = over_ranks(Sorted(), "single_pass", verify=False)
    assert largest_difference(silent[0], want()[0])[0] > 1e-3


def test_ranks_in_ddp_raise_together():
    """In the step: a rank that raised in its backward pass would leave the others waiting."""
    with pytest.raises(NotExact, match=r"module\.second.* is off by .* from an ordinary backward pass"):
        over_ranks(Sorted(), "single_pass")
    dist.barrier()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_under_deepspeed_leave_single_pass_together(stage):
    model = Sorted()
    with engine_of(model, optimizer_of(model), ds_config(stage)) as engine:
        hook = attach(engine, Subtract())
        feed(hook, engine, mlp_loss, in_order_but_the_last(0), weights_for(SAMPLES), parts_of(dist.get_rank(), 1))
        assert hook.gradients == ("two_pass" if stage == 3 else "shared_forward")
        hook.detach()
        got = sharded(engine, Subtract(), mlp_loss, in_order_but_the_last, steps=2)
    assert_same_run(got, want(), 1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_under_deepspeed_raise_together(stage):
    model = Sorted()
    with engine_of(model, optimizer_of(model), ds_config(stage)) as engine:
        hook = attach(engine, Subtract(), gradients="single_pass")
        with pytest.raises(NotExact, match=r"second.* is off by .* from an ordinary backward pass"):
            feed(hook, engine, mlp_loss, in_order_but_the_last(0), weights_for(SAMPLES), parts_of(dist.get_rank(), 1))
        hook.detach()
        dist.barrier()


@functools.cache
def want_of_a_graph_that_runs_once():
    model = RunsOnce(fused=False)
    return alone(model, optimizer_of(model), Subtract(), mlp_loss, in_order_but_the_last, "two_pass", steps=2)


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_ranks_in_ddp_run_a_graph_once(way):
    """`shared_forward`: a hook on a parameter, for which single_pass gives way at once."""
    model = RunsOnce()
    if way == "shared_forward":
        model.second.weight.register_hook(lambda gradient: gradient)
    got, ways, _ = over_ranks(model, "auto")
    assert ways == ["two_pass", "two_pass"]
    assert_same_run(got, want_of_a_graph_that_runs_once(), 1e-6)


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_under_deepspeed_run_a_graph_once(stage, way):
    model = RunsOnce()
    if way == "shared_forward":
        model.second.weight.register_hook(lambda gradient: gradient)
    with engine_of(model, optimizer_of(model), ds_config(stage)) as engine:
        got = sharded(engine, Subtract(), mlp_loss, in_order_but_the_last, steps=2)
    assert_same_run(got, want_of_a_graph_that_runs_once(), 1e-6)


ENGINES = [
    (0, None, {}, {}),
    (1, False, {"offload_optimizer": CPU}, {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}),
    (3, True, {"offload_param": CPU}, {}),
    (3, False, {}, {"bf16": {"enabled": True}}),
]


@pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: "-".join(map(str, (*kind[:2], *kind[2], *kind[3]))))
def test_the_proof_changes_no_bit(kind):
    """Nine steps, so that there are two looks; accumulation, dropout, both kinds of activation checkpointing."""

    stage, reentrant, zero, blocks = kind

    def run(verify):
        model = with_lora(bert(layers=1, dropout=0.1), dropout=0.1, task_type="SEQ_CLS", target_modules=["query"])
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with engine_of(model, optimizer_of(model), ds_config(stage, 2, zero=zero, **blocks)) as engine:
            hook = attach(engine, Subtract(), gradients="single_pass", verify=verify)
            torch.manual_seed(7 + dist.get_rank())
            for step in range(9):
                parts = parts_of(dist.get_rank(), 2)
                feed(hook, engine, text_loss, text_batch(SAMPLES, seed=step), weights_for(SAMPLES), parts, step=True)
            return weights_of(engine), torch.get_rng_state()

    (proven, state), (plain, other) = run(True), run(False)
    assert torch.equal(state, other)
    assert all(torch.equal(proven[name], plain[name]) for name in plain)
    assert same_on_all_ranks(proven)
