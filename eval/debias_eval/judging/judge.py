"""One model judged on several suites: which fit, which are left out, and why. No torch before a model loads."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from debias.data.shots import Shown
from debias.errors import InputError, Unreachable
from debias_eval.judging.evaluate import OverlapRule, evaluate_run
from debias_eval.judging.overlap import TrainingRows
from debias_eval.judging.predict import Predictor, check_fit
from debias_eval.reading.collection import Chosen, choose
from debias_eval.reading.places import where_from

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judging:
    """What holds for every suite: see `evaluate_run`."""

    limit: int | None = None
    batch_size: int | None = None
    seed: int = 0
    overlap: OverlapRule = "count"
    floor: bool = True
    shown: Shown | None = None


@dataclass
class Outcome:
    """The results in the order of the suites, and why the suites that a collection brought along were left out."""

    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def judge(
    folder: Path,
    names: Sequence[str],
    load: Callable[[], Predictor],
    *,
    labels: Sequence[str] | None = None,
    text_fields: Sequence[str] = (),
    trained_on: TrainingRows | None = None,
    judging: Judging | None = None,
) -> Outcome:
    """Judge the model that `load` loads on suites and collections; results go to `folder`.

    `labels` and `text_fields` are the model's where they are known before it is loaded: a suite that does not fit is
    then refused at once. `trained_on` is its training data, where that is known. A suite that was named and cannot be
    judged is an InputError; one that a collection brought along is left out, with a notice.
    """
    chosen, outcome = judging or Judging(), Outcome()
    asked = [one for one in choose(names) if _fits(one, labels, text_fields, outcome)]
    if not asked:
        raise _nothing(names, outcome)
    predictor = load()
    asked = [one for one in asked if _fits(one, predictor.labels, predictor.text_fields, outcome)]
    for number, one in enumerate(asked, start=1):
        logger.info("%s (%d of %d)", one.suite.name, number, len(asked))
        try:
            result = evaluate_run(folder, one.suite, predictor=predictor, trained_on=trained_on, **vars(chosen))
        except InputError as error:
            if one.by_name or isinstance(error, Unreachable):
                raise
            _skip(one, error, outcome)
        else:
            outcome.results.append(result)
            logger.info("  accuracy %.1f of %d in %.0f s", 100 * result["accuracy"], result["n"], result["seconds"])
    if outcome.skipped:
        logger.info("not judged: %s", ", ".join(outcome.skipped))
    if not outcome.results:
        raise _nothing(names, outcome)
    return outcome


def _nothing(names: Sequence[str], outcome: Outcome) -> InputError:
    first, *more = outcome.skipped.values()
    others = f" (and {len(more)} more, above)" if more else ""
    return InputError(f"no suite of {', '.join(names)} can be judged: {first}{others}")


def _fits(one: Chosen, labels: Sequence[str] | None, text_fields: Sequence[str], outcome: Outcome) -> bool:
    try:
        if labels is not None:
            check_fit(one.suite, labels, text_fields)
        if where_from(one.suite) == "missing":
            data, file = os.environ.get("DEBIAS_DATA"), one.suite.source.source if one.suite.source else ""
            where = f"not beside its YAML, and not in {data}" if data else "DEBIAS_DATA, the folder of data, is not set"
            raise InputError(f"suite {one.suite.name}: its data is not there: {file}, {where}")
    except InputError as error:
        if one.by_name:
            raise
        _skip(one, error, outcome)
        return False
    return True


def _skip(one: Chosen, error: InputError, outcome: Outcome) -> None:
    if one.suite.name not in outcome.skipped:
        logger.info("skipped: %s", error)
        outcome.skipped[one.suite.name] = str(error)
