"""Which rows of a suite a run was trained on, from the run's own config."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from debias.config.reading import load_config
from debias.data import Example, load_examples
from debias.errors import InputError
from debias_eval.judging.overlap import Key, key_of
from debias_eval.scores.intervals import Bools

logger = logging.getLogger(__name__)


def contaminated(run: Path, text_fields: Sequence[str], examples: Sequence[Example]) -> Bools | None:
    """`[N]`: whether an example's normalised texts are a row of the run's training data.

    `text_fields` names the examples' texts. None, with a notice, where the run has no config or its data cannot be read
    any more.
    """
    config = run / "config.yaml"
    if not config.is_file():
        return None
    try:
        keys = _training_keys(config.resolve(), config.stat().st_mtime_ns, tuple(text_fields))
    except InputError as error:
        logger.info("%s: overlap with the training data not checked: %s", run, error)
        return None
    return np.array([key_of(example.texts) in keys for example in examples], dtype=np.bool_)


@lru_cache(maxsize=2)
def _training_keys(config: Path, changed: int, text_fields: tuple[str, ...]) -> frozenset[Key]:
    """The normalised rows of a run's training data, their texts in the order of `text_fields` where those are theirs.

    Kept while one run is judged on many suites, unless the config is `changed` (a time, in ns).
    """
    settings = load_config(config)
    examples = load_examples(settings.data.train, settings.data, base=config.parent)
    own = settings.data.text_fields
    order = [own.index(name) for name in text_fields] if sorted(own) == sorted(text_fields) else range(len(own))
    return frozenset(key_of([example.texts[i] for i in order]) for example in examples if example.texts)
