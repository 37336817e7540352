"""The verb `debias fetch`."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from debias.cli.printing import AsJson, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from debias.config.data import DataSource
    from debias.fetch import Item


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(fetch)


def fetch(
    config: Annotated[Path, typer.Argument(help="A run's YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Also the data of a suite, a collection or a YAML file; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put what a run needs into the caches, so that it works with HF_HUB_OFFLINE=1 on nodes without a network."""
    from debias.config.places import find_recipe, resolve_paths
    from debias.config.reading import load_config
    from debias.fetch import fetch as bring

    path = find_recipe(config)
    base = path.resolve().parent
    run = resolve_paths(load_config(path, overrides or []), base)
    found = bring(run, base, [source for name in suite or [] for source in _sources(name)])
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(item) for item in found], indent=2))
        return
    print_table(_table(found))
    typer.echo("a run with HF_HUB_OFFLINE=1 finds all of it")


def _sources(name: str) -> list["DataSource"]:
    """What the suites of that name read from the hub; InputError for one whose data is nowhere."""
    from debias.errors import InputError
    from debias_eval.reading.collection import collection_names, members
    from debias_eval.reading.places import hub_config, local_file, not_found, where_from
    from debias_eval.reading.suite import load_suite

    found = []
    for suite in map(load_suite, members(name) if name in collection_names() else [name]):
        place = where_from(suite)
        if place == "missing" and suite.source is not None:
            raise InputError(not_found(suite, suite.source.source))
        if place == "hub" and suite.hub is not None:
            found.append(hub_config(suite, suite.hub).train)
        partial = suite.group_rule.partial_input
        if partial and partial.hub and not all(local_file(suite, file) for file in partial.train):
            found.append(hub_config(suite, partial.hub).train)
    return found


def _table(found: list["Item"]) -> "Table":
    from rich.table import Table

    table = Table(title=None)
    for heading in ("", "name", "", "where"):
        table.add_column(heading, overflow="fold")
    table.add_column("MB", justify="right")
    for item in found:
        size = f"{item.bytes / 1e6:,.1f}" if item.bytes else ""
        table.add_row(item.kind, item.name, item.state, item.place, size)
    return table
