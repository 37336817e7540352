"""Examples to token ids to padded batches. Shapes: B samples, T tokens."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from debias.data.columns import in_batches
from debias.data.examples import Example
from debias.data.facts import facts_of
from debias.data.order import LengthBuckets, Order, Shuffled
from debias.data.prompt import Prompt
from debias.data.store import Notes, key_of
from debias.data.tables import Examples
from debias.data.tokens import Feature, keep_tokens, lengths_of, tokenizer_digest
from debias.errors import InputError

logger = logging.getLogger(__name__)
Batch = dict[str, dict[str, Tensor]]  # inputs: what the model is given; facts: what is known of the samples


# What is told token by token, and is no input of a model.
TOKEN_FACTS = ("answer_mask", "sample_index")


class EncodedExamples(Dataset[Feature]):
    """Tokenized examples in order, and what is known of them: each is `{"tokens": ..., "facts": ...}`.

    `features`: of each example its lists of tokens (`input_ids`, `answer_mask`, ...). `facts`: tensors [N, ...].
    `wordings`: the same examples in other words, of which training draws; number N + i is example i in the first.
    `cut`: how many were longer than `max_length` and lost tokens; `cut_at`: which, of examples that are not kept.
    `order`: which of them make an epoch. `by_length`: whether steps are of like length, if the order repeats none.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        facts: Mapping[str, Tensor],
        wordings: Sequence[Sequence[Feature]] = (),
        *,
        cut: int = 0,
        cut_at: Sequence[int] = (),
    ) -> None:
        self.features = features
        self.cut, self.cut_at = cut, cut_at
        self.wordings = wordings
        self.facts = dict(facts)
        self.order: Order = Shuffled()
        self.by_length = True

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        if not 0 <= index < len(self.features) * (1 + len(self.wordings)):
            raise IndexError(index)
        wording, place = divmod(index, len(self.features))
        facts = {name: column[place] for name, column in self.facts.items()}
        return {"tokens": (self.features, *self.wordings)[wording][place], "facts": facts}

    def told(self) -> dict[str, Tensor]:
        """The facts as they are now, and `seen`, how often an epoch sees each example, where it does not see all once.

        What a loss begins with: shares of groups are those of what is seen.
        """
        seen_N = self.order.seen(self.facts)
        return self.facts if seen_N is None else {**self.facts, "seen": seen_N}

    def sampler(self, batch_size: int, seed: int) -> LengthBuckets:
        """The training order: random, with examples of like length together where that does no harm."""
        return LengthBuckets(
            self.lengths,
            batch_size,
            seed,
            self.order,
            self.facts,
            wordings=1 + len(self.wordings),
            by_length=self.by_length,
        )

    @property
    def lengths(self) -> Sequence[int] | NDArray[np.int32]:
        """The tokens of each example."""
        return lengths_of(self.features)


def encode_for_classification(
    examples: Sequence[Example], tokenizer: Any, max_length: int, *, quiet: bool = False
) -> EncodedExamples:
    """Texts or text pairs, the longest part truncated first to `max_length` tokens; how many were is a warning, unless
    `quiet`.
    """
    if not examples:
        return EncodedExamples([], {})
    if len(examples[0].texts) > 2:
        raise InputError(f"text_fields: a classification head takes one or two texts, got {len(examples[0].texts)}")

    cut_at = CutAt(examples)

    def make(notes: Notes) -> Iterator[Feature]:
        notes["cut"] = 0
        for rows in in_batches(iter(examples)):
            columns = zip(*(row.texts for row in rows), strict=True)
            encoded = tokenizer(*map(list, columns), truncation=True, max_length=max_length)
            keys = [key for key in encoded if key != "attention_mask"]
            for place in _cut_of(encoded, rows, tokenizer, max_length):
                cut_at.add(place)
                notes["cut"] += 1
            cut_at.passed(len(rows))
            yield from ({key: encoded[key][i] for key in keys} for i in range(len(rows)))

    features, notes = _made(examples, ("classification", max_length), tokenizer, make)
    if notes["cut"] and not quiet:
        say_what_was_cut(notes["cut"], len(features), max_length)
    return EncodedExamples(features, facts_of(examples), cut=notes["cut"], cut_at=cut_at.places)


def _cut_of(encoded: Any, rows: Sequence[Example], tokenizer: Any, max_length: int) -> list[int]:
    """Which of the rows of a batch were cut; a fast tokenizer says what it left out, another is asked once more about
    those that are as long as they may be.
    """
    full = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    if (parts := getattr(encoded, "encodings", None)) is not None:
        return [place for place in full if parts[place].overflowing]
    if not full:
        return []
    whole = tokenizer(*(list(column) for column in zip(*(rows[place].texts for place in full), strict=True)))
    return [place for place, ids in zip(full, whole["input_ids"], strict=True) if len(ids) > max_length]


class CutAt:
    """The places of examples that were cut, as batches go by; none of examples of a kept table, which may be many."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.places: list[int] = []
        self._kept, self._start = isinstance(examples, Examples), 0

    def add(self, place: int) -> None:
        """One of the batch that is there."""
        if not self._kept:
            self.places.append(self._start + place)

    def passed(self, size: int) -> None:
        """The next batch."""
        self._start += size


def say_what_was_cut(cut: int, size: int, max_length: int, *, prompts: bool = False) -> None:
    """A warning: so many of so many are longer than the model is given."""
    what, lost = ("prompts", "lost the start of their texts") if prompts else ("texts", "were cut")
    logger.warning("%d of %d %s are longer than max_length=%d and %s", cut, size, what, max_length, lost)


def _made(
    examples: Sequence[Example], told: Any, tokenizer: Any, make: Callable[[Notes], Iterator[Feature]]
) -> tuple[Sequence[Feature], Notes]:
    """What `make` gives; kept where the examples are, and where the tokenizer can be told from others."""
    if isinstance(examples, Examples) and (digest := tokenizer_digest(tokenizer)) is not None:
        return keep_tokens(key_of("tokens", examples.key, digest, told), make)
    notes: Notes = {}
    return list(make(notes)), notes


def encode_for_answers(
    examples: Sequence[Example], prompt: Prompt, max_length: int, *, with_answer: bool, quiet: bool = False
) -> EncodedExamples:
    """Prompts, with their right answers for training; a prompt that is too long loses tokens (`Prompt.fitted`): a
    warning says how many, unless `quiet`.

    With answers the prompt's further wordings are encoded as well.
    """
    room = max_length - max(len(ids) for ids in prompt.answer_ids)
    if room < 1:
        raise InputError(f"max_length is {max_length}: no room is left for a prompt before the answer")
    asked = [
        _asked(examples, one, max_length, room, with_answer) for one in (prompt, *(prompt.more if with_answer else ()))
    ]
    for features, cut, _ in asked:
        if cut and not quiet:
            say_what_was_cut(cut, len(features), max_length, prompts=True)
    features, cut, cut_at = asked[0]
    return EncodedExamples(features, facts_of(examples), [one for one, *_ in asked[1:]], cut=cut, cut_at=cut_at.places)


def _asked(
    examples: Sequence[Example], prompt: Prompt, max_length: int, room: int, with_answer: bool
) -> tuple[Sequence[Feature], int, CutAt]:
    cut_at = CutAt(examples)

    def make(notes: Notes) -> Iterator[Feature]:
        notes["cut"] = 0
        for rows in in_batches(iter(examples)):
            for place, (row, whole) in enumerate(zip(rows, prompt.ids_of_all(rows), strict=True)):
                if len(whole) > room:
                    notes["cut"] += 1
                    cut_at.add(place)
                ids = prompt.fitted(whole, room)
                answer = prompt.answer_ids[row.label] if with_answer else []
                mask = {"answer_mask": [False] * len(ids) + [True] * len(answer)} if with_answer else {}
                yield {"input_ids": ids + answer, **mask}
            cut_at.passed(len(rows))

    features, notes = _made(
        examples, ("answers behind their head", max_length, with_answer, prompt.told()), prompt.tokenizer, make
    )
    return features, notes["cut"], cut_at


class Collator:
    """Pads a batch to its longest example, on the tokenizer's side; the result is `inputs` and `facts`.

    `pad_id`: what the model takes for padding, where that is not the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, pad_id: int | None = None) -> None:
        self.pad_id = tokenizer.pad_token_id if pad_id is None else pad_id
        self.left = tokenizer.padding_side == "left"

    def __call__(self, examples: Sequence[Feature]) -> Batch:
        rows = [example["tokens"] for example in examples]
        width = max(len(row["input_ids"]) for row in rows)
        inputs = {}
        for key, value in rows[0].items():
            fill = self.pad_id if key == "input_ids" else type(value[0])(0)
            inputs[key] = torch.tensor([self._pad(list(row[key]), width, fill) for row in rows])
        ones = [[1] * len(row["input_ids"]) for row in rows]
        inputs["attention_mask"] = torch.tensor([self._pad(row, width, 0) for row in ones])
        return batch_of(inputs, examples)

    def _pad(self, row: list[int], width: int, fill: int) -> list[int]:
        padding = [fill] * (width - len(row))
        return padding + row if self.left else row + padding


def batch_of(made: Mapping[str, Tensor], examples: Sequence[Feature]) -> Batch:
    """The batch of tensors made of the examples' tokens, with the examples' own facts."""
    facts = {name: torch.stack([example["facts"][name] for example in examples]) for name in examples[0]["facts"]}
    tokens = {name: tensor for name, tensor in made.items() if name in TOKEN_FACTS}
    return {"inputs": {name: tensor for name, tensor in made.items() if name not in tokens}, "facts": facts | tokens}
