"""Cue swap: what gives labels away word by word is dealt out anew. Shapes: N examples, C labels."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from debias.config.data import DataConfig, Swap
from debias.config.words import TOKEN, as_compared
from debias.data.examples import Example
from debias.data.store import Notes, key_of
from debias.data.tables import Examples, keep_examples
from debias.errors import InputError

logger = logging.getLogger(__name__)
Cue = tuple[int, str]  # in which text, and the token as it is compared


@dataclasses.dataclass(frozen=True)
class Flagged:
    """A token that gives the label away: `spread` is the least over folds of max_y - min_y of its log-odds by label,
    and where the token was named, whatever that is.
    """

    cue: Cue
    spread: float
    examples: int


def swap(examples: Sequence[Example], data: DataConfig) -> Sequence[Example]:
    """Examples in which flagged tokens stand where they stand in other examples: then they say nothing of labels.

    Of the examples that are drawn (`probability`) each gives what it has of the flagged tokens to another one; a token
    that was the first of its text comes first, any other last. Groups of a planted cue are forgotten: they would be
    those of before. The same for the same arguments. InputError for pictures.
    """
    assert data.swap is not None
    if data.pictures:
        raise InputError("data.swap: deals out words, and the data is pictures; remove it")
    notes: Notes = {}
    swapped: Sequence[Example]
    if isinstance(examples, Examples):
        told = (data.swap.model_dump(), len(data.labels), data.planted_bias is None, TOKEN.pattern)
        swapped = keep_examples(key_of("swapped", examples.key, *told), lambda notes: _swapped(examples, data, notes))
        notes = swapped.table.notes
    else:
        swapped = list(_swapped(examples, data, notes))
    for token in _nowhere(data.swap.tokens, notes["flagged"]):
        logger.warning("data.swap.tokens: %r stands in no text", token)
    if not notes["flagged"] and not data.swap.tokens:
        logger.warning("data.swap: no token gives labels away (spread above %g): nothing is swapped", data.swap.spread)
    for field, token, spread, count in notes["flagged"]:
        cue = (data.text_fields[field], token, spread, count)
        logger.info("data.swap: %s has %r, spread of log-odds %.2f, in %d examples", *cue)
    if notes["whole"]:
        logger.warning(
            "data.swap: %d of %d examples have a text that is nothing but such tokens, and stay as they are: there the"
            " tokens still give the label away; leave these rows out of the data if there are many",
            notes["whole"],
            len(examples),
        )
    return swapped


def _swapped(examples: Sequence[Example], data: DataConfig, notes: Notes) -> Iterator[Example]:
    assert data.swap is not None
    found = flagged(examples, data.swap, len(data.labels))
    notes["flagged"], notes["whole"] = [(*one.cue, one.spread, one.examples) for one in found], 0
    if not found:
        yield from examples
        return
    draw, donor_N = np.random.default_rng(data.swap.seed), np.arange(len(examples))
    cues = {one.cue for one in found}
    whole_N = np.fromiter((_is_cue(example.texts, cues) for example in examples), dtype=bool, count=len(examples))
    notes["whole"] = int(whole_N.sum())
    drawn = np.flatnonzero((draw.random(len(examples)) < data.swap.probability) & ~whole_N)
    taking_N = np.zeros(len(examples), dtype=bool)
    taking_N[drawn], donor_N[drawn] = True, draw.permutation(drawn)
    for place, example in enumerate(examples):
        texts = _as_in(example.texts, examples[int(donor_N[place])].texts, cues) if taking_N[place] else example.texts
        group = example.group if data.planted_bias is None else None
        yield dataclasses.replace(example, texts=texts, group=group)


def flagged(examples: Sequence[Example], settings: Swap, labels: int) -> list[Flagged]:
    """Tokens of at least `min_share` of the examples whose spread is above `spread` whichever fold is left out.

    Where `tokens` are named it is these, of every text in which they stand.
    """
    named = {as_compared(token) for token in settings.tokens}
    fold_N = np.random.default_rng(settings.seed).permutation(len(examples)) % settings.folds
    seen: Counter[tuple[Cue, int, int]] = Counter()  # by token, fold and label
    size: Counter[tuple[int, int]] = Counter()
    for example, fold in zip(examples, fold_N.tolist(), strict=True):
        size[fold, example.label] += 1
        seen.update((cue, fold, example.label) for cue in _cues(example.texts) if not named or cue[1] in named)
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

    fewest = 1 if named else settings.min_share * len(examples)
    frequent = [cue for cue, count in often.items() if count >= fewest]
    rows = [(cue, min(spread(cue, out) for out in range(settings.folds))) for cue in sorted(frequent)]
    return [Flagged(cue, least, often[cue]) for cue, least in rows if named or least > settings.spread]


def _nowhere(tokens: Sequence[str], found: Sequence[Sequence[Any]]) -> list[str]:
    """Of these tokens, those that no text has."""
    there = {token for _, token, *_ in found}
    return [token for token in tokens if as_compared(token) not in there]


def _cues(texts: Sequence[str]) -> set[Cue]:
    return {(field, as_compared(token)) for field, text in enumerate(texts) for token in TOKEN.findall(text)}


def _is_cue(texts: Sequence[str], cues: set[Cue]) -> bool:
    """Whether one of the texts is made of flagged tokens alone: without them it would be empty, as no text may be."""
    return any(
        all((field, as_compared(match.group())) in cues for match in TOKEN.finditer(text))
        for field, text in enumerate(texts)
    )


def _as_in(texts: Sequence[str], donor: Sequence[str], cues: set[Cue]) -> tuple[str, ...]:
    """The texts without their flagged tokens, and with the donor's."""
    return tuple(
        _with(_without(text, field, cues), other, field, cues)
        for field, (text, other) in enumerate(zip(texts, donor, strict=True))
    )


def _without(text: str, field: int, cues: set[Cue]) -> str:
    spans = [match.span() for match in TOKEN.finditer(text) if (field, as_compared(match.group())) in cues]
    for start, end in reversed(spans):
        before, after = text[:start].rstrip(), text[end:]
        text = before + after if before else after.lstrip()
    return text


def _with(text: str, donor: str, field: int, cues: set[Cue]) -> str:
    tokens: list[str] = TOKEN.findall(donor)
    there = [(place, token) for place, token in enumerate(tokens) if (field, as_compared(token)) in cues]
    first = [token for place, token in there if place == 0]
    last = [token for place, token in there if place > 0]
    return " ".join([*first, *([text] if text else []), *last])
