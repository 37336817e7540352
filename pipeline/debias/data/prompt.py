"""How a causal model is asked: a template over the text fields, and the tokens of each answer."""

import string
from collections.abc import Sequence
from typing import Any

from debias.data.examples import Example
from debias.errors import InputError


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
