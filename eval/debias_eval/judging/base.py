"""What fine-tuning changes: the model that runs were fine-tuned from, judged as it is, beside the runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.config.prompt_file import Shots
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.names import CONFIG
from debias_eval.judging.judge import Judging, Outcome
from debias_eval.judging.models import judge_given
from debias_eval.judging.overlap import TrainingRows


@dataclass(frozen=True)
class Base:
    """The base of a run, how it is asked, and the folder for its results."""

    run: Path
    given: dict[str, Any]
    out: Path
    shots: Shots | None = None


def runs_base(
    runs: Sequence[Path], out: Path, shots: Shots | None = None, *, without_training_rows: bool = False
) -> Base:
    """The one base of these runs, asked with their prompt. Nothing is loaded.

    InputError for a classifier, whose base has no head that anybody trained, for runs of different bases or prompts,
    for a folder that holds something else, and, `without_training_rows`, for runs of different training data: each
    would be judged on rows of its own.
    """
    first, *others = ((run, _causal(run)) for run in runs)
    for run, config in others:
        if differs := _differing(_asked(config), _asked(first[1])):
            raise InputError(f"--base: {run} has another {differs} than {first[0]}; give them apart")
        if without_training_rows and (differs := _differing(_training_rows(config), _training_rows(first[1]))):
            raise InputError(
                f"--overlap exclude: {run} has another {differs} than {first[0]}, and --base leaves out one run's rows;"
                " give them apart, or --overlap count"
            )
    run, config = first
    given = {"model": config.model, "prompt": run / CONFIG, "bf16": config.bf16, "load_in_4bit": config.load_in_4bit}
    return Base(run, given, out, shots)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(key for key, value in one.items() if value != other[key])


def _training_rows(config: RunConfig) -> dict[str, Any]:
    """All that says which rows a run was trained on, or chosen by, and what texts they have."""
    keys = ("train", "text_fields", "label_field", "label_map")
    chosen_by = None if config.selection == "last" else config.data.validation
    return {**{f"data.{key}": getattr(config.data, key) for key in keys}, "data.validation to select by": chosen_by}


def _causal(run: Path) -> RunConfig:
    if not (run / CONFIG).is_file():
        raise InputError(f"--base: {run} holds no {CONFIG}, so its base is not known; give the folder of a run")
    config = load_config(run / CONFIG)
    if config.head != "causal_lm":
        raise InputError(
            f"--base: {run} is a classifier, and its base has no head that was trained; compare it with a run of "
            "method erm, or train with head: causal_lm"
        )
    return config


def _asked(config: RunConfig) -> dict[str, Any]:
    """All that says which model the base is, and how it is asked."""
    keys = ("model", "prompt", "max_length", "bf16", "load_in_4bit")
    return {**{key: getattr(config, key) for key in keys}, "labels": config.data.labels}


def judge_base(
    base: Base,
    names: Sequence[str],
    *,
    normalize: str = "none",
    calibrate: str = "none",
    deepspeed: str | None = None,
    judging: Judging | None = None,
) -> Outcome:
    """Judge the base as it is, on the same examples as its runs; with examples in context where these were asked for.

    Rows of the runs' training data are left out of its suites where they are left out of theirs.
    """
    chosen = judging or Judging()
    rows = TrainingRows.of(base.run) if chosen.overlap == "exclude" else None
    given = {**base.given, "deepspeed": deepspeed}
    scoring = {"normalize": normalize, "calibrate": calibrate, "shots": base.shots}
    return judge_given(base.out, names, given, trained_on=rows, judging=chosen, **scoring)  # type: ignore[arg-type]
