"""ROOM 1: the rules, pure functions from a row Gram (and the memory of steps before) to coefficients: no collectives.

A new method is one file, one line in `METHODS` and one golden row in tests/tables.py.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from debias.methods.base import GRADIENTS, Rule, StepFacts, Vector, pairs_of
from debias.methods.combine import apply_coefficients, as_rows, combine, gram_of_rows, row_gram, take_step
from debias.methods.digrap import DiGraP
from debias.methods.edge import Edge, MainOnly, Orthogonal, Subtract
from debias.methods.pcgrad import PCGrad

METHODS: dict[str, type[Rule]] = {rule.name: rule for rule in (Edge, Subtract, Orthogonal, PCGrad, DiGraP, MainOnly)}
# The literature's name for training on the main gradient alone.
ALIASES = {"erm": "main_only"}


def make_rule(settings: Mapping[str, Any]) -> Rule:
    """The rule of a `method:` block: `{"name": "edge", "alpha": 0.5}`. Raises ValueError that names the setting."""
    values = dict(settings)
    name = str(values.pop("name", "edge"))
    rule = METHODS.get(ALIASES.get(name, name))
    if rule is None:
        near = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"method.name is {name!r}, not one of {', '.join([*METHODS, *ALIASES])}{hint}")
    return rule(**{key: _checked(rule, key, value) for key, value in values.items()})


def _checked(rule: type[Rule], key: str, value: Any) -> Any:
    fields = [field.name for field in dataclasses.fields(rule)]
    if key not in fields:
        raise ValueError(f"method.{key}: {rule.name} has no such setting; it has {', '.join(fields) or 'none'}")
    hint = get_type_hints(rule)[key]
    if hint is float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"method.{key} is {value!r}, expected a finite number")
        return number
    choices = get_args(hint)
    if choices and value not in choices:
        raise ValueError(f"method.{key} is {value!r}, not one of {', '.join(map(str, choices))}")
    return value


__all__ = [
    "GRADIENTS",
    "METHODS",
    "DiGraP",
    "Edge",
    "MainOnly",
    "Orthogonal",
    "PCGrad",
    "Rule",
    "StepFacts",
    "Subtract",
    "Vector",
    "apply_coefficients",
    "as_rows",
    "combine",
    "gram_of_rows",
    "make_rule",
    "pairs_of",
    "row_gram",
    "take_step",
]
