"""A plugin of pytest: what transformers' tests import and the installed transformers no longer has.

A suite of a version near the installed one then loads as a whole; a test that uses such a name fails, on both trainers
alike. `run_trainer_suite.py` hands it to both runs.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def imported(folder: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from transformers in the files of a folder."""
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                yield from ((str(node.module), alias.name) for alias in node.names)


def absent(module: str, name: str) -> type:
    """A class that cannot be made."""

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"the installed transformers has no {module}.{name}")

    return type(name, (), {"__init__": made})


def pytest_load_initial_conftests() -> None:
    """Before the suite is loaded: every name that its files ask for is there."""
    for name, wanted in imported(Path("tests/trainer")):
        module = importlib.import_module(name)
        if not hasattr(module, wanted):
            setattr(module, wanted, absent(name, wanted))
