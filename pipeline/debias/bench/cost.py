"""What two gradients add to the communication of a step under DeepSpeed, computed: no model and no GPU is needed."""

from collections.abc import Sequence
from typing import Any

from debias.errors import InputError
from debias.plan.payload import MODELS, WAYS, sent_bytes, step_payload

WORLDS = (2, 8, 64, 512, 4096)
STAGES = (2, 3)


def bench_cost(models: Sequence[str] = (), worlds: Sequence[int] = (), rank: int = 16) -> dict[str, Any]:
    """Bytes that a rank sends in a step, bf16 base and LoRA on all linear layers: plain's own, and added by each way.

    InputError for a model that is not in the table.
    """
    if unknown := [name for name in models if name not in MODELS]:
        raise InputError(f"--model: {unknown[0]!r} is not in the table; there are {', '.join(MODELS)}")
    rows = []
    for name in models or MODELS:
        for stage in STAGES:
            rows += [_row(name, stage, world, rank) for world in worlds or WORLDS]
    return {"lora_r": rank, "bytes_per_element": 2, "rows": rows}


def _row(name: str, stage: int, world: int, rank: int) -> dict[str, Any]:
    shape = MODELS[name]
    sent = {way: sent_bytes(step_payload(way, shape, stage=stage, world=world, rank=rank), world) for way in WAYS}
    added = {way: sent[way] - sent["plain"] for way in WAYS[1:]}
    # Of the frozen weights alone: at stage 2 every rank holds them whole.
    held = 2 * shape.parameters() / (world if stage == 3 else 1)
    return {
        "model": name,
        "parameters": shape.parameters(),
        "adapter_elements": shape.adapter_elements(rank),
        "adapter_rows": shape.adapter_rows(rank),
        "stage": stage,
        "world": world,
        "weights_bytes": round(held),
        "plain_bytes": round(sent["plain"]),
        **{f"{way}_added_bytes": round(more) for way, more in added.items()},
        **{f"{way}_ratio": round(sent[way] / sent["plain"], 4) if world > 1 else None for way in WAYS[1:]},
    }


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_cost` returned."""
    from rich.table import Table

    table = Table(title=f"GB that a rank sends in a step: bf16, LoRA r={result['lora_r']} on all linear layers, ring")
    heads = ("weights on a rank", "plain", "single_pass adds", "x plain", "two_pass adds", "x plain")
    for heading in ("model", "stage", "ranks", *heads):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in result["rows"]:
        cells = [f"{row['weights_bytes'] / 1e9:.2f}", f"{row['plain_bytes'] / 1e9:.3f}"]
        for way in WAYS[1:]:
            ratio = row[f"{way}_ratio"]
            cells += [f"{row[f'{way}_added_bytes'] / 1e9:.3f}", "-" if ratio is None else f"{ratio:.3f}"]
        table.add_row(row["model"], str(row["stage"]), str(row["world"]), *cells)
    return table
