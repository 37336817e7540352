"""What becomes of `bf16: true` on hardware without it."""

import functools
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)
CPUINFO = Path("/proc/cpuinfo")


def usable_bf16(wanted: bool) -> bool:
    """Whether to compute in bf16: false on a GPU that lacks it (float32 then, with a notice).

    A CPU without bf16 instructions computes in bf16 all the same, slowly: it is said, and the choice is the user's.
    """
    if not wanted:
        return False
    usable, notice = bf16_here()
    if notice:
        _say(notice)
    return usable


def bf16_here() -> tuple[bool, str]:
    """Whether this machine is to compute in bf16 where asked to, and what is to be said of it ("" for nothing)."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, ""
        return False, (
            f"bf16: {torch.cuda.get_device_name()} has no bf16, so this runs in float32 (twice the memory of 16 bits);"
            " fp16 is not an option, its loss scaling would hide overflow from the rule"
        )
    if _cpu_lacks_bf16():
        return True, "bf16: this CPU has no bf16 instructions, and may be many times slower with it than in float32"
    return True, ""


@functools.lru_cache
def _say(notice: str) -> None:
    """Once in a process: the question is asked at several places."""
    logger.warning(notice)


def _cpu_lacks_bf16() -> bool:
    """As the Linux kernel lists the CPU's instructions; false where there is no such list."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags)
