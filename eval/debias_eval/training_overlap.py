"""Which rows of a suite a run was trained on, from the run's own config."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from debias.config import load_config
from debias.data import Example, load_examples
from debias.errors import InputError
from debias_eval.statistics import Bools

logger = logging.getLogger(__name__)


def contaminated(run: Path, examples: Sequence[Example]) -> Bools | None:
    """`[N]`: whether an example's normalised text is in the run's training data; None, with a notice, if unreadable."""
    config = run / "config.yaml"
    if not config.is_file():
        return None
    from debias_eval.overlap import overlapping

    try:
        train = _training_texts(config.resolve(), config.stat().st_mtime_ns)
    except InputError as error:
        logger.info("%s: overlap with the training data not checked: %s", run, error)
        return None
    return overlapping(examples, train)


@lru_cache(maxsize=1)
def _training_texts(config: Path, changed: int) -> tuple[tuple[str, ...], ...]:
    """The texts of a run's training data; kept while one run is judged on many suites and its config stays the same."""
    settings = load_config(config)
    examples = load_examples(settings.data.train, settings.data, base=config.parent)
    return tuple(example.texts for example in examples)
