"""A run's folder, asked once: `look` finds whose it is and all that is wrong with it, `Folder.open` writes."""

import glob
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.config.places import files_of
from debias.config.reading import dump_config, load_config
from debias.config.run import STAGES, RunConfig
from debias.errors import InputError
from debias.runs.names import (
    ADAPTER,
    BIAS,
    CHECKPOINT,
    CONFIG,
    EVAL,
    LABELS,
    METRICS,
    MODEL,
    ORIGIN,
    SEEN,
    SUMMARY,
    last_checkpoint,
    step_of,
    trained,
)
from debias.runs.resume import check_same, check_trains, planned_steps
from debias.runs.selection import check_selection
from debias.runs.summary import read_summary
from debias.runs.whole import check_tensors, save_whole, write_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """A run's folder as `look` found it.

    `config`: the settings, with `resume: auto` as yes or no. `held`: whether a run was begun here. `checkpoint`: the
    newest whole one that the run goes on from. `ended`: the steps of the run that finished here and is to be gone on
    with, else 0. `learned`: it ended there because it had learned enough (`stop_when_learned`).
    """

    path: Path
    config: RunConfig
    held: bool
    checkpoint: Path | None = None
    ended: int = 0
    learned: bool = False

    def is_finished(self, examples: int, world: int) -> bool:
        """Whether the run has come to the end of its plan, for so many examples on `world` ranks.

        InputError where it is beyond that already, or where no checkpoint could be selected at the end.
        """
        planned = planned_steps(self.config, examples, world)
        at = max(step_of(self.checkpoint) if self.checkpoint else 0, self.ended)
        if at > planned:
            raise InputError(
                f"resume: {self.path} is at step {at} already, and max_steps or num_train_epochs plan {planned}"
            )
        if (self.ended == planned or self.learned) and trained(self.path) is not None:
            logger.info("resume: %s was finished at step %d and is left as it is", self.path, self.ended)
            return True
        check_selection(self.config, planned, self.checkpoint)
        check_trains(self.config, planned)
        return False

    def open(self) -> None:
        """Make the folder, emptied of the run that it may replace, and write `config.yaml`.

        A run that goes on loses what its model was judged to be before.
        """
        if not self.held and holds_run(self.path):  # another run was begun here since
            raise _another(self.path)
        if self.held and not self.config.resume:
            _clear(self.path)
        elif self.held:
            _forget_results(self.path, "for it trains on")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / CONFIG, dump_config(self.config))
        except OSError as error:
            raise InputError(f"output_dir: {self.path} cannot be written: {error.strerror}") from None
        if self.config.resume and self.checkpoint is None:
            logger.warning("resume: %s holds no checkpoint yet; training starts at step 0", self.path)


def look(config: RunConfig) -> Folder:
    """The output folder as it is now; nothing is written. Every rank must look before the first one opens the folder.

    InputError when it holds another run, or, to be resumed, none or one with other settings; when it is a file, or may
    not be written to; when it holds what this run reads and would delete.
    """
    path = Path(config.output_dir)
    _check_place(path)
    held = holds_run(path)
    stopped_before = not held and (path / STAGES).is_dir()  # in a run before the run: nothing of its own is here yet
    if config.resume == "auto" or (config.resume and stopped_before):
        config = config.model_copy(update={"resume": held})
    if config.resume:
        check_same(config, path)
        summary = read_summary(path)
        ended = int(summary["steps"]) if summary.get("status") == "finished" else 0
        return Folder(path, config, held, last_checkpoint(path), ended, bool(ended and summary.get("learned_at")))
    if held and not config.overwrite_output_dir:
        raise _another(path)
    if held:
        _check_kept(config, path)
    elif path.exists() and any(inside.name not in (STAGES, BIAS) for inside in path.iterdir()):
        raise InputError(f"output_dir: {path} is not empty and holds no run; choose another folder")
    return Folder(path, config, held)


def _check_place(path: Path) -> None:
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir():
        raise InputError(f"output_dir: {above} is a file, expected a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"output_dir: {above} may not be written to")


def holds_run(folder: Path) -> bool:
    """Whether a run was begun here. A `config.yaml` alone is one if it is ours: other projects have such files too."""
    if (folder / SUMMARY).exists() or not (folder / CONFIG).exists():
        return (folder / SUMMARY).exists()
    try:
        load_config(folder / CONFIG)
    except InputError:
        return False
    return True


def _another(folder: Path) -> InputError:
    try:
        held = read_summary(folder)
    except InputError:
        held = {}
    at = f" at step {held['steps']}" if "steps" in held else ""
    return InputError(
        f"output_dir: {folder} holds another run ({held.get('status', 'begun')}{at}); choose another, or give"
        " resume=true to go on with it, or overwrite_output_dir=true to start anew"
    )


def _check_kept(config: RunConfig, folder: Path) -> None:
    """InputError where the run that is to be replaced holds what this one reads: it would be deleted."""
    sources = [source.source for source in (config.data.train, config.data.validation) if source is not None]
    matched = [file for name in sources for file in glob.glob(name, recursive=True)]
    for name in (config.model, *sources, *matched, config.deepspeed or "", *files_of(config.bias_model)):
        place = Path(name)
        if name and os.path.exists(place) and place.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"output_dir: {folder} holds {name}, which this run reads; choose another folder")


def settings_beside(adapter: Path) -> Path | None:
    """The file of the settings that an adapter was trained with: its own, else those of the run it lies in."""
    places = (adapter / ORIGIN, adapter.parent / CONFIG)
    return next((place for place in places if place.is_file()), None)


def _clear(folder: Path) -> None:
    for name in (CONFIG, METRICS, SUMMARY, SEEN):
        (folder / name).unlink(missing_ok=True)
    for path in [*(folder / name for name in (ADAPTER, MODEL, BIAS, EVAL)), *folder.glob(f"{CHECKPOINT}*")]:
        shutil.rmtree(path, ignore_errors=True)


def _forget_results(folder: Path, why: str) -> None:
    results = folder / EVAL
    if count := len(list(results.glob("*.json"))):
        logger.warning("%s was judged on %d suites before; these results go, %s", folder, count, why)
    if results.is_symlink():
        results.unlink()
    shutil.rmtree(results, ignore_errors=True)


def names_of_labels(model: Any) -> dict[int, str]:
    """What a classifier calls its outputs; nothing where they are LABEL_0 and so on, as those of causal models are."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    return {} if all(str(name).startswith("LABEL_") for name in names.values()) else dict(names)


def save_trained(model: Any, tokenizer: Any, folder: Path, state: dict[str, Any] | None = None) -> Path:
    """Save what was trained: `adapter/` (plain PEFT) of a frozen base, else `model/` (plain transformers).

    Returns the folder. Beside an adapter lie its tokenizer and the names of a classifier's labels. `state`: the tensors
    to save where the model itself holds only a part of them. Results of what lay there before go. Raises RuntimeError
    if what landed on the disk is empty or all zero.
    """
    target = folder / (ADAPTER if hasattr(model, "peft_config") else MODEL)

    def save(part: Path) -> None:
        model.save_pretrained(part, **({} if state is None else {"state_dict": state}))
        tokenizer.save_pretrained(part)
        if target.name == ADAPTER and (names := names_of_labels(model)):
            ids = {name: index for index, name in names.items()}
            told = json.dumps({"id2label": names, "label2id": ids}, indent=2, ensure_ascii=False)
            (part / LABELS).write_text(told + "\n", encoding="utf-8")
        check_tensors(part, (getattr(p, "ds_shape", p.shape) for p in model.parameters() if p.requires_grad))

    save_whole(target, save)
    _forget_results(folder, "for its weights are others now")  # of an earlier end, judged while it went on
    return target


def labels_beside(adapter: Path) -> tuple[str, ...] | None:
    """The names of a classifier's outputs that lie in an adapter's folder; InputError where they cannot be read."""
    path = adapter / LABELS
    if not path.is_file():
        return None
    try:
        names = {int(index): str(name) for index, name in json.loads(path.read_text("utf-8"))["id2label"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from None
    return tuple(names[index] for index in sorted(names))


def check_labels(adapter: Path, labels: Sequence[str], where: Path) -> None:
    """InputError where an adapter's own names of outputs are not `labels`, which `where` says, in the same order."""
    own = labels_beside(adapter)
    if own is not None and own != tuple(labels):
        raise InputError(f"{where}: data.labels is {list(labels)}, but {adapter / LABELS} has {list(own)}")
