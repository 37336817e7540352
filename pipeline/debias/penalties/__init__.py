"""A term of the weights beside any loss, once in a step: what LoRA adds is kept apart from what is there. torch only.

A new row is one file, one line in `PENALTIES` and one golden row in tests/numerics/test_penalties.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.penalties.base import Factors, Penalty
from debias.penalties.pego import PEGO

PENALTIES: dict[str, type[Penalty]] = {one.name: one for one in (PEGO,)}


def make_penalty(block: str | Mapping[str, Any] | None) -> Penalty | None:
    """What a `weight_penalty:` block describes, None of none. ValueError names a wrong setting."""
    return None if block is None else make("weight_penalty", PENALTIES, block)


__all__ = ["PEGO", "PENALTIES", "Factors", "Penalty", "make_penalty"]
