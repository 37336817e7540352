"""Whether a run goes on, from where, and how far it has to go."""

import math
from pathlib import Path

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.folder import ADAPTER, MODEL, _holds_run, _summary, last_checkpoint


def decide_resume(config: RunConfig) -> RunConfig:
    """`resume: auto` as yes or no. Every rank must ask before the first one can have opened the run."""
    if config.resume != "auto":
        return config
    return config.model_copy(update={"resume": _holds_run(Path(config.output_dir))})


def planned_steps(config: RunConfig, examples: int, world: int) -> int:
    """Optimizer steps of the whole run on `world` ranks, counted as the Trainer does."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil(math.ceil(examples / config.per_device_train_batch_size) / world)
    return math.ceil(config.num_train_epochs * max(1, math.ceil(batches / config.gradient_accumulation_steps)))


def is_finished(config: RunConfig, planned: int) -> bool:
    """Whether the run to be resumed has come to the end of its plan; InputError if it is beyond that already."""
    folder = Path(config.output_dir)
    if not config.resume or not _holds_run(folder):
        return False
    held, checkpoint = _summary(folder), last_checkpoint(folder)
    at = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    done = int(held["steps"]) if held.get("status") == "finished" else 0
    if max(at, done) > planned:
        raise InputError(
            f"resume: {folder} is at step {max(at, done)} already, and max_steps or num_train_epochs plan {planned}"
        )
    return done == planned and any((folder / trained).is_dir() for trained in (ADAPTER, MODEL))
