"""Rows without labels answered by a trained model: read, scored and written a chunk at a time. N rows, C labels."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from debias.config.data import DataConfig, DataSource, has_pictures
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data.examples import Example
from debias.data.shards import files_there
from debias.data.sources import unlabelled
from debias.errors import InputError
from debias.inference.answered import Answer, check_suffix, writing
from debias.inference.answers import Scoring
from debias.inference.any_model import Given, given_config, load_given, reads_any_texts
from debias.inference.batches import SECONDS_BETWEEN_LINES
from debias.inference.loading import load_run
from debias.inference.predictor import Predictor
from debias.ranks.world import is_first
from debias.runs.names import CONFIG
from debias.runs.outputs import check_files

logger = logging.getLogger(__name__)
CHUNK = 2048  # rows that are held at a time
DIGITS = 9  # of a probability, beyond which float32 says nothing
Rows = Iterable[tuple[int, Example]]


@dataclass(frozen=True)
class Asked:
    """The rows to answer. `text_fields`: their columns in the order of the model's texts, where these are others.

    `id_field`: a column that must be there; None: the run's, where the rows have it.
    """

    source: DataSource
    text_fields: tuple[str, ...] = ()
    id_field: str | None = None


def predict_rows(
    model: Path | Given,
    asked: Asked,
    out: Path | None,
    *,
    scoring: Scoring | None = None,
    deepspeed: str | None = None,
    batch_size: int | None = None,
) -> int:
    """Answer all rows with a run's model, or any other; returns how many. `out` is there whole or not at all.

    All rows are read and checked before anything large is loaded: one that cannot be answered costs no answers. Memory
    holds one chunk, however many rows there are. Under torchrun each rank scores its share and the first one writes.
    InputError for whatever a user can put right.
    """
    _check_out(out, asked.source)
    config = _settings(model)
    if config.head != "causal_lm" and scoring not in (None, Scoring()):
        raise InputError("normalize and calibrate go with answers in words; this model has a head of its own")
    data = _data(config, model, asked)
    rows = unlabelled(asked.source, data, id_field=asked.id_field)
    first = list(islice(rows, CHUNK))
    if not first:
        raise InputError(f"{asked.source.source}: no rows, it is empty")
    if sum(1 for _ in rows):  # which checks them
        rows = islice(unlabelled(asked.source, data, id_field=asked.id_field), CHUNK, None)
    predictor = (
        load_given(model, scoring) if isinstance(model, Given) else load_run(model, scoring, deepspeed=deepspeed)
    )
    started = time.monotonic()
    number = _answer_all(predictor, chain(first, rows), out, batch_size)
    predictor.say_what_was_cut()
    logger.info("%s rows answered in %.0f s", f"{number:,}", time.monotonic() - started)
    return number


def _check_out(out: Path | None, source: DataSource) -> None:
    if out is None:
        return
    check_files({"-o": out})
    check_suffix(out)
    if out.exists() and any(out.samefile(file) for file in files_there(source.source)):
        raise InputError(f"-o: {out} is the data that is read; give another file")


def _settings(model: Path | Given) -> RunConfig:
    if isinstance(model, Given):
        return given_config(model)
    if not (model / CONFIG).is_file():
        raise InputError(f"{model}: holds no {CONFIG}; give the folder of one run")
    return load_config(model / CONFIG)


def _data(config: RunConfig, model: Path | Given, asked: Asked) -> DataConfig:
    """How the rows are read: as the run's, but for what was said of the columns. A planted shortcut stays out."""
    if config.data.pictures or has_pictures(asked.source.source):
        raise InputError("data: predict answers rows of text, not pictures; debias eval judges those")
    own, fields = config.data.text_fields, asked.text_fields or config.data.text_fields
    unsaid = isinstance(model, Given) and reads_any_texts(model, config)
    if unsaid and not asked.text_fields:
        raise InputError("--text-field is missing: this classifier does not say what it reads; name its columns")
    if len(fields) != len(own) and not unsaid:
        raise InputError(f"--text-field: {', '.join(fields)} given, the model reads {len(own)} ({', '.join(own)})")
    return config.data.model_copy(update={"train": asked.source, "text_fields": fields, "planted_bias": None})


def _answer_all(predictor: Predictor, rows: Rows, out: Path | None, batch_size: int | None) -> int:
    number, stream = 0, iter(rows)
    started = last = time.monotonic()
    with writing(out if is_first() else None, predictor.labels) as write:
        while chunk := list(islice(stream, CHUNK)):
            answers = list(answered(predictor, chunk, batch_size))
            if is_first():
                write(answers)
            number += len(chunk)
            if (now := time.monotonic()) - last >= SECONDS_BETWEEN_LINES:
                last = now
                logger.info("%s rows, %.0f a second", f"{number:,}", number / (now - started))
    return number


def answered(
    predictor: Predictor, chunk: Sequence[tuple[int, Example]], batch_size: int | None = None
) -> Iterator[Answer]:
    """What the model says of numbered rows; nothing of them is kept."""
    scores_NC = predictor.label_scores([example for _, example in chunk], batch_size)
    predictor.forget()
    p_NC = np.exp(scores_NC - np.logaddexp.reduce(scores_NC, axis=1, keepdims=True))
    for (number, example), p_C in zip(chunk, p_NC, strict=True):
        if not np.isfinite(p_C).all():
            raise InputError(f"row {number}: the model's scores are not finite numbers")
        rounded = [min(1.0, float(f"{value:.{DIGITS}g}")) for value in p_C]
        named = example.id.encode("utf-8", "backslashreplace").decode()  # half of a character fits into no file
        answer = predictor.labels[int(p_C.argmax())]
        yield Answer(number, named, answer, dict(zip(predictor.labels, rounded, strict=True)))
