"""The verb that says what methods there are."""

import dataclasses
import json
from typing import Annotated

import typer

from debias.cli.printing import AsJson, print_table


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="A method: print its card.")] = None,
    as_json: AsJson = False,
) -> None:
    """List rules, losses, bias models, adapters and edits, with their papers; with a name, print its card."""
    from debias.building import cards

    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(card) for card in cards.cards(name)], indent=2))
    elif name is not None:
        typer.echo("\n\n".join(card.text for card in cards.cards(name)))
    else:
        print_table(cards.methods_table())
