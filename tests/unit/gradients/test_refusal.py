"""Where single_pass is not exact it refuses with the reason; `auto` falls back with a log line that names it."""

import copy
import logging

import pytest
import torch
from gradient_checks import (
    add_batch,
    answer_loss,
    assert_same,
    by_samples,
    mlp_loss,
    selected_of,
    take,
    text_loss,
    weights_for,
)
from tiny_models import VOCABULARY, Mlp, answer_batch, bert, bert_lora, llama_lora, text_batch, with_lora
from torch import nn

from debias.adapters.experts import route_experts
from debias.engines import attach
from debias.gradients import SharedForward, SinglePass, make_source, refusal
from debias.methods import Edge

torch.set_num_threads(1)


class BatchNorm(Mlp):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        return self.classifier(self.norm(self.second(torch.tanh(self.first(x)))))


class Attention(Mlp):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(7, 1, batch_first=True)

    def forward(self, x):
        x = torch.tanh(self.first(x)).unsqueeze(1)
        return self.classifier(self.attention(x, x, x)[0].squeeze(1))


class SequenceFirst(Mlp):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(7, 7).requires_grad_(False)

    def forward(self, x):
        return self.classifier(self.recurrent(self.second(torch.tanh(self.first(x))))[0])


class Tied(Mlp):
    def __init__(self):
        super().__init__()
        self.third = nn.Linear(7, 7)
        self.third.weight = self.second.weight

    def forward(self, x):
        return self.classifier(self.third(torch.tanh(self.second(torch.tanh(self.first(x))))))


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def own_linear():
    model = Mlp()
    model.second = OwnLinear(7, 7)
    return model


def replaced():
    model = Mlp()
    usual = model.second.forward
    model.second.forward = lambda x: 3 * usual(x)
    return model


def replaced_in_lora():
    model = bert_lora()
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default")
    usual = layer.forward
    layer.forward = lambda x: 3 * usual(x)
    return model


def weight_norm():
    model = Mlp()
    nn.utils.parametrizations.weight_norm(model.second)
    return model


def mixture(kind):
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "num_experts_per_tok": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    if kind == "Qwen3Moe":
        config = transformers.Qwen3MoeConfig(**sizes, num_experts=4, moe_intermediate_size=16, head_dim=8)
        return transformers.Qwen3MoeForCausalLM(config)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=4))


def two_adapters():
    from peft import LoraConfig

    settings = {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"], "task_type": "CAUSAL_LM"}
    model = with_lora(mixture("Qwen3Moe"), **settings)
    model.add_adapter("second", LoraConfig(r=2, **settings))
    model.base_model.set_adapter(["default", "second"])
    route_experts(model)
    return model


def deberta():
    import transformers

    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 16}
    config = transformers.DebertaV2Config(**sizes, **attention, intermediate_size=16)
    return transformers.DebertaV2ForSequenceClassification(config)


def xlnet():
    import transformers

    sizes = {"vocab_size": 20, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    return transformers.XLNetForSequenceClassification(transformers.XLNetConfig(**sizes))


def longformer():
    import transformers

    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LongformerConfig(**sizes, intermediate_size=16, attention_window=4)
    return transformers.LongformerForSequenceClassification(config)


def attached_before():
    model = bert_lora()
    attach(model, None, Edge())
    return model


ATTENTION = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
REFUSED = {
    "BatchNorm": (BatchNorm, r"norm \(BatchNorm1d\) uses statistics of the batch"),
    "BatchNorm in eval mode": (lambda: BatchNorm().eval(), "statistics of the batch"),
    "Mixtral": (lambda: with_lora(mixture("Mixtral"), **ATTENTION), "routes tokens of different samples"),
    "target_parameters": (
        lambda: with_lora(
            mixture("Mixtral"), target_modules=[], target_parameters=["mlp.experts.down_proj"], task_type="CAUSAL_LM"
        ),
        "routes tokens|materialised delta",
    ),
    "target_parameters that are not routed": (
        lambda: with_lora(
            mixture("Qwen3Moe"), target_modules=[], target_parameters=["mlp.experts.down_proj"], task_type="CAUSAL_LM"
        ),
        r"experts.*materialised delta \(target_parameters\); .*route_experts",
    ),
    "two adapters on the experts at once": (
        two_adapters,
        r"experts.*materialised delta.*2 adapters are active at once",
    ),
    "the router": (
        lambda: with_lora(mixture("Qwen3Moe"), target_modules=[], target_parameters=["mlp.gate.weight"]),
        r"gate.*materialised delta",
    ),
    "a mixture of experts in full": (lambda: mixture("Qwen3Moe"), r"belongs to (Qwen3Moe|Embedding)"),
    "target_parameters without experts": (
        lambda: with_lora(Mlp(), target_modules=[], target_parameters=["second.weight"]),
        r"second.*materialised delta \(target_parameters\)",
    ),
    "DoRA": (lambda: bert_lora(use_dora=True), r"query is a LoRA variant \(Dora"),
    "LayerNorm": (bert, r"LayerNorm|Embedding"),
    "embeddings": (bert, r"embeddings\.weight belongs to Embedding, not to a plain linear layer"),
    "LoRA on an embedding": (
        lambda: with_lora(bert(), target_modules=["word_embeddings", "query"], task_type="SEQ_CLS"),
        "lora_embedding_A.*not to a plain linear",
    ),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 3, 1)), "belongs to Conv1d"),
    "sequence first": (SequenceFirst, r"recurrent \(GRU\) puts the sequence first"),
    "DeBERTa": (lambda: with_lora(deberta(), target_modules=["query_proj"]), "first dimension is not the samples"),
    "XLNet": (lambda: with_lora(xlnet(), target_modules=["layer_1"]), "XLNetModel.*first dimension is not the samples"),
    "Longformer": (lambda: with_lora(longformer(), target_modules=["query"]), "first dimension is not the samples"),
    "a hook from before": (attached_before, r"a hook is attached to .*query already; detach\(\) it first"),
    "tied": (Tied, r"second\.weight is shared by 2 modules"),
    "MultiheadAttention": (Attention, r"attention.*(MultiheadAttention|not to a plain linear)"),
    "a linear layer of one's own": (own_linear, "belongs to OwnLinear"),
    "replaced forward": (replaced, "the forward of second was replaced by somebody else"),
    "replaced forward inside LoRA": (replaced_in_lora, "replaced by somebody else"),
    "parametrised weight": (weight_norm, "belongs to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name, caplog):
    build, reason = REFUSED[name]
    model = build()
    selected = selected_of(model)
    assert selected
    before = {path: "forward" in vars(module) for path, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"not exact here: .*({reason})"):
        make_source("single_pass", model, selected)
    with caplog.at_level(logging.INFO, logger="debias"):
        source = make_source("auto", model, selected)
    assert isinstance(source, SharedForward)
    (record,) = [r for r in caplog.records if "auto chose" in r.message]
    assert record.levelno == logging.WARNING
    assert "shared_forward" in record.message
    assert refusal(model, selected) in record.message
    assert before == {path: "forward" in vars(module) for path, module in model.named_modules()}


def test_layernorm_alone_is_named():
    model = bert()
    selected = {name: p for name, p in model.named_parameters() if "LayerNorm" in name}
    assert "belongs to LayerNorm" in refusal(model, selected)


def test_multihead_attention_that_trains_is_refused_even_if_only_its_linear_is_selected():
    """Its output projection is a linear layer whose weight is read without a call."""
    model = Attention()
    selected = {"attention.out_proj.weight": model.attention.out_proj.weight}
    assert "attention" in refusal(model, selected)


@pytest.mark.parametrize("build", [Mlp, bert_lora, llama_lora, lambda: Attention().requires_grad_(False)])
def test_not_refused_and_said(build, caplog):
    model = build()
    if not selected_of(model):
        model.first.requires_grad_(True)
    with caplog.at_level(logging.INFO, logger="debias"):
        source = make_source("auto", model, selected_of(model))
    assert isinstance(source, SinglePass)
    assert "auto chose single_pass" in caplog.text
    source.detach()


@pytest.mark.parametrize("build", [BatchNorm, Attention, Tied, own_linear, replaced, weight_norm])
def test_what_auto_falls_back_to_is_right(build):
    """shared_forward against the second forward; samples by themselves where the model does not mix them."""
    model = build()
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    batch, weight_B = {"x": x, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}, weights_for(6)
    got = take("auto", model, mlp_loss, [batch], [weight_B])
    assert_same(got, take("two_pass", model, mlp_loss, [batch], [weight_B]))
    if build is not BatchNorm:
        assert_same(got, by_samples(model, mlp_loss, batch, weight_B))


def test_a_mixture_of_experts_through_auto():
    model = with_lora(mixture("Mixtral"), **ATTENTION)
    batch, weight_B = answer_batch(), weights_for(5)
    got = take("auto", model, answer_loss, [batch], [weight_B])
    assert_same(got, by_samples(model, answer_loss, batch, weight_B))


def test_full_fine_tuning_of_bert_through_auto():
    model, batch, weight_B = bert(), text_batch(), weights_for(6)
    got = take("auto", model, text_loss, [batch], [weight_B])
    assert_same(got, by_samples(model, text_loss, batch, weight_B))
    assert any("LayerNorm" in name for name in got[1])
    assert any("embeddings" in name for name in got[1])


def test_a_replaced_forward_around_lora_is_kept():
    """accelerate wraps whole layers so: the wrapper stays in charge, the matrices inside are still seen."""
    model = bert_lora()
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    usual = layer.forward
    calls = []

    def wrapper(*args, **kwargs):
        calls.append(1)
        return usual(*args, **kwargs)

    layer.forward = wrapper
    batch, weight_B = text_batch(), weights_for(6)
    got = take("single_pass", model, text_loss, [batch], [weight_B])
    assert calls == [1]
    assert layer.forward is wrapper
    assert_same(got, by_samples(model, text_loss, batch, weight_B))


class TokensFirst(Mlp):
    """The layer sees [T, B, I]: its first dimension is not the samples."""

    def forward(self, x):
        hidden = torch.tanh(self.second(torch.tanh(self.first(x)).transpose(0, 1))).transpose(0, 1)
        return self.classifier(hidden.mean(dim=1))


class Flattened(Mlp):
    """The layer sees [B * T, I]."""

    def forward(self, x):
        hidden = torch.tanh(self.second(torch.tanh(self.first(x)).flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.classifier(hidden.mean(dim=1))


@pytest.mark.parametrize("build", [TokensFirst, Flattened])
@pytest.mark.parametrize("lora", [False, True])
def test_samples_that_are_not_first_are_a_clear_error(build, lora):
    model = with_lora(build(), target_modules=["first", "second"]) if lora else build()
    source = make_source("single_pass", model, selected_of(model))
    batch = {"x": torch.randn(6, 4, 5), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    with pytest.raises(RuntimeError, match=r"second.* while the loss has 6 samples.*shared_forward"):
        add_batch(source, model, mlp_loss, batch, weights_for(6))
    assert source.weights is None
    source.detach()


BUILDS = {"bert": (bert_lora, text_loss, text_batch), "llama": (llama_lora, answer_loss, answer_batch)}


@pytest.mark.parametrize("way", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("family", BUILDS)
def test_detach_leaves_the_model_as_it_was(family, way):
    build, forward, make_batch = BUILDS[family]
    model, batch = build(), make_batch()
    weight_B = weights_for(len(batch["labels"]))
    before = forward(model, batch)
    before.sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    keys, hooks = list(model.state_dict()), sum(len(m._forward_hooks) for m in model.modules())
    model.zero_grad(set_to_none=True)
    source = make_source(way, model, selected_of(model))
    patched = [m for m in model.modules() if "forward" in vars(m)]
    assert bool(patched) == (way == "single_pass")
    assert not any(module.training is False for module in patched)
    add_batch(source, model, forward, batch, weight_B)
    model.zero_grad(set_to_none=True)
    source.detach()
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert source.bias == {}
    assert list(model.state_dict()) == keys
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    after = forward(model, batch)
    assert torch.equal(after, before)
    after.sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        assert p.grad is None or torch.equal(p.grad, grads[name])


def test_attaching_again_after_detach():
    model, batch, weight_B = bert_lora(), text_batch(), weights_for(6)
    first = take("single_pass", model, text_loss, [batch], [weight_B])
    assert_same(take("single_pass", model, text_loss, [batch], [weight_B]), first, tolerance=0.0)


def test_the_patched_model_answers_the_same_in_eval():
    """With and without grad, disabled adapters and a merged one included; rounding may differ by one step."""
    model, batch = llama_lora(), answer_batch()
    model.eval()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}

    def answers():
        with torch.no_grad():
            found = [model(**inputs).logits]
            with model.disable_adapter():
                found.append(model(**inputs).logits)
            model.merge_adapter()
            found.append(model(**inputs).logits)
            model.unmerge_adapter()
        return found

    before = answers()
    source = make_source("single_pass", model, selected_of(model))
    torch.testing.assert_close(answers(), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[0], before[1], atol=1e-2)
    source.detach()


@pytest.mark.parametrize("build", [Mlp, bert_lora], ids=["mlp", "bert lora"])
def test_a_copy_of_a_patched_model_is_a_model_of_its_own(build):
    """EMA and best-model keeping copy so: the copy computes with its own weights and writes into its own gradients."""
    model = build()
    batch = text_batch() if build is bert_lora else {"x": torch.randn(6, 5), "labels": torch.tensor([0, 1, 2] * 2)}
    forward = text_loss if build is bert_lora else mlp_loss
    source = make_source("single_pass", model, selected_of(model))
    twin = copy.deepcopy(model)
    before = forward(twin, batch).detach()
    torch.testing.assert_close(forward(model, batch), before)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    assert not torch.allclose(forward(model, batch), before)
    assert torch.equal(forward(twin, batch), before)
    forward(twin, batch).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert source.bias == {}
    assert all(p.grad is not None for p in selected_of(twin).values())
    source.detach()


def test_a_patched_model_can_be_saved_and_generates(tmp_path):
    model, batch = llama_lora(), answer_batch()
    source = make_source("single_pass", model, selected_of(model))
    model.eval()
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=3, do_sample=False
    )
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    source.detach()
    again = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=3, do_sample=False
    )
    assert torch.equal(out, again)


def test_unknown_way_is_named():
    with pytest.raises(ValueError, match="gradients is 'onepass', not one of auto, single_pass"):
        make_source("onepass", Mlp(), {})
