"""Whether lm-evaluation-harness would score the token ids that debias scores; it tokenizes prompt and answer as one."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from debias.config.run import RunConfig
from debias.errors import InputError

log = logging.getLogger(__name__)
CHECKED = 200  # prompts of a suite; all end in the same words, so a few would do


def check_tokens(
    config: RunConfig, prompts: Iterable[str], adapter: str | None = None, given: str | None = None
) -> Callable[[str], str]:
    """What the harness is to send for a prompt: the prompt itself, or a chat with it and nothing else.

    InputError where the harness would score other tokens than debias, with what to change in the prompt. `prompts` are
    filled templates; the tokenizer is `given`, else the adapter's where it has one. A warning counts those that debias
    would cut at `max_length`, which the harness reads whole.
    """
    from debias.adapters.words import tokenizer_source
    from debias.data.prompt import Prompt
    from debias.models.load import load_tokenizer
    from debias.models.source import resolve_model

    assert config.prompt is not None
    source = tokenizer_source(resolve_model(config.model), adapter, given)
    tokenizer = load_tokenizer(source, config.head)
    answers = [config.prompt.verbalizers[label] for label in config.data.labels]
    settings = config.prompt
    prompt = Prompt(tokenizer, settings.template, answers, config.data.text_fields, chat=settings.chat)
    room = config.max_length - max(len(ids) for ids in prompt.answer_ids)
    longest = sorted(prompts, key=len, reverse=True)[:CHECKED]
    cut = 0
    for text in longest:
        ids = prompt.ids_of_text(text)
        cut += len(ids) > room
        for answer, answer_ids in zip(answers, prompt.answer_ids, strict=True):
            _compare(harness_ids(tokenizer, _context(tokenizer, text, settings.chat), answer), ids, answer_ids, answer)
    if cut:
        log.warning(
            "of the %d longest prompts, debias cuts %d to max_length=%d; the harness reads them whole, so scores of "
            "these differ: raise max_length to compare the two",
            *(len(longest), cut, config.max_length),
        )
    return partial(_context, tokenizer, chat=settings.chat)


def _context(tokenizer: Any, text: str, chat: bool) -> str:
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)) if chat else text


def harness_ids(tokenizer: Any, context: str, answer: str) -> list[int]:
    """The ids of prompt and answer as `TemplateLM._encode_pair` and `HFLM.tok_encode` of lm-eval 0.4.13 make them."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    has_first = first is not None and context.startswith(tokenizer.decode(first))
    return list(tokenizer.encode(context + answer, **({"add_special_tokens": False} if has_first else {})))


def _compare(whole: Sequence[int], prompt: Sequence[int], answer_ids: Sequence[int], answer: str) -> None:
    wanted = [*prompt, *answer_ids]
    if list(whole) == wanted:
        return
    if list(whole[: len(wanted)]) == wanted:
        raise InputError(
            f"prompt: the tokenizer puts {list(whole[len(wanted) :])} behind every text (an end of sequence), which the"
            " harness would score as a part of the answer; debias leaves it out: judge this model with `debias eval`"
        )
    raise InputError(
        f"prompt: the harness would read {answer!r} after the prompt as other tokens than debias "
        f"({list(whole)[-4:]}, not {wanted[-4:]}): end prompt.template without a space and begin each "
        "verbalizer with one"
    )
