"""debias.adapters.words: an adapter's own tokenizer reads the text, and the base has an embedding of each token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_models import randomize_lora
from tiny_runs import PROMPT, save_llama, tokenizer

from debias.data import Example, generate
from debias.errors import InputError
from debias.inference.any_model import Given, load_given
from debias.models.load import load_tokenizer

OWN = "{% for m in messages %}premise {{ m.content }} :{% endfor %}{% if add_generation_prompt %} answer{% endif %}"
OTHER = "{% for m in messages %}question {{ m.content }}{% endfor %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = save_llama(tmp_path / "base", initializer_range=0.2)
    words = tokenizer(causal=True)
    words.chat_template = OTHER
    words.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, words: Any, rows: int | None = None, **settings: Any) -> Path:
    """A LoRA saved with a tokenizer, as other trainers save it; `rows`: of the embeddings it was trained with."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            torch.nn.init.normal_(end.weight.data, std=0.3)
    config = {"r": 3, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**config))
    randomize_lora(adapted)
    adapted.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return folder


def larger() -> Any:
    words = tokenizer(causal=True)
    words.add_tokens(["<so>", "<thus>", "<q>"])
    words.chat_template = OWN
    return words


def asking(folder: Path, **changes: Any) -> Path:
    told = {
        "template": "premise : {premise} {hypothesis} <so> answer :",
        "verbalizers": PROMPT["verbalizers"],
        **changes,
    }
    (folder / "prompt.yaml").write_text(yaml.safe_dump({**told, "max_length": 100}, sort_keys=False))
    return folder / "prompt.yaml"


def examples() -> list[Example]:
    rows = generate("validation", 5, 2)
    return [Example(str(i), (row["premise"], row["hypothesis"]), 0) for i, row in enumerate(rows)]


@pytest.mark.parametrize("of_base", [True, False], ids=["another template", "no template"])
def test_the_adapters_chat_template(base: Path, tmp_path: Path, of_base: bool) -> None:
    if not of_base:
        tokenizer(causal=True).save_pretrained(base)
        (base / "chat_template.jinja").unlink(missing_ok=True)
    words = tokenizer(causal=True)
    words.chat_template = OWN
    own = adapter(base, tmp_path / "own", words)
    given = {"model": str(base), "prompt": asking(tmp_path, chat=True), "bf16": False}
    predictor = load_given(Given(adapter=str(own), **given))
    one = examples()[0]
    told = predictor.task.tokenizer.decode(predictor.task.prompt.ids(one))
    assert told.startswith("premise premise :")
    assert told.endswith(": answer")
    bare = adapter(base, tmp_path / "bare", None)
    if of_base:
        predictor = load_given(Given(adapter=str(bare), **given))
        assert predictor.task.tokenizer.decode(predictor.task.prompt.ids(one)).startswith("question premise :")
        asked = load_given(Given(adapter=str(own), tokenizer=str(base), **given))
        assert asked.task.prompt.ids(one) == predictor.task.prompt.ids(one)
    else:
        with pytest.raises(InputError, match="no chat template"):
            load_given(Given(adapter=str(bare), **given))
        assert load_given(Given(adapter=str(bare), tokenizer=str(own), **given)).task.prompt.ids(one)


SAVED = {
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "because they were resized": {},
    "adapted": {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", SAVED)
def test_added_tokens_and_the_embeddings_that_were_saved(base: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    words = larger()
    own = adapter(base, tmp_path / "own", words, len(words), **SAVED[name])
    predictor = load_given(Given(str(base), str(own), asking(tmp_path), bf16=False))
    got = predictor.label_scores(examples())
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(len(words), mean_resizing=False)
    theirs = PeftModel.from_pretrained(plain, own).eval()
    prompt = predictor.task.prompt
    (mark,) = words.convert_tokens_to_ids(["<so>"])
    for i, one in enumerate(examples()):
        ids = words(prompt.template.format(premise=one.texts[0], hypothesis=one.texts[1]))["input_ids"]
        assert mark in ids
        with torch.no_grad():
            log_p = torch.log_softmax(theirs(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        answers = [words.convert_tokens_to_ids(answer.strip()) for answer in PROMPT["verbalizers"].values()]
        np.testing.assert_allclose(got[i], log_p[answers].numpy(), atol=1e-4)


def test_tokens_that_nobody_has_an_embedding_of_are_said(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = adapter(base, tmp_path / "own", larger())
    predictor = load_given(Given(str(base), str(own), asking(tmp_path), bf16=False))
    rows = len(tokenizer(causal=True))
    assert f"WARNING: the tokenizer has {rows + 3} tokens and the model {rows}; no weights were saved" in caplog.text
    table = predictor.model.get_input_embeddings().weight
    torch.testing.assert_close(table[rows:], table[:rows].mean(dim=0).expand(3, -1))
    assert np.isfinite(predictor.label_scores(examples())).all()


def test_an_adapters_damaged_tokenizer_is_named(base: Path, tmp_path: Path) -> None:
    own = adapter(base, tmp_path / "own", larger())
    (own / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"model: '.*own' could not be loaded"):
        load_given(Given(str(base), str(own), asking(tmp_path), bf16=False))
    assert load_tokenizer(str(base), "causal_lm").chat_template == OTHER
