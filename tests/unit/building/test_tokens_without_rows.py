"""debias.building.task: a token that was added to a tokenizer alone has no embedding, and training says so."""

from pathlib import Path

import pytest
from tiny_runs import PROMPT, save_bert, save_llama, settings_for

from debias.building.task import build_task, check_rows
from debias.config.run import RunConfig
from debias.data import Example
from debias.errors import InputError
from debias.models.load import load_model, load_tokenizer


@pytest.mark.parametrize("head", ["causal_lm", "classification"])
def test_a_token_that_was_added_to_the_tokenizer_alone(tmp_path: Path, head: str) -> None:
    base = (save_llama if head == "causal_lm" else save_bert)(tmp_path / "base")
    words = load_tokenizer(str(base), "causal_lm" if head == "causal_lm" else "classification")
    words.add_tokens(["<so>"])
    words.save_pretrained(base)
    settings = settings_for(base, tmp_path / "run")
    config = RunConfig.model_validate(settings | ({"head": head, "prompt": PROMPT} if head == "causal_lm" else {}))
    task = build_task(config, words)
    model = load_model(str(base), config.head, config.data.labels)
    without, with_it = Example("0", ("A cat", "a dog"), 0), Example("1", ("A <so> cat", "a dog"), 1)
    check_rows(task, model, task.encode([without], with_answer=True))
    encoded = task.encode([without, with_it], with_answer=True)
    with pytest.raises(InputError, match=r"no embedding of the token '<so>' \(\d+\).*resize_token_embeddings") as told:
        check_rows(task, model, encoded)
    assert "\n" not in str(told.value)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    check_rows(task, model, encoded)
