"""What every kind of file gives: numbered rows; what a file does not say of itself; and which cells hold nothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NumberedRow = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """How a file is laid out, where it does not say so itself.

    `delimiter`: between the fields of a .csv or .tsv. `quotes`: whether quotes hold a field together there; None: as
    the file shows. `sheet`: of a workbook. `label`: the column of the label, and which texts are one.
    """

    delimiter: str | None = None
    quotes: bool | None = None
    sheet: str | None = None
    label: tuple[str, Callable[[str], bool]] | None = None


def is_null(value: Any) -> bool:
    """Whether a cell is null or NaN, which no text stands for: neither "None" nor "nan" was written there."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, not a number, or no more than spaces."""
    return is_null(value) or not str(value).strip()
