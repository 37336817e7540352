"""The verb that writes a first run's YAML file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.options import Delimiter, Quotes, Sheet, layout_of


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(init)


def init(
    data: Annotated[
        str | None, typer.Option(help="Training data: .csv, .tsv, .jsonl, .parquet, .xlsx, a hub id.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, package:minilm or package:smollm2.")] = None,
    head: Annotated[str | None, typer.Option(help="classification (the default) or causal_lm.")] = None,
    text_field: Annotated[
        list[str] | None, typer.Option(help="A column of text; several times for several. Guessed where clear.")
    ] = None,
    label_field: Annotated[str | None, typer.Option(help="The column of the label. Guessed where clear.")] = None,
    group_field: Annotated[str | None, typer.Option(help="The column of groups. Guessed where clear.")] = None,
    method: Annotated[
        str | None, typer.Option(help="A rule: edge, subtract, erm, ... Without: what leaves artifacts unlearned.")
    ] = None,
    name: Sheet = None,
    delimiter: Delimiter = None,
    quotes: Quotes = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write; never over one that is there.")] = Path(
        "run.yaml"
    ),
) -> None:
    """Write a run's YAML file for data of your own: guesses the columns, asks what is unclear.

    It reads the first 20,000 rows, of long texts fewer (50 million characters), and says so in the file.
    """
    from debias.init.writing import Wanted, write_first

    layout = layout_of(name, delimiter, quotes)
    wanted = Wanted(data, model, head, tuple(text_field or ()), label_field, group_field, layout, method)
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    typer.echo(write_first(wanted, out, _ask if asks else None))


def _ask(question: str, otherwise: str) -> str:
    return str(typer.prompt(question, default=otherwise or None))
