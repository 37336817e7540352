"""Bytes on one GPU at the worst moment of a step, part by part. N trainable elements, W ranks.

Moments: `backward` (both gradients are made), `combine` (the rule makes the update), `optimizer` (AdamW's temporaries);
of a run whose gradients are taken elsewhere than at the weights (`sharpness`) also `move` (the weights are moved).
Weights and optimizer state are there at all of them. Peaks of the second and later steps: the first has no state yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from debias.config import blocks
from debias.config.run import RunConfig
from debias.engines.stacks import STACK_ELEMENTS
from debias.methods import GRADIENTS, Vector
from debias.plan.count import Counts, Size
from debias.plan.trace import Traced

# What CUDA, cuBLAS and the kernels' code take before the first tensor, and what the caching allocator loses to
# rounding and holes: assumptions, the same for all models.
CONTEXT_BYTES = 600 * 2**20
FRAGMENTATION = 0.05

# Bytes an element of the optimizer's state, and whether a step makes a float32 temporary of all trainable elements.
OPTIMIZERS: dict[str, tuple[float, bool]] = {
    "adamw_torch": (8.0, True),
    "adamw_torch_fused": (8.0, False),
    "adamw_bnb_8bit": (2.0 + 8 / 256, False),
    "adamw_8bit": (2.0 + 8 / 256, False),
    "paged_adamw_8bit": (2.0 + 8 / 256, False),
    "paged_adamw_32bit": (8.0, False),
    "lion_32bit": (4.0, False),
    "lion_8bit": (1.0 + 4 / 256, False),
    "paged_lion_32bit": (4.0, False),
    "paged_lion_8bit": (1.0 + 4 / 256, False),
    "sgd": (0.0, True),
    "adagrad": (4.0, True),
    "rmsprop": (4.0, True),
}
OTHER_OPTIMIZER = (8.0, True)  # taken for an optimizer that is not in the table

TWO_GRADIENTS = (Vector.MAIN, Vector.BIAS)


@dataclass(frozen=True)
class Masked:
    """What a run's `gradient_mask` keeps of each element that trains.

    `chosen`: a byte between steps, or (`held`) around the optimizer's step; `held`: there also a copy of its weight;
    `summed`: a float32 sum in the first steps.
    """

    chosen: bool = False
    held: bool = False
    summed: bool = False

    @classmethod
    def of(cls, run: RunConfig) -> "Masked":
        """Of a run without the block, nothing."""
        if run.gradient_mask is None:
            return cls()
        mask = blocks.make("gradient_mask", blocks.table_of("gradient_mask"), run.gradient_mask)
        return cls(mask.measures > 0 or mask.holds, mask.holds, mask.measures > 1)


NO_MASK = Masked()


@dataclass(frozen=True)
class Sharding:
    """How a run is spread: DeepSpeed's stage and what it keeps where; stage None without DeepSpeed."""

    world: int = 1
    stage: int | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = 0  # reduce_bucket_size, elements
    overlap: bool = False
    max_live: int = 0  # stage3_max_live_parameters, elements
    prefetch: int = 0
    persistence: int = 0  # tensors below so many elements stay whole


@dataclass(frozen=True)
class Memory:
    """Bytes by part on one GPU, at the moment `moment`, and on the host where something is offloaded."""

    parts: dict[str, int]
    moment: str
    host: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.parts.values()))


def sharding_of(found: dict[str, Any] | None, world: int) -> Sharding:
    """What a DeepSpeed configuration (None: no DeepSpeed) shards and offloads; sizes left out are DeepSpeed's."""
    if found is None:
        return Sharding(world)
    zero = found.get("zero_optimization", {})

    def number(key: str, default: float) -> int:
        value = zero.get(key, default)
        return int(default if value == "auto" else value)

    def offloads(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    stage = int(zero.get("stage", 0))
    return Sharding(
        world,
        stage,
        offload_optimizer=offloads("offload_optimizer"),
        offload_parameters=offloads("offload_param") and stage == 3,
        bucket=number("reduce_bucket_size", 5e8),
        overlap=bool(zero.get("overlap_comm", stage == 3)),
        max_live=number("stage3_max_live_parameters", 1e9),
        prefetch=number("stage3_prefetch_bucket_size", 5e7),
        persistence=number("stage3_param_persistence_threshold", 1e5),
    )


def memory_of(
    counts: Counts,
    traced: Traced,
    spread: Sharding,
    source: str,
    optim: str,
    *,
    cuda: bool = True,
    looks_at: Sequence[Vector] = TWO_GRADIENTS,
    moves: bool = False,
    accumulated: bool = False,
    held: bool | None = None,
    masked: Masked = NO_MASK,
) -> Memory:
    """The parts at the worst moment of a step with this gradient source (`plain`: one gradient only).

    `looks_at`: the vectors that the rule combines; of how far weights moved it keeps float32 copies, sharded like the
    optimizer's. `moves`: weights are moved in each micro-batch and put back; `accumulated`: a step has several. `held`:
    weights are projected after the step (`weight_projection`), towards a copy of what trains, or (false) without one.
    `masked`: what a `gradient_mask` keeps.
    """
    weights, host = _weights(counts, spread)
    state, more = _optimizer(counts, spread, optim)
    moments = _moments(counts, traced, spread, source, optim, cuda)
    moments["combine"]["combining"] = _combining(counts, spread, source, looks_at)
    if moves:
        moments["backward"]["weights to put back"] = counts.bytes(trainable=True)
        moments["move"] = _move(counts, sum(_gradients(counts, spread, source)) if accumulated else 0)
    start = _stepped(counts, spread) if held else 0
    if held is not None:
        moments["projection"] = _projection(counts, spread, _gradients(counts, spread, source)[0])
    trained = counts.elements(trainable=True) // _shards(spread)
    put_back = 0
    if masked.held:
        put_back = _stepped(counts, spread)
        for moment in moments.keys() & {"optimizer", "projection"} if not spread.offload_optimizer else ():
            moments[moment]["weights to put back"] = put_back
    if masked.summed:  # before there is a mask, or any state of the optimizer
        moments["backward"]["sums of gradients"] = max(0, 4 * trained - trained - state)
    kept, chosen = _kept(counts, spread, looks_at), trained if masked.chosen else 0
    if spread.offload_optimizer:
        host, kept, start, chosen = host + kept + start + chosen + put_back, 0, 0, 0
    host += more
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {**weights, "weights at the start": start, "optimizer state": state, "rule's state": kept}
    parts |= {**moments[moment], "gradient mask": chosen}
    if cuda:
        parts["CUDA context"] = CONTEXT_BYTES
        parts["fragmentation"] = round(FRAGMENTATION * sum(moments[moment].values()))
    return Memory({name: size for name, size in parts.items() if size}, moment, host)


def _weights(counts: Counts, spread: Sharding) -> tuple[dict[str, int], int]:
    names = {"4-bit": "weights, 4-bit", "16-bit": "weights, 16-bit", "32-bit": "weights, 32-bit"}
    parts = dict.fromkeys([*names.values(), "trained weights"], 0)
    for size in counts.sizes:
        parts["trained weights" if size.trainable else names[size.precision]] += _own(size, spread)
    host = 0
    if spread.offload_parameters:
        whole = {key: value for key, value in parts.items() if value}
        host, parts = sum(whole.values()), dict.fromkeys(parts, 0)
    if spread.stage == 3 and spread.world > 1:
        parts["gathered weights"] = _gathered(counts, spread)
    return parts, host


def _own(size: Size, spread: Sharding) -> int:
    """Bytes of this tensor on one rank."""
    if spread.stage != 3 or size.stored < spread.persistence:
        return size.bytes
    return -(-size.bytes // spread.world)


def _gathered(counts: Counts, spread: Sharding) -> int:
    """At most: what stage 3 may hold whole at a time, and never less than its largest tensor."""
    sharded = [size for size in counts.sizes if size.stored >= spread.persistence]
    stored = sum(size.stored for size in sharded)
    if not stored:
        return 0
    width = sum(size.bytes for size in sharded) / stored
    largest = max(size.bytes for size in sharded)
    return round(max(min(stored, spread.max_live + spread.prefetch) * width, largest))


def _optimizer(counts: Counts, spread: Sharding, optim: str) -> tuple[int, int]:
    """Bytes of state on the GPU and on the host; with DeepSpeed also its float32 copies of what trains."""
    trained = counts.elements(trainable=True)
    each = OPTIMIZERS.get(optim, OTHER_OPTIMIZER)[0]
    width = counts.bytes(trainable=True) / max(1, trained)
    if spread.stage is not None and (spread.stage > 0 or width < 4):
        each += 4
    shards = _shards(spread)
    state = round(each * trained / shards)
    paged = optim.startswith("paged_")
    return (0, state) if spread.offload_optimizer or paged else (state, 0)


def _moments(
    counts: Counts, traced: Traced, spread: Sharding, source: str, optim: str, cuda: bool
) -> dict[str, dict[str, int]]:
    main, bias = _gradients(counts, spread, source)
    if spread.stage is None and spread.world == 1:
        backward = {"gradients": traced.gradients, "activations": traced.peak - traced.gradients}
    else:
        backward = {"gradients": main + bias, "activations": traced.others}
    backward["buckets"] = _buckets(counts, spread)
    both = {"gradients": main + bias, "buckets": backward["buckets"]}
    combine = dict(both)
    step = {
        "gradients": main,
        "buckets": backward["buckets"],
        "optimizer's temporaries": _step(counts, spread, optim, cuda),
    }
    return {"backward": backward, "combine": combine, "optimizer": step}


def _move(counts: Counts, gradients: int) -> dict[str, int]:
    """Between the two passes of a micro-batch: how far each weight moves, its copy, and a norm's float64 copy."""
    largest = max((size.elements for size in counts.sizes if size.trainable), default=0)
    trained = counts.bytes(trainable=True)
    return {"gradients": gradients, "weights to put back": trained, "moves of weights": trained + 8 * largest}


def _shards(spread: Sharding) -> int:
    """On how many ranks an element of a sharded tensor is once."""
    return spread.world if spread.stage else 1


def _stepped(counts: Counts, spread: Sharding) -> int:
    """A copy of what the optimizer steps on; under DeepSpeed that is this rank's piece, in float32."""
    trained = counts.elements(trainable=True)
    return counts.bytes(trainable=True) if spread.stage is None else 4 * (trained // _shards(spread))


def _projection(counts: Counts, spread: Sharding, main: int) -> dict[str, int]:
    """Around the step, one tensor at a time, in float32: how far it has moved; of 16 bits itself and its gradient."""
    narrow = 12 if spread.stage is None else 4
    trained = (size for size in counts.sizes if size.trainable)
    largest = max((size.elements * (4 if size.bytes >= 4 * size.elements else narrow) for size in trained), default=0)
    return {"gradients": main, "moves of weights": 0 if spread.offload_optimizer else largest // _shards(spread)}


def _gradients(counts: Counts, spread: Sharding, source: str) -> tuple[int, int]:
    """Main and bias gradients as the engine keeps them until the step."""
    trained, selected = counts.elements(trainable=True), counts.elements(selected=True)
    stored = counts.bytes(trainable=True)
    if spread.stage is None:
        width = stored / max(1, trained)
        own = {"plain": 0.0, "single_pass": 4.0}.get(source, width)
        return stored, round(own * selected)
    shards = _shards(spread)
    whole = stored if spread.stage in (0, 1) else 0  # p.grad lives until the ranks have exchanged it
    kept = round(4 * trained / shards)
    if source == "single_pass":  # a local float32 gradient, then this rank's piece of the sum
        return whole + kept, 4 * selected + round(4 * selected / shards)
    # The other ways put both gradients aside, in float32, beside the engine's own.
    return whole + kept, 0 if source == "plain" else 2 * round(4 * selected / shards)


def _buckets(counts: Counts, spread: Sharding) -> int:
    trained, stored = counts.elements(trainable=True), counts.bytes(trainable=True)
    if spread.stage is None:
        return 0 if spread.world == 1 else 2 * stored  # DistributedDataParallel's own, and the flat copy of the sum
    if spread.stage == 0:
        return stored
    buffers = 2 if spread.overlap and spread.stage < 3 else 1
    return round(buffers * spread.bucket * stored / max(1, trained))


def vectors_of(source: str, looks_at: Sequence[Vector]) -> int:
    """How many vectors are combined; 0 where the update is main itself."""
    plain = source == "plain" and Vector.BIAS in looks_at
    return 0 if plain else len(looks_at)


def _kept(counts: Counts, spread: Sharding, looks_at: Sequence[Vector]) -> int:
    """Where the weights started, and how far they had moved at the step before."""
    moves = not GRADIENTS.issuperset(looks_at)
    copies = moves + (Vector.MOVED_BEFORE in looks_at)
    return 4 * copies * (counts.elements(selected=True) // _shards(spread))


def _combining(counts: Counts, spread: Sharding, source: str, looks_at: Sequence[Vector]) -> int:
    """Copies while tensors of one shape are combined together: a stack each and an update, or an update alone."""
    vectors = vectors_of(source, looks_at)
    if not vectors:
        return 0
    shards = _shards(spread)
    largest = max((size.elements for size in counts.sizes if size.selected), default=0) // shards
    held = counts.elements(selected=True) // shards
    moved = 0 if GRADIENTS.issuperset(looks_at) else held  # how far the weights have moved, taken anew at each step
    return 4 * (max(largest, (vectors + 1) * min(held, STACK_ELEMENTS)) + moved)


def _step(counts: Counts, spread: Sharding, optim: str, cuda: bool) -> int:
    if spread.offload_optimizer or not OPTIMIZERS.get(optim, OTHER_OPTIMIZER)[1]:
        return 0
    shards = _shards(spread)
    if cuda:  # torch's default there takes all tensors at once
        return round(4 * counts.elements(trainable=True) / shards)
    return 2 * 4 * max((size.elements for size in counts.sizes if size.trainable), default=0) // shards
