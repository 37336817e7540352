"""From a model's scores to judged predictions: which model label counts as which suite label."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from debias.data import Example
from debias.data.examples import labels_of
from debias.data.shots import refuse_cut
from debias.errors import InputError
from debias_eval.judging.pieces import PIECE, KeptScores, in_pieces
from debias_eval.reading.suite import Suite
from debias_eval.scores.scoring import Floats, Ints, Judged, merge_probabilities, merged_prediction, softmax

log = logging.getLogger(__name__)


class Predictor(Protocol):
    """A trained model as the evaluator sees it; `debias.inference.predictor` has the real one.

    A `description` says how it scored, and goes into the results.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def text_fields(self) -> tuple[str, ...]: ...

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> Floats:
        """Log-likelihood of each of the model's labels, `[N, M]` float64."""


def load(run: Path) -> Predictor:
    """The model of a run folder; InputError if the folder holds none."""
    from debias.inference.loading import load_run

    predictor: Predictor = load_run(run)
    return predictor


def predict(
    predictor: Predictor,
    suite: Suite,
    examples: Sequence[Example],
    batch_size: int | None = None,
    kept: KeptScores | None = None,
) -> Judged:
    """The predictor's answers to `examples`, in the suite's labels; asked for `PIECE` of them at a time.

    `kept`: the scores of an earlier call that was cut off, gone on with. InputError if labels or text fields do not
    fit, checked before the model runs, and for scores that are not finite.
    """
    suite_label_M = suite_labels(suite, predictor.labels)

    def asked(places: Sequence[int]) -> Floats:
        some = examples[places.start : places.stop] if isinstance(places, range) else [examples[at] for at in places]
        ordered = in_model_order(some, suite.text_fields, predictor.text_fields, suite.name)
        scores_NM = np.asarray(predictor.label_scores(ordered, batch_size), dtype=np.float64)
        if scores_NM.shape != (len(ordered), len(suite_label_M)):
            raise ValueError(f"label_scores gave {scores_NM.shape}, expected {(len(ordered), len(suite_label_M))}")
        return scores_NM

    probabilities_NM = softmax(in_pieces(asked, len(examples), kept))
    return Judged(
        labels=suite.labels,
        gold_N=labels_of(examples),
        prediction_N=merged_prediction(probabilities_NM, suite_label_M),
        probabilities_NC=merge_probabilities(probabilities_NM, suite_label_M, len(suite.labels)),
        groups=tuple(example.group for example in examples),
    )


def refuse_cut_prompts(predictor: Predictor, suite: Suite, examples: Sequence[Example]) -> None:
    """InputError, with their number, where prompts with examples in context would be cut; nothing is scored.

    A server that is asked with text cuts none.
    """
    limits, lengths_of = getattr(predictor, "prompt_limits", None), getattr(predictor, "prompt_lengths", None)
    if limits is None or lengths_of is None:
        return
    lengths: list[int] = []
    for start in range(0, len(examples), PIECE):
        piece = examples[start : start + PIECE]
        lengths += lengths_of(in_model_order(piece, suite.text_fields, predictor.text_fields, suite.name))
    refuse_cut(lengths, *limits)


def check_fit(suite: Suite, labels: Sequence[str], text_fields: Sequence[str]) -> None:
    """InputError if a model with these labels and texts cannot be judged on the suite."""
    suite_labels(suite, labels)
    in_model_order([], suite.text_fields, text_fields, suite.name)
    if text_fields and set(text_fields) != set(suite.text_fields):
        pairs = zip(suite.text_fields, text_fields, strict=True)
        told = ", ".join(f"{theirs} as {own}" for theirs, own in pairs if theirs != own)
        log.info("suite %s: its texts go to the model by their place: %s", suite.name, told)


def in_model_order(
    examples: Sequence[Example], suite_fields: Sequence[str], model_fields: Sequence[str], suite: str
) -> list[Example]:
    """The examples with their texts in the model's order: by name if the names are the same, else by position.

    InputError where a name that both have would then stand for another text.
    """
    if not model_fields:  # a classifier of which nobody said what it reads: the suite's texts, in their order
        return list(examples)
    if len(suite_fields) != len(model_fields):
        raise InputError(f"suite {suite}: has text_fields {list(suite_fields)}, the model reads {list(model_fields)}")
    if tuple(suite_fields) == tuple(model_fields):
        return list(examples)
    if set(suite_fields) != set(model_fields):
        moved = [one for one, own in zip(suite_fields, model_fields, strict=True) if one != own and one in model_fields]
        if moved:
            places = [list(fields).index(moved[0]) + 1 for fields in (suite_fields, model_fields)]
            raise InputError(
                f"suite {suite}: {moved[0]!r} is text {places[0]} of its {list(suite_fields)} and text {places[1]} of"
                f" the model's {list(model_fields)}; give the suite's columns, and its text_fields, the model's names"
            )
        return list(examples)
    order = [list(suite_fields).index(name) for name in model_fields]
    return [replace(one, texts=tuple(one.texts[i] for i in order)) for one in examples]


def suite_labels(suite: Suite, model_labels: Sequence[str]) -> Ints:
    """`[M]` int64: the suite label each model label counts as; InputError for a label without a partner."""
    mapped = [suite.merge.get(label, label) for label in model_labels]
    foreign = [label for label, name in zip(model_labels, mapped, strict=True) if name not in suite.labels]
    if foreign:
        raise InputError(
            f"suite {suite.name}: the model answers {foreign}, which the suite cannot map to {list(suite.labels)}; "
            "give the data the suite's names (data.label_map), or take a copy of its suite.yaml with merge: {"
            f"{foreign[0]}: {suite.labels[0]}, ...}}"
        )
    unreachable = [label for label in suite.labels if label not in mapped]
    if unreachable:
        raise InputError(f"suite {suite.name}: no label of the model {list(model_labels)} counts as {unreachable}")
    return np.array([suite.labels.index(name) for name in mapped], dtype=np.int64)
