"""A run's training and validation examples, with the shortcut that is planted in them, if any."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from debias.bias import make_bias_model
from debias.bias.base import folds_of
from debias.config.data import DataConfig, DataSource, LeftOut, twins
from debias.config.run import RunConfig
from debias.data import Example, load_examples, paint, plant
from debias.data.sources import kept_examples
from debias.data.swapped import swap
from debias.data.tables import Examples
from debias.errors import InputError

logger = logging.getLogger(__name__)


def training_examples(config: RunConfig, base: Path | None) -> Sequence[Example]:
    """Training data with its planted bias, cues swapped, without the fold that is left out, where these are asked for;
    every label must occur.
    """
    for alike in twins(config.data.labels):
        logger.warning(
            "data.labels: %s differ in how they are written alone, and are trained as %d labels; data.label_map makes "
            "them one",
            ", ".join(map(repr, alike)),
            len(alike),
        )
    told: dict[str, Any] = {"bias_column": config.bias_weight.column, "p_columns": _columns(config)}
    read: Any = load_examples if config.data.pictures else kept_examples
    examples: Sequence[Example] = read(config.data.train, config.data, base=base, **told, require_every_label=True)
    examples = _planted(examples, config.data, later=0)
    if config.data.swap is not None:
        examples = swap(examples, config.data)
    return examples if config.data.leave_out is None else _without(examples, config.data.leave_out)


def _without(examples: Sequence[Example], out: LeftOut) -> Sequence[Example]:
    """Those that do not lie in the fold that is left out; InputError if there is none."""
    fold_N = folds_of(examples, out.folds, out.seed)
    left_M = np.flatnonzero(fold_N != out.fold)
    if not len(left_M):
        raise InputError(f"data.leave_out: nothing is left of {len(examples)} training examples, all of one text")
    return examples.take(left_M) if isinstance(examples, Examples) else [examples[int(place)] for place in left_M]


def validation_examples(config: RunConfig, base: Path | None) -> Sequence[Example]:
    """In-distribution validation data: the same planted bias as in training, drawn with another seed."""
    source: DataSource | None = config.data.validation
    if source is None:
        return []
    if config.eval_strategy == "no":
        logger.info("data.validation is not read: eval_strategy is no")
        return []
    columns = _columns(config) if config.selection == "pseudo_groups" else ()
    read: Any = load_examples if config.data.pictures else kept_examples
    return _planted(read(source, config.data, base=base, p_columns=columns), config.data, later=1)


def _columns(config: RunConfig) -> tuple[str, ...]:
    """Columns of the data that hold a bias model's probabilities."""
    return make_bias_model(config.bias_model).p_columns if config.bias_model is not None else ()


def _planted(examples: Sequence[Example], data: DataConfig, later: int) -> Sequence[Example]:
    """The examples with the shortcut of `data`, if any, drawn with its seed plus `later`."""
    cue, color = data.planted_bias, data.planted_color
    if cue:
        return plant(examples, cue.model_copy(update={"seed": cue.seed + later}), data)
    if color:
        return paint(examples, color.model_copy(update={"seed": color.seed + later}), len(data.labels))
    return examples
