"""Which checkpoint of a run is kept (`selection:`), and the validation figures that decide it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from debias.config.run import SELECTIONS, RunConfig
from debias.errors import InputError
from debias.runs.names import TRAINER_STATE, checkpoint_at


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
    if config.selection == "last" or trainer.interrupted:
        return found
    if trainer.state.best_model_checkpoint is None:
        raise InputError(f"{config.output_dir}: selection {config.selection!r}: no checkpoint was validated")
    figure = SELECTIONS[config.selection]
    return {**found, "selected_step": trainer.state.best_global_step, f"selected_{figure}": trainer.state.best_metric}
