"""Whether lm-evaluation-harness would score the token ids that debias scores; it tokenizes prompt and answer as one."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from debias.config.run import RunConfig
from debias.errors import InputError

log = logging.getLogger(__name__)
CHECKED = 200  # prompts of a suite; all end in the same words, so a few would do


def check_tokens(config: RunConfig, prompts: Iterable[str]) -> None:
    """InputError where the harness would score other tokens than debias, with what to change in the prompt.

    `prompts` are filled templates. A warning counts those that debias would cut at `max_length`, which the harness
    reads whole.
    """
    from debias.data.prompt import Prompt
    from debias.models.load import load_tokenizer

    assert config.prompt is not None
    tokenizer = load_tokenizer(config.model, config.head)
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


def _context(tokenizer: Any, text: str, chat: bool) -> str:
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)) if chat else text


def harness_ids(tokenizer: Any, context: str, answer: str) -> list[int]:
    """The ids of prompt and answer as `TemplateLM._encode_pair` and `HFLM.tok_encode` of lm-eval 0.4.13 make them."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    has_first = first is not None and context.startswith(tokenizer.decode(first))
    return list(tokenizer.encode(context + answer, **({"add_special_tokens": False} if has_first else {})))


def _compare(whole: Sequence[int], prompt: Sequence[int], answer_ids: Sequence[int], answer: str) -> None:
    if list(whole) == [*prompt, *answer_ids]:
        return
    raise InputError(
        f"prompt: the harness would read {answer!r} after the prompt as other tokens than debias "
        f"({list(whole)[-4:]}, not {[*prompt, *answer_ids][-4:]}): end prompt.template without a space and begin each "
        "verbalizer with one"
    )
