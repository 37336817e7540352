"""What the verbs share: how a table is printed, and the option for JSON."""

import sys
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_table(table: Any) -> None:
    """A rich table; piped output keeps its columns: nothing is folded to a terminal that is not there."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)
