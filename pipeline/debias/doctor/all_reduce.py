"""Two ranks on this machine add up a tensor: `python -m debias.doctor.all_reduce` is one of them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from debias.doctor.check import Check, bad, fine, warn
from debias.ranks.garbage import loading

NAME = "all-reduce"
ELEMENTS = 1 << 22  # float32: 16 MiB, the size of a bucket
ROUNDS = 5
SLOW = 100.0  # MB/s: less than Gigabit Ethernet has
PATIENCE = 90  # seconds for two processes that import torch
ONE_NETWORK = "name the network between nodes: export GLOO_SOCKET_IFNAME=... (NCCL_SOCKET_IFNAME=... with GPUs)"


def local(ranks: int = 2) -> Check:
    """Two processes on this machine, over NCCL where it has two GPUs, else over gloo."""
    import torch

    backend = "nccl" if torch.cuda.device_count() >= ranks else "gloo"
    try:
        found = _spawn(backend, ranks)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        reason = f"no end within {PATIENCE} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return bad(NAME, f"{ranks} ranks on this machine, {backend}: {reason}", _cure(backend))
    return judge(found, f"{ranks} ranks on this machine, {backend}")


def judge(rate: float, who: str) -> Check:
    """The measured rate in MB/s; slower than a plain network is a warning."""
    found = f"{who}: {rate:,.0f} MB/s"
    return fine(NAME, found) if rate >= SLOW else warn(NAME, found, ONE_NETWORK)


def _cure(backend: str) -> str:
    if backend == "nccl":
        return "NCCL_DEBUG=INFO says why; NCCL_P2P_DISABLE=1 helps where GPUs cannot reach each other's memory"
    return "see that processes may connect on 127.0.0.1 (firewall, container), or export GLOO_SOCKET_IFNAME=lo"


def _spawn(backend: str, ranks: int) -> float:
    """The rate that rank 0 measured, in MB/s; RuntimeError with the last words of a rank that failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "debias.doctor.all_reduce", backend]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    # Of a launcher that started this process, nothing must reach the two.
    own = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "SLURM_"))}
    running = [
        subprocess.Popen(
            command,
            env={**own, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [one.communicate(timeout=PATIENCE) for one in running]
    finally:
        for one in running:
            one.kill()
    for rank, (one, (_, errors)) in enumerate(zip(running, said, strict=True)):
        if one.returncode:
            lines = errors.strip().splitlines() or [f"it ended with exit code {one.returncode}"]
            raise RuntimeError(f"rank {rank} failed: {lines[-1][:200]}")
    return float(json.loads(said[0][0].splitlines()[-1])["rate"])


def measure(device: Any = "cpu", group: Any = None) -> float:
    """MB/s that each rank sends in an all-reduce, the best of some; RuntimeError if the sum is wrong.

    A ring sends 2 (n - 1) / n of the tensor from each of n ranks.
    """
    import torch
    import torch.distributed as dist

    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    tensor = torch.full((ELEMENTS,), rank + 1.0, device=device)
    dist.all_reduce(tensor, group=group)
    if not bool((tensor == ranks * (ranks + 1) / 2).all()):
        raise RuntimeError(f"the sum of 1 .. {ranks} over the ranks came out as {float(tensor[0])}")
    best = float("inf")
    for _ in range(ROUNDS):
        tensor.fill_(1.0)
        started = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        tensor[0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - started)
    return 2 * (ranks - 1) / ranks * tensor.numel() * tensor.element_size() / best / 1e6


def main(environment: Mapping[str, str] = os.environ) -> None:
    """One rank; the first writes the rate as JSON."""
    from datetime import timedelta

    with loading():
        import torch
        import torch.distributed as dist

    backend = sys.argv[1]
    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{environment['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
    rate = measure(device)
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps({"rate": rate}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
