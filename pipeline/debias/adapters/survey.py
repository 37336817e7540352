"""What an adapter came to: by kind of layer, what is adapted, what trains, and in how many bits the base is kept."""

import dataclasses
from collections.abc import Mapping
from io import StringIO
from typing import Any

import torch
from torch import nn

from debias.adapters import base_path, is_beside_base
from debias.adapters.base import SAVED_WHOLE
from debias.adapters.families import HEADS, ROUTERS

# In the order of the table. A kind is told by the first of its marks in a weight's path; the last has none.
MARKS: dict[str, tuple[str, ...]] = {
    "head": (*HEADS, "lm_head", "embed_out"),
    "shared expert": ("shared_expert", "shared_experts"),
    "experts": ("experts",),
    "router": ROUTERS,
    "embeddings": ("embed_tokens", "embeddings", "word_embeddings", "wte", "wpe"),
    "attention": ("self_attn", "attention", "attn", "self_attention", "crossattention"),
    "MLP": ("mlp", "feed_forward", "intermediate", "ffn", "output", "fc1", "fc2"),
    "other": (),
}


@dataclasses.dataclass(frozen=True)
class KindRow:
    """One kind of layer: its weights, adapters on them, elements that train; of the base, elements by storage.

    `modules` counts weights of two or three dimensions (a fused stack of experts is one), `adapted` those with an
    adapter or trained whole. `bytes` is what the base's storage takes, with the scales of 4-bit weights.
    """

    kind: str
    modules: int = 0
    adapted: int = 0
    trainable: int = 0
    four_bit: int = 0
    half: int = 0
    full: int = 0
    bytes: int = 0

    def __add__(self, other: "KindRow") -> "KindRow":
        figures = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in FIGURES}
        return KindRow(self.kind, **figures)


FIGURES = [one for one in dataclasses.fields(KindRow) if one.name != "kind"]


def survey(model: nn.Module) -> list[KindRow]:
    """The rows of a model that is ready to train, with or without adapter, kinds that it lacks left out.

    Under ZeRO-3 the counts are of whole tensors, not of this rank's share. It works on the meta device.
    """
    rows = {kind: KindRow(kind) for kind in MARKS}
    for name, parameter in model.named_parameters():
        kind = kind_of(name)
        rows[kind] += _row(kind, name, parameter)
    return [row for row in rows.values() if row != KindRow(row.kind)]


def kind_of(path: str) -> str:
    """The kind of layer that a parameter's path belongs to."""
    parts = base_path(path)[0].split(".")
    return next((kind for kind, marks in MARKS.items() if any(part in marks for part in parts)), "other")


def _row(kind: str, name: str, parameter: torch.Tensor) -> KindRow:
    elements = int(getattr(parameter, "ds_numel", parameter.numel()))
    shape = getattr(parameter, "ds_shape", parameter.shape)
    trains = elements if parameter.requires_grad else 0
    state = getattr(parameter, "quant_state", None)
    matrix = len(shape) > 1 or state is not None
    if is_beside_base(name):
        first = base_path(name)[1] and (matrix or SAVED_WHOLE not in name)  # of a head its bias is no other layer
        return KindRow(kind, adapted=int(first), trainable=trains)
    size = elements * parameter.element_size()
    row = KindRow(kind, modules=int(matrix), adapted=int(matrix and bool(trains)), trainable=trains)
    if state is not None:
        return row + KindRow(kind, four_bit=state.shape.numel(), bytes=size + _scale_bytes(state))
    half = parameter.element_size() < 4
    return row + KindRow(kind, half=elements if half else 0, full=0 if half else elements, bytes=size)


def _scale_bytes(state: Any) -> int:
    """What the scales of a 4-bit weight take: one for each block, quantized themselves with double quantization."""
    scales = [state.absmax, *([state.state2.absmax] if getattr(state, "state2", None) is not None else [])]
    return sum(one.numel() * one.element_size() for one in scales)


def as_records(rows: list[KindRow]) -> list[dict[str, Any]]:
    """The rows for run.json."""
    return [dataclasses.asdict(row) for row in rows]


def render(rows: list[KindRow]) -> str:
    """The rows and their sum as a table of text, figures that are 0 left blank."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    heads = {"kind": "layers", "half": "16-bit", "full": "32-bit", "four_bit": "4-bit", "bytes": "base, MB"}
    for field in dataclasses.fields(KindRow):
        table.add_column(heads.get(field.name, field.name), justify="left" if field.name == "kind" else "right")
    total = KindRow("all")
    for row in rows:
        total += row
        table.add_row(*_cells(dataclasses.asdict(row)))
    table.add_row(*_cells(dataclasses.asdict(total)))
    out = StringIO()
    Console(file=out, width=140).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _cells(row: Mapping[str, Any]) -> list[str]:
    figures = {**row, "bytes": f"{row['bytes'] / 1e6:,.1f}"}
    return [value if isinstance(value, str) else f"{value:,}" if value else "" for value in figures.values()]


def left_over(rows: list[KindRow]) -> str | None:
    """What of a 4-bit base is not in 4 bits, in one line; None for a base that is in no 4 bits."""
    if not any(row.four_bit for row in rows):
        return None
    sizes = {row.kind: row.half * 2 + row.full * 4 for row in rows}
    least = sum(sizes.values()) / 100  # norms and the like go without saying
    parts = [f"{kind} {size / 1e6:,.1f} MB" for kind, size in sizes.items() if size > least]
    fused = any(row.kind == "experts" and row.half + row.full for row in rows)
    why = "; fused experts are no linear layers, which is all that bitsandbytes quantizes" if fused else ""
    return f"load_in_4bit: not in 4 bits: {', '.join(parts)}{why}"


def describe(model: nn.Module) -> dict[str, int]:
    """Element counts: trainable, 4-bit, and all (a 4-bit parameter packs two or more elements in one)."""
    counts = {"trainable": 0, "four_bit": 0, "all": 0}
    for parameter in model.parameters():
        elements = whole = int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves a slice of it here
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            elements = state.shape.numel()
            counts["four_bit"] += elements
        counts["all"] += elements
        counts["trainable"] += whole if parameter.requires_grad else 0
    return counts
