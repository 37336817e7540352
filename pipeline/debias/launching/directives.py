"""What stands in the `#SBATCH` lines of a job: which options there are, what they may say, and how it is quoted."""

import re
from collections.abc import Mapping, Sequence

from debias.errors import InputError
from debias.launching.job import Job, cores_of

WORDS = (
    *("partition", "time", "account", "qos", "constraint", "reservation", "nodelist", "exclude", "gres"),
    *("cpus-per-task", "mem", "mail-type", "mail-user"),
)
FLAGS = ("exclusive",)
# What the script says itself, and by which option of ours; "" is nobody's to choose.
OURS = {
    **{"job-name": "--name", "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "gpus": "--gpus-per-node"},
    **{"array": "--array-seeds", "signal": "--grace", "output": "--out", "error": "--out", "chdir": "--out"},
    **dict.fromkeys(("ntasks", "ntasks-per-node", "requeue", "no-requeue", "open-mode"), ""),
}
KEY = re.compile(r"[a-z][a-z0-9-]*")
# Letters, digits and what constraints, node lists and mail addresses need. Quotes could end a line.
VALUE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9_.,:@=+/&|()\[\]*!~%-]*")
PLAIN = re.compile(r"[A-Za-z0-9_.,:@=+/-]*")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
EARLY = 60  # seconds that Slurm's signal may come before its time
MEMORY_PER_GPU = 32  # GB: a rank's share of a model on its way to the GPU


def directives(job: Job, options: Mapping[str, str | int | bool | None], more: Sequence[str] = ()) -> list[str]:
    """The lines after `#SBATCH --`, for `options` of `WORDS` and `FLAGS` and for `more`, texts KEY=VALUE or KEY.

    A job with GPUs asks for cores and memory in proportion where it is not told. InputError for a value that could end
    its line, an option that the script sets itself, and a time limit that leaves no time before SIGTERM.
    """
    given = {name: str(value) for name, value in options.items() if value is not None and name in WORDS}
    lines = {name: _line(name, value, f"--{name}") for name, value in given.items()}
    lines |= {name: name for name in FLAGS if options.get(name)}
    if "gpu" in given.get("gres", ""):
        raise InputError(f"--gres is {given['gres']!r}: say --gpus-per-node [TYPE:]N, for a rank is started for each")
    for text in more:
        key, line = _of_text(text)
        if key in lines:
            raise InputError(f"--sbatch {text}: --{key} is given already")
        lines[key] = line
    _check_time(given.get("time"), job.grace_seconds)
    return [*_in_proportion(job, lines), *lines.values()]


def log_file(job: Job) -> str:
    """Where Slurm writes what the script says: in the job's folder, from wherever it is submitted."""
    name = "slurm-%A_%a.out" if job.seeds else "slurm-%j.out"
    folder = str(job.folder)
    if '"' in folder or "\\" in folder:  # after a backslash Slurm fills in no number, a quote ends the line
        return name
    return f'"{folder.replace("%", "%%")}/{name}"'


def _of_text(text: str) -> tuple[str, str]:
    key, equals, value = text.removeprefix("--").partition("=")
    if not KEY.fullmatch(key):
        raise InputError(f"--sbatch is {text!r}, expected KEY=VALUE such as licenses=fs:1, or KEY")
    if key in OURS:
        instead = f"give {OURS[key]}" if OURS[key] else "a job of debias needs it as it is"
        raise InputError(f"--sbatch {text}: the script sets --{key} itself; {instead}")
    if key in (*WORDS, *FLAGS):
        raise InputError(f"--sbatch {text}: --{key} is an option of its own here; leave out --sbatch")
    return key, _line(key, value, f"--sbatch {key}") if equals else key


def _line(name: str, value: str, option: str) -> str:
    if not VALUE.fullmatch(value):
        raise InputError(
            f"{option} is {value!r}, expected one word of letters, digits and _ . , : @ = + / - & | ( ) [ ] *"
        )
    return f"{name}={value}" if PLAIN.fullmatch(value) else f'{name}="{value}"'


def _in_proportion(job: Job, lines: Mapping[str, str]) -> list[str]:
    """Cores and memory of a node for its GPUs: Slurm's own default is one core a task, and often little memory."""
    if not job.gpus_per_node:
        return []
    found = []
    if not any(key.startswith("cpus-per") for key in lines):
        found.append(f"cpus-per-task={cores_of(job.gpus_per_node, None)}")
    if not any(key.startswith("mem") for key in lines):
        found.append("mem=0" if "exclusive" in lines else f"mem={MEMORY_PER_GPU * job.gpus_per_node}G")  # 0: all
    return found


def _check_time(limit: str | None, grace: int) -> None:
    seconds = None if limit is None else _seconds(limit)
    if seconds is not None and seconds <= grace + EARLY:
        raise InputError(
            f"--time is {limit} ({seconds} s), and SIGTERM comes --grace {grace} s before its end, or {EARLY} s sooner:"
            f" nothing would be trained; expected more than {(grace + EARLY) // 60} minutes, or a smaller --grace"
        )


def _seconds(limit: str) -> int | None:
    """Seconds of a time limit as Slurm reads it; None for no limit."""
    if limit.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = TIME.fullmatch(limit)
    if found is None:
        raise InputError(f"--time is {limit!r}, expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    days, first, second, third = (int(part or 0) for part in found.groups())
    hours = found["days"] is not None or found["third"] is not None  # else the first number is minutes
    seconds = 86400 * days + (3600 * first + 60 * second + third if hours else 60 * first + second)
    return seconds or None  # Slurm's 0 is no limit
