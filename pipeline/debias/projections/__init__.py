"""What is done to the weights after the optimizer's step, beside any rule and loss. torch only.

A new row is one file, one line in `PROJECTIONS` and one golden row in tests/numerics/test_projections.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.projections.base import Projection
from debias.projections.spd import SPD

PROJECTIONS: dict[str, type[Projection]] = {one.name: one for one in (SPD,)}


def make_projection(block: str | Mapping[str, Any] | None) -> Projection | None:
    """What a `weight_projection:` block describes, None of none. ValueError names a wrong setting."""
    return None if block is None else make("weight_projection", PROJECTIONS, block)


__all__ = ["PROJECTIONS", "SPD", "Projection", "make_projection"]
