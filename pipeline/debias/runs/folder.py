"""A run's folder: whose it is, what is in it, and saving so that a folder is there whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.ranks.world import world_size
from debias.runs.whole import check_tensors, save_whole, write_whole

ADAPTER, MODEL, CONFIG, METRICS, SUMMARY = "adapter", "model", "config.yaml", "metrics.jsonl", "run.json"
# Settings that may differ between a run and its continuation.
MAY_CHANGE = frozenset(
    {"resume", "overwrite_output_dir", "output_dir", "max_steps", "num_train_epochs", "sigterm_grace_seconds"}
)
# What may change with the number of ranks, as long as a step sees as many samples.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def check_run(config: RunConfig) -> None:
    """InputError when the output folder holds another run, or, to be resumed, none or one with other settings."""
    folder = Path(config.output_dir)
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not above.is_dir():
        raise InputError(f"output_dir: {above} is a file, expected a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"output_dir: {above} may not be written to")
    held = _holds_run(folder)
    if config.resume:
        _check_same(config, folder)
    elif held and config.overwrite_output_dir:
        _check_kept(config, folder)
    elif held:
        raise InputError(
            f"output_dir: {folder} holds another run ({_state_of(folder)}); choose another, or give resume=true to go"
            " on with it, or overwrite_output_dir=true to start anew"
        )
    elif folder.exists() and not held and any(folder.iterdir()):
        raise InputError(f"output_dir: {folder} is not empty and holds no run; choose another folder")


def open_run(config: RunConfig) -> Path:
    """Check and make the output folder, emptied of the run it may replace, and write `config.yaml`."""
    check_run(config)
    folder = Path(config.output_dir)
    if _holds_run(folder) and not config.resume:
        _clear(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, dump_config(config))
    except OSError as error:
        raise InputError(f"output_dir: {folder} cannot be written: {error.strerror}") from None
    return folder


def _holds_run(folder: Path) -> bool:
    """Whether a run was begun here. A `config.yaml` alone is one if it is ours: other projects have such files too."""
    if (folder / SUMMARY).exists() or not (folder / CONFIG).exists():
        return (folder / SUMMARY).exists()
    try:
        load_config(folder / CONFIG)
    except InputError:
        return False
    return True


def _state_of(folder: Path) -> str:
    try:
        held = _summary(folder)
    except InputError:
        held = {}
    at = f" at step {held['steps']}" if "steps" in held else ""
    return f"{held.get('status', 'begun')}{at}"


def _check_kept(config: RunConfig, folder: Path) -> None:
    """InputError where the run that is to be replaced holds what this one reads: it would be deleted."""
    sources = [source.source for source in (config.data.train, config.data.validation) if source is not None]
    for name in (config.model, *sources, config.deepspeed or ""):
        place = Path(name).expanduser()
        if name and place.exists() and place.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"output_dir: {folder} holds {name}, which this run reads; choose another folder")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, None where there is none."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_trained(model: Any, tokenizer: Any, folder: Path, state: dict[str, Any] | None = None) -> Path:
    """Save what was trained: `adapter/` (plain PEFT) of a frozen base, else `model/` (plain transformers).

    Returns the folder. `state`: the tensors to save where the model itself holds only a part of them. Raises
    RuntimeError if what landed on the disk is empty or all zero.
    """
    target = folder / (ADAPTER if hasattr(model, "peft_config") else MODEL)

    def save(part: Path) -> None:
        model.save_pretrained(part, **({} if state is None else {"state_dict": state}))
        tokenizer.save_pretrained(part)
        check_tensors(part, (getattr(p, "ds_shape", p.shape) for p in model.parameters() if p.requires_grad))

    save_whole(target, save)
    return target


def _check_same(config: RunConfig, folder: Path) -> None:
    if not (folder / CONFIG).exists():
        raise InputError(f"resume: {folder} holds no run to resume")
    before, now = load_config(folder / CONFIG).model_dump(), config.model_dump()
    for key, value in now.items():
        if key in MAY_CHANGE or key in BATCH or before[key] == value:
            continue
        if key == "deepspeed" and None not in (value, before[key]):
            continue  # its state is saved whole: any stage can go on with it
        raise InputError(f"resume: {key} is {value!r}, the run in {folder} was started with {before[key]!r}")
    _check_same_batch(before, now, folder)


def _check_same_batch(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """The data position counts steps: a step must see as many samples as it did, on however many ranks."""
    world = world_size()
    held = _summary(folder)
    sizes = [settings[BATCH[0]] * settings[BATCH[1]] for settings in (before, now)]
    was, will = sizes[0] * int(held.get("machine", {}).get("world_size", world)), sizes[1] * world
    if was != will:
        raise InputError(
            f"resume: {now[BATCH[0]]} samples x {now[BATCH[1]]} micro-batches x {world} ranks are {will} samples a"
            f" step, the run in {folder} was started with {was}"
        )


def _summary(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it is not there."""
    path = folder / SUMMARY
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise InputError(f"{path}: is not valid JSON; start anew with overwrite_output_dir=true") from None
    return held


def _clear(folder: Path) -> None:
    for name in (CONFIG, METRICS, SUMMARY):
        (folder / name).unlink(missing_ok=True)
    for path in [folder / ADAPTER, folder / MODEL, folder / "eval", *folder.glob("checkpoint-*")]:
        shutil.rmtree(path, ignore_errors=True)
