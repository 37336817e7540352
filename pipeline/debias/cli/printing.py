"""What the verbs share: how a table is printed, and the option for JSON."""

import sys
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_table(table: Any) -> None:
    """A rich table or text; piped output keeps its columns: nothing is folded to a terminal that is not there.

    A line of text stays one line, for whoever copies a command from it.
    """
    from rich.console import Console
    from rich.text import Text

    Console(width=None if sys.stdout.isatty() else 200).print(table, soft_wrap=isinstance(table, Text))
