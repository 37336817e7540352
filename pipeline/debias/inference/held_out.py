"""How an adapter does on rows that its run held out: the validation data that its settings name. N rows, C labels."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from debias.building.examples import say_shared, trained_on, training_examples, validation_examples
from debias.building.facts import ask_bias_model
from debias.building.method import build_bias_model
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.examples import labels_of
from debias.errors import InputError
from debias.inference.any_model import Given, load_given
from debias.runs.folder import settings_beside
from debias.runs.names import CONFIG
from debias.runs.pseudo_groups import PseudoGroups, pseudo_groups
from debias.runs.summary import read_summary

logger = logging.getLogger(__name__)
# Of the data of a run: what does not change which rows are validation rows, or how they are read.
MOST = 0.5  # of the validation rows: where the run was trained on more of them, they are not held out
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
        rows = validation_examples(_read_by_all(first[1]), None)
        logger.info("%d validation rows of %s choose", len(rows), first[0])
        for place, shared_M in self._trained_on.items():
            say_shared(f"data.validation of {place}", shared_M)
        return rows

    @functools.cached_property
    def _trained_on(self) -> dict[Path, NDArray[np.bool_]]:
        """Of each run, which of the validation rows it trained on; not of one whose training data cannot be read."""
        return {place: found for place in self.places if (found := _shared(place, self._settings(place))) is not None}

    def rows_to_fit(self) -> Sequence[Example]:
        """The validation rows, for what is fitted to them; InputError where the run was trained on most of them."""
        rows = self.rows
        for place, shared_M in self._trained_on.items():
            if shared_M.mean() > MOST:
                raise InputError(
                    f"data.validation of {place}: {int(shared_M.sum())} of {len(rows)} rows are training rows, of which"
                    " the adapter knows the answers, and the edit is fitted to rows held out; train with a"
                    " data.validation of other rows"
                )
        return rows

    @functools.cached_property
    def training_rows(self) -> Sequence[Example]:
        """The rows that the run of the first adapter was trained on."""
        rows = training_examples(self._settings(self.places[0]), None)
        logger.info("%d training rows of %s are fitted", len(rows), self.places[0])
        return rows

    @staticmethod
    def _settings(place: Path) -> RunConfig:
        return load_config(_file(place))


@dataclass(frozen=True)
class HeldOutPseudoGroups:
    """Mean accuracy of an adapter over the pseudo groups of its run's validation rows: cells of label and of what the
    run's bias model guesses, which was kept in the run's folder, or is fitted anew.

    `place`: the run's folder, or an adapter's. InputError, in one line, where the run's settings are not there, name no
    validation data or no bias model, where it cannot be asked again, or where its pseudo groups are too small.
    """

    place: Path

    def __call__(self, adapter: Path) -> float:
        """The criterion (`debias.runs.pseudo_groups`) of the adapter in this folder, which has its settings there."""
        rows, groups = self._groups
        scores_NC = load_given(Given(adapter=str(adapter))).label_scores(rows)
        right_N = scores_NC.argmax(axis=1) == labels_of(rows)
        return groups.figures(right_N)["pseudo_group_accuracy"]

    @functools.cached_property
    def _groups(self) -> tuple[Sequence[Example], PseudoGroups]:
        file = _file(self.place)
        config = load_config(file)
        model = build_bias_model(config)
        if config.data.validation is None or model is None:
            lacks = "data.validation" if config.data.validation is None else "bias_model"
            raise InputError(f"{self.place}: its settings have no {lacks}, and pseudo groups are made with one")
        here = {"eval_strategy": "epoch", "selection": "pseudo_groups", "output_dir": str(file.parent)}
        # What a base said depends on the samples of a step, which the run's ranks shared.
        ranks = int(read_summary(file.parent).get("machine", {}).get("world_size", 1))
        batch = {"per_device_train_batch_size": config.per_device_train_batch_size * ranks}
        config = config.model_copy(update={**here, **batch})
        rows = validation_examples(config, None)
        if (shared_M := _shared(self.place, config)) is not None:
            say_shared(f"data.validation of {self.place}", shared_M)
        try:
            said = ask_bias_model(config, model, training_examples(config, None), None, rows)
            groups = pseudo_groups(labels_of(rows), said.of_validation.argmax(axis=1), config.data.labels)
        except ValueError as error:
            raise InputError(f"{self.place}: {error}") from None
        sizes = ", ".join(f"{cell.name} ({len(cell.where)})" for cell in groups.cells if cell.counts)
        logger.info("pseudo groups of %d validation rows choose: %s", len(rows), sizes)
        return rows, groups


def _file(place: Path) -> Path:
    """The settings of the run that a folder is, or that an adapter's folder lies in."""
    own = place / CONFIG
    file = own if own.is_file() else settings_beside(place.resolve())
    if file is None:
        raise InputError(f"{place}: no settings of a run lie beside it, so its validation data are unknown")
    return file


def _read_by_all(config: RunConfig) -> RunConfig:
    """These settings, with validation rows that are read whatever the run did with them."""
    return config.model_copy(update={"eval_strategy": "epoch", "selection": "last"})


def _shared(place: Path, config: RunConfig) -> NDArray[np.bool_] | None:
    """Which validation rows are training rows; None, with a notice, where the training data cannot be read any more."""
    try:
        return trained_on(_read_by_all(config), None)
    except InputError as error:
        logger.info("%s: not looked whether validation rows are training rows: %s", place, error)
        return None


def _of_validation(config: RunConfig) -> dict[str, object]:
    return config.data.model_dump(exclude=OF_TRAINING)
