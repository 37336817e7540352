"""The verb that folds an adapter into its base."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.printing import AsJson
from debias.ranks.garbage import loading


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(merge)


def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a run with an adapter.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the dense model.")],
    adapter: Annotated[
        str | None, typer.Option(help="Another adapter: a checkpoint of the run by name, or a PEFT folder.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the run's (4-bit: bfloat16).")
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Times the adapter's change (WiSE-FT); 1: as trained, 0: the base.")
    ] = 1.0,
    tokenizer: Annotated[
        str | None, typer.Option(help="Another tokenizer than the adapter's own, or its base's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace all that the folder holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fold a run's adapter into its base: a dense model that loads anywhere, checked against the adapter's logits."""
    with loading():
        from debias.merging.fold import merge_run

    options = {"adapter": adapter, "dtype": dtype, "tokenizer": tokenizer}
    merged = merge_run(run, out, **options, scale=scale, overwrite=overwrite)
    typer.echo(json.dumps(dataclasses.asdict(merged), indent=2) if as_json else merged.line)
