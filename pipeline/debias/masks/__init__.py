"""Which single elements of the weights a step moves, chosen by how large their gradients are. torch only.

A new row is one file, one line in `MASKS` and one golden row in tests/numerics/test_masks.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.masks.base import Mask
from debias.masks.choosing import Ranks, count_of, largest, largest_of_each
from debias.masks.gmt import GMT
from debias.masks.saft import SAFT

MASKS: dict[str, type[Mask]] = {one.name: one for one in (SAFT, GMT)}


def make_mask(block: str | Mapping[str, Any] | None) -> Mask | None:
    """What a `gradient_mask:` block describes, None of none. ValueError names a wrong setting."""
    return None if block is None else make("gradient_mask", MASKS, block)


__all__ = ["GMT", "MASKS", "SAFT", "Mask", "Ranks", "count_of", "largest", "largest_of_each", "make_mask"]
