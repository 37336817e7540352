"""What follows a rule in each step, over ranks that have pieces of weights or gradients: as in one process.

Projections of weights, masks of elements, and both, on DeepSpeed's engines and FSDP2's rows.
"""

import functools
import itertools
import os

import pytest
import torch
import torch.distributed as dist
from gradient_checks import mlp_loss, weights_for
from test_zero import (
    BF16,
    FP32_ENGINES,
    FP32_SUMS,
    Odd,
    assert_same_state,
    linear_only,
    numbers,
    odd_engine,
    of_engine,
)
from zero_runs import (
    SAMPLES,
    alone,
    assert_same_run,
    ds_config,
    engine_of,
    feed,
    largest_difference,
    parts_of,
    same_on_all_ranks,
    weights_of,
)

from debias.engines import attach
from debias.engines.zero.state import whole_weights
from debias.masks import GMT, SAFT, count_of
from debias.methods import DiGraP, Edge
from debias.projections import SPD

STEPS = 5
FOLLOWERS = {
    "spd": {"weight_projection": SPD()},
    "spd-zero": {"weight_projection": SPD(strength=0.5, towards="zero")},
    "saft": {"gradient_mask": SAFT(share=0.3)},
    "saft-sums": {"gradient_mask": SAFT(share=0.3, steps=2, scope="tensor")},
    "gmt": {"gradient_mask": GMT(share=0.4)},
    "gmt-model": {"gradient_mask": GMT(share=0.2, scope="model", hold=True)},
    "both": {"gradient_mask": SAFT(share=0.5, steps=2), "weight_projection": SPD()},
}


def adam(model, lr=0.05):
    """Vectors first and in reverse, then matrices at another rate."""
    parameters = list(model.parameters())[::-1]
    vectors = {"params": [p for p in parameters if p.dim() == 1], "lr": lr / 2}
    matrices = {"params": [p for p in parameters if p.dim() > 1], "lr": lr}
    return torch.optim.AdamW([vectors, matrices], weight_decay=0.1)


def steps_of(hook, engine, steps, accumulate):
    parts, reports = parts_of(dist.get_rank(), accumulate), []
    for step in steps:
        feed(hook, engine, mlp_loss, numbers(step), weights_for(SAMPLES, seed=step), parts, step=True)
        reports.append(hook.last)
    return reports


@functools.cache
def one_process(name, steps=STEPS):
    model = Odd()
    settings = FOLLOWERS.get(name, {})
    return alone(model, adam(model), Edge(), mlp_loss, numbers, steps=steps, select=linear_only, **settings)


# Each engine with three of the seven, by turns, so that each of these has three engines.
NAMES = list(FOLLOWERS)
KINDS = [(kind, NAMES[(number + more) % len(NAMES)]) for number, kind in enumerate(FP32_ENGINES) for more in (0, 1, 3)]


@pytest.mark.parametrize(("kind", "name"), KINDS, ids=lambda v: v if isinstance(v, str) else of_engine(v))
def test_on_an_engine_as_in_one_process(kind, name):
    stage, blocks, zero = kind
    with odd_engine(ds_config(stage, 2, zero=zero, **blocks), adam) as engine:
        hook = attach(engine, Edge(), select=linear_only, **FOLLOWERS[name])
        reports = steps_of(hook, engine, range(STEPS), 2)
        got = weights_of(engine), reports
        counted = hook.measured, hook.skipped, engine.global_steps, engine.skipped_steps
        hook.detach()
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        assert not inner._optimizer_step_pre_hooks
        assert "step" not in vars(inner) or stage == 0
    want = one_process(name)
    assert_same_run(got, want, 2e-6)
    measures = FOLLOWERS[name]["gradient_mask"].measures if "gradient_mask" in FOLLOWERS[name] else 0
    assert counted == (measures, 0, STEPS, 0)
    assert [one.measured for one in reports] == [step < measures for step in range(STEPS)]


def test_what_follows_matters_here():
    """Or the tests above would show nothing."""
    plain = one_process("nothing")[0]
    for name in NAMES:
        assert largest_difference(one_process(name)[0], plain)[0] > 1e-3, name


# Where each goes on: another stage, another number of micro-batches, and one process.
GOES_ON = [(0, 3), (1, 2), (2, 1), (3, 0)]


@pytest.mark.parametrize(("before", "after"), GOES_ON)
def test_it_goes_on_at_another_stage(before, after):
    """Where weights are held, and what was chosen, are saved whole: at every stage as in one process."""
    rule = DiGraP(mu=0.3, beta1=0.5, beta2=0.5)
    settings = {"gradient_mask": SAFT(share=0.4, steps=2), "weight_projection": SPD()}

    def sgd(model):  # with nothing of its own to go on from
        return torch.optim.SGD(model.parameters(), lr=0.2)

    states = []
    for cut in (1, 3):  # in the middle of what is measured, and after it
        with odd_engine(ds_config(before, 2), sgd) as engine:
            hook = attach(engine, rule, select=linear_only, **settings)
            steps_of(hook, engine, range(cut), 2)
            saved, weights = hook.state_dict(), weights_of(engine)
        model = Odd()
        model.load_state_dict(weights)
        reference = Odd()
        one = attach(reference, sgd(reference), rule, select=linear_only, max_grad_norm=1.0, **settings)
        for step in range(5):
            if step == cut:
                assert_same_state(saved, one.state_dict(), 1e-6)
            feed(one, reference, mlp_loss, numbers(step), weights_for(SAMPLES, seed=step), [(0, SAMPLES)])
            one.step()
        with engine_of(model, sgd(model), ds_config(after)) as engine:
            hook = attach(engine, rule, select=linear_only, **settings)
            hook.load_state_dict(saved)
            steps_of(hook, engine, range(cut, 5), 1)
            assert hook.measured == 2
            error, name = largest_difference(
                weights_of(engine), {name: p.detach() for name, p in reference.named_parameters()}
            )
            assert error <= 2e-6, f"{name}: {error:.2e}"
            states.append(hook.state_dict())
        assert_same_state(states[-1], one.state_dict(), 2e-6)


BF16_ENGINES = [
    (0, BF16, {}),
    *((stage, BF16 | sums, {}) for stage in (1, 2, 3) for sums in ({}, FP32_SUMS)),
]


@pytest.mark.parametrize("kind", BF16_ENGINES, ids=of_engine)
def test_float32_weights_beside_a_model_in_bfloat16(kind):
    """Exactly the share moves, all else stays to the bit; a tensor that is led back stays on the sphere it was on."""
    stage, blocks, zero = kind
    share = 0.3

    def loss(model, batch):
        return mlp_loss(model, {**batch, "x": batch["x"].bfloat16()})

    def step(hook, engine, number):
        parts = parts_of(dist.get_rank(), 2)
        feed(hook, engine, loss, numbers(number), weights_for(SAMPLES, seed=number), parts, step=True)

    with odd_engine(ds_config(stage, 2, zero=zero, **blocks), adam) as engine:
        start = whole_weights(engine)
        hook = attach(engine, Edge(), select=linear_only, gradient_mask=SAFT(share=share))
        step(hook, engine, 0)
        assert largest_difference(whole_weights(engine), start)[0] == 0
        step(hook, engine, 1)
        moved = {name: p != start[name] for name, p in whole_weights(engine).items()}
        chosen = count_of(share, sum(p.numel() for p in start.values()))
        assert 0.9 * chosen <= sum(int(one.sum()) for one in moved.values()) <= chosen
        hook.detach()
        hook = attach(engine, Edge(), select=linear_only, weight_projection=SPD())
        began = whole_weights(engine)
        known = [began]
        for number in range(2, 8):
            step(hook, engine, number)
            known.append(whole_weights(engine))
        assert same_on_all_ranks(known[-1])
        lengths = {name: [float((one[name] - began[name]).norm()) for one in known] for name in began}
        still = [a == pytest.approx(b, rel=1e-4) for one in lengths.values() for a, b in itertools.pairwise(one[1:])]
        assert 3 <= sum(still) < len(still)


class Rebinding(torch.optim.SGD):
    """As some optimizers do: what is stepped on has other memory after each step."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.data = p.data - 0.1 * p.grad


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_optimizer_that_gives_weights_other_memory(stage):
    with odd_engine(ds_config(stage, 2), lambda model: Rebinding(model.parameters(), lr=0.1)) as engine:
        start = weights_of(engine)
        steps_of(attach(engine, Edge(), select=linear_only, gradient_mask=SAFT(share=0.1)), engine, range(2), 2)
        moved = sum(int((p != start[name]).sum()) for name, p in weights_of(engine).items())
        assert 0 < moved <= count_of(0.1, sum(p.numel() for p in start.values()))


def test_a_part_of_the_offloaded_state_is_refused():
    with odd_engine(ds_config(3, zero={"offload_optimizer": {"device": "cpu"}}), adam) as engine:
        engine.optimizer.backup_optimizer = object()
        with pytest.raises(ValueError, match=r"spd follows one optimizer, and offload_optimizer\.ratio below 1 makes"):
            attach(engine, Edge(), select=linear_only, weight_projection=SPD())
        del engine.optimizer.backup_optimizer


@pytest.mark.skipif(os.environ.get("WORLD_SIZE", "2") != "2", reason="its micro-batches are of two ranks")
@pytest.mark.parametrize("name", NAMES)
def test_on_rows_as_in_one_process(name, rank):
    from test_ddp import ALL, PARTS, mlp_batch
    from test_ddp import feed as feed_rows
    from test_fsdp import largest_difference as rows_differ
    from test_fsdp import shard
    from tiny_models import Mlp

    settings = FOLLOWERS[name]

    def run(model, parts):
        hook = attach(model, adam(model), Edge(), max_grad_norm=1.0, **settings)
        reports = []
        for step in range(STEPS):
            feed_rows(hook, model, mlp_loss, mlp_batch(step), weights_for(14, seed=step), parts)
            reports.append(hook.step())
        return hook.state_dict(), reports

    one, model = Mlp(), shard(Mlp())
    want, its = run(one, ALL)
    got, ours = run(model, PARTS[rank])
    assert rows_differ(model, one)[0] <= 2e-6
    assert_same_state(got, want, 2e-6)
    for mine, other in zip(ours, its, strict=True):
        assert mine.measured == other.measured
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    again = shard(Mlp())
    hook = attach(again, adam(again), Edge(), **settings)
    hook.load_state_dict(got)
    assert_same_state(hook.state_dict(), got, 0.0)
