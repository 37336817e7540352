"""One run judged on one suite, top to bottom: its examples, the answers, the scores, one results file."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from debias.data import Example
from debias.data.shots import Shown
from debias.errors import InputError
from debias.ranks.world import is_first
from debias.runs.names import ADAPTER, CONFIG, JUDGED, MODEL, SUMMARY
from debias_eval.judging.floors import partial_input
from debias_eval.judging.overlap import TrainingRows, refuse_rows_of
from debias_eval.judging.pieces import EXACT, ROUNDED, KeptScores
from debias_eval.judging.predict import Predictor, load, predict, refuse_cut_prompts
from debias_eval.reading.examples import all_examples
from debias_eval.reading.subset import subset, taken
from debias_eval.reading.suite import Suite, load_suite
from debias_eval.results.files import examples_sha256, gold_sha256, write_results
from debias_eval.scores.counterfactual import told_once
from debias_eval.scores.scoring import Judged, score

OverlapRule = Literal["count", "exclude", "ignore"]


def evaluate_run(
    run: Path,
    suite: str | Path | Suite,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    predictor: Predictor | None = None,
    trained_on: TrainingRows | None = None,
    overlap: OverlapRule = "count",
    floor: bool = True,
    shown: Shown | None = None,
) -> dict[str, Any]:
    """Judge `run` on a suite (a loaded one, a built-in name or a path), write `RUN/eval/NAME.json`, return what was
    written.

    `limit` judges a random subset drawn with `seed`; the results then hold `n` below `available`, and every table says
    so. `predictor` replaces the run's own model, `trained_on` its own training data. `overlap` counts the suite's rows
    that are in that data, or leaves them out too, and with them those that something was chosen by; `floor` adds what a
    part of the input gives away. `shown`: examples that every prompt of `predictor` begins with; none may be a row of
    the suite. Under torchrun the first rank writes.
    InputError in one line for anything a user can put right.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    settings = suite if isinstance(suite, Suite) else load_suite(suite)
    every = all_examples(settings)
    if shown is not None:
        refuse_rows_of(settings, every, shown)
    kept, found = _without_training_rows(run, settings, every, overlap, trained_on)
    examples = subset(kept, limit, seed, whole=settings.consistency or settings.invariant)
    model = predictor or load(run)
    if shown is not None:
        refuse_cut_prompts(model, settings, examples)
    started, before = time.perf_counter(), _asked_and_cut(model)
    digest = examples_sha256(examples)
    earlier = _kept_scores(run, settings, digest, model, shown)
    judged = _with_clusters(predict(model, settings, examples, batch_size, earlier), examples)
    seconds = time.perf_counter() - started
    result = {
        **_about(settings),
        "available": len(every),
        "limit": limit,
        "limit_seed": None if limit is None else seed,
        **_scores(settings, judged, examples),
        "partial_input": partial_input(settings, every) if floor and is_first() else None,
        "overlap": found,
        "judge": _judge(model, shown, before, len(examples)),
        "model_labels": list(model.labels),
        "examples_sha256": digest,
        **_of_what(model, settings, examples),
        "seconds": round(seconds, 3),
    }
    if not is_first():
        return result
    written: dict[str, Any] = json.loads(write_results(run, result, examples, judged).read_text(encoding="utf-8"))
    if earlier is not None:
        earlier.remove()
    return written


def _asked_and_cut(model: Predictor) -> tuple[int, int]:
    """How many examples a model was asked about so far, and how many of them were longer than it reads."""
    asked, cut = getattr(model, "asked_and_cut", (0, 0))
    return asked, cut


def _judge(model: Predictor, shown: Shown | None, before: tuple[int, int], size: int) -> dict[str, Any]:
    """How labels were scored. `cut`: how many of the examples were longer than the model reads, also as a warning; not
    where some were judged in an earlier call, which nobody counted.
    """
    if (say := getattr(model, "say_what_was_cut", None)) is not None:
        say(*before)
    asked, cut = _asked_and_cut(model)
    told = dict(getattr(model, "description", None) or {}) | ({"shots": shown.told} if shown else {})
    return told | ({"cut": cut - before[1]} if asked - before[0] == size else {})


def _of_what(model: Predictor, suite: Suite, examples: Sequence[Example]) -> dict[str, str]:
    """Digests of what is known of the examples, and of the run's weights that were judged, where the model says it."""
    weights = getattr(model, "weights", None)
    known = {"gold_sha256": gold_sha256(examples, suite.labels)}
    return known | ({"weights_sha256": weights} if weights else {})


def _kept_scores(run: Path, suite: Suite, examples: str, model: Predictor, shown: Shown | None) -> KeptScores | None:
    """Where scores are kept until the results are written; None for a model that keeps its answers itself."""
    from_first, forget = getattr(model, "from_first", None), getattr(model, "forget", None)
    if from_first is None or forget is None:
        return None
    told = dict(getattr(model, "description", None) or {})
    how = {key: told.get(key) for key in ("how", "normalize", "calibrate", "dtype", "load_in_4bit")}
    about = [suite.name, suite.version, examples, list(model.labels), how, shown and shown.told, _stamps(run, model)]
    tolerance = EXACT if how["dtype"] == "float32" and not how["load_in_4bit"] else ROUNDED
    return KeptScores(run, suite.name, about, from_first, forget, tolerance)


def _stamps(run: Path, model: Predictor) -> list[tuple[str, int, int]]:
    """Of all files of the model that can be found, of its base and its adapter too: when they were written."""
    named = [getattr(getattr(model, "config", None), "model", None), *_given(run)]
    places = [run / CONFIG, run / ADAPTER, run / MODEL, *(Path(name) for name in named if isinstance(name, str))]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    states = [(str(file), file.stat()) for file in sorted(set(files)) if file.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _given(run: Path) -> list[Any]:
    """Model and adapter of a folder that was only judged."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        told = json.loads((run / SUMMARY).read_text(encoding="utf-8")).get(JUDGED) or {}
        return [told.get("model"), told.get("adapter")]
    return []


def _about(suite: Suite) -> dict[str, Any]:
    about = {"suite": suite.name, "version": suite.version, "description": suite.description, "task": suite.task}
    return about if suite.file is None else {**about, "suite_file": str(suite.file)}


def _scores(suite: Suite, judged: Judged, examples: Sequence[Example]) -> dict[str, Any]:
    aligned, conflicting = (suite.gap.aligned, suite.gap.conflicting) if suite.gap else ((), ())
    once_N = None
    if suite.invariant and judged.clusters:
        once_N = told_once(judged.clusters, (example.texts for example in examples))
    return score(judged, aligned, conflicting, suite.consistency, once_N)


def _with_clusters(judged: Judged, examples: Sequence[Example]) -> Judged:
    """An example that names no cluster is one of its own."""
    named = [f"#{i}" if one.cluster is None else one.cluster for i, one in enumerate(examples)]
    clusters = tuple(named) if any(one.cluster is not None for one in examples) else ()
    return replace(judged, clusters=clusters)


def _without_training_rows(
    run: Path, suite: Suite, examples: Sequence[Example], rule: OverlapRule, trained_on: TrainingRows | None
) -> tuple[Sequence[Example], dict[str, Any] | None]:
    """The rows to judge, and how many of all rows are in the training data (None where that is not known)."""
    pictures = any(example.image is not None for example in examples)
    if pictures and rule == "exclude":
        raise InputError(
            f"suite {suite.name}: --overlap exclude compares texts, and the suite shows pictures; leave it out"
        )
    if rule == "ignore" or pictures:
        return examples, None
    rows = trained_on or TrainingRows.of(run)
    shared_N = rows.contain(examples, suite) if rows else None
    chosen_N = rows.chosen_on(examples, suite) if rows else None
    if shared_N is None:
        if rule == "exclude":
            raise InputError(f"{run}: its training data cannot be read, so overlapping rows cannot be left out")
        return examples, None
    if chosen_N is None and rule == "exclude":
        raise InputError(f"{run}: its validation data cannot be read, so rows it was chosen by cannot be left out")
    chosen = 0 if chosen_N is None else int(chosen_N.sum())
    found = {"rows": int(shared_N.sum()), "excluded": rule == "exclude", **({"chosen_on": chosen} if chosen else {})}
    if rule != "exclude":
        return examples, found
    kept_N = ~shared_N if chosen_N is None else ~(shared_N | chosen_N)
    if not kept_N.any():
        what = "training data" if shared_N.all() else "training or validation data"
        raise InputError(f"suite {suite.name}: all {len(examples)} rows are in the {what} of {run}")
    return taken(examples, np.flatnonzero(kept_N)), found
