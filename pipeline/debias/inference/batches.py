"""Batches of like length under a budget of tokens, dealt out to the ranks of a process group."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from debias.errors import InputError
from debias.ranks.world import world_size

logger = logging.getLogger(__name__)
# Tokens of a batch, padding included; on a CPU for each thread, where more no longer fits into the caches.
TOKENS = {"cpu": 512, "cuda": 32768}
SECONDS_BETWEEN_LINES = 20
# A rank that fails stops taking part; a large model may take this long to load on another.
LONGEST_WAIT = timedelta(minutes=30)
Scores = tuple[Sequence[int], np.ndarray]  # which items, and their scores [items, C]


def join() -> tuple[int, int]:
    """This process's rank and the number of ranks; joins the group that torchrun's environment names."""
    if not dist.is_initialized() and world_size() > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def by_length(
    lengths: Sequence[int], budget: int, most: int | None = None, *, unpadded: bool = False
) -> list[list[int]]:
    """Indices as batches, longest first: at most `budget` tokens with padding (but always one item), `most` items.

    A batch that is too large for the memory fails at once, not after an hour. `unpadded`: each of one length.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        full = batches and (
            (len(batches[-1]) + 1) * longest > budget
            or len(batches[-1]) == (most or len(lengths))
            or (unpadded and lengths[index] != longest)
        )
        if not batches or full:
            batches.append([])
        batches[-1].append(index)
    return batches


def budget_for(lengths: Sequence[int], device: str, ranks: int) -> int:
    """Tokens of a batch: what the device takes, and no more than gives every rank one."""
    most = TOKENS["cpu"] * torch.get_num_threads() if device == "cpu" else TOKENS["cuda"]
    return max(1, min(most, -(-sum(lengths) // ranks)))


def score_batches(
    batches: Sequence[Any], compute: Callable[[Any], Scores], items: int, labels: int, *, everywhere: bool = False
) -> np.ndarray:
    """`compute` over all batches; its scores in the order of the items, [items, labels] float64, on every rank.

    Each rank takes its share, and each the same number of batches: with sharded weights all must run together. With
    `everywhere` each rank computes all.
    """
    rank, ranks = (0, 1) if everywhere else join()
    dealt = [batches[min(i, len(batches) - 1)] for i in range(rank, -(-len(batches) // ranks) * ranks, ranks)]
    scores = np.zeros((items, labels))
    times = np.zeros((items, 1))
    watch = Progress(items, ranks)
    for batch in dealt:
        where, values = compute(batch)
        scores[where] = values  # a batch that fills up a rank's share is another's too, with the same scores
        times[where] = 1
        watch.add(len(where))
    if ranks > 1:
        scores, times = _sum(scores, times)
    if not (times > 0).all():
        raise RuntimeError(f"{int((times == 0).sum())} of {items} items were not scored")
    return scores / times


def _sum(scores: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    both = torch.from_numpy(np.hstack([scores, times])).to(device)
    dist.all_reduce(both)
    whole = both.cpu().numpy()
    return whole[:, :-1], whole[:, -1:]


def from_first(scores: np.ndarray | None) -> np.ndarray | None:
    """What the first rank has, on all ranks."""
    told = [scores]
    if join()[1] > 1:
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
        dist.broadcast_object_list(told, src=0, device=device)
    return told[0]


class Progress:
    """A line in the log now and then while a suite takes its time."""

    def __init__(self, items: int, ranks: int) -> None:
        self.items, self.ranks = items, ranks
        self.done = 0
        self.started = self.last = time.monotonic()

    def add(self, items: int) -> None:
        """So many more are done on this rank; the others are taken to be as far."""
        self.done += items
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            done = min(self.items, self.done * self.ranks)
            rate = done / (now - self.started)
            logger.info("  %s of %s, %.0f a second", f"{done:,}", f"{self.items:,}", rate)


def out_of_memory(error: RuntimeError) -> InputError | RuntimeError:
    """The error as one that a user can put right, if memory is what ran out."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return InputError("the device's memory is too small for a batch; give a smaller --batch-size")
    return error
