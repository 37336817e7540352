"""What suites there are, as a table, and the card of one: the verb `debias suites`."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from debias_eval.reading.collection import collection_names, members
from debias_eval.reading.places import where_from
from debias_eval.reading.suite import Suite, available_suites, load_suite


@dataclass(frozen=True)
class Entry:
    """One suite; `rows` as its card counts them (None: not counted), `data` where they would come from."""

    name: str
    version: int
    task: str
    labels: tuple[str, ...]
    rows: int | None
    data: str
    hub: str | None
    description: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def entries(name: str | None = None) -> list[Entry]:
    """Every built-in suite, or those that `name` names, by task and name; no data is read."""
    chosen = members(name) if name in collection_names() else available_suites() if name is None else [name]
    return sorted((_entry(load_suite(one)) for one in chosen), key=lambda one: (one.task, one.name))


def catalogue_table() -> Table:
    """Suites with task, labels, rows and where their data is."""
    table = Table(title=None)
    for heading in ("suite", "task", "labels"):
        table.add_column(heading, overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("data", overflow="fold")
    for one in entries():
        where = {"hub": f"hub: {one.hub}", "missing": "not here"}.get(one.data, one.data)
        rows = "" if one.rows is None else f"{one.rows:,}"
        table.add_row(one.name, one.task, ", ".join(one.labels), rows, where)
    return table


def collection_lines() -> list[str]:
    """One line for each collection: its name and its suites."""
    return [f"{name}: {'every suite' if name == 'all' else ', '.join(members(name))}" for name in collection_names()]


def card(name: str) -> str:
    """The card of a suite (a built-in name, or the path of a YAML file), or its description where it has none.

    A collection's name gives its suites. InputError for an unknown name.
    """
    if name in collection_names():
        return "\n".join(f"{one}: {load_suite(one).description}" for one in members(name))
    suite = load_suite(name)
    path = None if suite.folder is None else suite.folder / "CARD.md"
    if path is None or not path.is_file():
        return f"# {suite.name}\n\n{suite.description}\n\n- **Licence** {suite.licence}\n- No CARD.md beside it."
    where = {"hub": "on the hub only", "missing": "not on this machine"}.get(where_from(suite), where_from(suite))
    return f"{path.read_text(encoding='utf-8').rstrip()}\n\nVersion {suite.version}; data: {where}."


def _entry(suite: Suite) -> Entry:
    hub = suite.hub.source if suite.hub else None
    rows = _counted(suite.folder / "CARD.md") if suite.folder else None
    return Entry(suite.name, suite.version, suite.task, suite.labels, rows, where_from(suite), hub, suite.description)


def _counted(path: Path) -> int | None:
    """The last number of the card's row `all`."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^\| all \|.*?([\d,]+) \|\s*$", text, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else None
