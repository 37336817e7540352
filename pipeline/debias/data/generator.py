"""Templated natural language inference, made on the spot: labels right by construction, and balanced.

The hypothesis alone says nothing of the label; the premise says a little, which nobody planted. A premise that leaves a
question open does so in frames of its own: "some" (of a number), "planned to", "was asked to" stand in premises of
neutral pairs alone, "at least" mostly (62 %), and so do "animal" and "plant" of the plain phenomena (79 % and 70 %). A
linear model of a premise's words is right on 38.4 % out of fold (38.5 % of the plain phenomena), where one in three is
chance, and few pairs have such a word: 70 of 5,000 have "some" (`debias audit generated --limit 5000`). Overlap goes
with entailment, as in data that people wrote. Nothing of it is mended: it would be another stream of rows, and figures
that were measured on this one could not be made again.

train, validation and test share grammar and lexicon and are disjoint as pairs; ood has other words and other frames for
the same ten phenomena (`group`). The same (split, size, seed) gives the same rows in every process, and a smaller size
gives the first rows of a larger one.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random

from debias.data.grammar import LABELS, PHENOMENA, PLAIN, Label
from debias.data.lexicon import AWAY, HOME
from debias.errors import InputError

Row = dict[str, str]

SPLITS = ("train", "validation", "test", "ood")
# Tenths of the space of pairs: a pair belongs to a split by its own text, so splits are disjoint whatever the seeds.
SHARES = {"train": range(0, 4), "validation": range(4, 7), "test": range(7, 10), "ood": range(0, 10)}
MAX_SIZE = 30_000
EVERY = {**PHENOMENA, **PLAIN}


def generate(split: str, size: int, seed: int, phenomena: Sequence[str] = tuple(PHENOMENA)) -> list[Row]:
    """`size` distinct pairs of a split, as rows {id, premise, hypothesis, label, group}.

    `phenomena` are the groups to draw from (default: all but the `plain_` ones). Labels are balanced within one,
    phenomena within each block of three rows for each of them. Raises InputError for an unknown split or phenomenon,
    or a size outside 1..MAX_SIZE.
    """
    for group in phenomena:
        if group not in EVERY:
            raise InputError(f"generated: no phenomenon {group!r}; there are {', '.join(EVERY)}")
    if split not in SPLITS:
        raise InputError(f"generated: split is {split!r}, expected one of {', '.join(SPLITS)}")
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"generated: {size} pairs asked for, split {split!r} can give 1 to {MAX_SIZE}")
    rng = Random(f"{split}/{seed}")
    seen: set[tuple[str, str]] = set()
    rows = []
    for index, (group, label) in zip(range(size), _schedule(rng, phenomena), strict=False):
        premise, hypothesis = _new_pair(rng, split, group, label, seen)
        rows.append(
            {"id": f"{split}-{index}", "premise": premise, "hypothesis": hypothesis, "label": label, "group": group}
        )
    return rows


def _schedule(rng: Random, phenomena: Sequence[str]) -> Iterator[tuple[str, Label]]:
    """Phenomenon and label of each row: every three rows hold every label, every block every pair of the two."""
    while True:
        orders = {label: rng.sample(list(phenomena), len(phenomena)) for label in LABELS}
        for turn in range(len(phenomena)):
            for label in rng.sample(LABELS, len(LABELS)):
                yield orders[label][turn], label


def _new_pair(rng: Random, split: str, group: str, label: Label, seen: set[tuple[str, str]]) -> tuple[str, str]:
    lexicon = AWAY if split == "ood" else HOME
    while True:
        pair = EVERY[group](rng, lexicon, label)
        if pair not in seen and pair[0] != pair[1] and _tenth(pair) in SHARES[split]:
            seen.add(pair)
            return pair


def _tenth(pair: tuple[str, str]) -> int:
    # blake2b, since hash() of a string differs from process to process.
    return blake2b("\n".join(pair).encode(), digest_size=4).digest()[0] % 10
