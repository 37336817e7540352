"""How an adapter does on rows that its run held out: the validation data that its settings name."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from debias.building.examples import validation_examples
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import Example
from debias.errors import InputError
from debias.inference.any_model import Given, load_given
from debias.runs.folder import settings_beside
from debias.runs.names import CONFIG

logger = logging.getLogger(__name__)
# Of the data of a run: what does not change which rows are validation rows, or how they are read.
OF_TRAINING = {"train", "swap", "leave_out"}


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy of an adapter on the validation rows that these runs share; `places` are their folders, or adapters'.

    Rows are read when the first adapter is judged. InputError, in one line, where a run's settings are not there, name
    no validation data, or other validation data than the first run's.
    """

    places: tuple[Path, ...]

    def __call__(self, adapter: Path) -> float:
        """The share of right answers of the adapter in this folder, which has its settings beside it."""
        scores_NC = load_given(Given(adapter=str(adapter))).label_scores(self.rows)
        right = scores_NC.argmax(axis=1) == np.array([row.label for row in self.rows])
        return float(right.mean())

    @functools.cached_property
    def rows(self) -> Sequence[Example]:
        """The validation rows."""
        first, *others = ((place, self._settings(place)) for place in self.places)
        for place, config in (first, *others):
            if config.data.validation is None:
                raise InputError(f"{place}: its settings have no data.validation, and nothing is chosen by a suite")
            if _of_validation(config) != _of_validation(first[1]):
                raise InputError(f"{place}: validates on other data than {first[0]}; choose on rows that all share")
        read = first[1].model_copy(update={"eval_strategy": "epoch", "selection": "last"})  # whatever the run did
        rows = validation_examples(read, None)
        logger.info("%d validation rows of %s choose", len(rows), first[0])
        return rows

    @staticmethod
    def _settings(place: Path) -> RunConfig:
        own = place / CONFIG
        file = own if own.is_file() else settings_beside(place.resolve())
        if file is None:
            raise InputError(f"{place}: no settings of a run lie beside it, so its validation data are unknown")
        return load_config(file)


def _of_validation(config: RunConfig) -> dict[str, object]:
    return config.data.model_dump(exclude=OF_TRAINING)
