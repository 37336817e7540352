"""The ranks that a launcher started: whether they meet, how fast they talk, whether they are to do the same."""

import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.doctor import all_reduce
from debias.doctor.check import Check, bad, fine
from debias.doctor.versions import version_of
from debias.ranks.world import rank, world_size

MEETING = timedelta(seconds=180)  # nodes of one job do not start at one instant
CLOCKS = 2.0  # seconds by which the clocks of two ranks may differ
SAME = ("torch", "transformers", "peft", "debias")
Facts = dict[str, Any]


def node() -> str:
    """This machine's name, as Slurm calls it where it is Slurm's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def meet() -> Check:
    """Open a group of all ranks over gloo, which reports need; stays open for `talk` and `gather`."""
    import torch.distributed as dist

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        dist.init_process_group("gloo", timeout=MEETING)
    except Exception as error:  # torch's own kinds are no class of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        found = f"rank {rank()} of {world_size()} on {node()} does not meet the others at {place}: {reason}"
        return bad("ranks meet", found, f"open that port between the nodes; {all_reduce.ONE_NETWORK}")
    return fine("ranks meet", f"{world_size()} ranks at {place}")


def talk() -> Check:
    """The all-reduce of all ranks: over NCCL where each has a GPU, else over gloo. Collective."""
    import torch
    import torch.distributed as dist

    have: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(have, torch.cuda.is_available())
    backend, device, group = "gloo", "cpu", None
    if all(have):
        backend = "nccl"
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
        group = dist.new_group(backend="nccl", timeout=MEETING)
    return all_reduce.judge(all_reduce.measure(device, group), f"{len(have)} ranks, {backend}")


def facts(run: RunConfig | None) -> Facts:
    """What must be the same on all ranks, and this rank's clock. Collective: the clocks are read at one instant."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    now = time.time()
    seed = 0 if run is None else run.seed
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    digest = None if run is None else hashlib.sha256(dump_config(run).encode()).hexdigest()[:12]
    versions = {name: version_of(name) for name in SAME}
    return {"rank": rank(), "node": node(), "time": now, "seed": seed, "drawn": drawn, "config": digest, **versions}


def agreement(everyone: Sequence[Facts]) -> list[Check]:
    """Clocks within two seconds; one config, seed and version of each package; the rank that differs is named."""
    times = sorted(one["time"] for one in everyone)
    middle = times[len(times) // 2]
    apart = times[-1] - times[0]
    clocks = fine("clocks", f"{apart:.2f} s apart on {len(everyone)} ranks")
    if apart > CLOCKS:
        late = max(everyone, key=lambda one: abs(one["time"] - middle))
        found = f"{_who(late)} is {late['time'] - middle:+.1f} s from the others"
        clocks = bad(
            "clocks", found, "let the node set its clock (chronyc makestep, systemctl restart systemd-timesyncd)"
        )
    cures = {
        "config": "give every rank the same file and the same key=value",
        "seed": "give every rank the same seed",
        "drawn": "install the same build of torch on all nodes",
    } | dict.fromkeys(SAME, "install the same versions on all nodes, best from one shared folder")
    different = [bad("same on all ranks", found, cure) for key, cure in cures.items() if (found := _odd(key, everyone))]
    same = fine("same on all ranks", f"config, seed, {', '.join(SAME)}")
    return [clocks, *(different or [same])]


def _odd(key: str, everyone: Sequence[Facts]) -> str:
    """Who has another value than most, "" if nobody."""
    values = Counter(str(one[key]) for one in everyone)
    usual = values.most_common(1)[0][0]
    odd = [one for one in everyone if str(one[key]) != usual]
    what = {"drawn": "random numbers of the seed", "config": "config (digest)"}.get(key, key)
    return f"{what}: {', '.join(f'{_who(one)} has {one[key]}' for one in odd)}, the others {usual}" if odd else ""


def _who(one: Facts) -> str:
    return f"rank {one['rank']} on {one['node']}"


def gather(what: Any) -> list[Any]:
    """Of every rank, in the order of ranks. Collective."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, what)
    return found


def part() -> None:
    """Once every rank has said what it has to: a launcher ends all ranks when one ends badly."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
