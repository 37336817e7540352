"""A term beside any loss: a model's answer should hardly change near what it reads. torch only.

A new row is one file, one line in `SMOOTHNESS` and one golden row in tests/numerics/test_smoothness.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.smoothness.base import Ask, Smoothness, divergence
from debias.smoothness.r3f import R3F
from debias.smoothness.smart import SMART

SMOOTHNESS: dict[str, type[Smoothness]] = {one.name: one for one in (SMART, R3F)}


def make_smoothness(block: str | Mapping[str, Any] | None) -> Smoothness | None:
    """What a `smoothness:` block describes, None of none. ValueError names a wrong setting."""
    return None if block is None else make("smoothness", SMOOTHNESS, block)


__all__ = ["R3F", "SMART", "SMOOTHNESS", "Ask", "Smoothness", "divergence", "make_smoothness"]
