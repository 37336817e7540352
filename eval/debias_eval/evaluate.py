"""The verb `debias eval`, top to bottom: one run, one suite, one results file."""

import time
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias_eval.predict import Predictor, load, predict
from debias_eval.results import examples_sha256, write_results
from debias_eval.scoring import score
from debias_eval.suite import all_examples, load_suite, subset


def evaluate_run(
    run: Path,
    suite: str,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Judge `run` on a suite (a built-in name or a path), write `RUN/eval/NAME.json`, return what was written.

    `limit` judges a random subset drawn with `seed`; the results then hold `n` below `available`, and every table says
    so. `predictor` replaces the run's own model. InputError in one line for anything a user can put right.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    settings = load_suite(suite)
    every = all_examples(settings)
    examples = subset(every, limit, seed)
    model = predictor or load(run)
    started = time.perf_counter()
    judged = predict(model, settings, examples, batch_size)
    seconds = time.perf_counter() - started
    gap = settings.gap
    result = {
        "suite": settings.name,
        "version": settings.version,
        "description": settings.description,
        "available": len(every),
        "limit": limit,
        "limit_seed": None if limit is None else seed,
        **score(judged, gap.aligned if gap else (), gap.conflicting if gap else ()),
        "model_labels": list(model.labels),
        "examples_sha256": examples_sha256(examples),
        "seconds": round(seconds, 3),
    }
    write_results(run, result, examples, judged)
    return result
