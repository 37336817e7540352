"""An sbatch script that a person can read and edit, and its submission.

Values never reach a shell unquoted: what stands in an `#SBATCH` line must be a plain word, and what stands in the
script is quoted for the shell or passed on as an argument.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jinja2

from debias.config.shipped import shipped_folders
from debias.errors import InputError
from debias.launching.job import WORD, Job, write_job

SCRIPT = "job.sbatch"
OPTIONS = ("partition", "time", "account", "qos", "constraint", "cpus-per-task", "mem", "exclude", "nodelist")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
EARLY = 60  # seconds that Slurm's signal may come before its time


def script(job: Job, options: Mapping[str, str | int | None], container: str | None = None) -> str:
    """The text of the sbatch script.

    `options` are those of `OPTIONS`; InputError for a value that is no plain word, and for a time limit that leaves no
    time before SIGTERM. `container` is an image for `srun --container-image` (pyxis), a path or a URI.
    """
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    for name, value in given:
        if name not in OPTIONS:
            raise ValueError(f"options: {name!r}, expected one of {OPTIONS}")
        if not WORD.fullmatch(value):
            raise InputError(f"--{name} is {value!r}, expected one word of letters, digits and _ . , : @ = + / -")
    _check_time(dict(given).get("time"), job.grace_seconds)
    image = f" --container-image={shlex.quote(container)}" if container else ""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script: values go through the filter q
    )
    environment.filters["q"] = shlex.quote
    return environment.get_template("slurm.sbatch.j2").render(job=job, options=given, container=image)


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


def templates() -> Path:
    """Where the templates are: inside the installed package, or at the top of a checkout."""
    return shipped_folders("templates")[0]


def write(job: Job, text: str, *, overwrite: bool = False) -> Path:
    """The job's folder with its script; the path of the script."""
    return write_job(job, {SCRIPT: text}, overwrite=overwrite) / SCRIPT


def submit(path: Path) -> str:
    """Hand the script to Slurm; the job's number. InputError with Slurm's own reason if it takes it not."""
    if shutil.which("sbatch") is None:
        raise InputError(f"sbatch is not on PATH, so nothing was submitted; the script is {path}")
    done = subprocess.run(
        ["sbatch", "--parsable", f"--chdir={path.parent}", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"sbatch ended with exit code {done.returncode}"
        raise InputError(f"Slurm refused the job, nothing was submitted: {reason}")
    return done.stdout.strip().partition(";")[0]
