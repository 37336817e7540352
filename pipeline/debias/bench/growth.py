"""How a step grows: CPU time and memory against batch, length, rank of the adapters and how many there are.

Of each axis a few sizes, the others held; every size is measured in turn, round by round, and each step of EDGE stands
beside a plain one. Memory is what a step makes, beyond weights and optimizer state: the most bytes of tensors that live
at once. What grows is fitted as `a + b n^p`: p is 1 where it is in proportion.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from debias.bench.gpu_measure import random_batch, stepping
from debias.config.data import Strict
from debias.errors import InputError
from debias.plan.live import Live

WAYS = ("plain", "single_pass")
# Batch, length, rank and adapted layers where they are not what varies; and the sizes of each that are measured.
HELD = {"batch": 4, "length": 64, "rank": 8, "layers": 8}
AXES: dict[str, tuple[int, ...]] = {
    "batch": (2, 4, 8, 16, 32),
    "length": (32, 64, 128, 256, 512),
    "rank": (8, 16, 32, 64, 128),
    "layers": (1, 2, 4, 6, 8),
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What differs by less than this share from the smallest size to the largest does not grow.
FLAT = 0.05
TIMED = 5  # steps of each size in a round
EXPONENTS = np.arange(0.05, 3.0, 0.01)


class GrowthSetting(Strict):
    """A Llama of `depth` layers with random weights; `sizes` cuts each axis to its first ones."""

    hidden: int = Field(128, ge=16)
    depth: int = Field(8, ge=1)
    vocabulary: int = Field(512, ge=16)
    sizes: int = Field(5, ge=3)
    rounds: int = Field(5, ge=1)
    axes: tuple[str, ...] = tuple(AXES)
    seed: int = 0


def growth_setting(**changes: Any) -> GrowthSetting:
    """The defaults with what is given; InputError for an axis that there is not."""
    setting = GrowthSetting(**{key: value for key, value in changes.items() if value is not None})
    if unknown := [name for name in setting.axes if name not in AXES]:
        raise InputError(f"--axis: {unknown[0]!r} is not one of {', '.join(AXES)}")
    return setting


def bench_growth(setting: GrowthSetting) -> dict[str, Any]:
    """For each axis and way the sizes, CPU seconds, bytes, and their fits; measured in a process of its own."""
    code = "import sys; from debias.bench.growth import print_measured; print_measured(sys.argv[1])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, setting.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"bench growth: the measured process failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    axes = {name: _with_fits(found) for name, found in measured.items()}
    return {"setting": setting.model_dump(), "torch": torch.__version__, "axes": axes}


def _with_fits(found: dict[str, Any]) -> dict[str, Any]:
    for way in WAYS:
        row = found[way]
        row["fits"] = {key: fit(found["sizes"], row[key]) for key in ("seconds", "bytes")}
    pairs = zip(found["single_pass"]["seconds"], found["plain"]["seconds"], strict=True)
    found["times_plain"] = [edge / plain for edge, plain in pairs]
    return found


def fit(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """`a + b n^p` with a of at least 0, by least squares of relative errors; p is 0 for what does not grow.

    `error` is the largest relative error of the fit.
    """
    n_S, v_S = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if v_S.max() - v_S.min() <= FLAT * v_S.min():
        level = float(v_S.mean())
        return {"p": 0.0, "a": level, "b": 0.0, "error": float(np.abs(v_S / level - 1).max())}
    best = min((_line(n_S**p / n_S.max() ** p, v_S, p, n_S.max()) for p in EXPONENTS), key=lambda found: found[0])
    _, p, a, b, error = best
    return {"p": round(float(p), 2), "a": a, "b": b, "error": error}


def _line(x_S: Any, v_S: Any, p: float, largest: float) -> tuple[float, float, float, float, float]:
    """Squared relative error, p, a, b and the largest relative error of `a + b x` through the values."""
    columns = np.stack([np.ones_like(x_S), x_S], axis=1) / v_S[:, None]
    a, b = np.linalg.lstsq(columns, np.ones_like(v_S), rcond=None)[0]
    if a < 0:
        a, b = 0.0, float((x_S / v_S).sum() / ((x_S / v_S) ** 2).sum())
    off_S = (a + b * x_S) / v_S - 1
    return float((off_S**2).sum()), p, float(a), float(b / largest**p), float(np.abs(off_S).max())


def print_measured(setting_json: str) -> None:
    """Measure every axis and print what was found (for a child process)."""
    torch.set_num_threads(1)
    setting = GrowthSetting.model_validate_json(setting_json)
    _measure(setting, {**HELD, "batch": 1, "length": 16, "layers": 1})  # all that is made once is made
    found = {name: _axis(setting, name, AXES[name][: setting.sizes]) for name in setting.axes}
    sys.stdout.write(json.dumps(found) + "\n")


def _axis(setting: GrowthSetting, name: str, sizes: Sequence[int]) -> dict[str, Any]:
    rounds = []
    for turn in range(setting.rounds):
        order = sizes if turn % 2 == 0 else sizes[::-1]
        measured = {size: _measure(setting, {**HELD, name: size}) for size in order}
        rounds.append([measured[size] for size in sizes])
    found: dict[str, Any] = {"sizes": list(sizes)}
    for way in WAYS:
        of_size = list(zip(*[[one[way] for one in turn] for turn in rounds], strict=True))
        found[way] = {
            # The least of a few: what else runs on the machine only ever adds.
            "seconds": [min(seconds for seconds, _ in one) for one in of_size],
            "bytes": [max(size for _, size in one) for one in of_size],
        }
    return found


def _measure(setting: GrowthSetting, at: dict[str, int]) -> dict[str, tuple[float, int]]:
    """Of each way CPU seconds of a step, and the most bytes that live at once of what the step makes."""
    found = {}
    for way in WAYS:
        model = _model(setting, at)
        batch = random_batch(at["batch"], at["length"], setting.vocabulary, torch.device("cpu"))
        with stepping(way, model, batch) as step:
            step()
            seconds = min(_cpu_seconds(step) for _ in range(TIMED))
            with Live() as live:
                step()
            found[way] = (seconds, max(live.curve()))
        del model, batch, step
        gc.collect()
    return found


def _cpu_seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _model(setting: GrowthSetting, at: dict[str, int]) -> Any:
    """Random weights, LoRA on all linear layers of the first ones."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(setting.seed)
    config = LlamaConfig(
        hidden_size=setting.hidden,
        intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.depth,
        num_attention_heads=max(1, setting.hidden // 32),
        num_key_value_heads=max(1, setting.hidden // 32),
        vocab_size=setting.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    layers = list(range(min(at["layers"], setting.depth)))
    lora = LoraConfig(r=at["rank"], lora_alpha=16, target_modules=LINEARS, layers_to_transform=layers)
    model = get_peft_model(model, lora).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # off its zero start, where lora_A has no gradient at all
            nn.init.normal_(parameter, std=0.01)
    return model


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_growth` returned."""
    from rich.table import Table

    setting = result["setting"]
    table = Table(
        title=f"a Llama of {setting['depth']} x {setting['hidden']}, LoRA on all linears; least of {setting['rounds']}"
        " rounds, one thread"
    )
    for heading in ("against", "sizes", "way", "CPU ms a step", "exponent", "MB", "exponent", "x plain"):
        table.add_column(heading, justify="left" if heading in ("against", "sizes", "way") else "right")
    for name, found in result["axes"].items():
        for way in WAYS:
            row = found[way]
            first = way == WAYS[0]
            table.add_row(
                name if first else "",
                " ".join(map(str, found["sizes"])) if first else "",
                way,
                " ".join(f"{1e3 * seconds:.0f}" for seconds in row["seconds"]),
                f"{row['fits']['seconds']['p']:.2f}",
                " ".join(f"{size / 1e6:.0f}" for size in row["bytes"]),
                f"{row['fits']['bytes']['p']:.2f}",
                "" if first else " ".join(f"{ratio:.2f}" for ratio in found["times_plain"]),
            )
    return table
