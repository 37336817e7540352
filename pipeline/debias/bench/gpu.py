"""The benchmarks that want a GPU; each part also runs on a CPU with the shape `tiny`, through the same code."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from debias.bench.combine import bench_combine, combine_setting
from debias.bench.gpu_measure import (
    Timed,
    ceilings,
    fits,
    floors,
    interleave,
    largest_batch,
    random_batch,
    stepping,
    time_way,
)
from debias.bench.gpu_model import bench_run, build, shape_config
from debias.config.data import Strict
from debias.config.reading import load_config
from debias.errors import InputError
from debias.plan.count import Counts, count

LARGE = ("Qwen3-14B", "Qwen3-32B", "Qwen3-30B-A3B")
BARS = {"speed": 0.95, "memory": 1.03}  # single_pass against plain


class GpuSetting(Strict):
    """One benchmark; `cap` in bytes, `recipe` and `steps` of the whole runs (-1: as the recipe says)."""

    shape: str = "Qwen3-8B"
    device: str = "cuda"
    batch: int = Field(4, ge=1)
    length: int = Field(1024, ge=8)
    lora_r: int = Field(16, ge=1)
    rounds: int = Field(3, ge=1)
    steps: int = Field(3, ge=1)  # timed in a turn
    cap: int = Field(24 * 10**9, gt=0)
    recipe: str = "smollm2_qlora_biased_snli_edge"
    max_steps: int | None = None
    seed: int = 0

    @property
    def torch_device(self) -> torch.device:
        """Where everything runs."""
        return torch.device(self.device)


def gpu_setting(**changes: Any) -> GpuSetting:
    """The defaults with what is given; InputError where the device is not there."""
    setting = GpuSetting(**{key: value for key, value in changes.items() if value is not None})
    if setting.device not in ("cuda", "cpu"):
        raise InputError(f"--device: expected cuda or cpu, got {setting.device!r}")
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "bench gpu needs one CUDA GPU (24 GB for Qwen3-8B; 80 GB for --what large) and torch built for it; --device"
            " cpu --shape tiny runs the same code small"
        )
    if setting.device == "cpu" and setting.shape != "tiny":
        raise InputError(f"--device cpu goes with --shape tiny; {setting.shape!r} would take hours")
    return setting


def bench_gpu(setting: GpuSetting, what: tuple[str, ...]) -> dict[str, Any]:
    """The results of the parts asked for (all: PARTS), by name; InputError for a part that there is not."""
    if unknown := [name for name in what if name not in PARTS]:
        raise InputError(f"--what: {unknown[0]!r} is not one of {', '.join(PARTS)}")
    device = setting.torch_device
    found: dict[str, Any] = {
        "setting": setting.model_dump(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "parts": {},
    }
    for name in what or _all():
        found["parts"][name] = PARTS[name](setting)
    return found


def qlora(setting: GpuSetting) -> dict[str, Any]:
    """Every way on one model, with and without activation checkpointing, and what bounds a step."""
    ceiling = ceilings(setting.torch_device)
    ways = {f"checkpointing {'on' if on else 'off'}": _ways(setting, on, ceiling) for on in (True, False)}
    return {"ceilings": ceiling, **ways}


def _ways(setting: GpuSetting, checkpointing: bool, ceiling: dict[str, float]) -> dict[str, Any]:
    model, batch, counts, config = made(setting, checkpointing)
    rows: dict[str, dict[str, Any]] = {}

    def measure() -> None:
        rows.update(interleave(lambda way: time_way(way, model, batch, setting.steps), setting.rounds))

    if not fits(measure):
        return {"fits": False, "rows": {}}
    tokens = setting.batch * setting.length
    for way, row in rows.items():
        bound = floors(way, counts, config, tokens, setting.length, checkpointing, ceiling)
        row |= {"tokens_per_second": tokens / row["seconds"], **bound}
        row["share_of_matmul"] = bound["matmul_seconds"] / row["seconds"]
        row["share_of_unpacking"] = bound["unpack_seconds"] / row["seconds"]
    single = rows["single_pass"]
    memory = single["peak_ratio"]
    return {
        "fits": True,
        "rows": rows,
        "speed_bar": single["speed_ratio"] >= BARS["speed"],
        "memory_bar": None if memory is None else memory <= BARS["memory"],
    }


def made(setting: GpuSetting, checkpointing: bool, length: int | None = None) -> tuple[Any, Any, Counts, Any]:
    """The setting's model on its device, a batch of random tokens, what it counts, and its configuration."""
    length = length or setting.length
    run = bench_run(setting.shape, checkpointing=checkpointing, lora_r=setting.lora_r, length=length)
    config = shape_config(setting.shape)
    counts = count(run, config)
    model = build(run, setting.torch_device, setting.seed)
    batch = random_batch(setting.batch, length, config.vocab_size, setting.torch_device)
    return model, batch, counts, config


def cap(setting: GpuSetting) -> dict[str, Any]:
    """The largest micro-batch of single_pass under a memory cap, at the length and twice that."""
    model = made(setting, checkpointing=True)[0]
    limit = 512 if setting.device == "cuda" else 3
    lengths = (setting.length, 2 * setting.length)
    return {str(length): largest_under_cap(setting, model, length, limit) for length in lengths}


def largest_under_cap(setting: GpuSetting, model: Any, length: int, limit: int) -> int:
    """The largest micro-batch of single_pass that trains under the setting's cap, of at most `limit`."""
    device, config = setting.torch_device, shape_config(setting.shape)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, setting.cap / whole), device)
    try:
        return largest_batch(functools.partial(_trains, model, config, length, device), limit)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _trains(model: Any, config: Any, length: int, device: torch.device, size: int) -> bool:
    def two_steps() -> None:
        batch = random_batch(size, length, config.vocab_size, device)
        with stepping("single_pass", model, batch) as step:
            step()
            step()  # with the optimizer's state

    return fits(two_steps)


def large(setting: GpuSetting) -> dict[str, Any]:
    """Larger shapes in nf4 on one card: whether they fit, tokens a second, and what is not 4-bit."""
    shapes = LARGE if setting.shape != "tiny" else ("tiny",)
    return {shape: _large(setting.model_copy(update={"shape": shape})) for shape in shapes}


def _large(setting: GpuSetting) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def measure() -> None:
        model, batch, counts, _ = made(setting, checkpointing=True)
        timed: dict[str, Timed] = {}
        for way in ("plain", _best_way(model)):
            timed[way] = time_way(way, model, batch, setting.steps)
        tokens = setting.batch * setting.length
        found["tokens_per_second"] = {way: tokens / one.seconds for way, one in timed.items()}
        found["peak"] = max(one.peak for one in timed.values())
        whole, packed = counts.elements(trainable=False), counts.elements(precision="4-bit")
        found["four_bit"], found["not_four_bit"] = packed, whole - packed

    found["fits"] = fits(measure)
    return found


def _best_way(model: Any) -> str:
    """single_pass where it is exact for this model, else shared_forward."""
    from debias.gradients.single_pass import refusal

    reason = refusal(model, {name: p for name, p in model.named_parameters() if p.requires_grad})
    return "single_pass" if reason is None else "shared_forward"


def combining(setting: GpuSetting) -> dict[str, Any]:
    """The combination alone, for the adapters of Qwen3-8B (of Qwen3-0.6B at r=1 with shape tiny)."""
    tiny = setting.shape == "tiny"
    model, rank = ("Qwen3-0.6B", 1) if tiny else ("Qwen3-8B", setting.lora_r)
    return bench_combine(combine_setting(model=model, lora_r=rank, rounds=setting.rounds, seed=setting.seed))


def full(setting: GpuSetting) -> dict[str, Any]:
    """Minutes of whole runs of a recipe, plain (erm) and with EDGE."""
    import tempfile
    import time

    from debias.config.places import find_recipe
    from debias.train import train

    path = find_recipe(Path("minilm_generated_edge" if setting.shape == "tiny" else setting.recipe))
    minutes = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("erm", "edge"):
            changes = [f"method={{name: {method}}}", f"output_dir={folder}/{method}", "save_strategy=no"]
            changes += [] if setting.max_steps is None else [f"max_steps={setting.max_steps}"]
            start = time.perf_counter()
            train(load_config(path, changes), base=path.resolve().parent)
            minutes[method] = (time.perf_counter() - start) / 60
    return {"recipe": path.stem, "minutes": minutes}


def trl(setting: GpuSetting) -> dict[str, Any]:
    """Tokens a second of TRL's SFTTrainer (plain QLoRA) beside plain and single_pass here: same model, same data."""
    from debias.bench.gpu_trl import seconds_of_a_step

    model, batch, _, _ = made(setting, checkpointing=True)
    own = {way: time_way(way, model, batch, setting.steps).seconds for way in ("plain", "single_pass")}
    own["trl"] = seconds_of_a_step(model, batch, setting.steps)
    tokens = setting.batch * setting.length
    return {"tokens_per_second": {name: tokens / seconds for name, seconds in own.items()}}


PARTS: dict[str, Callable[[GpuSetting], dict[str, Any]]] = {
    "qlora": qlora,
    "cap": cap,
    "trl": trl,
    "large": large,
    "combine": combining,
    "full": full,
}


def _all() -> list[str]:
    """Every part; that of a package that is not installed only where it is asked for."""
    return [name for name in PARTS if name != "trl" or importlib.util.find_spec("trl")]


def tables_of(result: dict[str, Any]) -> list[Any]:
    """`rich` tables of what `bench_gpu` returned, one for each part."""
    return [
        _ways_table(f"{name}, {kind}", part[kind]["rows"])
        if kind
        else _plain_table(name, {key: value for key, value in part.items() if not str(key).startswith("checkpointing")})
        for name, part in result["parts"].items()
        for kind in [*(key for key in part if str(key).startswith("checkpointing")), None]
    ]


def _ways_table(title: str, rows: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=title if rows else f"{title}: out of memory")
    for heading in ("way", "tokens/s", "x plain", "min .. max", "peak GB", "x plain", "of matmul", "of unpacking"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, row in rows.items():
        spread = f"{row['speed_min']:.2f} .. {row['speed_max']:.2f}"
        peak = ["-", "-"] if row["peak_ratio"] is None else [f"{row['peak'] / 1e9:.2f}", f"{row['peak_ratio']:.3f}"]
        shares = [f"{100 * row[key]:.0f} %" for key in ("share_of_matmul", "share_of_unpacking")]
        table.add_row(way, f"{row['tokens_per_second']:.0f}", f"{row['speed_ratio']:.2f}", spread, *peak, *shares)
    return table


def _plain_table(title: str, values: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for key, value in _flat(values):
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _flat(values: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{above}{key}"
        found += _flat(value, f"{name}: ") if isinstance(value, dict) else [(name, value)]
    return found
