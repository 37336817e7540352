"""The floor under a suite's numbers: what a classifier reaches that sees only a part of each example.

It is cross-validated inside the suite, so it shows what the suite itself gives away, whatever a model was trained on.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from debias.data import Example
from debias_eval.reading.partial import classifier, drawn_together
from debias_eval.reading.subset import subset
from debias_eval.reading.suite import Suite
from debias_eval.scores.intervals import Ints, cluster_index
from debias_eval.scores.scoring import accuracy, real_clusters

FOLDS = 5
MOST_ROWS = 10_000

logger = logging.getLogger(__name__)


def partial_input(suite: Suite, examples: Sequence[Example], seed: int = 0) -> dict[str, Any] | None:
    """Accuracy, interval, `fields` and `how` of TF-IDF and logistic regression on the suite's `input_ablation`.

    Five folds; all rows of a cluster, and all that show the classifier the same, are in one, and are one draw for the
    interval. Of more than 10,000 rows a random subset drawn with `seed`. None, with a notice in the log where it is not
    by the suite's own choice, if the suite names no fields, without scikit-learn, and for too few examples to fit
    anything.
    """
    if not suite.input_ablation or any(example.image is not None for example in examples):
        return None
    if find_spec("sklearn") is None:
        logger.info("suite %s: no partial-input floor, it needs scikit-learn: pip install scikit-learn", suite.name)
        return None
    rows = subset(examples, MOST_ROWS, seed)
    columns = [suite.text_fields.index(field) for field in suite.input_ablation]
    texts = [" \n ".join(example.texts[column] for column in columns) for example in rows]
    apart = drawn_together(rows, columns, most=len(rows) // FOLDS)
    try:
        predicted_N = _cross_validated(texts, rows, apart, seed)
    except ValueError as error:
        logger.info("suite %s: no partial-input floor, its %d rows are too few: %s", suite.name, len(rows), error)
        return None
    gold_N = np.array([example.label for example in rows], dtype=np.int64)
    cluster_N = real_clusters(apart)
    part = f", of {len(rows):,} of {len(examples):,} rows drawn with seed {seed}" if len(rows) < len(examples) else ""
    how = f"TF-IDF and logistic regression, {FOLDS}-fold cross-validation within the suite{part}"
    return {**accuracy(predicted_N, gold_N, cluster_N).as_dict(), "fields": list(suite.input_ablation), "how": how}


def _cross_validated(texts: Sequence[str], examples: Sequence[Example], apart: Sequence[str | None], seed: int) -> Ints:
    """The label each example gets from the folds it is not in, `[N]`; ValueError where a fold cannot be fitted.

    Words are weighted over all texts at once, which needs no label and saves most of the time.
    """
    gold_N = np.array([example.label for example in examples], dtype=np.int64)
    fold_N = _folds(apart, seed)
    words, model = classifier().named_steps.values()
    features = words.fit_transform(texts).tocsr()
    predicted_N = np.full(len(gold_N), -1, dtype=np.int64)
    for fold in range(FOLDS):
        held_out_N = fold_N == fold
        model.fit(features[~held_out_N], gold_N[~held_out_N])
        predicted_N[held_out_N] = model.predict(features[held_out_N])
    return predicted_N


def _folds(clusters: Sequence[str | None], seed: int) -> Ints:
    """The fold of each example: clusters in random order, dealt out in turn."""
    index_N = cluster_index(clusters)
    count = int(index_N.max()) + 1
    if count < FOLDS:
        raise ValueError(f"{count} independent examples or clusters for {FOLDS} folds")
    dealt_K = np.random.default_rng(seed).permutation(count) % FOLDS
    return np.asarray(dealt_K[index_N])
