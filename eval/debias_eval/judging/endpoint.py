"""A model that another process serves, judged as any other: reports read its results as those of a model here."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from debias.config.places import find_recipe
from debias.config.prompt_file import Shots, how_asked
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.ranks.world import world_size
from debias.served.client import base_url
from debias.served.predictor import Endpoint, ServedPredictor, check_asked, load_served
from debias_eval.judging.judge import Judging, Outcome, judge
from debias_eval.judging.models import check_out, open_out, options, say_not_checked, shot_options
from debias_eval.judging.predict import Predictor


def judge_served(
    out: Path,
    names: Sequence[str],
    endpoint: Endpoint,
    model: str,
    prompt: Path,
    *,
    normalize: str = "none",
    calibrate: str = "none",
    shots: Shots | None = None,
    judging: Judging | None = None,
) -> Outcome:
    """Judge the model that a completions server has under the name `model`; `out` becomes what reports read.

    Answers are kept in `out` as they come, and are gone once all is judged: the same call goes on after a kill.
    `shots`: examples in context.
    InputError if `out` holds a run or another model's results, and in one line for what the server cannot do.
    """
    from debias.inference.answer_scores import Scoring
    from debias.inference.in_context import shown_to

    if world_size() > 1:
        raise InputError("--endpoint asks from one process; start it without torchrun, and with --concurrency")
    chosen = Scoring(normalize, calibrate)  # type: ignore[arg-type]
    file = find_recipe(prompt)
    config = how_asked(file, model)
    check_asked(config, endpoint)
    shown = shown_to(config, file, shots) if shots else None
    told = _told(config, endpoint, normalize, calibrate) | ({"shots": shown.told} if shown else {})
    check_out(out, told)
    loaded: list[ServedPredictor] = []

    def load() -> Predictor:
        predictor = load_served(config, endpoint, out, chosen, shown)
        predictor.connect()
        open_out(out, told, _asked(endpoint, model, prompt) | shot_options(shots))
        loaded.append(predictor)
        return predictor

    judging = replace(judging or Judging(), shown=shown)
    if judging.overlap != "ignore":
        say_not_checked(model)
    outcome = judge(out, names, load, labels=config.data.labels, text_fields=config.data.text_fields, judging=judging)
    for one in loaded:
        one.asking.kept.remove()
    return outcome


def _told(config: RunConfig, endpoint: Endpoint, normalize: str, calibrate: str) -> dict[str, Any]:
    """What results depend on. The address is none of it: the next job's server may have another."""
    how = {"served": "text"} if endpoint.tokenizer is None else {"served": "tokens", "max_length": config.max_length}
    return {
        "model": config.model,
        "labels": list(config.data.labels),
        "prompt": config.prompt.model_dump() if config.prompt else None,
        "normalize": normalize,
        "calibrate": calibrate,
        **how,
    }


def _asked(endpoint: Endpoint, model: str, prompt: Path) -> dict[str, Any]:
    """The options of the command, as another folder's shell finds them; a served name is none of a folder."""
    local = options({"prompt": prompt, "tokenizer": endpoint.tokenizer})
    plain = Endpoint(endpoint.url)
    pace = {key: getattr(endpoint, key) for key in ("concurrency", "timeout")}
    pace = {key: f"{value:g}" for key, value in pace.items() if value != getattr(plain, key)}
    return {"endpoint": base_url(endpoint.url), "model": model, **local, **pace}
