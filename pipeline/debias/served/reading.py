"""What a server says of an answer: which of the tokens that it echoes are the answer's, and their log-probabilities.

Servers count characters in their own ways: vLLM adds up the tokens' texts, with those of special tokens, SGLang gives
-1. So offsets are believed where each token is the text at its offset; else the answer is looked for at the end of the
echoed tokens. Nothing is taken that does not begin exactly where the answer does.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias.errors import InputError, Unreachable
from debias.served.questions import Question

NEEDS = (
    "judging needs the log-probabilities of the prompt (echo: true, logprobs: 1 on /v1/completions), as vLLM and SGLang"
    " give them"
)
SPECIAL = re.compile(r"<.*>|\[.*\]|", re.DOTALL)  # </s>, [SEP], or nothing that can be seen
RAW = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})  # how vocabularies spell spaces and ends of lines
BYTES = re.compile(r"<0x[0-9A-Fa-f]{2}>|.*\ufffd.*", re.DOTALL)  # a part of a character


@dataclass(frozen=True)
class Answered:
    """The log-likelihood of an answer behind its prompt, and how many tokens it is there."""

    log_p: float
    tokens: int


class NoEcho(Unreachable):
    """The reply has nothing on the prompt's tokens."""


@dataclass(frozen=True)
class _Echo:
    """A reply's tokens; `prompt`: how many of them are the prompt's and not generated."""

    tokens: list[str]
    log_p: list[Any]
    offsets: list[Any]
    prompt: int


def read_answer(reply: Mapping[str, Any], question: Question, generated: int, url: str) -> Answered:
    """`generated`: the tokens that the server was told to generate, 0 or 1.

    NoEcho where the prompt's tokens are not there, InputError where none begins with the answer.
    """
    echo = _echo(reply, generated, url)
    if isinstance(question.prompt, str):
        span = _text_span(echo, question.prompt, str(question.answer))
        _check_echoed(reply, str(question.sent), url)
        if span is None:
            raise _straddles(echo, str(question.answer))
    else:
        span = range(len(question.prompt), len(question.prompt) + len(question.answer))
        _check_tokens(echo, question, span, url)
    return Answered(math.fsum(_log_p(echo.log_p[i], url) for i in span), len(span))


def _echo(reply: Mapping[str, Any], generated: int, url: str) -> _Echo:
    """InputError for a reply that is not a completion's, NoEcho for one without log-probabilities."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreachable(f"endpoint: {url} is no completions server: its reply has no choices")
    told = choices[0].get("logprobs")
    tokens, log_p = (told.get(key) if isinstance(told, dict) else None for key in ("tokens", "token_logprobs"))
    if not isinstance(tokens, list) or not isinstance(log_p, list) or len(tokens) != len(log_p) or len(tokens) < 2:
        raise NoEcho(f"endpoint: {url} gives no log-probabilities of the prompt; {NEEDS}")
    offsets = told.get("text_offset") if isinstance(told, dict) else None
    usage = reply.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    prompt = counted if type(counted) is int and len(tokens) - 1 <= counted <= len(tokens) else len(tokens) - generated
    return _Echo([str(one) for one in tokens], log_p, offsets if isinstance(offsets, list) else [], prompt)


def _check_echoed(reply: Mapping[str, Any], sent: str, url: str) -> None:
    text = reply["choices"][0].get("text")
    if isinstance(text, str) and sent.strip() not in text:
        raise NoEcho(f"endpoint: {url} does not echo the prompt; {NEEDS}")


def _text_span(echo: _Echo, prompt: str, answer: str) -> range | None:
    """The places of the answer's tokens; None where no token begins where it does."""
    whole = prompt + answer
    if _true_offsets(echo, whole):
        inside = [i for i, at in enumerate(echo.offsets[: echo.prompt]) if len(prompt) <= at < len(whole)]
        return range(inside[0], inside[-1] + 1) if _begins(echo, inside, whole, len(prompt)) else None
    tokens = echo.tokens[: echo.prompt]
    spans = (_span_at_end(form, prompt, answer) for form in (tokens, [one.translate(RAW) for one in tokens]))
    return next((span for span in spans if span is not None), None)


def _begins(echo: _Echo, inside: Sequence[int], whole: str, start: int) -> bool:
    """Whether the first token inside the answer is where it begins; some offsets leave out a token's own space."""
    if not inside or not inside[0]:
        return False
    space, before = whole[start : echo.offsets[inside[0]]], echo.tokens[inside[0] - 1].translate(RAW)
    return not space or (space.isspace() and not before.endswith(space))


def _true_offsets(echo: _Echo, whole: str) -> bool:
    """Whether each token is what the text has at its offset."""
    offsets = echo.offsets
    if len(offsets) != len(echo.tokens) or any(type(one) is not int or one < 0 for one in offsets):
        return False
    ends = [*offsets[1:], len(whole)]
    pieces = [whole[start : min(end, len(whole))] for start, end in zip(offsets, ends, strict=True)]
    return all(a <= b for a, b in zip(offsets, ends[:-1], strict=False)) and all(
        not piece or same(piece, token) for piece, token in zip(pieces, echo.tokens, strict=True)
    )


def same(piece: str, token: str) -> bool:
    """Whether a server's spelling of a token can be this text: spaces may be lost, parts of characters unreadable."""
    if BYTES.fullmatch(token) or BYTES.fullmatch(piece):
        return True
    return piece.strip() in (token.strip(), token.translate(RAW).strip())


def _span_at_end(tokens: Sequence[str], prompt: str, answer: str) -> range | None:
    """The last tokens that say the answer, behind one that ends as the prompt does; special ones may follow."""
    end = len(tokens)
    while end:
        start, said = end, ""
        while start and len(said) < len(answer):
            start -= 1
            said = tokens[start] + said
        if said == answer and start and "".join(tokens[:start]).endswith(prompt[-1:]):
            return range(start, end)
        if not SPECIAL.fullmatch(tokens[end - 1]):
            return None
        end -= 1
    return None


def _straddles(echo: _Echo, answer: str) -> InputError:
    last = echo.tokens[max(0, echo.prompt - 4) : echo.prompt]
    return InputError(
        f"prompt.verbalizers: no token of the server begins where the answer {answer!r} does (the last are {last});"
        " give --tokenizer, the model's own, or end prompt.template without a space and begin each answer with one"
    )


def _check_tokens(echo: _Echo, question: Question, span: range, url: str) -> None:
    """That the server read the tokens that were sent, no more and no others."""
    sent = len(question.sent)
    if len(echo.tokens) not in (sent, sent + 1):
        if len(echo.tokens) < sent:
            raise NoEcho(f"endpoint: {url} gives no log-probabilities of the prompt; {NEEDS}")
        raise Unreachable(f"endpoint: {url} read {len(echo.tokens)} tokens where {sent} were sent")
    for place, piece in zip(span, question.pieces, strict=True):
        token = echo.tokens[place]
        if token and not token.startswith("token_id:") and not same(piece, token):
            raise InputError(
                f"tokenizer: a token that is {piece!r} here is {token!r} at {url}; give the served model's own"
            )


def _log_p(value: Any, url: str) -> float:
    if value is None:
        raise NoEcho(f"endpoint: {url} gives no log-probability of an answer's token; {NEEDS}")
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number > 1e-3:  # above 0 by rounding alone
        raise Unreachable(f"endpoint: {url} gives {value!r} as the log-probability of a token")
    return number
