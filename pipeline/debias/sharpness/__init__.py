"""Where the gradients of a step are taken: not at the weights, but where the loss around them is high. torch only.

A new row is one file, one line in `SHARPNESS` and one golden row in tests/numerics/test_sharpness.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.sharpness.asam import ASAM
from debias.sharpness.base import Sharpness
from debias.sharpness.sam import SAM

SHARPNESS: dict[str, type[Sharpness]] = {one.name: one for one in (SAM, ASAM)}


def make_sharpness(block: str | Mapping[str, Any] | None) -> Sharpness | None:
    """What a `sharpness:` block describes, None of none. ValueError names a wrong setting."""
    return None if block is None else make("sharpness", SHARPNESS, block)


__all__ = ["ASAM", "SAM", "SHARPNESS", "Sharpness", "make_sharpness"]
