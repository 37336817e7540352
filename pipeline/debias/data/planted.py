"""A shortcut written into the data on purpose, so that a run can be judged where it holds and where it does not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import floor
from random import Random

import numpy as np

from debias.config.data import DataConfig, PlantedBias
from debias.data.examples import Example, labels_of
from debias.data.store import key_of
from debias.data.tables import Examples, keep_examples
from debias.errors import InputError

ALIGNED, CONFLICTING, INDEPENDENT = "bias-aligned", "bias-conflicting", "bias-independent"


def plant(examples: Sequence[Example], planted: PlantedBias, data: DataConfig) -> Sequence[Example]:
    """The examples in order: `round(prevalence * N)` carry the cue, `round(strength * that)` of these are aligned.

    The carriers are drawn with `planted.seed`: from the target label, and from all others together, so that these keep
    their proportions on average. `group` becomes bias-aligned, bias-conflicting or bias-independent. Raises InputError
    when there are too few examples. Li et al., CCL 2025 (EDGE), biased-SNLI.
    """
    if not isinstance(examples, Examples):
        return list(_planted(examples, planted, data))
    key = key_of("planted", examples.key, planted.model_dump(), data.labels, data.text_fields)
    return keep_examples(key, lambda notes: _planted(examples, planted, data))


def _planted(examples: Sequence[Example], planted: PlantedBias, data: DataConfig) -> Iterator[Example]:
    label_N, target = labels_of(examples), data.labels.index(planted.label)
    aligned, others = np.flatnonzero(label_N == target).tolist(), np.flatnonzero(label_N != target).tolist()
    want_aligned, want_others = _counts(round(planted.prevalence * len(examples)), planted.strength)
    if want_aligned > len(aligned) or want_others > len(others):
        raise InputError(_infeasible(planted, want_aligned, len(aligned), want_others, len(others)))
    rng = Random(f"plant/{planted.seed}")
    groups = dict.fromkeys(rng.sample(aligned, want_aligned), ALIGNED)
    groups.update(dict.fromkeys(rng.sample(others, want_others), CONFLICTING))
    position = data.text_fields.index(planted.field)
    for index, example in enumerate(examples):
        yield _tagged(example, groups.get(index), position, planted.cue)


def _counts(carriers: int, strength: float) -> tuple[int, int]:
    aligned = round(strength * carriers)
    return aligned, carriers - aligned


def _tagged(example: Example, group: str | None, position: int, cue: str) -> Example:
    if group is None:
        return replace(example, group=INDEPENDENT)
    texts = list(example.texts)
    texts[position] += " " + cue
    return replace(example, texts=tuple(texts), group=group)


def _infeasible(planted: PlantedBias, want_aligned: int, aligned: int, want_others: int, others: int) -> str:
    largest = _largest_prevalence(planted.strength, aligned, others)
    return (
        f"planted_bias: prevalence {planted.prevalence} and strength {planted.strength} need {want_aligned} examples "
        f"of {planted.label!r} and {want_others} of other labels; there are {aligned} and {others} among "
        f"{aligned + others}; the largest prevalence that works at this strength is {largest}"
    )


def _largest_prevalence(strength: float, aligned: int, others: int) -> float:
    size = aligned + others
    for carriers in range(size, -1, -1):
        want_aligned, want_others = _counts(carriers, strength)
        if want_aligned <= aligned and want_others <= others:
            # Rounded down, so that the number as printed works.
            return floor(carriers / size * 10_000) / 10_000
    raise AssertionError("no carriers at all always works")
