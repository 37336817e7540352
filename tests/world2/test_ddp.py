"""DistributedDataParallel over two ranks against one process on the joined batch.

The reference runs on every rank by itself: a hook on a bare model never communicates.
"""

import os

import pytest
import torch
import torch.distributed as dist
from gradient_checks import assert_same, by_samples, mlp_loss, selected_of, text_loss, weights_for
from tables import FORMS
from tiny_models import Mlp, bert, bert_lora, rows, text_batch
from tiny_trainers import Counted, Ordered, Words, collate, examples, logged, trainer_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from debias.engines import NonFiniteGradients, attach
from debias.gradients import make_source
from debias.losses import Classification, CrossEntropy, cross_entropy, gce_weight
from debias.methods import DiGraP, Edge
from debias.projections import SPD
from debias.sharpness import SAM

pytestmark = pytest.mark.skipif(os.environ.get("WORLD_SIZE", "2") != "2", reason="its micro-batches are of two ranks")

WAYS = ["single_pass", "shared_forward", "two_pass"]
STEPS = 4
# Micro-batches of each rank: unequal in a rank and between the ranks. Together: 14 samples.
PARTS = [[(0, 4), (4, 5)], [(5, 8), (8, 14)]]
ALL = [part for parts in PARTS for part in parts]
OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.1, 1e-6), "adamw": (torch.optim.AdamW, 1e-3, 1e-5)}


def mlp_batch(seed, samples=14):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, generator=generator)
    return {"x": x, "labels": torch.randint(0, 3, (samples,), generator=generator)}


class Branches(Mlp):
    """A micro-batch whose first sample has a positive first feature takes `positive`, any other `negative`."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative, self.unused = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(2, 2)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        branch = self.positive if bool(x[0, 0] > 0) else self.negative
        return self.classifier(torch.tanh(self.second(hidden)) + torch.tanh(branch(hidden)))


def branch_batch(seed):
    """The first rank's samples are positive, the second's negative."""
    batch = mlp_batch(seed)
    batch["x"][:, 0] = batch["x"][:, 0].abs()
    batch["x"][5:, 0] *= -1
    return batch


def feed(hook, model, forward, batch, weight_B, parts):
    for start, stop in parts:
        part, w = rows(batch, start, stop), weight_B[start:stop]
        hook.backward(forward(model, part), w, again=lambda p=part, v=w: (forward(model, p), v))


def train(model, forward, make_batch, parts, way, optimizer, rule, lr=None, steps=STEPS, **settings):
    """The hook and its reports after some steps of `parts` of each batch."""
    maker, usual_lr, _ = OPTIMIZERS[optimizer]
    hook = attach(
        model,
        maker([p for p in model.parameters() if p.requires_grad], lr=lr or usual_lr),
        rule,
        way,
        max_grad_norm=1.0,
        **settings,
    )
    reports = []
    for step in range(steps):
        feed(hook, model, forward, make_batch(step), weights_for(14, seed=step), parts)
        reports.append(hook.step())
    return hook, reports


def largest_difference(model, other):
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return max((float((p - q).detach().abs().max()), name) for (name, p), (_, q) in pairs)


def same_on_both_ranks(model):
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    other = flat.clone()
    dist.broadcast(other, src=0)
    return torch.equal(flat, other)


MODELS = {
    "mlp": (Mlp, mlp_loss, mlp_batch),
    "branches": (Branches, mlp_loss, branch_batch),
    "bert lora": (bert_lora, text_loss, lambda seed: text_batch(14, seed=seed)),
    "bert in full": (bert, text_loss, lambda seed: text_batch(14, seed=seed)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mlp", "branches", "bert lora"])
def test_two_ranks_are_one_process(name, way, optimizer, rank):
    build, forward, make_batch = MODELS[name]
    alone, start = build(), build()
    _, want = train(alone, forward, make_batch, ALL, way, optimizer, Edge())
    assert largest_difference(alone, start)[0] > 1e-3
    model = build()
    hook, got = train(DistributedDataParallel(model), forward, make_batch, PARTS[rank], way, optimizer, Edge())
    assert hook.gradients == way
    error, tensor = largest_difference(model, alone)
    assert error <= OPTIMIZERS[optimizer][2], f"{tensor}: {error:.2e}"
    assert same_on_both_ranks(model)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.samples == theirs.samples == 14
        for figure in ("main_norm", "bias_norm", "cosine", "removed_share", "grad_norm"):
            assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=1e-4)
        assert set(ours.cosine_by_layer) == ({"0", "1", "other"} if name == "bert lora" else {"other"})
        for figure in ("cosine_by_layer", "removed_share_by_layer"):
            assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=1e-4, abs=1e-7)
    hook.detach()


@pytest.mark.parametrize("rule", FORMS, ids=repr)
def test_every_rule(rule, rank):
    alone, model = Mlp(), Mlp()
    train(alone, mlp_loss, mlp_batch, ALL, "auto", "sgd", rule)
    train(DistributedDataParallel(model), mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", rule)
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_gradients_taken_elsewhere_than_at_the_weights(way, rank):
    """Each micro-batch of a rank has a way up of its own, as it has where one process cuts a step alike."""
    alone, model, plain = Mlp(), Mlp(), Mlp()
    train(alone, mlp_loss, mlp_batch, ALL, way, "sgd", Edge(), sharpness=SAM(rho=0.3))
    wrapped = DistributedDataParallel(model)
    train(wrapped, mlp_loss, mlp_batch, PARTS[rank], way, "sgd", Edge(), sharpness=SAM(rho=0.3))
    assert largest_difference(model, alone)[0] <= 1e-6
    assert same_on_both_ranks(model)
    train(plain, mlp_loss, mlp_batch, ALL, way, "sgd", Edge())
    assert largest_difference(plain, alone)[0] > 1e-3


def test_weights_are_projected_alike_on_both_ranks(rank):
    """After each step, by the gradient that both have; where they are held has names without what DDP puts before."""
    alone, model, plain = Mlp(), Mlp(), Mlp()
    settings = {"lr": 0.1, "steps": 8}
    one, _ = train(alone, mlp_loss, mlp_batch, ALL, "auto", "adamw", Edge(), weight_projection=SPD(), **settings)
    two, _ = train(
        DistributedDataParallel(model), mlp_loss, mlp_batch, PARTS[rank], "auto", "adamw", Edge(),
        weight_projection=SPD(), **settings,
    )  # fmt: skip
    assert largest_difference(model, alone)[0] <= 1e-4
    assert same_on_both_ranks(model)
    train(plain, mlp_loss, mlp_batch, ALL, "auto", "adamw", Edge(), **settings)
    assert largest_difference(plain, alone)[0] > 1e-2
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_memory_goes_on_from_two_ranks_to_one_and_back(rank):
    """Names are the model's own, without what DDP puts before them; every rank has the whole state."""
    rule = DiGraP(mu=0.3, beta1=0.5, beta2=0.5)
    alone = Mlp()
    one, _ = train(alone, mlp_loss, mlp_batch, ALL, "auto", "sgd", rule, lr=2.0)
    model = Mlp()
    two, _ = train(DistributedDataParallel(model), mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", rule, lr=2.0)
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=2e-6)
    assert max(float(t[1]) for name, t in states[0].items() if name.endswith("/memory")) > 0.1
    results = []
    for part, ranks in ((ALL, 1), (PARTS[rank], 2)):
        other = Mlp()
        other.load_state_dict(model.state_dict())
        wrapped = DistributedDataParallel(other) if ranks == 2 else other
        hook = attach(wrapped, torch.optim.SGD(other.parameters(), lr=2.0), rule, max_grad_norm=1.0)
        hook.load_state_dict(states[1])
        feed(hook, wrapped, mlp_loss, mlp_batch(STEPS), weights_for(14, seed=STEPS), part)
        hook.step()
        assert int(hook.state_dict()["steps"]) == STEPS + 1
        results.append(other)
    assert largest_difference(*results)[0] <= 2e-6
    assert same_on_both_ranks(results[1])


@pytest.mark.parametrize("by", ["sum", "broadcast"])
def test_ranks_that_share_gradients_by_hand_are_noticed(by, rank):
    """PyTorch's `average_gradients` around a hook that knows of one process: main would be summed, and bias not."""
    model = Mlp()
    hook = attach(model, None, Edge())
    feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank])
    versions = [p.grad._version for p in model.parameters()]
    for p in model.parameters():
        dist.all_reduce(p.grad.data) if by == "sum" else dist.broadcast(p.grad.data, src=1)
    assert versions == [p.grad._version for p in model.parameters()]
    if by == "sum" or rank == 0:
        with pytest.raises(RuntimeError, match="a sum or mean over ranks"):
            hook.combine()


def test_full_fine_tuning_through_auto(rank):
    build, forward, make_batch = MODELS["bert in full"]
    alone, model = build(), build()
    # SGD: AdamW makes full-size steps out of the rounding that is the key bias's whole gradient.
    _, _ = train(alone, forward, make_batch, ALL, "auto", "sgd", Edge(), lr=0.02)
    hook, _ = train(DistributedDataParallel(model), forward, make_batch, PARTS[rank], "auto", "sgd", Edge(), lr=0.02)
    assert hook.gradients == "shared_forward"
    assert largest_difference(model, alone)[0] <= 2e-6


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_ddp_does_not_average_main_by_itself(way, view, rank):
    """From the very first backward on: p.grad is this rank's own sum until the hook reduces. DDP decides in forward."""
    model = Mlp()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=view)
    hook = attach(ddp, torch.optim.SGD(model.parameters(), lr=0.0), Edge(), way)
    for step in range(2):
        batch, weight_B = mlp_batch(step), weights_for(14, seed=step)
        own = slice(PARTS[rank][0][0], PARTS[rank][-1][1])
        want = by_samples(Mlp(), mlp_loss, rows(batch, own.start, own.stop), weight_B[own])
        feed(hook, ddp, mlp_loss, batch, weight_B, PARTS[rank])
        main = {name: p.grad.clone() for name, p in model.named_parameters()}
        bias = {name.removeprefix("module."): gradient for name, gradient in hook.source.bias.items()}
        assert_same((main, bias), want)
        hook.step()


def test_leaving_no_sync_does_not_turn_averaging_on(rank):
    """The Trainer's accumulation runs inside `no_sync`, which restores DDP's flag when it ends."""
    alone, model = Mlp(), Mlp()
    train(alone, mlp_loss, mlp_batch, ALL, "auto", "sgd", Edge())
    ddp = DistributedDataParallel(model)
    hook = attach(ddp, torch.optim.SGD(model.parameters(), lr=0.1), Edge(), max_grad_norm=1.0)
    for step in range(STEPS):
        batch, weight_B = mlp_batch(step), weights_for(14, seed=step)
        with ddp.no_sync():
            feed(hook, ddp, mlp_loss, batch, weight_B, PARTS[rank][:1])
        feed(hook, ddp, mlp_loss, batch, weight_B, PARTS[rank][1:])
        hook.step()
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mlp", "bert lora"])
def test_a_model_that_is_wrapped_after_attach(name, way, rank):
    """Both gradients are summed over the ranks from the first step on; detach gives the wrapper back its averaging."""
    build, forward, make_batch = MODELS[name]
    alone, model = build(), build()
    train(alone, forward, make_batch, ALL, way, "sgd", Edge())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hook = attach(model, optimizer, Edge(), way, max_grad_norm=1.0)
    ddp = DistributedDataParallel(model)
    for step in range(STEPS):
        with ddp.no_sync():
            feed(hook, ddp, forward, make_batch(step), weights_for(14, seed=step), PARTS[rank][:1])
        feed(hook, ddp, forward, make_batch(step), weights_for(14, seed=step), PARTS[rank][1:])
        assert hook.step().samples == 14
    error, tensor = largest_difference(model, alone)
    assert error <= 1e-6, f"{tensor}: {error:.2e}"
    assert same_on_both_ranks(model)
    assert all(not saved.startswith("module.") for saved in map(hook._saved_name, hook.selected))
    hook.detach()
    forward(ddp, rows(make_batch(0), *PARTS[rank][0])).mean().backward()
    averaged = next(p.grad for p in model.parameters() if p.requires_grad).clone()
    other = averaged.clone()
    dist.broadcast(other, src=0)
    assert torch.equal(averaged, other)


def test_a_wrapper_that_trains_more_than_the_hook_knows(rank):
    """On every rank, before a gradient is lost."""
    whole = nn.ModuleDict({"core": Mlp(), "beside": nn.Linear(3, 3)})
    whole.forward = lambda x: whole["beside"](whole["core"](x))
    hook = attach(whole["core"], None, Edge())
    ddp = DistributedDataParallel(whole)
    with pytest.raises(
        ValueError, match=r"beside\.weight is trained by only one .* attach to the model that is wrapped"
    ):
        feed(hook, ddp, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank][:1])


@pytest.mark.parametrize("first", ["attach", "prepare"])
def test_accelerate_accumulates_over_two_ranks(first, rank):
    """`hook.step()` in every micro-batch of `accumulate()` is one step of all of them."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    alone, model = Mlp(), Mlp()
    train(alone, mlp_loss, mlp_batch, ALL, "single_pass", "sgd", Edge())
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    options = {"gradients": "single_pass", "max_grad_norm": 1.0}
    hook = attach(model, optimizer, Edge(), **options) if first == "attach" else None
    wrapped = accelerator.prepare_model(model)
    assert isinstance(wrapped, DistributedDataParallel)
    hook = hook or attach(wrapped, optimizer, Edge(), **options)
    for step in range(STEPS):
        for part in PARTS[rank]:
            with accelerator.accumulate(wrapped):
                feed(hook, wrapped, mlp_loss, mlp_batch(step), weights_for(14, seed=step), [part])
                hook.step()
    assert largest_difference(model, alone)[0] <= 1e-6
    assert same_on_both_ranks(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("readout", [Classification(), Counted()], ids=["samples", "tokens"])
@pytest.mark.parametrize("size", [6, 3])
def test_the_trainers_figures_are_those_of_one_process(size, readout, tmp_path, rank):
    """The logged loss among them: steps of 12 samples on two ranks, whole or in two micro-batches a rank."""
    from accelerate.state import AcceleratorState, GradientState

    keys = ("loss", "grad_norm", "main_norm", "bias_norm", "cosine", "removed_share")
    data, model, alone = examples(24), Words(), Words()
    options = {"data": Ordered(data), "more": {"readout": readout}, "ddp_backend": "gloo"}
    trainer = trainer_of(
        tmp_path, model=model, per_device_train_batch_size=size, gradient_accumulation_steps=6 // size, **options
    )
    trainer.train()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05)
    hook = attach(alone, optimizer, Edge())
    for step, figures in enumerate(logged(trainer, *keys)):
        said = readout.said(alone, collate(data[12 * step : 12 * step + 12]))
        hook.backward(-said.log_p_B, gce_weight(said.log_p_B), count=said.count)
        done = hook.step()
        loss = -float(said.log_p_B.detach().sum()) / said.count
        assert figures == pytest.approx([loss, *(getattr(done, key) for key in keys[1:])], rel=1e-4)
    assert largest_difference(model, alone)[0] <= 1e-6
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("gradients", ["single_pass", "two_pass"])
def test_balanced_class_weights_are_those_of_one_process(gradients, tmp_path, rank):
    """Of the whole training set, over the number of samples of the step: of both ranks and all micro-batches."""
    from accelerate.state import AcceleratorState, GradientState

    data, model, alone = examples(24), Words(), Words()
    labels = [row["labels"] for row in data]
    weights = [24 / (3 * labels.count(label)) for label in range(3)]
    assert max(weights) > 1.2 * min(weights)
    more = {"loss": CrossEntropy("balanced"), "facts": {"labels": torch.tensor(labels)}, "gradients": gradients}
    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    trainer = trainer_of(tmp_path, model=model, data=Ordered(data), more=more, **options)
    trainer.train()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05)
    hook = attach(alone, optimizer, Edge())
    for step, (loss,) in enumerate(logged(trainer, "loss")):
        batch = collate(data[12 * step : 12 * step + 12])
        log_p_B = -cross_entropy(alone(batch["input_ids"]).logits, batch["labels"])
        loss_B = -torch.tensor(weights)[batch["labels"]] * log_p_B
        hook.backward(loss_B, gce_weight(log_p_B.detach()))
        assert loss == pytest.approx(float(loss_B.detach().mean()), rel=1e-4)
        hook.step()
    assert largest_difference(model, alone)[0] <= 1e-6
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_branch_of_one_rank_in_another_dtype(dtype, way, rank):
    """The rank without the branch brings zeros of the same dtype as the other rank's gradients."""
    model, alone = Branches().to(dtype), Branches().to(dtype)

    def forward(model, batch):
        return cross_entropy(model(batch["x"].to(dtype)), batch["labels"])

    train(alone, forward, branch_batch, ALL, way, "sgd", Edge(), steps=1)
    train(DistributedDataParallel(model), forward, branch_batch, PARTS[rank], way, "sgd", Edge(), steps=1)
    difference, tensor = largest_difference(model, alone)
    # One step of at most 0.1 (clipped to norm 1): half a percent of it in bfloat16.
    assert difference <= (2e-7 if dtype == torch.float64 else 5e-3), tensor
    assert torch.equal(model.unused.weight, alone.unused.weight)
    assert same_on_both_ranks(model)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_a_non_finite_loss_on_one_rank_skips_the_step_on_both(way, where, rank):
    model = Mlp()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hook = attach(ddp, optimizer, Edge(), way, max_nonfinite_steps=1)
    before = [p.detach().clone() for p in model.parameters()]

    def forward(model, batch):
        loss_B = mlp_loss(model, batch)
        return loss_B * float("nan") if rank == where else loss_B

    for attempt in (1, 2):
        feed(hook, ddp, forward, mlp_batch(0), weights_for(14), PARTS[rank])
        if attempt == 1:
            assert not hook.step().finite
        else:
            with pytest.raises(NonFiniteGradients):
                hook.step()
        assert hook.skipped == attempt
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not optimizer.state
    # And the next one steps again, on both.
    feed(hook, ddp, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank])
    assert hook.step().finite
    assert not torch.equal(model.first.weight, before[0])
    assert same_on_both_ranks(model)


def test_count_is_added_over_the_ranks(rank):
    """A mean over tokens: 3 a sample on one rank, 1 on the other."""
    model, alone = Mlp(), Mlp()
    batch, weight_B = mlp_batch(0), weights_for(14)
    counts = [3, 1]
    hooks = [
        attach(m, torch.optim.SGD(m.parameters(), lr=0.1), Edge()) for m in (alone, DistributedDataParallel(model))
    ]
    for r in (0, 1):
        for start, stop in PARTS[r]:
            part, w = rows(batch, start, stop), weight_B[start:stop]
            hooks[0].backward(mlp_loss(alone, part), w, count=counts[r] * (stop - start))
            if r == rank:
                hooks[1].backward(mlp_loss(hooks[1].model, part), w, count=counts[r] * (stop - start))
    assert [hook.step().samples for hook in hooks] == [3 * 5 + 9] * 2
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("without", ["count 0", "no backward"])
def test_a_rank_without_samples_takes_part(without, rank):
    """All its answers were cut off, or it has no batch left: it adds nothing, and nobody waits for it."""
    model, alone = Mlp(), Mlp()
    batch, weight_B = mlp_batch(0), weights_for(14)
    one = attach(alone, torch.optim.SGD(alone.parameters(), lr=0.1), Edge())
    ddp = DistributedDataParallel(model)
    two = attach(ddp, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    one.backward(mlp_loss(alone, batch), weight_B)
    if rank == 0:
        two.backward(mlp_loss(ddp, batch), weight_B)
    elif without == "count 0":
        two.backward(0.0 * mlp_loss(ddp, batch), weight_B, count=0)
    assert one.step().samples == two.step().samples == 14
    assert largest_difference(model, alone)[0] <= 1e-6
    assert same_on_both_ranks(model)


def test_no_samples_on_any_rank_is_said_on_all(rank):
    hook = attach(DistributedDataParallel(Mlp()), None, Edge())
    with pytest.raises(RuntimeError, match="nothing to divide by"):
        hook.combine()


@pytest.mark.parametrize("way", WAYS)
def test_detach_restores_ddps_own_averaging(way, rank):
    model = Mlp()
    ddp = DistributedDataParallel(model)
    hook, _ = train(ddp, mlp_loss, mlp_batch, PARTS[rank], way, "sgd", Edge(), steps=1)
    hook.detach()
    batch = mlp_batch(9)
    mlp_loss(ddp, rows(batch, 7 * rank, 7 * rank + 7)).mean().backward()
    averaged = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mlp_loss(model, batch).mean().backward()
    for got, p in zip(averaged, model.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("verify", [True, False])
def test_a_silent_weight_on_one_rank_stops_both(rank, verify):
    """One rank reads a weight without calling its layer: both raise, neither waits for the other, nothing is masked."""

    class Silent(Mlp):
        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            used = nn.functional.linear(hidden, self.second.weight) if rank == 1 else self.second(hidden)
            return self.classifier(used)

    model = Silent(bias=False)
    ddp = DistributedDataParallel(model)
    hook = attach(ddp, torch.optim.SGD(model.parameters(), lr=0.1), Edge(), "single_pass", verify=verify)
    feed(hook, ddp, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank])
    with pytest.raises(RuntimeError, match=r"second\.weight got a main gradient and no bias gradient"):
        hook.step()
    dist.barrier()


def test_a_hook_on_the_bare_model_does_not_communicate(rank):
    """What makes the reference above a reference."""
    model = Mlp()
    train(model, mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", Edge(), steps=1)
    assert same_on_both_ranks(model) == (rank == 0)


def test_refusal_sees_through_the_wrapper(rank):
    ddp = DistributedDataParallel(bert_lora())
    source = make_source("single_pass", ddp, selected_of(ddp))
    assert all(name.startswith("module.") for name in source.selected)
    source.detach()
