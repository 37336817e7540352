"""A run as a job of a cluster: its shape, what does not fit, and the folder that holds all it needs."""

import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debias.config import deepspeed_file as zero_config
from debias.config.places import files_of, runs_of
from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.names import CONFIG

# What Slurm and Kubernetes take as a word; anything else could end a directive and begin another.
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:@=+/-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
INTERFACE = re.compile(r"[\^=]?[A-Za-z0-9][A-Za-z0-9_.,-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GPUS = re.compile(r"(?:(?P<type>[A-Za-z0-9][A-Za-z0-9_.-]*):)?(?P<count>\d{1,3})")
CPUS_PER_GPU = 8  # a rank, its data loader and the threads of its kernels
GRACE, LEAST_GRACE = 300, 30  # seconds from SIGTERM to the end: the default, and what a checkpoint needs at least

logger = logging.getLogger(__name__)

SET_BY_JOB = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "--grace sets it"}  # variables of the ranks that have an option


@dataclass(frozen=True)
class Job:
    """A checked run on `nodes` machines with `ranks_per_node` processes each.

    `seeds` makes it an array, one task for each seed, with runs in `output_dir/seedN`. `folder` holds the script, the
    configs as resolved (a recipe edited while the job waits changes nothing) and the logs.
    """

    name: str
    folder: Path
    config: RunConfig
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    seeds: tuple[int, ...] = ()
    grace_seconds: int = GRACE
    threads: int = 1
    offline: bool = True
    doctor: bool = True
    most_requeues: int = 100
    python: str = sys.executable
    gpu_type: str | None = None

    @property
    def output_dir(self) -> str:
        return os.path.abspath(self.config.output_dir)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def global_batch(self) -> int:
        """Samples that one optimizer step sees."""
        per_rank = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        return per_rank * self.world_size

    def configs(self) -> dict[str, RunConfig]:
        """The file names and settings of the runs; each goes on from its last checkpoint if it has one."""
        common = {"resume": self.config.resume or "auto", "sigterm_grace_seconds": float(self.grace_seconds)}
        if not self.seeds:
            return {CONFIG: self.config.model_copy(update={**common, "output_dir": self.output_dir})}
        return {
            f"seed{seed}.yaml": self.config.model_copy(
                update={**common, "seed": seed, "output_dir": f"{self.output_dir}/seed{seed}"}
            )
            for seed in self.seeds
        }


def make_job(
    config: RunConfig,
    *,
    name: str,
    folder: Path,
    nodes: int,
    gpus_per_node: int,
    ranks_per_node: int | None = None,
    global_batch: int | None = None,
    seeds: Sequence[int] = (),
    grace_seconds: int | None = None,
    cpus_per_task: int | None = None,
    offline: bool = True,
    doctor: bool = True,
    gpu_type: str | None = None,
    python: str = sys.executable,
) -> Job:
    """The job, with everything checked that can be without a cluster; InputError in one line.

    `ranks_per_node`: one for each GPU by default, one without GPUs. `global_batch` fixes what one optimizer step sees
    at any number of ranks: gradient accumulation is set to make it so. `grace_seconds`: by default those that `config`
    sets, else GRACE. `config` has absolute paths.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"--name is {name!r}, expected up to 63 letters, digits, '.', '_' or '-'")
    ranks = ranks_per_node or gpus_per_node or 1
    if gpus_per_node and ranks != gpus_per_node:
        raise InputError(
            f"--ranks-per-node is {ranks} with {gpus_per_node} GPUs a node; expected one rank for each GPU"
        )
    _check_restarts(config)
    if global_batch is not None:
        config = _with_global_batch(config, global_batch, nodes * ranks)
    for run in runs_of(config):
        if run.deepspeed is not None:
            path = zero_config.find(run.deepspeed)
            zero_config.read(path, nodes * ranks, run.per_device_train_batch_size, run.gradient_accumulation_steps)
    job = Job(
        name=name,
        folder=Path(folder).absolute(),
        config=config,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ranks_per_node=ranks,
        seeds=tuple(seeds),
        grace_seconds=_grace(config, grace_seconds),
        threads=max(1, (cpus_per_task or ranks) // ranks),
        offline=offline,
        doctor=doctor,
        gpu_type=gpu_type,
        python=python,
    )
    if any(ord(letter) < 32 for letter in f"{job.folder}{job.output_dir}{job.python}"):
        raise InputError(f"{str(job.folder)!r} and {job.output_dir!r}: a line break or control character in a path")
    return job


def gpus_of(text: str) -> tuple[str | None, int]:
    """Type and number of a node's GPUs as Slurm writes them, `8` or `a100:8`; InputError for anything else."""
    found = GPUS.fullmatch(text)
    if found is None:
        raise InputError(f"--gpus-per-node is {text!r}, expected a number, or TYPE:NUMBER such as a100:8")
    return found["type"], int(found["count"])


def cores_of(gpus: int, asked: int | None) -> int | None:
    """Cores of a node: as asked, else in proportion to its GPUs; None where Slurm is left to its own."""
    return asked or CPUS_PER_GPU * gpus or None


def names_of(config: RunConfig) -> dict[str, str]:
    """Names of models, data and what a bias model said that may be files, by the setting that has them."""
    named = {"model": config.model, "data.train": config.data.train.source}
    if config.first_stage is not None and config.stage_before().model != config.model:
        named["first_stage.settings.model"] = config.stage_before().model
    if config.data.validation is not None:
        named["data.validation"] = config.data.validation.source
    for number, name in enumerate(files_of(config.bias_model), start=1):
        named["bias_model.file" if number == 1 else f"bias_model.file {number}"] = name
    return {key: os.path.expanduser(name) for key, name in named.items()}


def own_engines(config: RunConfig) -> dict[str, str]:
    """DeepSpeed files of the user's own, by the setting that names them: the run's, and its first stage's."""
    stage = config.first_stage.settings if config.first_stage is not None else {}
    named = {"deepspeed": config.deepspeed, "first_stage.settings.deepspeed": stage.get("deepspeed")}
    return {key: name for key, name in named.items() if name is not None and name not in zero_config.shipped()}


def _check_restarts(config: RunConfig) -> None:
    """A job that is started again must find what it has saved: settings against that are refused, or said."""
    if config.overwrite_output_dir:
        raise InputError(
            "overwrite_output_dir is true, but a job goes on from its last checkpoint each time it is started;"
            " give another output_dir, or remove the old run by hand"
        )
    if config.resume is False and "resume" in config.model_fields_set:
        logger.warning("resume is false; it becomes auto, for a job goes on from its last checkpoint")


def _grace(config: RunConfig, asked: int | None) -> int:
    """Seconds between SIGTERM and the end, of the job and of the run in it."""
    if "sigterm_grace_seconds" not in config.model_fields_set:
        return GRACE if asked is None else asked
    own = config.sigterm_grace_seconds
    if asked not in (None, own):
        raise InputError(
            f"sigterm_grace_seconds is {own:g}, but --grace is {asked}; leave --grace out, or add"
            f" sigterm_grace_seconds={asked}"
        )
    if own < LEAST_GRACE or own % 1:
        raise InputError(f"sigterm_grace_seconds is {own:g}; a job takes whole seconds, at least {LEAST_GRACE}")
    return int(own)


def check_memory(job: Job, gpu_memory: int) -> None:
    """InputError with the plan's own verdict for a job that does not fit GPUs of `gpu_memory` bytes."""
    from debias.plan.planner import make_plan
    from debias.plan.sheet import Machine
    from debias.plan.table import verdict_of

    machine = Machine(gpu_memory=gpu_memory, gpus=job.ranks_per_node, nodes=job.nodes)
    plan = make_plan(job.config, machine)
    if not plan.fits:
        said = next(line for line in verdict_of(plan) if "DOES NOT FIT" in line)
        raise InputError(f"nothing was written: per_device_train_batch_size {plan.micro_batch} {said}")


def _with_global_batch(config: RunConfig, wanted: int, world: int) -> RunConfig:
    together = config.per_device_train_batch_size * world
    if wanted % together:
        sizes = [size for size in range(1, wanted // world + 1) if wanted % (size * world) == 0]
        fitting = f"per_device_train_batch_size={max(sizes)} fits" if sizes else f"{world} ranks do not divide {wanted}"
        raise InputError(
            f"--global-batch is {wanted}, no multiple of {world} ranks x per_device_train_batch_size "
            f"{config.per_device_train_batch_size}; {fitting}"
        )
    return config.model_copy(update={"gradient_accumulation_steps": wanted // together})


def write_job(job: Job, files: dict[str, str], *, overwrite: bool = False) -> Path:
    """The job's folder with its configs and `files`; appears whole or not at all. InputError if it is there already."""
    if os.path.exists(job.folder) and not overwrite:  # for which a name that is too long is no error
        raise InputError(f"{job.folder}: exists already; give another -o, or --overwrite to write it anew")
    texts = {**{file: dump_config(one) for file, one in job.configs().items()}, **files}
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=job.folder.parent, prefix=f".{job.folder.name}-"))
        try:
            for file, text in texts.items():
                (made / file).write_text(text, encoding="utf-8")
            made.chmod(0o755)  # other nodes may read it as another user
            if not job.folder.exists():
                made.rename(job.folder)
            else:  # file by file: its logs stay
                for file in texts:
                    (made / file).replace(job.folder / file)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{job.folder}: cannot be written: {error.strerror or error}") from None
    return job.folder
