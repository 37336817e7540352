"""What the combination alone costs for the adapters of a large model, against the memory traffic it cannot do without.

Shapes: N elements, R rows.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from debias.config.data import Strict
from debias.engines.layout import Chunked
from debias.engines.pieces import Plan, combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.errors import InputError
from debias.methods import Edge, fused
from debias.plan.payload import MODELS

# Both gradients are read for the Gram; read again and main written, for the update: float32.
ELEMENT_BYTES = 5 * 4
# The Gram and the two coefficients of a row: written once, read once, float64.
ROW_BYTES = 2 * (3 + 2) * 8


class CombineSetting(Strict):
    """One benchmark: the adapters of a known model, or one rank's share of them."""

    model: str = "Qwen3-8B"
    lora_r: int = Field(16, ge=1)
    ranks: int = Field(1, ge=1)  # this process holds what one of so many ranks would
    rounds: int = Field(7, ge=1)
    threads: int = Field(1, ge=1)
    seed: int = 0


def combine_setting(**changes: Any) -> CombineSetting:
    """The defaults with what is given; InputError for a model that is not in the table."""
    setting = CombineSetting(**{key: value for key, value in changes.items() if value is not None})
    if setting.model not in MODELS:
        raise InputError(f"--model: {setting.model!r} is not in the table; there are {', '.join(MODELS)}")
    return setting


def bench_combine(setting: CombineSetting) -> dict[str, Any]:
    """Seconds of one combination on the CPU, and on a GPU where there is one, and the floor that memory sets.

    CPU seconds on a CPU; each combination right before a pass that only moves memory. On a GPU by plain torch, and by
    the Triton kernels where they are there; `left_out` says in a line why, where these turn out not to run.
    """
    torch.set_num_threads(setting.threads)
    shape = MODELS[setting.model]
    devices = {**ways("cpu"), **(ways("cuda") if torch.cuda.is_available() else {})}
    measured, left_out = {}, {}
    for name, (device, by_kernels) in devices.items():
        try:
            with fused.made_by(by_kernels):
                row = _measure(setting, device)
        except fused.NoKernels as error:  # known at the end alone; the other rows are as good as they were
            left_out[name] = str(error)
        else:
            measured[name] = row
    return {
        "setting": setting.model_dump(),
        "torch": torch.__version__,
        "elements": shape.adapter_elements(setting.lora_r),
        "rows": shape.adapter_rows(setting.lora_r),
        "devices": measured,
        "left_out": left_out,
    }


def ways(device: str) -> dict[str, tuple[torch.device, bool]]:
    """By name, how that device may combine: where it is done, and whether Triton kernels do it."""
    found = {device: (torch.device(device), False)}
    if device == "cuda" and fused.available():
        found["cuda, Triton"] = torch.device(device), True
    return found


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_combine` returned."""
    from rich.table import Table

    setting = result["setting"]
    share = "" if setting["ranks"] == 1 else f", the share of one of {setting['ranks']} ranks"
    table = Table(
        title=f"combine for {setting['model']}, LoRA r={setting['lora_r']}: {result['elements'] / 1e6:.1f}M elements,"
        f" {result['rows'] / 1e6:.2f}M rows{share}; {setting['threads']} thread(s), {setting['rounds']} rounds"
    )
    heads = ("seconds", "min .. max", "Gram + all-reduce", "coefficients + write", "floor", "x floor", "GB/s measured")
    for heading in ("device", *heads):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for name, row in result["devices"].items():
        spread = f"{row['seconds_min']:.4f} .. {row['seconds_max']:.4f}"
        parts = [f"{row[key]:.4f}" for key in ("gram_seconds", "write_seconds", "floor_seconds")]
        table.add_row(
            name, f"{row['seconds']:.4f}", spread, *parts, f"{row['times_floor']:.1f}", f"{row['bandwidth'] / 1e9:.1f}"
        )
    return table


def _measure(setting: CombineSetting, device: torch.device) -> dict[str, Any]:
    shape = MODELS[setting.model]
    adapters = shape.adapters(setting.lora_r)
    shapes = {
        f"{layer}.{index}": torch.Size(size) for layer in range(shape.layers) for index, size in enumerate(adapters)
    }
    layout = Chunked(shapes, rank=0, world=setting.ranks, group=None)
    with group_of_one(device):
        plan = make_plan(layout, shapes, None, device)
        sizes = {name: len(piece) for name, piece in layout.pieces.items()}
        main, bias = (made_pieces(sizes, setting.seed + side, device) for side in (0, 1))
        # Of vectors that no cache holds, also where the share is small; in turn with what it is held against.
        triad = Triad(shape.adapter_elements(setting.lora_r), device)
        rounds = [(_combine(plan, main, bias, device), triad.seconds()) for _ in range(setting.rounds + 1)][1:]
    moved = ELEMENT_BYTES * sum(sizes.values()) + ROW_BYTES * plan.rows
    floors = [moved / triad.bytes * seconds for _, seconds in rounds]
    seconds = [gram + write for (gram, write), _ in rounds]
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "gram_seconds": statistics.median(gram for (gram, _), _ in rounds),
        "write_seconds": statistics.median(write for (_, write), _ in rounds),
        "bandwidth": moved / statistics.median(floors),
        "floor_seconds": statistics.median(floors),
        "times_floor": statistics.median(own / floor for own, floor in zip(seconds, floors, strict=True)),
    }


def made_pieces(sizes: dict[str, int], seed: int, device: torch.device) -> dict[str, Tensor]:
    """Views of one flat buffer, as an engine holds them."""
    generator = torch.Generator(device).manual_seed(seed)
    flat_N = torch.randn(sum(sizes.values()), generator=generator, device=device)
    return dict(zip(sizes, flat_N.split(list(sizes.values())), strict=True))


def _combine(plan: Plan, main: dict[str, Tensor], bias: dict[str, Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds to the end of the all-reduce, and from there."""
    between: list[float] = []

    def scale_of(summed: list[float]) -> tuple[float, float]:
        between.append(_now(device))
        return 1.0, 1.0

    state = RuleState(Edge(), (), dict, dict)
    start = _now(device)
    combine_pieces(plan, state, [main, bias], [1.0, 0.0], scale_of)
    return between[0] - start, _now(device) - between[0]


class Triad:
    """`a = b + s c` (STREAM's triad) over float32 vectors of that length: `bytes` are 12 an element."""

    def __init__(self, elements: int, device: torch.device) -> None:
        self.bytes = 12 * elements
        self._a_N, self._b_N, self._c_N = (torch.ones(elements, device=device) for _ in range(3))

    def seconds(self) -> float:
        """Of one pass."""
        start = _now(self._a_N.device)
        torch.add(self._b_N, self._c_N, alpha=2.0, out=self._a_N)
        return _now(self._a_N.device) - start


def triad_bandwidth(elements: int, rounds: int, device: torch.device) -> float:
    """Bytes a second of the best of a few triads."""
    triad = Triad(elements, device)
    return triad.bytes / min(triad.seconds() for _ in range(rounds + 1))


def _now(device: torch.device) -> float:
    """CPU seconds of this process, which other work on the machine does not add to; on a GPU the clock's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
