"""KIND: what trains of a model; a form of adapter is one file and one line in `ADAPTERS`."""

from collections.abc import Mapping
from typing import Any

from debias.adapters.base import SAVED_WHOLE, Adapter, RunFacts
from debias.adapters.beft import Beft
from debias.adapters.bitfit import BitFit
from debias.adapters.dora import Dora
from debias.adapters.full import Full
from debias.adapters.ia3 import IA3
from debias.adapters.lora import Lora
from debias.adapters.lora_fa import LoraFA
from debias.adapters.rslora import RsLora
from debias.adapters.vera import Vera
from debias.config.blocks import KINDS, make

ADAPTERS: dict[str, type[Adapter]] = {
    row.name: row for row in (Lora, Dora, Beft, BitFit, Full, RsLora, LoraFA, Vera, IA3)
}
_BESIDE = [row for row in ADAPTERS.values() if row.frozen_base]


def make_adapter(block: str | Mapping[str, Any]) -> Adapter:
    """The adapter of an `adapter:` block: `lora`, or `{"type": "beft", "targets": ["query"]}`.

    ValueError names a wrong setting.
    """
    return make("adapter", ADAPTERS, block, KINDS["adapter"].key)


def is_beside_base(parameter: str) -> bool:
    """Whether the tensor of this path was put beside the base by an adapter of any form, heads' copies included."""
    return any(row.owns(parameter) for row in _BESIDE)


def base_path(parameter: str) -> tuple[str, bool]:
    """The path of the base's layer that a tensor beside it belongs to, and whether it is the first such tensor there.

    A path of the base itself is given back as it is.
    """
    for row in _BESIDE:
        for mark in row.marks:
            before, found, _ = parameter.partition(mark)
            if found:
                return before, mark == row.marks[0]
    return parameter, SAVED_WHOLE in parameter


__all__ = [
    "ADAPTERS",
    "IA3",
    "Adapter",
    "Beft",
    "BitFit",
    "Dora",
    "Full",
    "Lora",
    "LoraFA",
    "RsLora",
    "RunFacts",
    "Vera",
    "base_path",
    "is_beside_base",
    "make_adapter",
]
