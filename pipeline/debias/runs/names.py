"""The names in a run's folder. Whoever wants these alone loads nothing else: no torch, no transformers, no pydantic."""

from pathlib import Path

CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "run.json"
ADAPTER, MODEL = "adapter", "model"  # plain PEFT; plain transformers, of a run without an adapter
SEEN = "seen.npz"  # digests of the examples that a run was begun with
BIAS = "bias"  # what a bias model said of the training examples
SPENT = "spent.json"  # in it: what that took
LABELS = "labels.json"  # beside an adapter: what a classifier's outputs are called, which PEFT does not keep
ORIGIN = "origin.yaml"  # beside an adapter that was made from a run's: the settings of that run
EDITS = "edits.json"  # beside an edited adapter: what was done
MERGED = "debias_merge.json"  # beside a merged model: of which run, and how
CELLS = "pseudo_groups"  # in metrics.jsonl, beside the figures of a validation; and in run.json
EVAL = "eval"  # what a run was judged to be: a file for each suite
# In the run.json of a folder that `debias eval --model -o` wrote: whose results it holds, and the options given.
JUDGED, ASKED = "judged", "asked"
CHECKPOINT = "checkpoint-"  # and the step
# Files of a tokenizer of any kind beside its `*token*.json`, and the folder of its templates.
VOCABULARIES = (
    *("vocab.*", "merges.txt", "bpe.codes", "tekken.json", "*.model", "*.spm", "*.tiktoken", "normalizer.json"),
    "chat_template*",
)
ADDITIONAL_TEMPLATES = "additional_chat_templates"
TRAINER_STATE = "trainer_state.json"  # of a checkpoint, as the Trainer names it


def checkpoint_at(folder: Path, step: int) -> Path:
    """The checkpoint of that step in a run's folder, whether it is there or not."""
    return folder / f"{CHECKPOINT}{step}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run's folder, oldest first."""
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdecimal()]
    return sorted(found, key=step_of)


def trained(folder: Path) -> Path | None:
    """Where what a run trained lies in its folder, None where it has not finished."""
    return next((folder / name for name in (ADAPTER, MODEL) if (folder / name).is_dir()), None)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, None where there is none."""
    return next(reversed(checkpoints(folder)), None)
