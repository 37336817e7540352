"""Cue swap: what gives labels away word by word is dealt out anew. Shapes: N examples, C labels."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from debias.config.data import DataConfig, Swap
from debias.config.words import TOKEN, as_compared, held_and_loose
from debias.data.examples import Example
from debias.data.store import Notes, key_of
from debias.data.tables import Examples, keep_examples
from debias.errors import InputError

logger = logging.getLogger(__name__)
Cue = tuple[int, str]  # in which text, and the token as it is compared
SHOWN = 40  # characters of a word


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
    that was the first of its text comes first, any other last. What stands inside a word, a number or a link (the
    points of 3.50 and of t.co) is none of them: it stays, and is counted. Groups of a planted cue are forgotten: they
    would be those of before. The same for the same arguments. InputError for pictures.
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
        but = " but inside words" if as_compared(token) in {held for held, *_ in notes["held"]} else ""
        logger.warning("data.swap.tokens: %r stands in no text%s", token, but)
    if not notes["flagged"] and not data.swap.tokens:
        logger.warning("data.swap: no token gives labels away (spread above %g): nothing is swapped", data.swap.spread)
    for field, token, spread, count in notes["flagged"]:
        cue = (data.text_fields[field], token, spread, count)
        logger.info("data.swap: %s has %r, spread of log-odds %.2f, in %d examples", *cue)
    for token, count, some in notes["held"]:
        logger.warning(
            "data.swap: %r stands %d times inside a word, a number or a link (%s), and is left alone there",
            token,
            count,
            ", ".join(some),
        )
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
    cues = {one.cue for one in found}
    cues |= {(field, as_compared(token)) for token in data.swap.tokens for field in range(len(data.text_fields))}
    notes["flagged"], notes["whole"] = [(*one.cue, one.spread, one.examples) for one in found], 0
    notes["held"] = _held(examples, cues)
    if not found:
        yield from examples
        return
    draw, donor_N = np.random.default_rng(data.swap.seed), np.arange(len(examples))
    whole_N = np.fromiter((_is_cue(example.texts, cues) for example in examples), dtype=bool, count=len(examples))
    notes["whole"] = sum(_has_words(examples[int(at)].texts) for at in np.flatnonzero(whole_N))
    drawn = np.flatnonzero((draw.random(len(examples)) < data.swap.probability) & ~whole_N)
    taking_N = np.zeros(len(examples), dtype=bool)
    taking_N[drawn], donor_N[drawn] = True, draw.permutation(drawn)
    for place, example in enumerate(examples):
        texts = _as_in(example.texts, examples[int(donor_N[place])].texts, cues) if taking_N[place] else example.texts
        group = example.group if data.planted_bias is None else None
        yield dataclasses.replace(example, texts=texts, group=group)


def _held(examples: Sequence[Example], cues: set[Cue]) -> list[tuple[str, int, list[str]]]:
    """Of these tokens how often each stands inside a word, and some of these words, as they are written."""
    count, some = Counter[str](), dict[str, list[str]]()
    if not cues:
        return []
    for example in examples:
        for field, text in enumerate(example.texts):
            for match in held_and_loose(text)[0]:
                if (field, token := as_compared(match.group())) in cues:
                    count[token] += 1
                    before, after = text[: match.start()].split(" ")[-1], text[match.end() :].split(" ")[0]
                    word = f"{before}{match.group()}{after}"[:SHOWN]
                    if word not in (seen := some.setdefault(token, [])) and len(seen) < 3:
                        seen.append(word)
    return [(token, times, some[token]) for token, times in sorted(count.items())]


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
            there = sum(size[fold, label] for fold in others)
            if there:  # a label that no example has says nothing of a token
                odds.append(math.log((have + 1) / (there - have + 1)))
        return max(odds, default=0.0) - min(odds, default=0.0)

    fewest = 1 if named else settings.min_share * len(examples)
    frequent = [cue for cue, count in often.items() if count >= fewest]
    rows = [(cue, min(spread(cue, out) for out in range(settings.folds))) for cue in sorted(frequent)]
    return [Flagged(cue, least, often[cue]) for cue, least in rows if named or least > settings.spread]


def _nowhere(tokens: Sequence[str], found: Sequence[Sequence[Any]]) -> list[str]:
    """Of these tokens, those that no text has."""
    there = {token for _, token, *_ in found}
    return [token for token in tokens if as_compared(token) not in there]


def _cues(texts: Sequence[str]) -> set[Cue]:
    return {
        (field, as_compared(match.group())) for field, text in enumerate(texts) for match in held_and_loose(text)[1]
    }


def _is_cue(texts: Sequence[str], cues: set[Cue]) -> bool:
    """Whether one of the texts is made of flagged tokens alone: without them it would be empty, as no text may be."""
    return any(
        all((field, as_compared(match.group())) in cues for match in loose) and not held
        for field, (held, loose) in enumerate(map(held_and_loose, texts))
    )


def _has_words(texts: Sequence[str]) -> bool:
    """Whether each of the texts has a token."""
    return all(TOKEN.search(text) for text in texts)


def _as_in(texts: Sequence[str], donor: Sequence[str], cues: set[Cue]) -> tuple[str, ...]:
    """The texts without their flagged tokens, and with the donor's."""
    return tuple(
        _with(_without(text, field, cues), other, field, cues)
        for field, (text, other) in enumerate(zip(texts, donor, strict=True))
    )


def _without(text: str, field: int, cues: set[Cue]) -> str:
    spans = [match.span() for match in held_and_loose(text)[1] if (field, as_compared(match.group())) in cues]
    for start, end in reversed(spans):
        before, after = text[:start].rstrip(), text[end:]
        text = before + after if before else after.lstrip()
    return text


def _with(text: str, donor: str, field: int, cues: set[Cue]) -> str:
    held, loose = held_and_loose(donor)
    there = [match for match in loose if (field, as_compared(match.group())) in cues]
    begins = min((match.start() for match in (*held[:1], *loose[:1])), default=0)
    first = [match.group() for match in there if match.start() == begins]
    last = [match.group() for match in there if match.start() > begins]
    return " ".join([*first, *([text] if text else []), *last])
