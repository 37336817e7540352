"""Checkpoints of large models through the real loading code: saved, loaded, adapted, run."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from debias.adapters.lora import add_lora
from debias.errors import InputError
from debias.models.load import load_model

LABELS = ("entailment", "neutral", "contradiction")
SEES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def batch() -> dict[str, torch.Tensor]:
    return {key: tiny_models.answer_batch()[key] for key in ("input_ids", "attention_mask")}


def seeing_llama4() -> Any:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = tiny_models.family_config("llama4_text").to_dict()
    vision = {**SEES, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def seeing_gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_models.family_config("gemma3_text", tie_word_embeddings=True).to_dict()
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=SEES, mm_tokens_per_image=4))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Folders of models that see too, as they are on the hub, and the logits of what they say to text."""
    found = {}
    for name, make in (("llama4", seeing_llama4), ("gemma3", seeing_gemma3)):
        torch.manual_seed(0)
        model, folder = make().eval(), tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        speaker = model.language_model if name == "llama4" else model
        with torch.no_grad():
            found[name] = folder, speaker(**batch()).logits
    return found


@pytest.mark.parametrize(("name", "kind"), [("llama4", "Llama4ForCausalLM"), ("gemma3", "Gemma3ForCausalLM")])
@pytest.mark.parametrize("bits", [False, True], ids=["", "nf4"])
def test_a_model_that_sees_is_loaded_as_its_text_model(seeing: Any, name: str, kind: str, bits: bool) -> None:
    folder, logits = seeing[name]
    model = load_model(str(folder), "causal_lm", LABELS, load_in_4bit=bits).eval()
    assert type(model).__name__ == kind
    assert model.fresh_modules == []
    assert not any("vision" in path for path, _ in model.named_parameters())
    with torch.no_grad():
        ours = model(**batch()).logits
    if bits:
        assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    else:
        assert torch.allclose(ours, logits, atol=1e-5)


def test_gemma3_that_sees_as_a_classifier(seeing: Any) -> None:
    model = load_model(str(seeing["gemma3"][0]), "classification", LABELS)
    assert type(model).__name__ == "Gemma3TextForSequenceClassification"
    assert model.fresh_modules == ["score"]
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model(**batch()).logits.shape == (5, 3)


@pytest.mark.parametrize("text_alone", [False, True])
def test_llama4_has_no_classifier(seeing: Any, tmp_path: Path, text_alone: bool) -> None:
    folder = seeing["llama4"][0]
    if text_alone:
        folder = tmp_path
        tiny_models.llama4().save_pretrained(folder)
    with pytest.raises(InputError) as caught:
        load_model(str(folder), "classification", LABELS)
    assert "is a llama4_text, for which transformers has no sequence classifier; use head 'causal_lm'" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", tiny_models.FAMILIES)
@pytest.mark.parametrize("classify", [False, True], ids=["causal", "classifier"])
def test_there_and_back(name: str, classify: bool, tmp_path: Path) -> None:
    """Saved, loaded, adapted, run, learned from, saved and loaded again."""
    if classify and name == "llama4_text":
        pytest.skip("it has no classifier")
    from peft import PeftModel

    source = tiny_models.family(name).eval()
    source.save_pretrained(tmp_path / "base")
    head = "classification" if classify else "causal_lm"
    model = load_model(str(tmp_path / "base"), head, LABELS)
    assert model.fresh_modules == (["score"] if classify else [])
    if not classify:
        with torch.no_grad():
            assert torch.allclose(model.eval()(**batch()).logits, source(**batch()).logits, atol=1e-5)
    adapted = add_lora(model, r=2, alpha=4, dropout=0.0, targets="auto", classification=classify)
    tiny_models.randomize_lora(adapted)
    adapted(**batch()).logits.pow(2).mean().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load_model(str(tmp_path / "base"), head, LABELS), tmp_path / "adapter")
    with torch.no_grad():
        ours, theirs = adapted.eval()(**batch()).logits, again.eval()(**batch()).logits
    assert torch.allclose(ours, theirs, atol=1e-5 * float(ours.abs().max()))
