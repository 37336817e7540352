"""A run's training and validation examples, with the shortcut that is planted in them, if any."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from debias.bias import make_bias_model
from debias.bias.base import folds_of
from debias.config.data import DataConfig, DataSource, LeftOut, twins
from debias.config.run import RunConfig
from debias.data import Example, load_examples, paint, plant
from debias.data.digests import are_among, inputs_of
from debias.data.facts import group_names
from debias.data.sources import kept_examples
from debias.data.swapped import swap
from debias.data.tables import Examples
from debias.errors import InputError

logger = logging.getLogger(__name__)
DUPLICATES = 0.02  # of the validation rows: of SST-2's own 1.1 % are training rows, too, of SNLI's and QQP's none


def training_examples(config: RunConfig, base: Path | None) -> Sequence[Example]:
    """Training data with its planted bias, cues swapped, without the fold that is left out, where these are asked for;
    every label must occur.
    """
    return _training(config, base)[1]


def run_examples(config: RunConfig, base: Path | None) -> tuple[Sequence[Example], Sequence[Example]]:
    """Training and validation examples as a run reads them; it is said in the log how many rows are in both."""
    (rows, examples), held_out = _training(config, base), _validation(config, base)
    say_shared("data.validation", are_among(inputs_of(held_out), inputs_of(rows)))
    return examples, _planted(held_out, config.data, later=1)


def trained_on(config: RunConfig, base: Path | None) -> NDArray[np.bool_]:
    """[M]: which validation rows, as they stand in their source, are rows that the run trains on, whatever their label.

    By the digests of what a model would read of them: of no row is an example made.
    """
    return are_among(inputs_of(_validation(config, base)), inputs_of(_training(config, base)[0]))


def say_shared(where: str, shared_M: NDArray[np.bool_]) -> None:
    """In the log: how many validation rows are training rows, with a warning where they are more than duplicates."""
    if not shared_M.any():
        return
    share = float(shared_M.mean())
    told = (
        "; the run learns their answers, so that accuracy on them, and what is chosen or fitted by them, says too"
        " little of other rows: give data.validation a file of its own, or another split"
    )
    logger.log(
        logging.WARNING if share > DUPLICATES else logging.INFO,
        "%s: %d of %d rows (%.1f %%) are training rows, too%s",
        where,
        int(shared_M.sum()),
        len(shared_M),
        100 * share,
        told if share > DUPLICATES else "",
    )


def _training(config: RunConfig, base: Path | None) -> tuple[Sequence[Example], Sequence[Example]]:
    """The rows that are trained on as they stand in their source, and as they are trained on."""
    for alike in twins(config.data.labels):
        logger.warning(
            "data.labels: %s differ in how they are written alone, and are trained as %d labels; data.label_map makes "
            "them one",
            ", ".join(map(repr, alike)),
            len(alike),
        )
    told: dict[str, Any] = {"bias_column": config.bias_weight.column, "p_columns": _columns(config)}
    read: Any = load_examples if config.data.pictures else kept_examples
    rows: Sequence[Example] = read(config.data.train, config.data, base=base, **told, require_every_label=True)
    if config.data.group_field is not None:
        _say_twin_groups(rows)
    examples = _planted(rows, config.data, later=0)
    if config.data.swap is not None:
        examples = swap(examples, config.data)
    if config.data.leave_out is None:
        return rows, examples
    left_M = _without(examples, config.data.leave_out)
    return _at(rows, left_M), _at(examples, left_M)


def _say_twin_groups(rows: Sequence[Example]) -> None:
    """A warning of groups that are one but for how they are written: one of three rows weighs as one of thousands."""
    for alike in twins(group_names(rows)):
        logger.warning(
            "data.group_field: the groups %s differ in how they are written alone, and are %d groups; write them alike"
            " in the data",
            ", ".join(map(repr, alike)),
            len(alike),
        )


def _without(examples: Sequence[Example], out: LeftOut) -> NDArray[np.int64]:
    """Places of those that do not lie in the fold that is left out; InputError if there is none."""
    fold_N = folds_of(examples, out.folds, out.seed)
    left_M = np.flatnonzero(fold_N != out.fold)
    if not len(left_M):
        raise InputError(f"data.leave_out: nothing is left of {len(examples)} training examples, all of one text")
    return left_M


def _at(examples: Sequence[Example], places: NDArray[np.int64]) -> Sequence[Example]:
    return examples.take(places) if isinstance(examples, Examples) else [examples[int(place)] for place in places]


def validation_examples(config: RunConfig, base: Path | None) -> Sequence[Example]:
    """In-distribution validation data: the same planted bias as in training, drawn with another seed."""
    return _planted(_validation(config, base), config.data, later=1)


def _validation(config: RunConfig, base: Path | None) -> Sequence[Example]:
    """The validation rows as they stand in their source."""
    source: DataSource | None = config.data.validation
    if source is None:
        return []
    if config.eval_strategy == "no":
        logger.info("data.validation is not read: eval_strategy is no")
        return []
    columns = _columns(config) if config.selection == "pseudo_groups" else ()
    read: Any = load_examples if config.data.pictures else kept_examples
    rows: Sequence[Example] = read(source, config.data, base=base, p_columns=columns)
    return rows


def _columns(config: RunConfig) -> tuple[str, ...]:
    """Columns of the data that hold a bias model's probabilities."""
    return make_bias_model(config.bias_model).p_columns if config.bias_model is not None else ()


def _planted(examples: Sequence[Example], data: DataConfig, later: int) -> Sequence[Example]:
    """The examples with the shortcut of `data`, if any, drawn with its seed plus `later`."""
    cue, color = data.planted_bias, data.planted_color
    if not examples:
        return examples
    if cue:
        return plant(examples, cue.model_copy(update={"seed": cue.seed + later}), data)
    if color:
        return paint(examples, color.model_copy(update={"seed": color.seed + later}), len(data.labels))
    return examples
