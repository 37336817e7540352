"""The verb `debias doctor`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from debias.cli.printing import AsJson

if TYPE_CHECKING:
    from debias.doctor import Diagnosis


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(doctor)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    output_dir: Annotated[str | None, typer.Option(help="Whose disk is looked at, in the config's place.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="That the plan must fit, for example 24GB.")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Take steps of a tiny model too, as for a config with DeepSpeed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what would stop, hang or spoil a run; exit code 1 if there is something.

    Started on several ranks (torchrun, srun), they are tried together.
    """
    from debias.cli.plan import parse_bytes
    from debias.doctor import diagnose

    memory = None if gpu_memory is None else parse_bytes(gpu_memory)
    found = diagnose(config, overrides or [], output_dir=output_dir, gpu_memory=memory, deep=deep)
    if as_json and found.rank == 0:
        typer.echo(json.dumps(found.records(), indent=2))
    elif not as_json:
        _say(found)
    if found.open:
        from debias.doctor import ranks

        ranks.part()
    raise typer.Exit(0 if found.healthy else 1)


def _say(found: "Diagnosis") -> None:
    """All that rank 0 found; of the other ranks what is wrong, with their node, for their lines are mixed."""
    from debias.doctor.ranks import node
    from debias.ranks.world import world_size

    where = f"{node()}: " if world_size() > 1 else ""
    for check in found.mine:
        if found.rank == 0 or check.stops:
            typer.echo(where + check.line)
