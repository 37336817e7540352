"""Reads the JSONL files beside this one for lm-evaluation-harness; `debias export-harness` puts a copy beside them.

The rows go to `datasets` as Python objects: its own JSON reader would guess at types (a column of dates becomes times).
"""

import json
from pathlib import Path
from typing import Any

import datasets


def load(jsonl: str, **_: Any) -> datasets.DatasetDict:
    """The rows of a file in this folder as the split `test`; the harness also passes a task's metadata."""
    with (Path(__file__).parent / jsonl).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
