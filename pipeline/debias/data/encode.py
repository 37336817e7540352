"""Examples to token ids to padded batches. Shapes: B samples, T tokens."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from debias.data.examples import Example
from debias.data.order import LengthBuckets
from debias.data.prompt import Prompt
from debias.errors import InputError

logger = logging.getLogger(__name__)
Feature = dict[str, Any]


class EncodedExamples(Dataset[Feature]):
    """Tokenized examples in order; each a dict of `input_ids` and what else the model and the objective take."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = list(features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        return self.features[index]

    def sampler(self, batch_size: int, seed: int) -> LengthBuckets:
        """The training order: random, with examples of like length together."""
        return LengthBuckets([len(feature["input_ids"]) for feature in self.features], batch_size, seed)


def encode_for_classification(examples: Sequence[Example], tokenizer: Any, max_length: int) -> EncodedExamples:
    """Texts or text pairs, the longest part truncated first to `max_length` tokens."""
    if not examples:
        return EncodedExamples([])
    columns = list(zip(*(example.texts for example in examples), strict=True))
    if len(columns) > 2:
        raise InputError(f"text_fields: a classification head takes one or two texts, got {len(columns)}")
    encoded = tokenizer(*[list(column) for column in columns], truncation=True, max_length=max_length)
    keys = [key for key in encoded if key != "attention_mask"]
    return EncodedExamples(
        [{**{key: encoded[key][i] for key in keys}, **targets(example)} for i, example in enumerate(examples)]
    )


def encode_for_answers(
    examples: Sequence[Example], prompt: Prompt, max_length: int, *, with_answer: bool
) -> EncodedExamples:
    """Prompts, with their right answers for training; a prompt that is too long loses tokens at its start."""
    features, cut = [], 0
    room = max_length - max(len(ids) for ids in prompt.answer_ids)
    if room < 1:
        raise InputError(f"max_length is {max_length}: no room is left for a prompt before the answer")
    for example in examples:
        ids = prompt.ids(example)
        cut += len(ids) > room
        ids = ids[-room:]
        answer = prompt.answer_ids[example.label] if with_answer else []
        feature = {"input_ids": ids + answer, **targets(example)}
        if with_answer:
            feature["answer_mask"] = [False] * len(ids) + [True] * len(answer)
        features.append(feature)
    if cut:
        logger.warning(
            "%d of %d prompts are longer than max_length=%d and lost their start", cut, len(features), max_length
        )
    return EncodedExamples(features)


def targets(example: Example) -> Feature:
    """The right label of an example, and its bias weight where the data has one."""
    weight = {} if example.bias_weight is None else {"bias_weight": example.bias_weight}
    return {"labels": example.label, **weight}


class Collator:
    """Pads a batch to its longest example, on the tokenizer's side."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad_id = tokenizer.pad_token_id
        self.left = tokenizer.padding_side == "left"

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        width = max(len(feature["input_ids"]) for feature in features)
        batch = {}
        for key, value in features[0].items():
            rows = [feature[key] for feature in features]
            if isinstance(value, list):
                fill = self.pad_id if key == "input_ids" else type(value[0])(0)
                batch[key] = torch.tensor([self._pad(list(row), width, fill) for row in rows])
            else:
                batch[key] = torch.tensor(rows)
        ones = [[1] * len(feature["input_ids"]) for feature in features]
        batch["attention_mask"] = torch.tensor([self._pad(row, width, 0) for row in ones])
        return batch

    def _pad(self, row: list[int], width: int, fill: int) -> list[int]:
        padding = [fill] * (width - len(row))
        return padding + row if self.left else row + padding
