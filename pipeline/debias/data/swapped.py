"""Cue swap: what gives labels away word by word is dealt out anew. Shapes: N examples, C labels."""

import dataclasses
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from debias.config.data import DataConfig, Swap
from debias.data.examples import Example
from debias.errors import InputError

logger = logging.getLogger(__name__)
TOKEN = re.compile(r"\w+|[^\w\s]+")
Cue = tuple[int, str]  # in which text, and the token in lower case


@dataclasses.dataclass(frozen=True)
class Flagged:
    """A token that gives the label away: `spread` is the least over folds of max_y - min_y of its log-odds by label."""

    cue: Cue
    spread: float
    examples: int


def swap(examples: Sequence[Example], data: DataConfig) -> list[Example]:
    """Examples in which flagged tokens stand where they stand in other examples: then they say nothing of labels.

    Of the examples that are drawn (`probability`) each gives what it has of the flagged tokens to another one; a token
    that was the first of its text comes first, any other last. Groups of a planted cue are forgotten: they would be
    those of before. The same for the same arguments. InputError for pictures.
    """
    assert data.swap is not None
    if data.pictures:
        raise InputError("data.swap: deals out words, and the data is pictures; remove it")
    found = flagged(examples, data.swap, len(data.labels))
    if not found:
        logger.warning("data.swap: no token gives labels away (spread above %g): nothing is swapped", data.swap.spread)
        return list(examples)
    for one in found:
        told = (data.text_fields[one.cue[0]], one.cue[1], one.spread, one.examples)
        logger.info("data.swap: %s has %r, spread of log-odds %.2f, in %d examples", *told)
    draw = np.random.default_rng(data.swap.seed)
    drawn = np.flatnonzero(draw.random(len(examples)) < data.swap.probability)
    swapped, cues = list(examples), {one.cue for one in found}
    for place, donor in zip(drawn.tolist(), draw.permutation(drawn).tolist(), strict=True):
        texts = _as_in(examples[place].texts, examples[donor].texts, cues)
        swapped[place] = dataclasses.replace(examples[place], texts=texts)
    if data.planted_bias is None:
        return swapped
    return [dataclasses.replace(example, group=None) for example in swapped]


def flagged(examples: Sequence[Example], settings: Swap, labels: int) -> list[Flagged]:
    """Tokens of at least `min_share` of the examples whose spread is above `spread` whichever fold is left out."""
    fold_N = np.random.default_rng(settings.seed).permutation(len(examples)) % settings.folds
    seen: Counter[tuple[Cue, int, int]] = Counter()  # by token, fold and label
    size: Counter[tuple[int, int]] = Counter()
    for example, fold in zip(examples, fold_N.tolist(), strict=True):
        size[fold, example.label] += 1
        seen.update((cue, fold, example.label) for cue in _cues(example.texts))
    often = Counter[Cue]()
    for (cue, _, _), count in seen.items():
        often[cue] += count

    def spread(cue: Cue, out: int) -> float:
        odds = []
        for label in range(labels):
            others = [fold for fold in range(settings.folds) if fold != out]
            have = sum(seen[cue, fold, label] for fold in others)
            odds.append(math.log((have + 1) / (sum(size[fold, label] for fold in others) - have + 1)))
        return max(odds) - min(odds)

    frequent = [cue for cue, count in often.items() if count >= settings.min_share * len(examples)]
    rows = [(cue, min(spread(cue, out) for out in range(settings.folds))) for cue in sorted(frequent)]
    return [Flagged(cue, least, often[cue]) for cue, least in rows if least > settings.spread]


def _cues(texts: Sequence[str]) -> set[Cue]:
    return {(field, token.lower()) for field, text in enumerate(texts) for token in TOKEN.findall(text)}


def _as_in(texts: Sequence[str], donor: Sequence[str], cues: set[Cue]) -> tuple[str, ...]:
    """The texts without their flagged tokens, and with the donor's."""
    return tuple(
        _with(_without(text, field, cues), other, field, cues)
        for field, (text, other) in enumerate(zip(texts, donor, strict=True))
    )


def _without(text: str, field: int, cues: set[Cue]) -> str:
    spans = [match.span() for match in TOKEN.finditer(text) if (field, match.group().lower()) in cues]
    for start, end in reversed(spans):
        before, after = text[:start].rstrip(), text[end:]
        text = before + after if before else after.lstrip()
    return text


def _with(text: str, donor: str, field: int, cues: set[Cue]) -> str:
    tokens: list[str] = TOKEN.findall(donor)
    there = [(place, token) for place, token in enumerate(tokens) if (field, token.lower()) in cues]
    first = [token for place, token in there if place == 0]
    last = [token for place, token in there if place > 0]
    return " ".join([*first, *([text] if text else []), *last])
