"""The verb `debias plan`."""

import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from debias.cli.printing import AsJson, print_table
from debias.errors import InputError
from debias.ranks.garbage import loading

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(plan)


def plan(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Of one GPU (with --gpus 0 of the machine), for example 24GB.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Of one node; 0: a process on its CPUs.")] = 1,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    seq_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a row (the run's max_length).")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Any PEFT adapter's adapter_config.json, or its folder, in place of the run's.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Of the training set (data.train.limit): for steps, disk and hours.")
    ] = None,
    validation_rows: Annotated[
        int | None, typer.Option(min=1, help="Of the validation set (data.validation.limit): for hours.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="In training, of all processes together: for hours.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say before a run what it will need: parameters, bytes of a GPU, communication, whether it fits, and how long."""
    with loading():
        from debias.config.places import find_recipe, resolve_paths
        from debias.config.reading import load_config
        from debias.plan.effort import effort_of
        from debias.plan.foreign import plan_adapter
        from debias.plan.planner import gpu_memory_here, host_memory_here, make_plan
        from debias.plan.sheet import Machine
        from debias.plan.table import table_of, verdict_of

    logging.getLogger("debias.models.precision").setLevel(logging.ERROR)  # of this machine, not of what is planned
    path = find_recipe(config)
    run = resolve_paths(load_config(path, overrides or []), path.resolve().parent)
    memory = gpu_memory_here() if gpus else host_memory_here()
    if gpu_memory is not None:
        memory = parse_bytes(gpu_memory)
    machine = Machine(gpu_memory=memory, gpus=max(gpus, 1), nodes=nodes, cuda=gpus > 0)
    if adapter is None:
        found = make_plan(run, machine, length=seq_length)
    else:
        found = plan_adapter(run, machine, adapter, length=seq_length)
    asked: Any = {"rows": rows, "validation_rows": validation_rows, "tokens_per_second": tokens_per_second}
    found = found.model_copy(update={"effort": effort_of(run, machine, length=seq_length, **asked)})
    if as_json:
        typer.echo(json.dumps(found.model_dump(), indent=2))
        return
    print_table(table_of(found))
    for line in verdict_of(found):
        typer.echo(line)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 24GB (10^9) or 24GiB (2^30); InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", text.upper())
    unit = "" if match is None else match[2] if match[2].endswith("B") or not match[2] else match[2] + "B"
    if match is None or unit not in UNITS or (not unit) or float(match[1]) <= 0:
        raise InputError(f"--gpu-memory: {text!r} is no size; write it with its unit, for example 24GB or 80GiB")
    return round(float(match[1]) * UNITS[unit])
