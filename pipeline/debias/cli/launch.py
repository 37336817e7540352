"""The verbs that start a run on more than one process."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from debias.config.places import find_recipe, resolve_paths, resolve_stages
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.outputs import check_output

if TYPE_CHECKING:
    from debias.launching.job import Job
    from debias.launching.slurm import Extras

app = typer.Typer(no_args_is_help=True, help="Start a run on more than one process: local, slurm, k8s.")

Config = Annotated[Path, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
]

Gpus = Annotated[int, typer.Option(min=0, help="GPUs of each, a rank for each; 0 trains on CPUs.")]
GlobalBatch = Annotated[
    int | None, typer.Option(min=1, help="Samples a step sees at any number of ranks (sets accumulation).")
]
Grace = Annotated[
    int | None,
    typer.Option(min=30, help="Seconds from SIGTERM to the end; 300, or the config's sigterm_grace_seconds."),
]
Mounts = Annotated[
    list[str] | None, typer.Option(metavar="SRC:DST", help="Beside what the run reads and writes; repeat.")
]
Variables = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A variable of the ranks, as DEBIAS_DATA and HF_HOME; repeat."),
]
Claims = Annotated[
    list[str] | None, typer.Option(metavar="CLAIM:PATH", help="A volume claim and where pods see it; repeat.")
]
Taints = Annotated[
    list[str] | None, typer.Option(metavar="KEY[=VALUE][:EFFECT]", help="A taint that pods bear; repeat.")
]
GpuMemory = Annotated[
    str | None, typer.Option(help="Of one GPU, such as 80GB: refuse what does not fit by `debias plan`.")
]


@app.command()
def local(
    config: Config,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes, one for each GPU.")] = 1,
    print_command: Annotated[bool, typer.Option("--print", help="Print the command, start nothing.")] = False,
) -> None:
    """Train with several processes on this machine; rank 0 speaks, every rank has a log file."""
    from debias.launching.local import command, logs_of

    path = find_recipe(config)
    settings = load_config(path, overrides or [])
    logs = None if print_command else logs_of(settings.output_dir)
    words = command(path, overrides or [], nproc, logs)
    if print_command:
        typer.echo(shlex.join(words))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    os.execv(words[0], words)  # no shell between: signals reach torchrun itself


@app.command()
def slurm(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[str, typer.Option(metavar="[TYPE:]N", help="GPUs, a rank each; 0: CPUs.")] = "0",
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes of each node without GPUs.")] = None,
    global_batch: GlobalBatch = None,
    gpu_memory: GpuMemory = None,
    array_seeds: Annotated[
        str | None, typer.Option(help="An array of runs: how many seeds, or a list: 3,7,11.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The job's name; the config's by default.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The job's folder; jobs/NAME by default.")] = None,
    partition: Annotated[str | None, typer.Option(help="Passed on to Slurm, as those below.")] = None,
    time: Annotated[str | None, typer.Option(help="Limit: minutes, HH:MM:SS or D-HH:MM:SS.")] = None,
    account: Annotated[str | None, typer.Option()] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    constraint: Annotated[str | None, typer.Option(help="Such as 'a100&ib'.")] = None,
    reservation: Annotated[str | None, typer.Option()] = None,
    nodelist: Annotated[str | None, typer.Option()] = None,
    exclude: Annotated[str | None, typer.Option(help="Nodes to leave out, such as n[3-5],n9.")] = None,
    gres: Annotated[str | None, typer.Option(help="Of other kinds than GPUs.")] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Whole nodes, with all their memory.")] = False,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Cores of a node; 8 for each GPU.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of a node, such as 200G; 32G for each GPU.")] = None,
    mail_type: Annotated[str | None, typer.Option(help="Such as END,FAIL.")] = None,
    mail_user: Annotated[str | None, typer.Option()] = None,
    sbatch: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other option; repeat.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the ranks; repeat.")
    ] = None,
    prologue: Annotated[Path | None, typer.Option(help="A file of shell lines to begin with: module load ...")] = None,
    interface: Annotated[str | None, typer.Option(help="Of the network between nodes, such as ib0.")] = None,
    container: Annotated[str | None, typer.Option(help="Image for srun --container-image (pyxis).")] = None,
    container_mount: Mounts = None,
    container_python: Annotated[str, typer.Option(help="Python inside the container.")] = "python",
    grace: Grace = None,
    online: Annotated[bool, typer.Option("--online", help="Nodes may reach the hub.")] = False,
    no_doctor: Annotated[bool, typer.Option("--no-doctor", help="Leave out the check of the nodes.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Hand it to Slurm at once.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write an existing job's folder anew.")] = False,
) -> None:
    """Write an sbatch script for a run on several nodes, and submit it if asked."""
    from debias.launching import slurm as scripts

    job = _slurm_job(context.params)
    options = {key.replace("_", "-"): value for key, value in context.params.items()}
    text = scripts.script(job, options, sbatch or [], _extras(context.params))
    path = scripts.write(job, text, overwrite=overwrite)
    typer.echo(f"{path}: {job.world_size} ranks, {job.global_batch} samples a step")
    if submit:
        typer.echo(f"submitted: {scripts.submit(path)}")
    else:
        typer.echo(f"submit it with: sbatch {shlex.quote(str(path))}")


def _extras(given: Mapping[str, Any]) -> "Extras":
    """What the options of `slurm` ask for beside directives."""
    from debias.launching.slurm import Extras, read_prologue, sent_along

    prologue = None if given["prologue"] is None else Path(given["prologue"])
    return Extras(
        container=given["container"],
        mounts=given["container_mount"] or [],
        prologue=read_prologue(prologue),
        interface=given["interface"],
        env=sent_along(_variables(given["env"] or []), contained=given["container"] is not None),
    )


def _slurm_job(given: Mapping[str, Any]) -> "Job":
    """The job that the options of `slurm` ask for."""
    from debias.launching.job import cores_of, gpus_of, make_job
    from debias.sweep.grid import parse_seeds

    settings, stem = _settings(Path(given["config"]), given["overrides"])
    check_output(Path(given["out"] or "jobs"))
    title = given["name"] or stem
    kind, gpus = gpus_of(given["gpus_per_node"])
    job = make_job(
        settings,
        name=title,
        folder=Path(given["out"] or f"jobs/{title}"),
        nodes=given["nodes"],
        gpus_per_node=gpus,
        ranks_per_node=given["ranks_per_node"],
        global_batch=given["global_batch"],
        seeds=() if given["array_seeds"] is None else parse_seeds(given["array_seeds"], "--array-seeds"),
        grace_seconds=given["grace"],
        cpus_per_task=cores_of(gpus, given["cpus_per_task"]),
        offline=not given["online"],
        doctor=not given["no_doctor"],
        gpu_type=kind,
        python=sys.executable if given["container"] is None else given["container_python"],
    )
    _check_memory(job, given["gpu_memory"])
    return job


@app.command()
def k8s(
    config: Config,
    image: Annotated[str, typer.Option(help="Container image that holds debias.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Pods, one for each node.")] = 1,
    gpus_per_node: Gpus = 0,
    ranks_per_node: Annotated[int | None, typer.Option(min=1, help="Processes of each pod without GPUs.")] = None,
    global_batch: GlobalBatch = None,
    gpu_memory: GpuMemory = None,
    volume: Claims = None,
    env: Variables = None,
    name: Annotated[str | None, typer.Option(help="The JobSet's name; the config's by default.")] = None,
    namespace: Annotated[str | None, typer.Option()] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of a pod, such as 200Gi.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores that a pod asks for; 8 for each GPU.")] = None,
    node_selector: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A node's label; repeat.")
    ] = None,
    toleration: Taints = None,
    grace: Grace = None,
    online: Annotated[
        bool, typer.Option("--online", help="Pods may reach the hub (they must without HF_HOME).")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The manifest; jobs/NAME.yaml by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
) -> None:
    """Write a JobSet manifest for Kubernetes: kubectl apply -f it."""
    from debias.launching import kubernetes
    from debias.launching.job import cores_of, make_job

    settings, stem = _settings(config, overrides)
    check_output(out or Path("jobs"))
    title = name or stem.replace("_", "-").lower()
    job = make_job(
        settings,
        name=title,
        folder=Path("jobs") / title,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ranks_per_node=ranks_per_node,
        global_batch=global_batch,
        grace_seconds=grace,
        cpus_per_task=cores_of(gpus_per_node, cpus),
        offline=not online,
    )
    _check_memory(job, gpu_memory)
    where = kubernetes.placement(cores_of(gpus_per_node, cpus), node_selector or [], toleration or [])
    volumes, variables = [_claim(one) for one in volume or []], _variables(env or [])
    documents = kubernetes.manifest(job, image, volumes, namespace=namespace, memory=memory, env=variables, where=where)
    path = kubernetes.write(documents, out or Path("jobs") / f"{title}.yaml", overwrite=overwrite)
    typer.echo(
        f"{path}: {job.world_size} ranks, {job.global_batch} samples a step; kubectl apply -f {shlex.quote(str(path))}"
    )
    if "HF_HOME" not in variables:
        typer.echo(
            "each pod downloads what it needs from the hub; --env HF_HOME=PATH, a cache below a --volume path that"
            " `debias fetch` filled, keeps pods offline"
        )


def _check_memory(job: "Job", gpu_memory: str | None) -> None:
    if gpu_memory is not None:
        from debias.cli.plan import parse_bytes
        from debias.launching.job import check_memory

        check_memory(job, parse_bytes(gpu_memory))


def _claim(text: str) -> tuple[str, str]:
    claim, colon, path = text.partition(":")
    if not colon or not claim or not path:
        raise InputError(f"--volume is {text!r}, expected CLAIM:PATH such as data:/data")
    return claim, path


def _variables(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--env is {text!r}, expected NAME=VALUE such as HF_HOME=/data/hf")
        if name in found:
            raise InputError(f"--env {name} is given twice, {found[name]!r} and {value!r}; keep one")
        found[name] = value
    return found


def _settings(config: Path, overrides: list[str] | None) -> tuple[RunConfig, str]:
    """The run's settings with absolute paths, and the config's own name."""
    path = find_recipe(config)
    if not path.is_file():
        raise InputError(f"{config}: no such file, and no recipe of that name")
    base = path.resolve().parent
    return resolve_stages(resolve_paths(load_config(path, overrides or []), base), base), path.stem
