"""The verb that says which shortcuts data offers."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.options import Delimiter, Quotes, Sheet, layout_of
from debias.cli.printing import AsJson, print_table


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(audit)


def audit(
    data: Annotated[
        list[str], typer.Argument(help="Files (.csv, .tsv, .jsonl, .parquet, also .gz) or sources that configs accept.")
    ],
    text_field: Annotated[
        list[str] | None, typer.Option(help="A column of text; several times for several. Guessed where clear.")
    ] = None,
    label_field: Annotated[str | None, typer.Option(help="The column of the label. Guessed where clear.")] = None,
    test: Annotated[str | None, typer.Option(help="Other data: how far the shortcuts of DATA get on it.")] = None,
    name: Sheet = None,
    delimiter: Delimiter = None,
    quotes: Quotes = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at a random part of so many examples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which shortcuts training data offers: fields, words and overlap that give the label away. Trains no model."""
    from debias.audit import comparing, reading, table
    from debias.audit.audit import audit as look

    columns = reading.Columns(tuple(text_field or ()), label_field, layout_of(name, delimiter, quotes))
    sets = [reading.read_dataset(source, columns, limit=limit) for source in data]
    audits = [look(one, None if test is None else reading.read_like(one, test), seed) for one in sets]
    differences = comparing.only_in_one(audits)
    records = {
        "audits": [one.as_dict() for one, _ in audits],
        "differences": [dataclasses.asdict(one) for one in differences],
    }
    if html is not None:
        from debias_eval.reporting.audit_page import write_audit

        write_audit(records, html)
    if as_json:
        typer.echo(json.dumps(records, indent=2, ensure_ascii=False))
        return
    for one, _ in audits:
        for part in table.tables_of(one):
            print_table(part)
    if differences:
        print_table(table.differences_table(differences))
    if html is not None:
        typer.echo(f"page: {html}")
