"""The models to judge: a run's, or any other."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from debias.config.prompt_file import Shots
from debias.config.reading import load_config
from debias.errors import InputError
from debias.ranks.world import is_first
from debias.runs.digests import local_weights
from debias.runs.environment import environment
from debias.runs.names import ADAPTER, ASKED, CONFIG, EDITS, EVAL, JUDGED, MERGED, MODEL, SUMMARY
from debias.runs.whole import write_or_say
from debias_eval.judging.judge import Judging, Outcome, judge
from debias_eval.judging.overlap import TrainingRows
from debias_eval.judging.predict import Predictor

logger = logging.getLogger(__name__)
# Of what results depend on, what folders of older versions do not say: there it is taken to be as it is now.
LATER = ("max_length", "weights")


def judge_run(
    run: Path,
    names: Sequence[str],
    *,
    normalize: str = "none",
    calibrate: str = "none",
    deepspeed: str | None = None,
    judging: Judging | None = None,
) -> Outcome:
    """Judge the model of a run's folder; results go to `RUN/eval`."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    config = load_config(run / CONFIG) if (run / CONFIG).is_file() else None
    if config is not None and config.head != "causal_lm" and (normalize, calibrate) != ("none", "none"):
        raise InputError(f"normalize and calibrate go with answers in words; {run} has a head of its own")

    def load() -> Predictor:
        from debias.inference.answer_scores import Scoring
        from debias.inference.loading import load_run

        return load_run(run, Scoring(normalize, calibrate), deepspeed=deepspeed, config=config)  # type: ignore[arg-type]

    labels = config.data.labels if config else None
    fields = config.data.text_fields if config else ()
    rows = TrainingRows.of(run, config)
    return judge(run, names, load, labels=labels, text_fields=fields, trained_on=rows, judging=judging)


def judge_given(
    out: Path,
    names: Sequence[str],
    given: dict[str, Any],
    *,
    normalize: str = "none",
    calibrate: str = "none",
    shots: Shots | None = None,
    trained_on: TrainingRows | None = None,
    judging: Judging | None = None,
) -> Outcome:
    """Judge any model; `given` is what `debias.inference.any_model.Given` takes. `out` becomes what reports read.

    `shots`: examples in context, drawn before anything is loaded. `trained_on`: rows that overlap is looked for in.
    InputError if `out` holds a run, or another model's results.
    """
    from debias.inference.answer_scores import Scoring
    from debias.inference.any_model import Given, given_config, given_shots, load_given

    model = Given(**given)
    config = given_config(model)
    if config.head != "causal_lm" and (normalize, calibrate) != ("none", "none"):
        raise InputError(f"normalize and calibrate go with answers in words; {config.model} has a head of its own")
    shown = given_shots(model, shots) if shots else None
    told = {
        "model": config.model,
        "adapter": model.adapter,
        "labels": list(config.data.labels),
        "prompt": config.prompt.model_dump() if config.prompt else None,
        "bf16": config.bf16,
        "load_in_4bit": config.load_in_4bit,
        "normalize": normalize,
        "calibrate": calibrate,
        "max_length": config.max_length,
        "weights": local_weights(config.model, model.adapter),
        **({"tokenizer": model.tokenizer} if model.tokenizer else {}),
        **({"shots": shown.told} if shown else {}),
    }
    check_out(out, told)
    fields = () if config.head == "classification" and model.prompt is None else config.data.text_fields
    scoring = Scoring(normalize, calibrate)  # type: ignore[arg-type]

    def load() -> Predictor:
        open_out(out, told, options(given) | shot_options(shots))
        return load_given(model, scoring, shown) if shown else load_given(model, scoring)

    judging = replace(judging or Judging(), shown=shown)
    trained_on = trained_on or rows_behind(config.model, model.adapter, model.prompt)
    if trained_on is None and judging.overlap != "ignore":
        say_not_checked(model.adapter or config.model)
    rows = {"trained_on": trained_on} if trained_on else {}
    return judge(out, names, load, labels=config.data.labels, text_fields=fields, judging=judging, **rows)


def rows_behind(model: str, adapter: str | None, prompt: Path | None) -> TrainingRows | None:
    """What the run was trained on that an adapter, or a model in a folder here, lies in or was made of.

    A merged model whose run is no longer where it was is taken to be of the run that it is asked as. None where nobody
    says, and for the base itself.
    """
    place = adapter or model
    if not Path(place).is_dir():
        return None
    made = Path(place).resolve()
    settings = _settings_behind(made)
    if settings is None and prompt is not None and (made / MERGED).is_file():
        settings = _asked_with(prompt)
    try:
        run = None if settings is None else load_config(settings)
    except InputError:
        return None
    if run is None or settings is None or Path(run.model).resolve() == made:
        return None
    if _settings_behind(made) is None:
        logger.info("overlap is looked for in the data of %s, which %s is asked with", settings, place)
    return TrainingRows(run, settings.parent, chooses=_edit_chose(made))


def _settings_behind(made: Path) -> Path | None:
    """Settings of the run that an adapter or a model was made of, as its folder tells."""
    from debias.runs.folder import settings_beside

    if (beside := settings_beside(made)) is not None:
        return beside
    try:
        run = json.loads((made / MERGED).read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    path = Path(run) / CONFIG if isinstance(run, str) else None
    return path if path is not None and path.is_file() else None


def _asked_with(prompt: Path) -> Path | None:
    """The prompt's file where it is a run's settings, in that run's folder."""
    return prompt.resolve() if prompt.name == CONFIG and (prompt.parent / SUMMARY).is_file() else None


def say_not_checked(model: str) -> None:
    """That nobody knows which rows of a suite a model has seen."""
    logger.info("overlap with the training data not checked: nobody says here what %s was trained on", model)


def _edit_chose(adapter: Path) -> bool:
    """Whether an edit chose among adapters or settings, or fitted a layer, by the validation rows of their run."""
    try:
        told = json.loads((adapter / EDITS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return _chose(told)


def _chose(told: Any) -> bool:
    """An edit, or one before it, of whatever was edited then."""
    if not isinstance(told, dict):
        return False
    before = [one.get("edits") for one in told.get("adapters") or [] if isinstance(one, dict)]
    return any(told.get(key) for key in ("tried", "rows", "variants")) or any(map(_chose, before))


def check_out(out: Path, told: dict[str, Any]) -> None:
    """InputError if the folder holds a run, or results that something else gave; one without results is nobody's."""
    path = out / SUMMARY
    if (out / CONFIG).exists():
        raise InputError(f"{out} is the folder of a run; give another one with -o")
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get(JUDGED)
    except (OSError, ValueError, AttributeError, RecursionError):
        before = None
    if isinstance(before, dict):
        before = {key: told[key] for key in LATER if key in told} | before
    if before != told and not (isinstance(before, dict) and not _has_results(out)):
        keys = dict.fromkeys([*told, *(before if isinstance(before, dict) else ())])
        differs = [key for key in keys if not isinstance(before, dict) or before.get(key) != told.get(key)]
        raise InputError(f"{out} holds results of another model or setting ({', '.join(differs)}); give another -o")


def _has_results(out: Path) -> bool:
    """Results, or scores of a judging that was cut off."""
    return any(any((out / EVAL).glob(pattern)) for pattern in ("*.json", ".*.scores"))


def options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as another folder's shell finds it: paths whole, labels as they are written."""
    options = {key: value for key, value in given.items() if value is not None}
    for key in ("model", "adapter", "prompt", "tokenizer"):
        if key in options:
            there = Path(options[key]).exists()
            options[key] = str(Path(options[key]).resolve() if there else options[key])
    return {**options, **({"labels": ",".join(given["labels"])} if given.get("labels") else {})}


def shot_options(shots: Shots | None) -> dict[str, Any]:
    """The same of examples in context: a file that is no longer where it was is looked for by its name."""
    if shots is None:
        return {}
    there = shots.source is not None and Path(shots.source).exists()
    source = str(Path(shots.source).resolve()) if shots.source and there else shots.source
    return {"shots": shots.number, "shots_seed": shots.seed, **({"shots_from": source} if source else {})}


def open_out(out: Path, told: dict[str, Any], asked: dict[str, Any]) -> None:
    """Make the folder and say in its run.json whose results it holds."""
    out.mkdir(parents=True, exist_ok=True)
    if is_first() and not ((out / SUMMARY).exists() and _has_results(out)):
        name = _short(told.get("adapter") or told["model"])
        name += f", {told['shots']['number']}-shot" if "shots" in told else ""
        here = {key: value for key, value in environment().items() if key != "command"}  # which `asked` is, whole
        info = {"status": "finished", "method": {"name": name}, JUDGED: told, ASKED: asked, **here}
        write_or_say(out / SUMMARY, (json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())


def _short(place: str) -> str:
    """What tables call a model or an adapter: its folder, and of an `adapter/` in a run's folder the run's."""
    path = Path(place)
    of_a_run = path.name in (ADAPTER, MODEL) and (path.parent / CONFIG).is_file()
    return path.resolve().parent.name if of_a_run else path.name
