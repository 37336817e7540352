"""ROOM 1: the rules, pure functions from a row Gram (and the memory of steps before) to coefficients: no collectives.

A new method is one file, one line in `METHODS` and one golden row in tests/tables.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.methods.base import GRADIENTS, Gram, Rule, StepFacts, Vector, each_row, pairs_of, seen, totals
from debias.methods.cagrad import CAGrad
from debias.methods.combine import (
    apply_coefficients,
    as_rows,
    combine,
    gram_of_rows,
    row_gram,
    take_step,
    wide_enough,
    write_gram,
    write_update,
)
from debias.methods.component_clip import ComponentClip
from debias.methods.digrap import DiGraP
from debias.methods.edge import Edge, MainOnly, Orthogonal, Subtract
from debias.methods.gradvac import GradVac
from debias.methods.l2_sp import L2SP
from debias.methods.mgda import MGDA
from debias.methods.norm_balance import NormBalance
from debias.methods.pcgrad import PCGrad

ROWS: tuple[type[Rule], ...] = (
    Edge,
    Subtract,
    Orthogonal,
    NormBalance,
    PCGrad,
    GradVac,
    MGDA,
    CAGrad,
    DiGraP,
    L2SP,
    ComponentClip,
    MainOnly,
)
METHODS: dict[str, type[Rule]] = {rule.name: rule for rule in ROWS}


def make_rule(block: str | Mapping[str, Any]) -> Rule:
    """The rule of a `method:` block: `edge`, or `{"name": "edge", "alpha": 0.5}`. ValueError names a wrong setting."""
    return make("method", METHODS, block)


__all__ = [
    "GRADIENTS",
    "L2SP",
    "METHODS",
    "MGDA",
    "CAGrad",
    "ComponentClip",
    "DiGraP",
    "Edge",
    "GradVac",
    "Gram",
    "MainOnly",
    "NormBalance",
    "Orthogonal",
    "PCGrad",
    "Rule",
    "StepFacts",
    "Subtract",
    "Vector",
    "apply_coefficients",
    "as_rows",
    "combine",
    "each_row",
    "gram_of_rows",
    "make_rule",
    "pairs_of",
    "row_gram",
    "seen",
    "take_step",
    "totals",
    "wide_enough",
    "write_gram",
    "write_update",
]
