"""An sbatch script that a person can read and edit, and its submission.

Values never reach a shell unquoted: what stands in an `#SBATCH` line must be a plain word, and what stands in the
script is quoted for the shell or passed on as an argument.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from debias.config.shipped import shipped_folders
from debias.errors import InputError
from debias.launching.containers import READ_BELOW, container_flags
from debias.launching.directives import directives, log_file
from debias.launching.job import INTERFACE, SET_BY_JOB, VARIABLE, Job, write_job

SCRIPT = "job.sbatch"
# What a submission in another shell, or on another day, would not have.
SENT = (*READ_BELOW, "DEBIAS_TRUST_REMOTE_CODE", "DEBIAS_SKIP_PLAN", "DEBIAS_TRITON")
LONGEST_PROLOGUE = 2**20
HIGHEST_INDEX = 1000  # of an array: Slurm's MaxArraySize is 1001 where nobody has set another


@dataclass(frozen=True)
class Extras:
    """What a cluster wants beside the directives.

    `container` is an image of pyxis, `mounts` what it sees beside what the run needs. `prologue` are lines of shell
    before anything else (modules). `interface`: of the network between nodes. `env` are variables of the ranks.
    """

    container: str | None = None
    mounts: Sequence[str] = ()
    prologue: str = ""
    interface: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


NOTHING = Extras()


def script(
    job: Job,
    options: Mapping[str, str | int | bool | None],
    more: Sequence[str] = (),
    extras: Extras = NOTHING,
) -> str:
    """The text of the sbatch script; `options` and `more` as `directives` takes them.

    InputError for what could end a directive, and for what a container or an interface cannot be called.
    """
    if extras.interface is not None and not INTERFACE.fullmatch(extras.interface):
        raise InputError(f"--interface is {extras.interface!r}, expected a name such as ib0, or several: ib0,ib1")
    if extras.mounts and extras.container is None:
        raise InputError(f"--container-mount {extras.mounts[0]}: there is no --container")
    flags = []
    if extras.container is not None:
        flags = container_flags(job, extras.container, extras.mounts, extras.env)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script: values go through the filter q
    )
    environment.filters["q"] = shlex.quote
    return environment.get_template("slurm.sbatch.j2").render(
        job=job,
        directives=directives(job, options, more),
        log=log_file(job),
        extras=extras,
        indexed=max(job.seeds, default=0) > HIGHEST_INDEX,
        container="".join(f" {shlex.quote(flag)}" for flag in flags),
        outputs=os.path.dirname(job.output_dir),
    )


def sent_along(given: Mapping[str, str], *, contained: bool = False) -> dict[str, str]:
    """Variables of the ranks: `given`, and of this shell those that decide what a run reads; folders absolute.

    A container (`contained`) has a home of its own, so it is told where the hub's cache is.

    InputError for what no shell takes as a name, and for what the job sets by an option.
    """
    wrong = next((name for name in given if not VARIABLE.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(f"--env is {wrong!r}, expected the name of a variable: letters, digits and '_'")
    if (own := next((name for name in given if name in SET_BY_JOB), None)) is not None:
        raise InputError(f"--env {own}: {SET_BY_JOB[own]}; remove it")
    here = {name: os.environ[name] for name in SENT if os.environ.get(name)}
    found = {**({"HF_HOME": "~/.cache/huggingface"} if contained else {}), **here, **given}
    folders = {name: os.path.abspath(os.path.expanduser(found[name])) for name in READ_BELOW if name in found}
    return {**found, **folders}


def read_prologue(path: Path | None) -> str:
    """The shell lines of a prologue file; InputError for a file that is none, or one with directives."""
    if path is None:
        return ""
    try:
        if not path.is_file() or path.stat().st_size > LONGEST_PROLOGUE:
            raise InputError(f"--prologue is {str(path)!r}, expected a file of shell lines, such as: module load cuda")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prologue {path}: cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#SBATCH"):
            raise InputError(f"--prologue {path}, line {number}: {line!r} comes too late there; use --sbatch KEY=VALUE")
    return text.removeprefix("#!/bin/bash\n").strip("\n")


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
