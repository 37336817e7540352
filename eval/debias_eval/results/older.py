"""Runs of older versions beside newer ones: a block that has got one more setting is the same block as before."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from debias.config import blocks


def completed(configs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs' configs; where a block lacks settings that another of its name has, with every default filled in.

    Tables are opened only then, for they load torch; where it is not installed, or the block cannot be read any longer,
    a config stays as it is.
    """
    found = list(configs)
    for kind, home in blocks.KINDS.items():
        keys: dict[Any, set[str]] = defaultdict(set)
        held = {at: block for at, one in enumerate(found) if isinstance(block := one.get(kind), Mapping)}
        for block in held.values():
            keys[str(block.get(home.key, home.default))] |= set(block)
        for at, block in held.items():
            if set(block) != keys[str(block.get(home.key, home.default))]:
                found[at] = {**found[at], kind: _filled(kind, block)}
    return found


def _filled(kind: str, block: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return blocks.read(kind, block)
    except (ImportError, ValueError):
        return block
