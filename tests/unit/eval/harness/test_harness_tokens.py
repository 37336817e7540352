"""debias_eval.harness.tokens: whether the harness would score the tokens that debias scores, by the right tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PROMPT, config_for, save_llama, tokenizer

from debias.errors import InputError
from debias_eval.harness.tokens import check_tokens


def ending(token: str) -> Any:
    """The tiny tokenizer, with an end of sequence behind every text."""
    from tokenizers import processors

    words = tokenizer(causal=True)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"[BOS] $A {token}", special_tokens=[("[BOS]", 4), ("[EOS]", 5)]
    )
    return words


def test_an_end_behind_every_text_would_be_scored_by_the_harness(tmp_path: Path) -> None:
    """The adapter's tokenizer is the one that counts."""
    model = save_llama(tmp_path / "model")
    config = config_for(model, tmp_path / "run", head="causal_lm", prompt=PROMPT)
    asked = ["premise : yes question : no answer :"]
    adapter = tmp_path / "adapter"
    ending("[EOS]").save_pretrained(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    check_tokens(config, asked)
    with pytest.raises(InputError, match=r"puts \[5\] behind every text .* judge this model with `debias eval`"):
        check_tokens(config, asked, str(adapter))
