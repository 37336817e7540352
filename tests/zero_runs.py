"""Training steps on a DeepSpeed engine, and the same steps in one process, for the tests of the ZeRO hook."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from gradient_checks import weights_for
from tiny_models import rows
from torch import Tensor, nn

from debias.engines import StepReport, attach
from debias.methods import Rule

# Its build takes two minutes, and gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)

STEPS = 3
SAMPLES = 16
OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.1), "adamw": (torch.optim.AdamW, 1e-3)}
# Else a tiny model is hardly sharded: its parameters stay gathered.
SHARD_ALL = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}
CPU = {"device": "cpu"}


def ds_config(stage: int, accumulate: int = 1, *, clip: float = 1.0, zero: Any = None, **blocks: Any) -> dict[str, Any]:
    """The configuration of an engine that shards whatever it can; `zero` adds to its `zero_optimization` block."""
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 500,
            **(SHARD_ALL if stage == 3 else {}),
            **(zero or {}),
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        **blocks,
    }


def optimizer_of(model: nn.Module, name: str = "sgd", lr: float | None = None) -> torch.optim.Optimizer:
    maker, usual = OPTIMIZERS[name]
    return maker([p for p in model.parameters() if p.requires_grad], lr=lr or usual)


@contextmanager
def engine_of(model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]) -> Iterator[Any]:
    deepspeed.init_distributed("gloo", dist_init_required=False, verbose=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(config))
    try:
        yield engine
    finally:
        engine.destroy()


def parts_of(rank: int, accumulate: int, samples: int = SAMPLES) -> list[tuple[int, int]]:
    """The micro-batches of a rank: unequal in a rank and between the ranks, together all the samples."""
    number = dist.get_world_size() * accumulate
    cuts = [round(samples * (i / number) ** 1.3) for i in range(number + 1)]
    return list(itertools.pairwise(cuts))[rank * accumulate : (rank + 1) * accumulate]


def feed(
    hook: Any,
    model: Any,
    forward: Any,
    batch: Any,
    weight_B: Tensor,
    parts: Any,
    *,
    step: bool = False,
    second: Any = None,
) -> None:
    """Micro-batches, each followed by the engine's step if it is one; `second` is two_pass's other forward."""
    other = second or forward
    for start, stop in parts:
        part, w = rows(batch, start, stop), weight_B[start:stop]
        hook.backward(forward(model, part), w, again=lambda p=part, v=w: (other(model, p), v))
        if step:
            hook.engine.step()


Weights = dict[str, Tensor]
Outcome = tuple[Weights, list[StepReport]]


def alone(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rule: Rule,
    forward: Callable[[Any, Any], Tensor],
    make_batch: Callable[[int], Any],
    way: str = "auto",
    *,
    steps: int = STEPS,
    clip: float = 1.0,
    second: Any = None,
    **settings: Any,
) -> Outcome:
    """Every rank by itself, on the whole batch."""
    hook = attach(model, optimizer, rule, way, max_grad_norm=clip, **settings)
    reports = []
    for step in range(steps):
        feed(hook, model, forward, make_batch(step), weights_for(SAMPLES, seed=step), [(0, SAMPLES)], second=second)
        reports.append(hook.step())
    hook.detach()
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, reports


def sharded(
    engine: Any,
    rule: Rule,
    forward: Callable[[Any, Any], Tensor],
    make_batch: Callable[[int], Any],
    way: str = "auto",
    *,
    steps: int = STEPS,
    second: Any = None,
    **settings: Any,
) -> Outcome:
    """The ranks together, each on its micro-batches."""
    hook = attach(engine, rule, gradients=way, **settings)
    reports = []
    parts = parts_of(dist.get_rank(), engine.gradient_accumulation_steps())
    for step in range(steps):
        feed(hook, engine, forward, make_batch(step), weights_for(SAMPLES, seed=step), parts, step=True, second=second)
        reports.append(hook.last)
    hook.detach()
    return weights_of(engine), reports


def weights_of(engine: Any) -> Weights:
    """The trainable parameters, whole, on every rank."""
    found = {}
    for name, p in engine.module.named_parameters():
        if p.requires_grad:
            with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                found[name] = p.detach().clone()
    return found


def largest_difference(got: Weights, want: Weights) -> tuple[float, str]:
    assert got.keys() == want.keys()
    return max(
        (float((got[name].double() - want[name].double()).abs().max()), name) for name in want if want[name].numel()
    )


def assert_same_run(got: Outcome, want: Outcome, tolerance: float) -> None:
    """The same weights, the same figures, and that on every rank."""
    error, name = largest_difference(got[0], want[0])
    assert error <= tolerance, f"{name}: {error:.2e}"
    assert same_on_all_ranks(got[0])
    for ours, theirs in zip(got[1], want[1], strict=True):
        assert ours.samples == theirs.samples
        for figure in ("main_norm", "bias_norm", "cosine", "removed_share", "grad_norm"):
            mine, its = getattr(ours, figure), getattr(theirs, figure)
            assert abs(mine - its) <= 1e-4 * abs(its) + 1e-7, f"{figure}: {mine} instead of {its}"
        for figure in ("cosine_by_layer", "removed_share_by_layer"):
            mine, its = getattr(ours, figure), getattr(theirs, figure)
            assert mine.keys() == its.keys()
            for layer, value in its.items():
                assert abs(mine[layer] - value) <= 1e-4 * abs(value) + 1e-7, f"{figure} {layer}: {mine} not {its}"


def same_on_all_ranks(weights: Weights) -> bool:
    flat = torch.cat([tensor.flatten().float() for tensor in weights.values()])
    other = flat.clone()
    dist.broadcast(other, src=0)
    return torch.equal(flat, other)
