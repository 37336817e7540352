"""Groups of training examples that nobody has told: made of what a bias model or a first stage says of them.

A new way is one file, one line in `GROUPINGS` and one row in tests/unit/grouping/test_groupings.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.grouping.base import Grouping, Inferred
from debias.grouping.eiil import EIIL
from debias.grouping.guessed import Guessed
from debias.grouping.spare import Spare

GROUPINGS: dict[str, type[Grouping]] = {one.name: one for one in (Guessed, EIIL, Spare)}


def make_grouping(block: str | Mapping[str, Any]) -> Grouping:
    """The way of a `groups:` block. ValueError names a wrong setting."""
    return make("groups", GROUPINGS, block)


__all__ = ["GROUPINGS", "Grouping", "Inferred", "make_grouping"]
