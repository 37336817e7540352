"""Steps of each way on one model, timed in turn; ceilings of the device; the largest micro-batch under a cap."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from debias.bench.combine import triad_bandwidth
from debias.bench.step import published_step
from debias.engines import attach
from debias.losses import Answers, gce_weight
from debias.methods import Edge, MainOnly
from debias.plan.count import Counts

WAYS = ("plain", "single_pass", "shared_forward", "two_pass", "published")
# Forward and backward passes of a step.
PASSES = {"plain": (1, 1), "single_pass": (1, 1), "shared_forward": (1, 2), "two_pass": (2, 2), "published": (3, 2)}
ANSWER_TOKENS = 2


def random_batch(samples: int, length: int, vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens whose last two are the answer."""
    ids_BT = torch.randint(5, vocabulary, (samples, length), device=device)
    answer_mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    answer_mask_BT[:, -ANSWER_TOKENS:] = True
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "answer_mask": answer_mask_BT}


@contextmanager
def stepping(way: str, model: nn.Module, batch: dict[str, Tensor]) -> Iterator[Callable[[], None]]:
    """Inside, a function that takes one optimizer step of that way; afterwards the model is as before.

    `plain` is torch alone on PEFT's model, `ours` plain fine-tuning through the hook; the rest are EDGE.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    readout = Answers([[5], [6], [7]])
    autocast = torch.autocast(batch["input_ids"].device.type, torch.bfloat16)

    def said() -> Any:
        with autocast:
            return readout.said(model, batch)

    def forward() -> tuple[Tensor, Tensor]:
        found = said()
        return -found.log_p_B, gce_weight(found.log_p_B)

    def plain() -> None:
        (-said().log_p_B).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    if way in ("plain", "published"):
        yield plain if way == "plain" else lambda: published_step(model, optimizer, said)
        return
    rule, gradients = (MainOnly(), "auto") if way == "ours" else (Edge(), way)
    hook = attach(model, optimizer, rule, gradients, verify=False)

    def step() -> None:
        hook.backward(*forward(), again=forward)
        hook.step()

    try:
        yield step
    finally:
        hook.detach()


@dataclass(frozen=True)
class Timed:
    """Seconds of a step, and peak bytes of the device while it ran (0 on a CPU)."""

    seconds: float
    peak: int


def time_way(way: str, model: nn.Module, batch: dict[str, Tensor], steps: int) -> Timed:
    """The median of `steps` steps after one that is not counted."""
    device = batch["input_ids"].device
    with stepping(way, model, batch) as step:
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [seconds_of(step, device) for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Timed(statistics.median(seconds), peak)


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done it."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    time_one: Callable[[str], Timed], rounds: int, ways: tuple[str, ...] = WAYS
) -> dict[str, dict[str, Any]]:
    """Each way right beside a plain step of its own, before it or after it in turn; a row of medians for each."""
    pairs: dict[str, list[tuple[Timed, Timed]]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways:
            order = ("plain", way) if turn % 2 == 0 else (way, "plain")
            timed = {name: time_one(name) for name in dict.fromkeys(order)}
            pairs[way].append((timed[way], timed["plain"]))
    return {way: _row(found) for way, found in pairs.items()}


def _row(pairs: list[tuple[Timed, Timed]]) -> dict[str, Any]:
    speeds = [plain.seconds / own.seconds for own, plain in pairs]
    peak, plain_peak = (max(pair[side].peak for pair in pairs) for side in (0, 1))
    return {
        "seconds": statistics.median(own.seconds for own, _ in pairs),
        "speed_ratio": statistics.median(speeds),
        "speed_min": min(speeds),
        "speed_max": max(speeds),
        "peak": peak,
        "peak_ratio": peak / plain_peak if plain_peak else None,
    }


def ceilings(device: torch.device, rounds: int = 5) -> dict[str, float]:
    """FLOP/s of the best large bf16 product, and bytes a second of the best triad over vectors no cache holds."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(seconds_of(lambda: a @ b, device) for _ in range(rounds + 2))
    elements = 1 << (27 if device.type == "cuda" else 22)
    return {"matmul": 2 * side**3 / best, "memory": triad_bandwidth(elements, rounds, device)}


def floors(
    way: str, counts: Counts, config: Any, tokens: int, length: int, checkpointing: bool, ceiling: dict[str, float]
) -> dict[str, float]:
    """What bounds a step: FLOP, and seconds that its products and its unpacking of weights take at the ceilings.

    A frozen weight costs 2 FLOP a token and element forward and 2 backward, an adapter 2 and 4; causal attention
    `2 T` a head column forward and twice that backward. Each pass reads a 4-bit weight, writes it in 16 bits and reads
    that. With checkpointing a backward pass runs the forward pass once more.
    """
    forwards, backwards = PASSES[way]
    forwards += backwards if checkpointing else 0
    adapters = counts.elements(trainable=True)
    embeddings = sum(s.elements for s in counts.sizes if s.kind in ("embeddings", "head") and not s.trainable)
    frozen = counts.active - embeddings
    columns = config.num_hidden_layers * config.num_attention_heads * getattr(config, "head_dim", 0)
    attention = 2 * length * columns
    flop = tokens * (
        forwards * (2 * (frozen + adapters) + attention) + backwards * (2 * frozen + 4 * adapters + 2 * attention)
    )
    unpacked = (forwards + backwards) * 4.5 * counts.elements(precision="4-bit")
    return {
        "flop": float(flop),
        "matmul_seconds": flop / ceiling["matmul"],
        "unpack_seconds": unpacked / ceiling["memory"],
    }


def largest_batch(runs: Callable[[int], bool], limit: int = 1024) -> int:
    """The largest micro-batch for which `runs` says true, by doubling and halving; 0 if 1 does not."""
    low, high = 0, 1
    while high <= limit and runs(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def fits(step: Callable[[], Any]) -> bool:
    """Whether this runs without running out of memory; what it held is given back."""
    try:
        step()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
