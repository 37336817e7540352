"""The machine: GPUs with their driver and NCCL, bf16, flash attention, shared memory, open files, disk."""

import os
import re
import resource
import shutil
from pathlib import Path

from debias.doctor.check import Check, bad, fine, warn

DRIVER = Path("/proc/driver/nvidia/version")
SHARED = Path("/dev/shm")
MB, GB = 10**6, 10**9
LEAST_SHARED = 64 * 2**20  # what Docker gives by default: too little for NCCL
USUAL_SHARED = 2**30
FILES, FILES_OF_MANY_GPUS = 1024, 4096
TAKEN = 0.1  # of a GPU's memory, by others
UNKNOWN_RUN = 10**9  # bytes that an output folder should have free where the run is not known


def gpus() -> list[Check]:
    """Each GPU with a product computed on it; where there is none, whether there should be one."""
    import torch

    if not torch.cuda.is_available():
        return [_no_gpu(torch.__version__, torch.version.cuda)]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _no_gpu(version: str, cuda: str | None) -> Check:
    driver = driver_version()
    if driver is None:
        return fine("GPU", "none, training runs on the CPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return fine("GPU", "hidden by CUDA_VISIBLE_DEVICES, training runs on the CPU")
    if cuda is None:
        cure = "install a build of torch for CUDA"
        return bad("GPU", f"NVIDIA's driver {driver} is loaded, but torch {version} is built without CUDA", cure)
    return bad(
        "GPU",
        f"torch {version} for CUDA {cuda} can use no GPU, though NVIDIA's driver {driver} is loaded",
        f"see nvidia-smi; update a driver older than CUDA {cuda}, or install a build of torch for an older CUDA",
    )


def driver_version() -> str | None:
    """Of NVIDIA's kernel module, None where it is not loaded."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[0] if found else "of an unknown version"


def _gpu(index: int) -> Check:
    import torch

    name = f"GPU {index}"
    kind = torch.cuda.get_device_name(index)
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        right = float((ones @ ones)[0, 0]) == 64
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        cure = "install a build of torch for this GPU and driver; see nvidia-smi"
        return bad(name, f"{kind} cannot compute: {str(error).splitlines()[0][:160]}", cure)
    if not right:
        return bad(name, f"{kind} computes a wrong product", "take it out of the job, and tell who runs the machine")
    if free < (1 - TAKEN) * total:
        found = f"{kind}, {(total - free) / GB:.1f} of {total / GB:.1f} GB are in use"
        return warn(name, found, "nvidia-smi shows by which processes")
    return fine(name, f"{kind}, {total / GB:.1f} GB, driver {driver_version() or 'unknown'}, CUDA {torch.version.cuda}")


def nccl() -> Check:
    """The library by which GPUs of several ranks talk."""
    import torch

    if not torch.cuda.is_available():
        return fine("NCCL", "no GPU: ranks talk through gloo")
    if not torch.distributed.is_nccl_available():
        return bad("NCCL", "this torch is built without it", "install a build of torch with NCCL (Linux, CUDA)")
    return fine("NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def bf16(wanted: bool = False) -> Check:
    """Whether bf16 is computed by the hardware; only a run that asks for it (`wanted`) is slowed down."""
    from debias.models.precision import bf16_here

    _, notice = bf16_here()
    if not notice:
        return fine("bf16", "in hardware")
    if not wanted:
        return fine("bf16", f"not in hardware, and not asked for: {notice.removeprefix('bf16: ')}")
    return warn("bf16", notice.removeprefix("bf16: "), "bf16=false")


def flash_attention(wanted: bool = False) -> Check:
    """Whether flash attention can run; `wanted` is a run that asks for it by name."""
    import torch

    from debias.errors import InputError
    from debias.models.attention import FLASH, choose_attention

    try:
        choose_attention(FLASH, "", "causal_lm", torch.bfloat16)
    except InputError as error:
        reason = str(error).partition("but ")[2]
        found, _, cure = reason.rpartition("; ")
        return bad("flash attention", found, cure) if wanted else fine("flash attention", f"not used: {found}")
    return fine("flash attention", "can run")


def shared_memory() -> Check:
    """Where NCCL and workers of data loaders put what they share."""
    import torch

    if not SHARED.is_dir():
        return fine("shared memory", f"no {SHARED} on this system")
    total = shutil.disk_usage(SHARED).total
    found = f"{SHARED} holds {total / MB:,.0f} MB"
    cure = "docker run --shm-size=8g (or --ipc=host); in Kubernetes mount an emptyDir of medium Memory at /dev/shm"
    if total <= LEAST_SHARED and torch.cuda.device_count() > 1:
        return bad("shared memory", found, cure)
    return fine("shared memory", found) if total >= USUAL_SHARED else warn("shared memory", found, cure)


def open_files() -> Check:
    """How many files and connections a process may have open."""
    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_MANY_GPUS if torch.cuda.device_count() > 1 else FILES
    found = f"a process may open {'any number' if soft == resource.RLIM_INFINITY else soft}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return fine("open files", found)
    within = hard == resource.RLIM_INFINITY or hard >= needed
    cure = (
        f"ulimit -n {needed}" if within else f"have the limit ({hard}) raised: LimitNOFILE, /etc/security/limits.conf"
    )
    return warn("open files", f"{found}, less than {needed}", cure)


def disk(folder: Path, needed: int | None = None) -> Check:
    """Whether `needed` bytes fit where the run writes, and whether it may write there."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        return bad("disk", f"{place} cannot be written", "set output_dir to a folder of yours")
    free = shutil.disk_usage(place).free
    wanted = UNKNOWN_RUN if needed is None else needed
    found = f"{free / GB:,.1f} GB free at {place}"
    if needed is not None:
        found += f", the run writes about {_size(needed)}"
    if free >= wanted:
        return fine("disk", found)
    cure = "free some, set output_dir to another disk, or keep fewer checkpoints (save_total_limit)"
    return warn("disk", found, cure) if needed is None else bad("disk", found, cure)


def _size(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / MB:,.1f} MB"
