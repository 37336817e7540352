"""Runs of a sweep that ask the same bias model ask it once: the first one's answers are laid in the others' folders."""

import functools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from debias.runs.names import BIAS
from debias.runs.whole import save_whole
from debias.sweep.grid import PlannedRun, changed_since, state_of

logger = logging.getLogger(__name__)

# Settings of a run that its bias model hears nothing of. All others must be the same, for the answers to be tried: a
# run takes those alone whose digest is that of its own question, and asks anew otherwise.
NOT_ASKED = (
    *(
        "method",
        "gradients",
        "verify",
        "loss",
        "bias_weight",
        "first_stage",
        "order",
        "debias_head",
        "selection",
        "groups",
        "sharpness",
        "smoothness",
        "weight_penalty",
        "weight_projection",
        "gradient_mask",
    ),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "lora_r", "lora_alpha", "lora_dropout", "head_dropout"),
    *("eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "logging_steps", "max_nonfinite_steps"),
)


def take_over(runs: Sequence[PlannedRun], run: PlannedRun) -> None:
    """Lay the answers of a finished run of the same seed and bias model in the folder of `run`, which is not there yet.

    What asking took counts in both runs. Nothing is done where there is no such run, or it cannot be copied.
    """
    if not (question := _question(run)):
        return
    for other in runs:
        answers = other.folder / BIAS
        same = other.seed == run.seed and other is not run and _question(other) == question
        if same and answers.is_dir() and state_of(other.folder) == "finished" and changed_since(other) is None:
            try:
                run.folder.mkdir(parents=True)
            except OSError as error:  # what lies there is not ours to clear away
                logger.warning("%s: asks its bias model anew: %s", run.name, error)
                return
            try:
                save_whole(run.folder / BIAS, functools.partial(shutil.copytree, answers))
            except OSError as error:
                logger.warning("%s: asks its bias model anew: %s", run.name, error)
                shutil.rmtree(run.folder, ignore_errors=True)
            else:
                logger.info("%s: its bias model was asked by %s", run.name, other.name)
            return


def _question(run: PlannedRun) -> str:
    """What decides on a bias model's answers, as text; empty for a run without one."""
    settings: Mapping[str, Any] = run.settings
    if settings.get("bias_model") is None:
        return ""
    return json.dumps({key: value for key, value in settings.items() if key not in NOT_ASKED}, sort_keys=True)
