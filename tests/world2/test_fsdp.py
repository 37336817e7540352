"""FSDP2 over two ranks against one process on the joined batch. The reference runs on every rank by itself."""

import functools
import os

import pytest
import torch
import torch.distributed as dist
from gradient_checks import mlp_loss, text_loss, weights_for
from loops_of_others import assert_trained, in_steps, program_of, runner
from tables import FORMS
from test_ddp import ALL, MODELS, OPTIMIZERS, PARTS, feed, mlp_batch, train
from tiny_models import Mlp, RunsOnce, bert_lora, rows, text_batch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from debias.engines import NonFiniteGradients, attach
from debias.engines.fsdp.shards import fsdp_modules
from debias.gradients import NotExact
from debias.methods import DiGraP, Edge, MainOnly, Subtract

pytestmark = pytest.mark.skipif(os.environ.get("WORLD_SIZE", "2") != "2", reason="its micro-batches are of two ranks")

WAYS = ["single_pass", "shared_forward", "two_pass"]


@functools.cache
def mesh():
    return init_device_mesh("cpu", (2,))


def shard(model, **options):
    """Each transformer layer by itself, then the rest, as FSDP2's own examples do."""
    options = {"mesh": mesh(), **options}
    for module in list(model.modules()):
        if type(module).__name__ == "BertLayer":
            fully_shard(module, **options)
    return fully_shard(model, **options)


def whole(model):
    for module in fsdp_modules(model):
        module.reshard()
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def largest_difference(model, alone):
    got = whole(model)
    return max((float((got[name] - p.detach()).abs().max()), name) for name, p in alone.named_parameters())


@pytest.mark.parametrize(
    ("name", "way", "optimizer"),
    [
        *(("mlp", way, optimizer) for way in WAYS for optimizer in OPTIMIZERS),
        *(("bert lora", way, "sgd") for way in WAYS),
        ("bert lora", "single_pass", "adamw"),
    ],
)
def test_two_ranks_are_one_process(name, way, optimizer, rank):
    build, forward, make_batch = MODELS[name]
    alone, start = build(), build()
    _, want = train(alone, forward, make_batch, ALL, way, optimizer, Edge())
    model = shard(build())
    assert largest_difference(model, start)[0] == 0
    hook, got = train(model, forward, make_batch, PARTS[rank], way, optimizer, Edge())
    assert hook.gradients == way
    assert all(isinstance(p, DTensor) and p.grad is None for p in hook.selected.values())
    error, tensor = largest_difference(model, alone)
    assert error <= OPTIMIZERS[optimizer][2], f"{tensor}: {error:.2e}"
    assert largest_difference(model, start)[0] > 1e-3
    for ours, theirs in zip(got, want, strict=True):
        assert ours.samples == theirs.samples == 14
        for figure in ("main_norm", "bias_norm", "cosine", "removed_share", "grad_norm"):
            assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=1e-4)
        for figure in ("cosine_by_layer", "removed_share_by_layer"):
            assert getattr(ours, figure) == pytest.approx(getattr(theirs, figure), rel=1e-4, abs=1e-7)
    hook.detach()


@pytest.mark.parametrize("rule", FORMS, ids=repr)
def test_every_rule(rule, rank):
    """Seven rows on two ranks: one has four of them, the other three."""
    alone, model = Mlp(), shard(Mlp())
    train(alone, mlp_loss, mlp_batch, ALL, "auto", "sgd", rule)
    train(model, mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", rule)
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("rule", [Edge(), MainOnly()], ids=repr)
def test_full_fine_tuning(rule, rank):
    """Embeddings and norms among it: `auto` keeps no whole gradient of them on a rank."""
    build, forward, make_batch = MODELS["bert in full"]
    alone, model = build(), shard(build())
    train(alone, forward, make_batch, ALL, "auto", "sgd", rule, lr=0.02)
    hook, _ = train(model, forward, make_batch, PARTS[rank], "auto", "sgd", rule, lr=0.02)
    assert hook.gradients == ("shared_forward" if rule.uses_bias else "plain")
    assert largest_difference(model, alone)[0] <= 2e-6


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_a_graph_that_runs_once(way, rank):
    """`shared_forward`: a hook on a parameter, for which single_pass gives way at once."""
    alone, model = RunsOnce(fused=False), shard(RunsOnce())
    if way == "shared_forward":
        model.second.weight.register_hook(lambda gradient: gradient)
    train(alone, mlp_loss, mlp_batch, ALL, "two_pass", "sgd", Edge())
    hook, _ = train(model, mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", Edge())
    assert hook.gradients == "two_pass"
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("by_layers", [False, True])
def test_plain_training_of_an_adapter(by_layers, rank):
    """Layers run as one fused branch, also where each matrix is sharded by itself and has to be called."""
    alone, model = bert_lora(), bert_lora()
    if by_layers:
        for module in [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]:
            fully_shard(module.lora_A["default"], mesh=mesh())
    shard(model)
    make_batch = MODELS["bert lora"][2]
    train(alone, text_loss, make_batch, ALL, "auto", "sgd", MainOnly(), steps=2)
    train(model, text_loss, make_batch, PARTS[rank], "auto", "sgd", MainOnly(), steps=2)
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["checkpointing", "resharded after no forward", "no sync", "sharded by layers"])
def test_however_it_is_sharded(kind, way, rank):
    alone, model = bert_lora(), bert_lora()
    train(alone, text_loss, MODELS["bert lora"][2], ALL, way, "sgd", Edge(), steps=2)
    if kind == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if kind == "sharded by layers":
        for module in [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]:
            fully_shard(module, mesh=mesh())
    shard(model, reshard_after_forward=kind != "resharded after no forward")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hook = attach(model, optimizer, Edge(), way, max_grad_norm=1.0)
    for step in range(2):
        for number, part in enumerate(PARTS[rank]):
            if kind == "no sync":  # as FSDP2 accumulates without communication
                model.set_requires_gradient_sync(number == len(PARTS[rank]) - 1)
            feed(hook, model, text_loss, text_batch(14, seed=step), weights_for(14, seed=step), [part])
        hook.step()
    assert largest_difference(model, alone)[0] <= 1e-6


def test_an_evaluation_before_and_between(rank):
    """The outermost module is left with whole parameters by a forward pass without a backward pass."""
    alone, model = bert_lora(), shard(bert_lora())
    train(alone, text_loss, MODELS["bert lora"][2], ALL, "auto", "sgd", Edge(), steps=2)
    with torch.no_grad():
        text_loss(model, text_batch(4))
    for module in fsdp_modules(model):
        module.reshard()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.no_grad():
        text_loss(model, text_batch(4))
    hook = attach(model, optimizer, Edge(), max_grad_norm=1.0)
    for step in range(2):
        feed(hook, model, text_loss, text_batch(14, seed=step), weights_for(14, seed=step), PARTS[rank])
        hook.step()
        with torch.no_grad():
            text_loss(model, text_batch(4))
    assert largest_difference(model, alone)[0] <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_layers_in_bf16_rows_in_float32(way, rank):
    """FSDP's mixed precision: as near to one process in float32 as bf16 is."""
    alone, model = bert_lora(), shard(bert_lora(), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    train(alone, text_loss, MODELS["bert lora"][2], ALL, way, "sgd", Edge(), steps=1)
    hook, _ = train(model, text_loss, MODELS["bert lora"][2], PARTS[rank], way, "sgd", Edge(), steps=1)
    assert all(p.dtype == torch.float32 for p in hook.selected.values())
    # One step of at most 0.1, clipped to norm 1.
    assert largest_difference(model, alone)[0] <= 5e-3


def test_memory_goes_on_from_two_ranks_to_one_and_back(rank):
    rule = DiGraP(mu=0.3, beta1=0.5, beta2=0.5)
    alone, model = Mlp(), shard(Mlp())
    one, _ = train(alone, mlp_loss, mlp_batch, ALL, "auto", "sgd", rule, lr=2.0)
    two, _ = train(model, mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", rule, lr=2.0)
    states = one.state_dict(), two.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=2e-6)
    weights, results = whole(model), []
    for part, sharded in ((ALL, False), (PARTS[rank], True)):
        other = Mlp()
        other.load_state_dict(weights)
        other = shard(other) if sharded else other
        hook = attach(other, torch.optim.SGD(other.parameters(), lr=2.0), rule, max_grad_norm=1.0)
        hook.load_state_dict(states[1])
        feed(hook, other, mlp_loss, mlp_batch(4), weights_for(14, seed=4), part)
        hook.step()
        assert int(hook.state_dict()["steps"]) == 5
        results.append(other)
    assert largest_difference(results[1], results[0])[0] <= 2e-6


class Sorted(Mlp):
    """The second rank's samples change places on their way."""

    def forward(self, x):
        order = x[:, 0].argsort() if dist.get_rank() == 1 else torch.arange(len(x))
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))[order]))
        return self.classifier(hidden[order.argsort()])


def test_ranks_leave_single_pass_together(rank):
    """What the second rank finds, both act on in the same micro-batch; asked for by name it is an error on both."""
    alone, model = Mlp(), shard(Sorted())
    train(alone, mlp_loss, mlp_batch, ALL, "shared_forward", "sgd", Subtract())
    hook, _ = train(model, mlp_loss, mlp_batch, PARTS[rank], "auto", "sgd", Subtract())
    assert hook.gradients == "shared_forward"
    assert largest_difference(model, alone)[0] <= 1e-6
    with pytest.raises(NotExact, match=r"second\.weight"):
        train(shard(Sorted()), mlp_loss, mlp_batch, PARTS[rank], "single_pass", "sgd", Subtract())
    silent = shard(Sorted())
    train(silent, mlp_loss, mlp_batch, PARTS[rank], "single_pass", "sgd", Subtract(), verify=False)
    assert largest_difference(silent, alone)[0] > 1e-3


class Branches(nn.Module):
    """Each rank goes its own way, through layers of one shape that are sharded by themselves."""

    def __init__(self):
        super().__init__()
        self.ways, self.classifier = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6)]), nn.Linear(6, 3)

    def forward(self, x):
        return self.classifier(torch.tanh(self.ways[dist.get_rank()](x)))


@pytest.mark.parametrize("way", WAYS)
def test_ranks_that_use_different_layers_are_named(way, rank):
    """FSDP2 would add up gradients of different layers and say nothing."""
    model = Branches()
    for layer in model.ways:
        fully_shard(layer)
    fully_shard(model)
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge(), way, verify=False)
    feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank][:1])
    with pytest.raises(RuntimeError, match=r"ways\.0\.weight got a gradient on 1 of 2 ranks.*the same layers"):
        hook.step()
    dist.barrier()


@pytest.mark.parametrize("where", [0, 1])
def test_a_non_finite_loss_on_one_rank_skips_the_step_on_both(where, rank):
    model = shard(Mlp())
    hook = attach(model, torch.optim.AdamW(model.parameters(), lr=1e-2), Edge(), max_nonfinite_steps=1)
    before = whole(model)

    def forward(model, batch):
        return mlp_loss(model, batch) * (float("nan") if rank == where else 1.0)

    feed(hook, model, forward, mlp_batch(0), weights_for(14), PARTS[rank])
    assert not hook.step().finite
    feed(hook, model, forward, mlp_batch(0), weights_for(14), PARTS[rank])
    with pytest.raises(NonFiniteGradients):
        hook.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole(model).items())
    feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank])
    assert hook.step().finite
    assert not torch.equal(whole(model)["first.weight"], before["first.weight"])


def test_what_somebody_else_does_to_the_gradients_is_named(rank):
    model = shard(Mlp())
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank][:1])
    mlp_loss(model, rows(mlp_batch(0), *PARTS[rank][1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of \S+ was changed beside hook\.backward"):
        hook.step()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="step without a backward"):
        hook.step()
    model.classifier.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"classifier\.weight was frozen or unfrozen after"):
        feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank][:1])


def test_detach_leaves_a_model_that_trains_as_ever(rank):
    model, plain = shard(bert_lora()), shard(bert_lora())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    hook = attach(model, optimizer, Edge(), "single_pass")
    feed(hook, model, text_loss, text_batch(14), weights_for(14), PARTS[rank])
    hook.step()
    hook.detach()
    for one in (model, plain):
        text_loss(one, rows(text_batch(14), 7 * rank, 7 * rank + 7)).mean().backward()
    for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad.to_local(), q.grad.to_local()), name


def columns(model):
    model.first = nn.Linear(4, 7)  # FSDP2 shards columns where their number divides
    fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.shape == (7, 4) else None)


def two_dimensions(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicas", "shards")))


def tensor_parallel(model):
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"first": ColwiseParallel()})


def other_mean(model):
    fully_shard(model)
    model.set_gradient_divide_factor(1.0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (columns, r"first\.weight is placed as S.*1.*; only rows \(Shard\(0\)\) are supported"),
        (two_dimensions, r"mesh of 2 dimensions \(HSDP"),
        (tensor_parallel, r"first\.weight is a DTensor of tensor parallelism, which is not supported"),
        (other_mean, "set_gradient_divide_factor was called"),
        (lambda model: fully_shard(model.first), r"second\.weight trains outside of fully_shard.*whole model"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(how, words, rank):
    model = Mlp()
    how(model)
    with pytest.raises(ValueError, match=words):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())


def test_an_optimizer_made_before(rank):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fully_shard(model)
    with pytest.raises(ValueError, match=r"first\.weight is trainable but not in the optimizer.*after fully_shard"):
        attach(model, optimizer, Edge())


def test_sharded_after_attach(rank):
    model = Mlp()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    fully_shard(model)
    with pytest.raises(RuntimeError, match=r"the model was sharded .* attach to the finished model"):
        feed(hook, model, mlp_loss, mlp_batch(0), weights_for(14), PARTS[rank][:1])


def counted(calls, collective, *args, **kwargs):
    calls.append(collective.__name__)
    return collective(*args, **kwargs)


def test_two_more_collectives_than_plain_training(rank, monkeypatch):
    """single_pass: a reduce-scatter of the bias gradients, and a second small all-reduce beside the one of counts."""
    sent = {}
    for hooked in (False, True):
        model = shard(bert_lora())
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        hook = attach(model, optimizer, Edge() if hooked else MainOnly(), verify=False)
        calls = sent[hooked] = []
        for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor"):
            monkeypatch.setattr(dist, name, functools.partial(counted, calls, getattr(dist, name)))
        feed(hook, model, text_loss, text_batch(14), weights_for(14), PARTS[rank])
        hook.step()
        monkeypatch.undo()
    assert sent[True].count("reduce_scatter_tensor") == sent[False].count("reduce_scatter_tensor") + 1
    assert (sent[True].count("all_reduce"), sent[False].count("all_reduce")) == (2, 1)
    assert sent[True].count("all_gather_into_tensor") == sent[False].count("all_gather_into_tensor")


def test_the_program_of_the_page(rank, monkeypatch, tmp_path, capsys):
    """Each rank takes every second batch, so that a step is of four."""
    names, start = runner(monkeypatch, tmp_path, capsys)(program_of("fully_shard"))
    samples = [{"input_ids": ids, "labels": label} for ids, label in names["rows"]]
    assert_trained(names["model"], start, in_steps(samples, 16))
