"""What is wrong with this installation before a run finds out: each check with what it saw and the cure."""

import shutil
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

# Private attributes of DeepSpeed are named as of the first; the second is not known yet.
DEEPSPEED = ("0.19.8", "0.20")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `cure` is empty where `ok`."""

    name: str
    ok: bool
    found: str
    cure: str = ""


def examine() -> list[Check]:
    """All checks of this machine."""
    return [_deepspeed(), _ninja(), *_build_locks()]


def _deepspeed() -> Check:
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return Check("deepspeed", True, "not installed (needed for `deepspeed:` alone)")
    oldest, next_unknown = map(Version, DEEPSPEED)
    if oldest <= Version(version) < next_unknown:
        return Check("deepspeed", True, version)
    return Check("deepspeed", False, version, f"pip install 'deepspeed>={DEEPSPEED[0]},<{DEEPSPEED[1]}'")


def _ninja() -> Check:
    """DeepSpeed's own optimizers and its asynchronous I/O are compiled at their first use; nothing shipped here is."""
    place = shutil.which("ninja")
    if place is not None:
        return Check("ninja", True, place)
    return Check("ninja", False, "not on PATH: DeepSpeed could compile none of its kernels", "pip install ninja")


def _build_locks() -> list[Check]:
    from debias.engines.zero_launch import build_problems

    problems = [text.partition("; ") for text in build_problems()]
    return [Check("build lock", False, found, cure) for found, _, cure in problems] or [
        Check("build lock", True, "none left behind")
    ]
