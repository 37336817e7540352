"""Samples that lm-evaluation-harness logged, as results of ours: groups, gaps and intervals that it cannot compute.

The scores are replayed through the evaluator, so every number is made as `debias eval` makes it. Shapes: N examples,
M labels of the model.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from debias.config.regular import check_regular
from debias.data import Example
from debias.errors import InputError
from debias.runs.digests import weights_of_run
from debias_eval.harness.export import ORIGIN, Origin, chat_sha256, column_names, sha256
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.reading.collection import choose
from debias_eval.reading.suite import load_suite
from debias_eval.scores.scoring import Floats

log = logging.getLogger(__name__)
AGAIN = "run lm_eval again on a new `debias export-harness`"
_origin_of = TypeAdapter(Origin).validate_python


@dataclass(frozen=True)
class Logged:
    """The samples of one task: a predictor that knows the answers to what the harness asked, and nothing else."""

    path: Path
    origin: Origin  # what all rows have in common
    scores: dict[tuple[str, ...], tuple[float, ...]]  # by id and texts
    changed_prompts: int | None = 0  # None: nothing says what a chat's prompts were to be
    description: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # the digest of those that were asked

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The texts the model reads, in order."""
        return self.origin.text_fields

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels, in the order of its scores."""
        return self.origin.labels

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> Floats:
        """The logged log-likelihoods, `[N, M]` float64; InputError for an example that was not logged."""
        keys = [(example.id, *example.texts) for example in examples]
        absent = [key[0] for key in keys if key not in self.scores]
        if absent:
            raise InputError(
                f"{self.path}: holds no answers for {len(absent)} of {len(keys)} examples (first: {absent[0]}): the "
                f"suite's data has changed since; {AGAIN}"
            )
        return np.array([self.scores[key] for key in keys], dtype=np.float64).reshape(len(keys), len(self.labels))


def import_samples(samples: Sequence[Path], run: Path, suites: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Judge what the harness logged and write `RUN/eval/NAME.json`, one for each samples file; returns the results.

    `samples` are files or folders of `samples_*.jsonl`; `suites` names the YAML files of suites that are not built in.
    All files are read and checked before anything is written. InputError in one line for a file that is damaged, of
    another suite version, of other weights than the run has now, or of fewer rows than were exported. Samples of an
    export that does not say its weights are taken to be of those.
    """
    own = {one.suite.name: one.name for one in choose(suites)}
    logged = [read_samples(path) for path in _files(samples)]
    _check_once(logged)
    named = [(one, own.get(one.origin.suite, one.origin.suite)) for one in logged]
    for one, name in named:
        _check_version(one, name)
    now = weights_of_run(run)
    for one in logged:
        if None not in (now, one.weights) and now != one.weights:
            raise InputError(f"{one.path}: is of other weights than lie in {run} now; {AGAIN}")
    named = [(replace(one, weights=one.weights or now), name) for one, name in named]
    run.mkdir(parents=True, exist_ok=True)
    return [evaluate_run(run, name, limit=one.origin.limit, seed=one.origin.seed, predictor=one) for one, name in named]


def read_samples(path: Path) -> Logged:
    """One samples file of `lm_eval --log_samples`, every line checked; InputError that names the line."""
    first: Origin | None = None
    scores: dict[tuple[str, ...], tuple[float, ...]] = {}
    changed = 0
    for where, sample in _lines(path):
        origin, texts = _row(sample, where)
        first = first or origin
        if origin.export != first.export:
            raise InputError(f"{where}: is of another export than the lines before it; {AGAIN}")
        key = (origin.id, *texts)
        if key in scores:
            raise InputError(f"{where}: answers {origin.id!r} a second time; give the samples of one run of lm_eval")
        scores[key] = _scores(sample, origin, where)
        changed += _prompt_changed(sample, origin, where)
    if first is None:
        raise InputError(f"{path}: is empty; {AGAIN}")
    if len(scores) < first.rows:
        raise InputError(
            f"{path}: holds {len(scores)} of the {first.rows} exported rows; for fewer, export with --limit (a random "
            "subset) and run lm_eval without its own --limit (the first rows)"
        )
    if changed:
        log.warning("%s: %d prompts are not as exported: options of lm_eval added to them", path, changed)
    counted = None if first.chat and not first.chat_sha256 else changed
    if counted is None:
        log.warning("%s: nothing says whether its chats hold the prompts alone: export with the tokenizer", path)
    judge = {"by": "lm-evaluation-harness", "samples": path.name, "scoring": "log-likelihood of the answer, summed"}
    return Logged(
        path, first.export, scores, counted, {**judge, "changed_prompts": counted}, weights=first.export.weights
    )


def _files(samples: Sequence[Path]) -> list[Path]:
    """The files named, and for a folder its samples files, also in the folder that the harness makes for a model."""
    found: list[Path] = []
    for path in map(Path, samples):
        inside = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: holds no samples_*.jsonl; lm_eval writes them with --log_samples")
        found += inside
    return found


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    check_regular(path)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}, line {number}"
                try:
                    sample = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{where}: damaged: {' '.join(str(error).split())}") from None
                if not isinstance(sample, dict):
                    raise InputError(f"{where}: holds {type(sample).__name__}, expected a logged sample")
                yield where, sample
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged: not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _row(sample: dict[str, Any], where: str) -> tuple[Origin, tuple[str, ...]]:
    """Where the sample's row is from, and its texts in the model's order."""
    doc = sample.get("doc")
    if not isinstance(doc, dict) or ORIGIN not in doc:
        raise InputError(f"{where}: not a sample of a task that `debias export-harness` wrote")
    try:
        origin: Origin = _origin_of(doc[ORIGIN])
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: damaged: doc.{ORIGIN}.{name}: {first['msg']}, got {first['input']!r}") from None
    texts = tuple(text for name in column_names(origin.text_fields) if isinstance(text := doc.get(name), str))
    if len(texts) < len(origin.text_fields):
        raise InputError(f"{where}: damaged: a text of {origin.id!r} is missing")
    return origin, texts


def _scores(sample: dict[str, Any], origin: Origin, where: str) -> tuple[float, ...]:
    """The log-likelihood of each label's answer; the harness logs pairs of it and whether it is the greedy answer."""
    answers = tuple(answer for _, answer in _arguments(sample, where))
    if answers != origin.answers:
        raise InputError(f"{where}: was asked for {list(answers)}, exported were {list(origin.answers)}; {AGAIN}")
    try:
        values = tuple(float(response[0]) for response in sample["filtered_resps"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            f"{where}: damaged: filtered_resps is {sample.get('filtered_resps')!r}, expected pairs of a log-likelihood "
            "and a flag"
        ) from None
    if len(values) != len(origin.labels):
        raise InputError(f"{where}: damaged: {len(values)} log-likelihoods for {len(origin.labels)} labels")
    if any(math.isnan(value) or value > 0 for value in values):
        raise InputError(f"{where}: {list(values)} are not log-likelihoods; the model or the file is damaged")
    return values


def _arguments(sample: dict[str, Any], where: str) -> list[tuple[str, str]]:
    """Prompt and answer of each request, as the harness writes them: {"gen_args_0": {"arg_0": ..., "arg_1": ...}}."""
    try:
        return [(str(one["arg_0"]), str(one["arg_1"])) for one in sample["arguments"].values()]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: damaged: arguments do not hold a prompt and an answer each") from None


def _prompt_changed(sample: dict[str, Any], origin: Origin, where: str) -> bool:
    prompts = [prompt for prompt, _ in _arguments(sample, where)]
    as_exported = all(sha256(prompt) == origin.prompt_sha256 for prompt in prompts)
    if origin.chat and as_exported:
        raise InputError(
            f"{where}: the prompt asks for a chat template (chat: true); give lm_eval --apply_chat_template"
        )
    if origin.chat:
        return origin.chat_sha256 != "" and any(chat_sha256(prompt) != origin.chat_sha256 for prompt in prompts)
    return not as_exported


def _check_once(logged: Sequence[Logged]) -> None:
    paths: dict[str, Path] = {}
    for one in logged:
        if one.origin.suite in paths:
            raise InputError(
                f"{one.path}: has the same suite {one.origin.suite!r} as {paths[one.origin.suite]}; give one"
            )
        paths[one.origin.suite] = one.path


def _check_version(logged: Logged, name: str) -> None:
    suite, found = load_suite(name), logged.origin
    if suite.version != found.version:
        raise InputError(
            f"{logged.path}: is of version {found.version} of the suite {found.suite}, here it has version "
            f"{suite.version}; {AGAIN}"
        )
