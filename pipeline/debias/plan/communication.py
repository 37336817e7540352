"""What one rank sends in an optimizer step, by the ring algorithm. Formulas as in `zero_cost`, for any architecture.

The sizes of `zero_cost` come from a table of dense shapes; here they come from the counted tensors, and the gathers of
each from the model itself. Each micro-batch of a step gathers and reduces for itself. A test holds both together.
"""

from collections.abc import Callable, Sequence

from debias.methods import Vector, pairs_of
from debias.plan.count import Counts, Size
from debias.plan.memory import TWO_GRADIENTS, Sharding, vectors_of
from debias.plan.payload import BIAS_WIDTH, LENGTH_BYTES, cut_rows, flat_cuts, sent_bytes

SUM_BYTES = FLAG_BYTES = 8  # float64


def bytes_sent(
    counts: Counts,
    spread: Sharding,
    source: str,
    gathers: Callable[[str], int],
    *,
    accumulation: int = 1,
    looks_at: Sequence[Vector] = TWO_GRADIENTS,
) -> int:
    """Bytes that one rank sends in a step; 0 for a rank alone. `gathers` of a tensor in a forward and backward pass.

    `looks_at`: the vectors that the rule combines, whose inner products the ranks sum.
    """
    grams = _grams(counts, spread, source, looks_at)
    if spread.world == 1:
        return 0
    if not spread.stage:
        return round(sent_bytes(_whole(counts, spread, source, grams), spread.world))
    payload = _stage_3(counts, spread, source, gathers) if spread.stage == 3 else _stage_2(counts, spread, source)
    if spread.stage >= 2:  # only stage 1 reduces once a step
        each = ("all_gather", "all_reduce", "reduce_scatter") if spread.stage == 3 else ("all_reduce",)
        payload = {kind: size * (accumulation if kind in each else 1) for kind, size in payload.items()}
    payload["all_reduce"] = payload.get("all_reduce", 0) + grams
    payload["reduce_scatter"] = payload.get("reduce_scatter", 0) + _bias(counts, spread, source)
    return round(sent_bytes(payload, spread.world))


def _whole(counts: Counts, spread: Sharding, source: str, grams: int) -> dict[str, int]:
    """Whole gradients, once a step: without DeepSpeed, or at its stage 0."""
    trained, selected = counts.bytes(trainable=True), counts.elements(selected=True)
    own = {"plain": 0, "single_pass": BIAS_WIDTH * selected}.get(source, trained)
    return {"all_reduce": trained + own + (grams if spread.stage == 0 else 0)}


def _stage_2(counts: Counts, spread: Sharding, source: str) -> dict[str, int]:
    # The flat group is padded so that every rank's stretch has an even number of elements.
    trained, elements = counts.bytes(trainable=True), counts.elements(trainable=True)
    flat = _padded(elements, 2 * spread.world) * trained // max(1, elements)
    return {"all_reduce": _passes(source) * trained, "all_gather": flat}


def _stage_3(counts: Counts, spread: Sharding, source: str, gathers: Callable[[str], int]) -> dict[str, int]:
    forwards = 2 if source == "two_pass" else 1
    gathered = sum(
        gathers(size.name) * _cut(size, spread.world) for size in counts.sizes if size.stored >= spread.persistence
    )
    trained = sum(_cut(size, spread.world) for size in counts.sizes if size.trainable)
    return {"reduce_scatter": _passes(source) * trained, "all_gather": forwards * gathered}


def _cut(size: Size, world: int) -> int:
    """Bytes of a tensor in equal chunks, the last one padded."""
    return _padded(size.stored, world) * size.bytes // max(1, size.stored)


def _bias(counts: Counts, spread: Sharding, source: str) -> int:
    """Bytes of the local bias gradient of single_pass, which ranks sum once a step."""
    if source != "single_pass":
        return 0
    if spread.stage == 3:
        padded = sum(_padded(size.elements, spread.world) for size in counts.sizes if size.selected)
    else:
        padded = _padded(counts.elements(selected=True), 2 * spread.world)
    return BIAS_WIDTH * padded


def _grams(counts: Counts, spread: Sharding, source: str, looks_at: Sequence[Vector]) -> int:
    """Bytes of what ranks agree on: inner products and flags of each tensor, and how long its update is.

    Rows that lie on more ranks than one have their inner products summed as well.
    """
    vectors = vectors_of(source, looks_at)
    if not vectors:
        return 0
    selected = [size for size in counts.sizes if size.selected]
    flags = len(selected) * (3 if source == "single_pass" else 2)
    shared = flat_cuts(spread.world) if spread.stage else 0
    if spread.stage == 3:
        shared = sum(cut_rows(size.rows, size.elements, spread.world) for size in selected)
    sums = len(selected) + shared
    return SUM_BYTES * len(pairs_of(vectors)) * sums + LENGTH_BYTES * len(selected) + FLAG_BYTES * flags


def _passes(source: str) -> int:
    return 2 if source in ("two_pass", "shared_forward") else 1


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple
