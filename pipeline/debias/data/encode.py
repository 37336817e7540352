"""Examples to token ids to padded batches. Shapes: B samples, T tokens."""

import logging
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from debias.data.examples import Example
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

    def sampler(self, batch_size: int, seed: int) -> "LengthBuckets":
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


class Prompt:
    """A template over the text fields and the answer of each label, in tokens.

    Raises InputError when the template names an unknown field or leaves one out, when one answer begins another (a
    score could then not tell them apart), or when `chat` is asked of a tokenizer without a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        answers: Sequence[str],
        text_fields: Sequence[str],
        *,
        chat: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.answers = tuple(answers)
        self.text_fields = tuple(text_fields)
        self.chat = chat
        self.answer_ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        check_template(template, self.text_fields)
        _check_answers(answers, self.answer_ids)
        if chat and not tokenizer.chat_template:
            raise InputError("prompt.chat: this model's tokenizer has no chat template; remove chat")

    def ids(self, example: Example) -> list[int]:
        """The prompt's tokens, without an answer."""
        return self.ids_of_text(self.template.format(**dict(zip(self.text_fields, example.texts, strict=True))))

    def ids_of_text(self, text: str) -> list[int]:
        """The tokens of a filled template, in the chat template's user turn where `chat` says so."""
        if not self.chat:
            return list(self.tokenizer(text)["input_ids"])
        turns = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def check_template(template: str, text_fields: Sequence[str]) -> None:
    """InputError for braces that are no field of the data, and for a field that is left out."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"prompt.template: {error}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    for name in names:
        if name not in text_fields:
            raise InputError(
                f"prompt.template uses {{{name}}}, not one of data.text_fields {list(text_fields)}; "
                "write {{ and }} for braces of your own"
            )
    for field in text_fields:
        if field not in names:
            raise InputError(f"prompt.template does not use {{{field}}}, one of data.text_fields")
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise InputError("prompt.template: a field is its name in braces, without ':' or '!'")


def _check_answers(answers: Sequence[str], answer_ids: Sequence[Sequence[int]]) -> None:
    for i, ids in enumerate(answer_ids):
        if not ids:
            raise InputError(f"prompt.verbalizers: {answers[i]!r} has no tokens")
        for j, other in enumerate(answer_ids):
            if i != j and list(other[: len(ids)]) == list(ids):
                raise InputError(
                    f"prompt.verbalizers: {answers[i]!r} begins {answers[j]!r} in tokens; change one of them"
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


class LengthBuckets(Sampler[int]):
    """Random order with examples of like length together; the order depends on seed and epoch alone.

    Within each random block of 50 batches the examples are sorted by length, so a batch has little padding and batches
    still come in random order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer; makes a resumed epoch the same as the one that was interrupted."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        block = 50 * self.batch_size
        batches = []
        for start in range(0, len(order), block):
            by_length = sorted(order[start : start + block], key=lambda i: -self.lengths[i])
            batches += [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        # A short batch can only come last, or the batches after it would be cut across lengths.
        short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return iter([index for batch in shuffled + short for index in batch])
