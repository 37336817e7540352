"""debias.data.prompt: what is trained on and scored is the prompt and the answer, with nothing between."""

from typing import Any

import pytest
from tiny_tokenizers import KINDS, byte_level, sentence_piece

from debias.data import Example
from debias.data.encode import encode_for_answers
from debias.data.prompt import Prompt
from debias.errors import InputError
from debias.readouts import Answers

FIELDS = ("premise", "hypothesis")


@pytest.fixture(params=KINDS)
def words(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("template", ["{premise} Is it so? {hypothesis} Answer:", "{hypothesis}\n{premise}"])
def test_an_answer_stands_right_behind_its_prompt(words: Any, template: str, chat: bool) -> None:
    """One text, tokenized as one, is what trains; what is scored is the same ids."""
    answers = [" right", " not so", " wrong"]
    prompt = Prompt(words, template, answers, FIELDS, chat=chat)
    for label, answer in enumerate(answers):
        example = Example("1", ("The cat sat.", "a mat"), label)
        text = template.format(premise="The cat sat.", hypothesis="a mat")
        text = f"<s>{text}</s><s>" if chat else text
        (trained,) = encode_for_answers([example], prompt, 100, with_answer=True).features
        whole = words(text + answer, add_special_tokens=False)["input_ids"]
        assert trained["input_ids"][-len(whole) :] == whole
        assert [1] * (len(trained["input_ids"]) - len(whole)) == trained["input_ids"][: -len(whole)]
        (scored,) = encode_for_answers([example], prompt, 100, with_answer=False).features
        assert scored["input_ids"] + Answers(prompt.answer_ids).verbalizer_ids[label] == trained["input_ids"]
        assert sum(trained["answer_mask"]) == len(prompt.answer_ids[label])
        assert words.decode(prompt.answer_ids[label]).strip() == answer.strip()


def test_what_begins_every_text_still_does() -> None:
    for kind, first in (("begin and end", [1]), ("end", []), ("sentence piece", [1])):
        words = KINDS[kind]()
        prompt = Prompt(words, "{premise} so:", [" yes", " no"], ("premise",))
        assert prompt.ids(Example("1", ("It is",), 0)) == [
            *first,
            *words("It is so:", add_special_tokens=False).input_ids,
        ]


def test_a_space_at_the_end_of_the_prompt() -> None:
    """Byte-level: the answer's own tokens spell the same text. SentencePiece would have two spaces there."""
    prompt = Prompt(byte_level("<s>", ""), "{premise} so: ", ["right", "wrong"], ("premise",))
    assert prompt.tokenizer.decode([*prompt.ids_of_text("It is so: "), *prompt.answer_ids[0]]) == "<s>It is so: right"
    with pytest.raises(InputError, match=r"between the prompt and 'right' .*; end prompt\.template without a space"):
        Prompt(sentence_piece(), "{premise} so: ", ["right", "wrong"], ("premise",))


def test_a_tokenizer_that_reads_words_otherwise_between_its_special_tokens() -> None:
    words = byte_level("<s>", "")

    class Odd:
        chat_template = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return words(text.upper() if add_special_tokens else text, add_special_tokens=add_special_tokens)

    with pytest.raises(InputError, match="reads 'premise so:' as other tokens between its special ones"):
        Prompt(Odd(), "{premise} so:", [" yes", " no"], ("premise",))


@pytest.mark.parametrize("field", ["a.b", "a[0]"])
def test_a_field_that_would_look_inside_of_a_text(field: str) -> None:
    """Python would take them for an attribute and an element of a field `a`."""
    from debias.data.prompt import check_template

    with pytest.raises(InputError, match="would look inside of a text"):
        check_template(f"say {{{field}}}", [field])
