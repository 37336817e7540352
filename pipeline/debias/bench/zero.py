"""What two gradients cost under DeepSpeed: each way beside plain fine-tuning, on ranks that this module launches."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from debias.config.data import Strict
from debias.errors import InputError
from debias.plan.payload import WAYS, Shape, sent_bytes

HEAD_DIM = 64
SHARE = 2  # query heads to each key-value head
# Every parameter is gathered where it is used and let go at once, as in a model that is far too large to keep.
SHARDED = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}


class ZeroSetting(Strict):
    """One benchmark: a random model of this shape with LoRA on all its linear layers, and a batch for each rank."""

    family: Literal["qwen3", "llama"] = "qwen3"
    stage: Literal[0, 1, 2, 3] = 3
    world: int = Field(2, ge=1)
    layers: int = Field(4, ge=1)
    hidden: int = Field(512, ge=128)
    mlp: int = Field(1536, ge=1)
    vocab: int = Field(4096, ge=64)
    batch: int = Field(16, ge=1)
    length: int = Field(128, ge=4)
    tied: bool = False  # the head's weight is the embedding's
    lora_r: int = Field(16, ge=1)
    bf16: bool = False
    rounds: int = Field(5, ge=0)  # 0: count the collectives, time nothing
    threads: int = Field(1, ge=1)
    seed: int = 0

    @property
    def shape(self) -> Shape:
        """The model's sizes as `zero_cost` counts them."""
        return Shape(
            name=f"{self.family} {self.layers} x {self.hidden}",
            layers=self.layers,
            hidden=self.hidden,
            query=self.hidden,
            key_value=self.hidden // SHARE,
            mlp=self.mlp,
            vocab=self.vocab,
            tied=self.tied,
            head_norm=HEAD_DIM if self.family == "qwen3" else 0,
        )


def zero_setting(**changes: Any) -> ZeroSetting:
    """The default sizes with what is given; InputError for a value that is out of range or cannot run here."""
    try:
        setting = ZeroSetting(**{key: value for key, value in changes.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}, got {first['input']}") from None
    if setting.hidden % (SHARE * HEAD_DIM):
        raise InputError(f"--hidden: expected a multiple of {SHARE * HEAD_DIM} (whole heads), got {setting.hidden}")
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus and setting.world > gpus:
        raise InputError(f"--world: expected at most the {gpus} GPUs of this machine, got {setting.world}")
    if not gpus and setting.rounds and setting.world > cores:
        raise InputError(
            f"--world: {setting.world} ranks on {cores} cores would time their waiting for each other; expected at most"
            f" {cores}, or --rounds 0 to count collectives alone"
        )
    return setting


def bench_zero(setting: ZeroSetting) -> dict[str, Any]:
    """Seconds of a step of each way and its ratio to plain (median of adjacent pairs), wall and CPU time, and what a
    rank sends.
    """
    found = run_ranks([setting])[0]
    traffic, pairs = found.pop("traffic"), found.pop("pairs")
    ways = {}
    for way in WAYS:
        sent = sent_bytes(traffic[way]["payload"], setting.world)
        ways[way] = {**_times(pairs[way]), **traffic[way], "sent_bytes": round(sent)}
    return {"setting": setting.model_dump(), **found, "ways": ways}


def run_ranks(settings: Sequence[ZeroSetting]) -> list[dict[str, Any]]:
    """What `bench_zero_rank.measure` found for each setting, all with the same `world`, in one launch.

    InputError where DeepSpeed is not installed, RuntimeError with its last words if a rank fails.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("bench zero: deepspeed is not installed; pip install 'debias[deepspeed]'")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(settings[0].world), "-m", "debias.bench.zero_rank", str(out)]
        command += [setting.model_dump_json() for setting in settings]
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings[0].threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode or not out.is_file():
            raise RuntimeError(f"bench zero: a rank failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        results: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return results


def _times(pairs: list[list[float]]) -> dict[str, Any]:
    """Of `[wall, CPU, plain's wall, plain's CPU]`: medians, and the ratios of pairs."""
    row: dict[str, Any] = {}
    for at, clock in enumerate(("wall", "cpu") if pairs else ()):
        ratios = [pair[at] / pair[at + 2] for pair in pairs]
        row[f"{clock}_seconds"] = round(statistics.median(pair[at] for pair in pairs), 4)
        row[f"{clock}_ratio"] = round(statistics.median(ratios), 3)
        row[f"{clock}_ratio_min"] = round(min(ratios), 3)
        row[f"{clock}_ratio_max"] = round(max(ratios), 3)
    return row


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_zero` returned."""
    from rich.table import Table

    setting = ZeroSetting(**result["setting"])
    table = Table(
        title=f"ZeRO-{setting.stage}, {setting.world} rank(s) on {result['device'].partition(':')[0]}: {setting.family}"
        f" {setting.layers} x {setting.hidden} ({setting.shape.parameters() / 1e6:.0f}M parameters), LoRA"
        f" r={setting.lora_r}, {setting.batch} x {setting.length} tokens a rank, {'bf16' if setting.bf16 else 'fp32'},"
        f" {setting.threads} thread(s) a rank, {setting.rounds} interleaved rounds"
    )
    clocks = ("wall", "cpu") if setting.rounds else ()
    heads = [head for clock in clocks for head in (f"{clock} s / step", "x plain", "min .. max")]
    for heading in ("way", *heads, "MB sent / rank", "x plain", "calls"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    plain = result["ways"]["plain"]["sent_bytes"]
    for way, row in result["ways"].items():
        times = [cell for clock in clocks for cell in _clock_cells(row, clock)]
        sent = row["sent_bytes"]
        share = f"{sent / plain:.2f}" if plain else "-"
        calls = ", ".join(f"{number} {kind}" for kind, number in row["calls"].items())
        table.add_row(way, *times, f"{sent / 1e6:.1f}", share, calls)
    return table


def _clock_cells(row: dict[str, Any], clock: str) -> list[str]:
    spread = f"{row[f'{clock}_ratio_min']:.2f} .. {row[f'{clock}_ratio_max']:.2f}"
    return [f"{row[f'{clock}_seconds']:.3f}", f"{row[f'{clock}_ratio']:.3f}", spread]
