"""What many rows cost before the first step: memory beyond the model, and time, when they are read first and again.

Each measurement is a run of one step in processes of its own, beside the same run on a few rows: the difference is the
data's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from debias.models.source import resolve_model

FEW = 64
LABELS = ("entailment", "neutral", "contradiction")
WORDS = (
    "a an the two three some man woman child dog cat group people boy girl is are was walking standing sitting running "
    "playing holding wearing looking eating jumping in on at near with behind under over beside red blue green black "
    "white small large old young park street beach water ball guitar shirt hat bench bike outside inside while another"
)


class DataSetting(BaseModel):
    """Rows of made-up sentences of the length of SNLI's, read by `world` ranks of one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = "package:minilm"
    rows: int = Field(500_000, ge=FEW)
    world: int = Field(1, ge=1)
    max_length: int = Field(64, ge=8)


def bench_data(setting: DataSetting) -> dict[str, Any]:
    """Of a first run (`cold`) and a second one (`warm`), the largest of all ranks: MB and seconds beyond a run on 64
    rows; and the bytes of the rows, and of what is kept of them.

    RuntimeError with its last words where a rank fails.
    """
    path = resolve_model(setting.model).path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, rows in (("few.jsonl", FEW), ("rows.jsonl", setting.rows)):
            with (folder / file).open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(row) + "\n" for row in made_rows(rows))
        few, cold, warm = (_run(setting, path, folder, file) for file in ("few.jsonl", "rows.jsonl", "rows.jsonl"))
        kept = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        bytes_of_rows = (folder / "rows.jsonl").stat().st_size
    found = {"cold": _beyond(cold, few), "warm": _beyond(warm, few)}
    return {"setting": setting.model_dump(), "rows_mb": _mb(bytes_of_rows), "kept_mb": _mb(kept), "few": few, **found}


def made_rows(size: int) -> Iterator[dict[str, str]]:
    """Rows of 8 to 22 and of 4 to 11 words, about 180 bytes each; the same for the same size."""
    draw, words = Random(0), WORDS.split()
    for _ in range(size):
        premise, hypothesis = (" ".join(draw.choices(words, k=draw.randint(*span))) for span in ((8, 22), (4, 11)))
        yield {"premise": premise + ".", "hypothesis": hypothesis + ".", "label": draw.choice(LABELS)}


def _run(setting: DataSetting, model: str, folder: Path, file: str) -> list[dict[str, float]]:
    """What each rank of a run of one step measured."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    settings = {
        "model": model,
        "data": {"train": str(folder / file)},
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "max_length": setting.max_length,
        "max_steps": 1,
        "per_device_train_batch_size": 2,  # or how long the first texts are would outweigh the rows
        "save_strategy": "no",
    }
    command = [sys.executable, "-m"]
    if setting.world > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.world), "-m"]
    command += ["debias.bench.data_rank", str(out), json.dumps(settings)]
    environment = {**os.environ, "DEBIAS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = sorted(out.iterdir())
    if done.returncode or len(found) != setting.world:
        raise RuntimeError(f"bench data: a rank failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    measured = [json.loads(one.read_text(encoding="utf-8")) for one in found]
    for one in found:
        one.unlink()
    return measured


def _beyond(found: Sequence[dict[str, float]], few: Sequence[dict[str, float]]) -> dict[str, float]:
    """The largest difference of a rank; CPU seconds are those of all ranks together."""
    beyond = {key: max(one[key] - base[key] for one, base in zip(found, few, strict=True)) for key in few[0]}
    beyond["cpu_seconds"] = sum(one["cpu_seconds"] for one in found) - sum(one["cpu_seconds"] for one in few)
    return {key: round(value, 1) for key, value in beyond.items()}


def _mb(size: float) -> float:
    return round(size / 1e6, 1)


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_data` returned."""
    from rich.table import Table

    setting = DataSetting(**result["setting"])
    table = Table(
        title=f"{setting.rows:,} rows ({result['rows_mb']:,} MB), {setting.world} rank(s), {setting.model}:"
        f" beyond a run on {FEW} rows; {result['kept_mb']:,} MB kept on disk"
    )
    heads = ("peak MB", "MB at the first step", "of these anonymous", "s to the first step", "CPU s, all ranks")
    for heading in ("run", *heads):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for name in ("cold", "warm"):
        row = result[name]
        keys = ("peak_mb", "resident_mb", "anonymous_mb", "seconds", "cpu_seconds")
        table.add_row(name, *(f"{row[key]:,}" for key in keys))
    return table
