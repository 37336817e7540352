"""Which checkpoint of a run is kept (`selection:`), and the validation figures that decide it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from debias.config.run import SELECTIONS, RunConfig
from debias.errors import InputError
from debias.runs.metrics import read_metrics
from debias.runs.names import CELLS, METRICS, TRAINER_STATE, checkpoint_at
from debias.runs.pseudo_groups import PseudoGroups

WITH_GROUPS = ("eval_pseudo_group_accuracy", "eval_worst_pseudo_group_accuracy")


class ValidationFigures:
    """The figures of each validation, with those of pseudo groups once `groups` are there."""

    def __init__(self) -> None:
        self.groups: PseudoGroups | None = None
        self._cells: list[dict[str, Any]] = []  # of the last validation

    def __call__(self, prediction: Any) -> dict[str, float]:
        figures = validation_figures(prediction)
        if self.groups is None:
            return figures
        labels_M = np.asarray(prediction.label_ids)
        if not np.array_equal(labels_M, self.groups.label_M):
            raise RuntimeError("validation: the answers came in another order than the examples")
        right_M = np.asarray(prediction.predictions).argmax(axis=-1) == labels_M
        self._cells = self.groups.table(right_M)
        return {**figures, **self.groups.figures(right_M)}

    def cells(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """The cells of the last validation, to go with a log of its figures; else nothing."""
        return {CELLS: self._cells} if WITH_GROUPS[0] in logs else {}


def validation_figures(prediction: Any) -> dict[str, float]:
    """`accuracy` of label scores [N, C], and `worst_class_accuracy`: the lowest among the classes that occur.

    Worst-class accuracy needs no groups: Yang et al., Change is Hard, ICML 2023.
    """
    labels_N = np.asarray(prediction.label_ids)
    right_N = np.asarray(prediction.predictions).argmax(axis=-1) == labels_N
    classes = [float(right_N[labels_N == label].mean()) for label in np.unique(labels_N)]
    return {"accuracy": float(np.mean(right_N)), "worst_class_accuracy": min(classes, default=math.nan)}


def check_selection(config: RunConfig, steps: int, checkpoint: Path | None) -> None:
    """InputError where nothing is validated in so many steps, or the best checkpoint of a run to be resumed is gone."""
    if config.selection == "last":
        return
    if config.eval_strategy == "steps" and config.max_steps < 0:
        every = config.save_steps
        if steps < every:
            raise InputError(f"selection {config.selection!r}: nothing is validated, eval_steps is {every} of {steps}")
    if checkpoint is not None:
        state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
        best = checkpoint_at(checkpoint.parent, state.get("best_global_step"))
        if state.get("best_global_step") and not best.is_dir():
            raise InputError(
                f"resume: {best} is gone, the best checkpoint by selection {config.selection!r}; start anew with"
                " overwrite_output_dir=true"
            )


def selected(config: RunConfig, trainer: Any) -> dict[str, Any]:
    """What run.json says about the checkpoint that was kept: the rule and, for the best, its step and figure."""
    found: dict[str, Any] = {"selection": config.selection}
    if trainer.interrupted:
        return found
    if config.selection == "last":
        return {**found, **_grouped(config, None)}
    if trainer.state.best_model_checkpoint is None:
        raise InputError(f"{config.output_dir}: selection {config.selection!r}: no checkpoint was validated")
    figure = SELECTIONS[config.selection]
    step = trainer.state.best_global_step
    best = {"selected_step": step, f"selected_{figure}": trainer.state.best_metric}
    return {**found, **best, **_grouped(config, step)}


def _grouped(config: RunConfig, step: int | None) -> dict[str, Any]:
    """What was validated at that step, or last, with its pseudo groups; nothing where the run had none."""
    lines = [line for line in read_metrics(Path(config.output_dir) / METRICS) if CELLS in line]
    lines = [line for line in lines if step in (None, line["step"])]
    if not lines:
        return {}
    figures = {key: lines[-1].get(key) for key in ("eval_accuracy", *WITH_GROUPS)}
    return {CELLS: {"step": lines[-1]["step"], **figures, "cells": lines[-1][CELLS]}}
