"""How a causal model is asked: a template over the text fields, and the tokens of each answer."""

import functools
import string
from collections.abc import Sequence
from typing import Any

from debias.data.examples import Example
from debias.errors import InputError


class Prompt:
    """A template over the text fields and the answer of each label, in tokens.

    What is trained on and scored is prompt and answer with nothing between: what the tokenizer puts behind a text (an
    end of sequence, `add_eos_token`) is left out, and an answer's tokens are those it has behind the prompt. Raises
    InputError when the template names an unknown field or leaves one out, when one answer begins another (a score could
    then not tell them apart), when the tokenizer puts a space between prompt and answer, or when `chat` is asked of a
    tokenizer without a chat template. `more`: further templates, of which training draws.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        answers: Sequence[str],
        text_fields: Sequence[str],
        *,
        chat: bool = False,
        more: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.answers = tuple(answers)
        self.text_fields = tuple(text_fields)
        self.chat = chat
        check_template(template, self.text_fields)
        if chat and not tokenizer.chat_template:
            raise InputError("prompt.chat: this model's tokenizer has no chat template; remove chat")
        self._before = [] if chat else self._put_before()
        self.answer_ids = [self._behind_the_prompt(answer) for answer in answers]
        _check_answers(answers, self.answer_ids)
        self.more = tuple(self._reworded(other) for other in more)

    def ids(self, example: Example) -> list[int]:
        """The prompt's tokens, without an answer."""
        return self.ids_of_text(self._filled(example.texts))

    def ids_of_all(self, examples: Sequence[Example]) -> list[list[int]]:
        """As `ids`, of each; the tokenizer takes all at once, and as many threads as there are."""
        texts = [self._rendered(self._filled(example.texts)) for example in examples]
        words = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [[*self._before, *ids] for ids in words]

    def fitted(self, ids: list[int], room: int) -> list[int]:
        """A prompt's tokens, `room` at most: what is too long loses tokens behind what stands before the first field.

        A beginning of sequence, a chat template's header and the instruction stay, as does the end. Where these alone
        have no room, what the tokenizer puts before every text stays, and the end.
        """
        if len(ids) <= room:
            return ids
        head, tail = self._around
        kept = common_prefix(head, ids)
        if kept + len(tail) >= room:
            kept = len(self._before) if len(self._before) < room else 0
        return [*ids[:kept], *ids[len(ids) - (room - kept) :]]

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens before the first field, with what the tokenizer puts before them, and those behind the last."""
        one, other = (self._rendered(text) for text in self._probes())
        before, behind = common_prefix(one, other), common_prefix(one[::-1], other[::-1])
        return [*self._before, *self._words(one[:before])], self._words(one[len(one) - behind :])

    def told(self) -> Any:
        """What says, beside its tokenizer, which tokens it has; a chat template may put today's date in it."""
        probes = [self.ids_of_text(text) for text in self._probes()]
        return self.template, self.text_fields, self.chat, self._before, self.answer_ids, probes

    def _reworded(self, template: str) -> "Prompt":
        """The same question in other words; InputError where its answers would be other tokens."""
        try:
            other = Prompt(self.tokenizer, template, self.answers, self.text_fields, chat=self.chat)
        except InputError as error:
            raise InputError(f"prompt.more_templates: {template!r}: {error}") from None
        for answer, here, there in zip(self.answers, self.answer_ids, other.answer_ids, strict=True):
            if here != there:
                raise InputError(
                    f"prompt.more_templates: behind {template!r} the answer {answer!r} has other tokens ({there}) than"
                    f" behind prompt.template ({here}); let both end alike"
                )
        return other

    def _filled(self, texts: Sequence[str]) -> str:
        return self.template.format(**dict(zip(self.text_fields, texts, strict=True)))

    def ids_of_text(self, text: str) -> list[int]:
        """The tokens of a filled template, in the chat template's user turn where `chat` says so."""
        return [*self._before, *self._words(self._rendered(text))]

    def _rendered(self, text: str) -> str:
        if not self.chat:
            return text
        turns = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _words(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _put_before(self) -> list[int]:
        """What the tokenizer puts before every text; what it puts behind one would come between prompt and answer."""
        text = self._probes()[0]
        whole, words = list(self.tokenizer(text)["input_ids"]), self._words(text)
        for start in range(len(whole) - len(words) + 1):
            if whole[start : start + len(words)] == words:
                return whole[:start]
        raise InputError(
            f"model: its tokenizer reads {text!r} as other tokens between its special ones ({whole}, not {words});"
            " prompts for it cannot be built"
        )

    def _probes(self) -> list[str]:
        """Two filled templates, with other words in their fields."""
        return [self._filled(texts) for texts in self._fillings()]

    def _fillings(self) -> tuple[tuple[str, ...], ...]:
        return self.text_fields, ("It is so",) * len(self.text_fields)

    def _behind_the_prompt(self, answer: str) -> list[int]:
        """An answer's tokens in a text that goes on; alone, SentencePiece would put a space before it.

        Where its first token has a part of the prompt in it, which ends with a space, they are those it has alone.
        """
        pairs = [(self.ids_of_text(text), self._ids_with(text, answer)) for text in self._probes()]
        first, *others = [whole[len(asked) :] if whole[: len(asked)] == asked else None for asked, whole in pairs]
        if first is not None and all(other == first for other in others):
            return first
        alone, decode = self._words(answer), self.tokenizer.decode
        for asked, whole in pairs:
            apart, together = decode([*asked, *alone]), decode(whole)
            if apart != together and "".join(apart.split()) == "".join(together.split()):
                raise InputError(
                    f"prompt.verbalizers: this model's tokenizer would put a space between the prompt and {answer!r}"
                    f" ({apart[-24:]!r}); end prompt.template without a space and begin each verbalizer with one"
                )
        return alone

    def _ids_with(self, text: str, answer: str) -> list[int]:
        return [*self._before, *self._words(self._rendered(text) + answer)]


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many of the first are the same in both."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
    if spelled := next((name for name in names if name and {".", "["} & set(name)), None):
        raise InputError(f"prompt.template: {{{spelled}}} would look inside of a text; name the column without . and [")
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
