"""What is asked: prompts with each label's answer behind them, as text that the server cuts, or as tokens cut here."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from debias.data.prompt import Prompt, check_template
from debias.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """A prompt and one answer: two texts, or two lists of tokens.

    `pieces`: what each of the answer's tokens says here, where it is tokens.
    """

    prompt: str | tuple[int, ...]
    answer: str | tuple[int, ...]
    pieces: tuple[str, ...] = ()

    @property
    def sent(self) -> str | list[int]:
        """Prompt and answer with nothing between."""
        if isinstance(self.prompt, str):
            return f"{self.prompt}{self.answer}"
        return [*self.prompt, *self.answer]

    def key(self, model: str) -> str:
        """The same for the same question to the same model, and for no other."""
        return hashlib.sha256(json.dumps([model, self.prompt, self.answer]).encode()).hexdigest()[:32]


class Questions(Protocol):
    """How a filled template is asked for every label."""

    answers: tuple[str, ...]

    def of(self, text: str) -> list[Question]:
        """One question for each label, in their order."""


class Texts:
    """Prompts as text: the server's own tokenizer cuts them, with whatever it puts before a text."""

    def __init__(self, template: str, answers: Sequence[str], text_fields: Sequence[str]) -> None:
        check_template(template, text_fields)
        _check_texts(answers)
        self.answers = tuple(answers)

    def of(self, text: str) -> list[Question]:
        """One question for each label, in their order."""
        return [Question(text, answer) for answer in self.answers]


class Tokens:
    """Prompts as the tokens that judging here would give the model, at most `max_length` with the longest answer."""

    def __init__(self, prompt: Prompt, max_length: int) -> None:
        self.prompt = prompt
        self.answers = prompt.answers
        self._max_length = max_length
        self._room = max_length - max(len(ids) for ids in prompt.answer_ids)
        if self._room < 1:
            raise InputError(f"max_length is {max_length}: no room is left for a prompt before the answer")
        self._told = False

    @property
    def limits(self) -> tuple[int, int]:
        """The tokens that a prompt may have, and what it may have with an answer."""
        return self._room, self._max_length

    def of(self, text: str) -> list[Question]:
        """One question for each label, in their order."""
        ids = self.prompt.ids_of_text(text)
        if len(ids) > self._room and not self._told:
            logger.warning(
                "prompts longer than max_length=%d lose the start of their texts, as when judged here", self._max_length
            )
            self._told = True
        start = tuple(self.prompt.fitted(ids, self._room))
        return [Question(start, tuple(ids), self._pieces(ids)) for ids in self.prompt.answer_ids]

    def _pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        decode: Any = self.prompt.tokenizer.decode
        return tuple(str(decode([one])) for one in ids)


def _check_texts(answers: Sequence[str]) -> None:
    """Of two answers, none may begin the other: a score could not tell them apart.

    Where a word goes on (" no", " not") the server's tokens are others, as far as can be told from here.
    """
    for i, answer in enumerate(answers):
        if not answer:
            raise InputError("prompt.verbalizers: an answer is empty")
        for j, other in enumerate(answers):
            if i != j and other.startswith(answer) and not other[len(answer) : len(answer) + 1].isalnum():
                raise InputError(f"prompt.verbalizers: {answer!r} begins {other!r}; change one of them")
