"""A server's lasting no in words for who can change something."""

from debias.errors import InputError, Unreachable
from debias.served.client import KEYS, Client, Refusal
from debias.served.questions import Question
from debias.served.reading import NEEDS, NoEcho


def explained(refusal: Refusal, client: Client, model: str, question: Question) -> InputError:
    """The line for a refusal: of the key, the model, the verb, or of this question alone."""
    status, said, url = refusal.status, refusal.said, client.url
    words = said.casefold().replace(model.casefold(), "")  # which may be called a chat, or an echo
    if status in (401, 403):
        sent = "the key that was sent" if client.has_key else "a request without a key"
        return Unreachable(f"endpoint: {url} refuses {sent} ({status}: {said}); set {KEYS[0]} or {KEYS[1]}")
    if status in (400, 404) and "chat" in words and "complet" in words:
        return _chat_only(url, f"{status}: {said}")
    if status in (400, 404) and _of_the_model(said.casefold(), model, status):
        served = client.models()
        return Unreachable(
            f"model: {url} serves no {model!r}" + (f", but {', '.join(served)}" if served else f": {said}")
        )
    if status in (404, 405, 501):
        return _chat_only(url, f"{status}: {said}")
    if "echo" in words or "logprobs" in words:
        return NoEcho(f"endpoint: {url} answered {status}: {said}; {NEEDS}")
    return _of_the_question(refusal, url, question)


def wrong_model(answered: object, model: str) -> bool:
    """Whether a reply names another model than was asked; OpenAI puts a date behind a name."""
    return isinstance(answered, str) and answered != model and not answered.startswith(f"{model}:")


def _of_the_model(words: str, model: str, status: int) -> bool:
    named = status == 404 and model.casefold() in words
    return named or ("model" in words and any(no in words for no in ("not exist", "not found", "unknown model")))


def _chat_only(url: str, said: str) -> InputError:
    return Unreachable(
        f"endpoint: {url} has no /v1/completions for this model ({said}); a chat cannot be judged: {NEEDS}"
    )


def _of_the_question(refusal: Refusal, url: str, question: Question) -> InputError:
    line = f"endpoint: {url} answered {refusal.status}: {refusal.said}"
    words = refusal.said.casefold()
    as_tokens = not isinstance(question.prompt, str)
    if as_tokens and "string" in words:
        return Unreachable(f"{line}; where it takes no tokens for a prompt, leave --tokenizer out")
    if not as_tokens and ("context" in words or "length" in words):
        return InputError(f"{line}; with --tokenizer, prompts are cut to max_length")
    return InputError(line) if refusal.status in (400, 413, 422) else Unreachable(line)
