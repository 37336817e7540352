"""What a run and its continuation must have in common, and how far it has to go."""

import math
from pathlib import Path
from typing import Any

from debias.config import blocks
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.ranks.world import world_size
from debias.runs.data_files import BASE, changed_base
from debias.runs.names import CONFIG
from debias.runs.summary import read_summary

# Settings that may differ between a run and its continuation.
MAY_CHANGE = frozenset(
    {"resume", "overwrite_output_dir", "output_dir", "max_steps", "num_train_epochs", "sigterm_grace_seconds"}
)
# What may change with the number of ranks, as long as a step sees as many samples.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def check_same(config: RunConfig, folder: Path) -> None:
    """InputError unless the folder holds a run that was begun with these settings."""
    if not (folder / CONFIG).exists():
        raise InputError(f"resume: {folder} holds no run to resume")
    before, now = load_config(folder / CONFIG).model_dump(), config.model_dump()
    for key, value in now.items():
        if key in MAY_CHANGE or key in BATCH or before[key] == value:
            continue
        if key == "deepspeed" and None not in (value, before[key]):
            continue  # its state is saved whole: any stage can go on with it
        raise InputError(f"resume: {key} is {value!r}, the run in {folder} was started with {before[key]!r}")
    if (changed := changed_base(read_summary(folder).get(BASE), now)) is not None:
        raise InputError(f"resume: {changed} the run in {folder} was started")
    _check_same_batch(before, now, folder)


def _check_same_batch(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """The data position counts steps: a step must see as many samples as it did, on however many ranks."""
    world = world_size()
    held = read_summary(folder)
    sizes = [settings[BATCH[0]] * settings[BATCH[1]] for settings in (before, now)]
    was, will = sizes[0] * int(held.get("machine", {}).get("world_size", world)), sizes[1] * world
    if was != will:
        raise InputError(
            f"resume: {now[BATCH[0]]} samples x {now[BATCH[1]]} micro-batches x {world} ranks are {will} samples a"
            f" step, the run in {folder} was started with {was}"
        )


def planned_steps(config: RunConfig, examples: int, world: int) -> int:
    """Optimizer steps of the whole run on `world` ranks, counted as the Trainer does."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(math.ceil(examples / config.per_device_train_batch_size) / world)
    return math.ceil(config.num_train_epochs * max(1, math.ceil(batches / config.gradient_accumulation_steps)))


def check_trains(config: RunConfig, planned: int) -> None:
    """InputError where a `gradient_mask` still measures in the last step of the plan, so that nothing is trained."""
    if config.gradient_mask is None:
        return
    measures = blocks.make("gradient_mask", blocks.table_of("gradient_mask"), config.gradient_mask).measures
    if planned <= measures:
        raise InputError(
            f"gradient_mask.steps is {measures}, and the run has {planned} steps: none would train; give fewer than"
            " those of num_train_epochs"
        )
