"""The verb that edits trained adapters."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.printing import AsJson


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(edit)


def edit(
    name: Annotated[
        str,
        typer.Argument(
            metavar="EDIT",
            help="soup, greedy_soup, model_stock, truncate, scale (wise_ft), "
            "afr_last_layer, crt_last_layer, dfr_last_layer, dispel_last_layer or gsr_last_layer.",
        ),
    ],
    adapters: Annotated[list[Path], typer.Argument(metavar="RUN_OR_ADAPTER...", help="Folders of runs or adapters.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the edited adapter.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the edit: keep=4, alpha=0.5, weights=[1,2]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Edit what was learned: average several adapters, cut a change's tail, scale it, retrain the last layer."""
    from debias.config.reading import apply_overrides
    from debias.inference.held_out import HeldOutAccuracy, HeldOutPseudoGroups
    from debias.inference.last_layer import LastLayerInputs
    from debias.merging.editing import edit_adapters

    score = HeldOutAccuracy(tuple(adapters))
    asked = (score, LastLayerInputs(score), HeldOutPseudoGroups(adapters[0]))
    edited = edit_adapters(name, adapters, out, apply_overrides({}, settings or []), *asked)
    typer.echo(json.dumps(dataclasses.asdict(edited), indent=2) if as_json else edited.line)
