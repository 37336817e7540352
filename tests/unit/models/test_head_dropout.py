"""Very large dropout before the head: what is dropped, when, and both gradients of one mask."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from gradient_checks import answer_loss, assert_same, selected_of, take, text_loss, weights_for
from torch import Tensor, nn

from debias.building.model import adapt
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.models.activations import checkpoint_activations
from debias.models.head_dropout import drop_before_adapters, drop_before_head
from debias.readouts import Answers

P = 0.9


def roberta() -> nn.Module:
    """A head of two layers, of which the last is asked."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(intermediate_size=32, pad_token_id=0, **sizes, **plain))


def classifying_llama() -> nn.Module:
    return tiny_models.family("llama", classify=True)  # type: ignore[no-any-return]


# name -> model, the layer that is asked last, whether the model is causal
HEADS: dict[str, tuple[Callable[[], Any], str, bool]] = {
    "bert": (tiny_models.bert, "classifier", False),
    "roberta": (roberta, "classifier.out_proj", False),
    "llama, classes": (classifying_llama, "score", False),
    "llama": (tiny_models.llama, "lm_head", True),
    "gpt2": (tiny_models.gpt2, "lm_head", True),
}


def heard(model: nn.Module, layer: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What the head is given, behind whatever is hooked to it, and what it gives."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
    torch.manual_seed(seed)
    ids = torch.randint(1, 60, (4, 9), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    handle.remove()
    ((given, output),) = seen
    return given, output


@pytest.mark.parametrize("name", HEADS)
def test_a_share_of_what_the_head_reads_is_dropped_while_training(name: str) -> None:
    make, layer, causal = HEADS[name]
    plain = heard(make().train(), layer)[0]
    model = make().train()
    drop_before_head(model, P, causal=causal)
    given, output = heard(model, layer)
    kept = given != 0
    assert abs(float(kept.float().mean()) - (1 - P)) < 0.06
    torch.testing.assert_close(given[kept], plain[kept] / (1 - P))
    head = model.get_submodule(layer)
    torch.testing.assert_close(output, nn.functional.linear(given, head.weight, head.bias))
    other = heard(model, layer, seed=1)[0]
    assert not torch.equal(other != 0, kept)
    model.eval()
    assert torch.equal(heard(model, layer)[0], heard(make().eval(), layer)[0])


def one_by_one(
    model: nn.Module, layer: str, loss: Callable[..., Tensor], batch: Any, weight_B: Tensor, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both gradients from a backward pass of each sample, all given the mask that the seed draws first; in float64."""
    seen: list[Tensor] = []
    head = model.get_submodule(layer)
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss(model, batch)
    handle.remove()
    torch.manual_seed(seed)
    mask = nn.functional.dropout(torch.ones_like(seen[0]), P)
    head.register_forward_pre_hook(lambda _, given: (given[0] * mask,))
    selected = selected_of(model)
    main: dict[str, Any] = {}
    bias: dict[str, Any] = {}
    for sample, weight in enumerate(weight_B.tolist()):
        model.zero_grad(set_to_none=True)
        loss(model, batch)[sample].backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                main[name] = main.get(name, 0.0) + parameter.grad.double()
                if name in selected:
                    bias[name] = bias.get(name, 0.0) + weight * parameter.grad.double()
    return main, bias


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
@pytest.mark.parametrize("kind", ["bert", "llama", "llama, adapted head"])
def test_both_gradients_are_of_one_mask(kind: str, way: str, checkpointed: bool) -> None:
    causal = kind != "bert"
    targets = ["q_proj", "lm_head"] if kind == "llama, adapted head" else "all-linear"
    base, batch, loss, layer = {
        "bert": (tiny_models.bert, tiny_models.text_batch(), text_loss, "classifier.modules_to_save.default"),
        "llama": (tiny_models.llama, tiny_models.answer_batch(), answer_loss, "lm_head"),
    }[kind.partition(",")[0]]

    def model_of(*, drop: bool) -> Any:
        model = base()
        if drop:
            drop_before_head(model, P, causal=causal)
            if checkpointed:
                checkpoint_activations(model)
        task = "CAUSAL_LM" if causal else "SEQ_CLS"
        adapted = tiny_models.with_lora(model, task_type=task, target_modules=targets)
        drop_before_adapters(adapted)
        return tiny_models.randomized(adapted).train()

    weight_B = weights_for(len(next(iter(batch.values()))))
    got = take(way, model_of(drop=True), loss, [batch], [weight_B], seed=3)
    want = one_by_one(model_of(drop=False), f"base_model.model.{layer}", loss, batch, weight_B, seed=3)
    assert_same(got, want, 2e-5)


@pytest.mark.parametrize("form", ["lora", "dora", "rslora", "lora_fa", "vera"])
def test_an_adapter_on_the_head_reads_what_the_head_reads(form: str) -> None:
    """As a run attaches it: one mask for the head and for the branch beside it."""
    model = tiny_models.llama()
    model.fresh_modules = ()
    prompt = {
        "template": "{premise} {hypothesis}",
        "verbalizers": {"entailment": "y", "neutral": "m", "contradiction": "n"},
    }
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "head": "causal_lm", "prompt": prompt}
    settings = {"adapter": {"type": form, "targets": ["q_proj", "lm_head"]}, "head_dropout": P, "lora_r": 3}
    adapted = tiny_models.randomized(adapt(RunConfig.model_validate({**values, **settings}), model)).train()
    head, read = adapted.get_output_embeddings(), []
    head.base_layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    output = heard(adapted, "base_model.model.lm_head")[1]
    (given,) = read
    assert abs(float((given != 0).float().mean()) - (1 - P)) < 0.06
    with torch.no_grad():
        torch.testing.assert_close(output, head.eval()(given))


def test_a_chunk_that_is_computed_again_has_the_same_mask() -> None:
    """Logits in chunks: the head is called again in the backward pass, on what it was given before."""
    model = tiny_models.llama()
    drop_before_head(model, P, causal=True)
    model.train()
    given: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, states: given.append(states[0].detach().clone()))
    batch = tiny_models.answer_batch()
    said = Answers([[5], [6]], chunk=1).said(model, batch)
    forward = list(given)
    assert len(forward) > 1
    given.clear()
    (-said.log_p_B).sum().backward()
    again = forward[1:]  # all but the first chunk
    assert len(given) == len(again)
    for one in given:
        assert any(torch.equal(one, other) for other in again)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(InputError, match="head_dropout: a LlamaModel has no linear head"):
        drop_before_head(tiny_models.llama().model, P, causal=True)
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o"}
    with pytest.raises(ValueError, match="head_dropout"):
        RunConfig.model_validate({**values, "head_dropout": 1.0})
