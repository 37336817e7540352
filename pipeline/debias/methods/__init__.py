"""ROOM 1: the rules, pure functions from a row Gram [O, 3] to coefficients [O, 2]: no state, no collectives.

A new method is one file, one line in `METHODS` and one golden row in tests/numerics/test_golden.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.methods.base import Rule
from debias.methods.combine import apply_coefficients, as_rows, combine, gram_of_rows, row_gram
from debias.methods.edge import Edge, MainOnly, Orthogonal, Subtract
from debias.methods.pcgrad import PCGrad

METHODS: dict[str, type[Rule]] = {rule.name: rule for rule in (Edge, Subtract, Orthogonal, PCGrad, MainOnly)}


def make_rule(block: str | Mapping[str, Any]) -> Rule:
    """The rule of a `method:` block: `edge`, or `{"name": "edge", "alpha": 0.5}`. ValueError names a wrong setting."""
    return make("method", METHODS, block)


__all__ = [
    "METHODS",
    "Edge",
    "MainOnly",
    "Orthogonal",
    "PCGrad",
    "Rule",
    "Subtract",
    "apply_coefficients",
    "as_rows",
    "combine",
    "gram_of_rows",
    "make_rule",
    "row_gram",
]
