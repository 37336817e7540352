"""Which of the echoed tokens are an answer's, whatever a server makes of offsets; figures counted by hand."""

from typing import Any

import pytest

from debias.errors import InputError, Unreachable
from debias.served.questions import Question, Texts
from debias.served.reading import NoEcho, read_answer

PROMPT, ANSWER = "A cat. So:", " not so"
TEXT = ["A", " cat", ".", " So", ":", " not", " so"]
OFFSETS = [0, 1, 5, 6, 9, 10, 14]
SCORES = [None, -1.0, -2.0, -3.0, -4.0, -0.25, -0.5]


def reply(tokens: list[str], offsets: Any, scores: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    number = [None, *(-float(i) for i in range(1, len(tokens)))]
    told = {"tokens": tokens, "token_logprobs": number if scores is None else scores, "text_offset": offsets}
    return {"choices": [{"logprobs": told}], **more}


def summed(tokens: list[str]) -> list[int]:
    return [sum(map(len, tokens[:i])) for i in range(len(tokens))]


SPELLED = {
    "true offsets": (TEXT, OFFSETS),
    "offsets without a token's space": (TEXT, [0, 2, 5, 7, 9, 11, 15]),
    "no offsets": (TEXT, None),
    "offsets of -1": (TEXT, [-1] * 7),
    "a vocabulary's spelling": (["A", "Ġcat", ".", "ĠSo", ":", "Ġnot", "Ġso"], None),
    "a vocabulary's spelling and true offsets": (["A", "▁cat", ".", "▁So", ":", "▁not", "▁so"], OFFSETS),
    "spaces lost and true offsets": ([one.strip() for one in TEXT], OFFSETS),
}


@pytest.mark.parametrize(("tokens", "offsets"), SPELLED.values(), ids=SPELLED)
@pytest.mark.parametrize("generated", [0, 1])
@pytest.mark.parametrize(("begin", "end"), [([], []), (["<s>"], []), (["<s>"], ["</s>"])], ids=["bare", "<s>", "both"])
def test_the_answer_is_found(
    tokens: list[str], offsets: list[int] | None, generated: int, begin: list[str], end: list[str]
) -> None:
    """With special tokens around the text, and a generated token that says the answer's last words once more."""
    whole = [*begin, *tokens, *end, *[" so"] * generated]
    if offsets is not None:
        length = len(PROMPT + ANSWER) if offsets[0] >= 0 else -1
        offsets = [*offsets[: len(begin)], *offsets, *[length] * (len(end) + generated)]
    scores = [*[None] * len(begin), *SCORES, *[-9.0] * (len(end) + generated)]
    found = read_answer(reply(whole, offsets, scores), Question(PROMPT, ANSWER), generated, "url")
    assert (found.log_p, found.tokens) == (-0.75, 2)


def test_offsets_that_count_special_tokens() -> None:
    """vLLM adds up the texts of all tokens: `<s>` moves what follows, and a lost space moves it back."""
    tokens = ["<s>", *TEXT]
    found = read_answer(
        reply(tokens, summed(tokens), [None, *[-1.0] * 5, -0.5, -0.5]), Question(PROMPT, ANSWER), 0, "u"
    )
    assert (found.log_p, found.tokens) == (-1.0, 2)
    # By offsets alone the answer would begin at "so": three characters too many and three spaces lost before it.
    lost = ["<s>", "A", "cat", ".", "So", ":", "not", "so"]
    with pytest.raises(InputError, match="give --tokenizer"):
        read_answer(reply(lost, summed(lost)), Question(PROMPT, ANSWER), 0, "u")


def test_generated_tokens_are_counted_by_usage() -> None:
    """A server that was to generate one and did not."""
    found = read_answer(reply(TEXT, None, SCORES, usage={"prompt_tokens": 7}), Question(PROMPT, ANSWER), 1, "u")
    assert found.log_p == -0.75


def test_parts_of_characters() -> None:
    """A character of the prompt that took three tokens says nothing readable; the answer behind it is found."""
    tokens = ["\ufffd", "\ufffd", "\ufffd", " So", ":", " yes"]
    prompt = "\u732b So:"
    for offsets in (None, [0, 0, 0, 1, 4, 5], summed(tokens)):
        assert read_answer(reply(tokens, offsets), Question(prompt, " yes"), 0, "u").log_p == -5.0
    ends = ["A", "\ufffd", "\ufffd", " yes"]
    assert read_answer(reply(ends, [0, 1, 1, 2]), Question("A\u732b", " yes"), 0, "u").log_p == -3.0
    with pytest.raises(InputError, match="give --tokenizer"):
        read_answer(reply(ends, None), Question("A\u732b", " yes"), 0, "u")


STRADDLING = {
    "prompt and answer in one": ("So: ", "no", ["So", ":", " no"]),
    "a space that went to the prompt": ("So:", " no", ["So", ": ", "no"]),
    "a space of the prompt that is lost": ("So: ", "no", ["So", ":", "no"]),
    "glued words": ("So it", "is", ["So", " itis"]),
}


@pytest.mark.parametrize(("prompt", "answer", "tokens"), STRADDLING.values(), ids=STRADDLING)
@pytest.mark.parametrize("offsets", ["true", "none"])
def test_a_token_that_straddles(prompt: str, answer: str, tokens: list[str], offsets: str) -> None:
    true = summed(tokens) if "".join(tokens) == prompt + answer else None
    with pytest.raises(InputError, match=r"no token of the server begins where the answer '.*' does \(the last are"):
        read_answer(reply(tokens, true if offsets == "true" else None), Question(prompt, answer), 0, "u")


def test_tokens_sent_are_counted() -> None:
    question = Question((1, 5, 6), (7, 8), (" not", " so"))
    tokens = ["<s>", "A", ":", " not", " so"]
    for more, generated in ((), 0), ((" and",), 1):
        assert read_answer(reply([*tokens, *more], None), question, generated, "u").log_p == -7.0
    with pytest.raises(Unreachable, match="read 7 tokens where 5 were sent"):
        read_answer(reply(["<s>", *tokens, "x"], None), question, 1, "u")
    with pytest.raises(InputError, match=r"tokenizer: a token that is ' so' here is 'dog' at u"):
        read_answer(reply([*tokens[:4], "dog"], None), question, 0, "u")
    with pytest.raises(NoEcho):
        read_answer(reply([" and", " so"], None), question, 1, "u")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no choices": ({"object": "chat"}, "its reply has no choices"),
    "null": ({"choices": [{"text": PROMPT + ANSWER, "logprobs": None}]}, "gives no log-probabilities of the prompt"),
    "of the chat form": ({"choices": [{"logprobs": {"content": []}}]}, "gives no log-probabilities of the prompt"),
    "of what is generated": (reply(["!"], [0]), "gives no log-probabilities of the prompt"),
    "no echo": (
        {"choices": [{**reply(TEXT, OFFSETS)["choices"][0], "text": " so"}]},
        "does not echo the prompt; .*vLLM and SGLang",
    ),
    "none of the answer": (reply(TEXT, OFFSETS, [*SCORES[:-1], None]), "no log-probability of an answer's token"),
    "not a number": (reply(TEXT, OFFSETS, [*SCORES[:-1], float("nan")]), "gives nan as the log-probability"),
    "a probability": (reply(TEXT, OFFSETS, [*SCORES[:-1], 0.7]), "gives 0.7 as the log-probability"),
}


@pytest.mark.parametrize(("told", "message"), WRONG.values(), ids=WRONG)
def test_replies_that_say_nothing(told: dict[str, Any], message: str) -> None:
    with pytest.raises(Unreachable, match=message) as raised:
        read_answer(told, Question(PROMPT, ANSWER), 0, "http://here")
    assert str(raised.value).startswith("endpoint: http://here")
    assert "\n" not in str(raised.value)


def test_answers_that_a_score_cannot_tell_apart() -> None:
    with pytest.raises(InputError, match=r"prompt.verbalizers: ' no' begins ' no way'"):
        Texts("{text}", [" yes", " no way", " no"], ("text",))
    with pytest.raises(InputError, match="an answer is empty"):
        Texts("{text}", [" yes", ""], ("text",))
    assert len(Texts("{text}", [" no", " not"], ("text",)).of("so")) == 2


def test_questions_are_told_apart() -> None:
    asked = [("m", "a", "b c"), ("m", "a b", " c"), ("n", "a", "b c"), ("m", (1, 2), (3,)), ("m", (1,), (2, 3))]
    assert len({Question(prompt, answer).key(model) for model, prompt, answer in asked}) == len(asked)
