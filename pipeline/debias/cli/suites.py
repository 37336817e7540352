"""The verb that says what there is to judge on."""

import json
from typing import Annotated

import typer

from debias.cli.printing import AsJson, print_table


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(suites)


def suites(
    name: Annotated[str | None, typer.Argument(help="A suite, a collection, or a suite's YAML file: print it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the suites and collections, and whether their data is here; with a name, print its card."""
    from debias_eval.reading import catalogue

    if as_json:
        typer.echo(json.dumps([entry.as_dict() for entry in catalogue.entries(name)], indent=2))
    elif name is not None:
        typer.echo(catalogue.card(name))
    else:
        print_table(catalogue.catalogue_table())
        typer.echo("\n".join(catalogue.collection_lines()))
