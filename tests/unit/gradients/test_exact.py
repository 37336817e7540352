"""single_pass and shared_forward against two_pass, and all three against one backward pass for each sample.

Gradients are compared, main and bias each, tensor by tensor: relative error at most 1e-5 in fp32.
"""

import pytest
import torch
from gradient_checks import (
    FP32,
    add_batch,
    answer_loss,
    assert_same,
    by_samples,
    mlp_loss,
    selected_of,
    take,
    text_loss,
    weights_for,
    worst,
)
from tiny_models import (
    VOCABULARY,
    Mlp,
    answer_batch,
    bert,
    bert_lora,
    gpt2,
    llama,
    llama_lora,
    randomize_lora,
    rows,
    text_batch,
    with_lora,
)
from torch import nn

from debias.gradients import MicroBatch, SinglePass, make_source, taps

torch.set_num_threads(1)

WAYS = ["single_pass", "shared_forward", "two_pass"]


def mlp_batch(samples=6, tokens=None):
    generator = torch.Generator().manual_seed(4)
    shape = (samples, 5) if tokens is None else (samples, tokens, 5)
    return {
        "x": torch.randn(shape, generator=generator),
        "labels": torch.randint(0, 3, (samples,), generator=generator),
    }


def token_mlp_loss(model, batch):
    """[B, T, I] through the linears; the tokens of a sample share its label."""
    logits_BTC = model(batch["x"])
    return -torch.log_softmax(logits_BTC.mean(dim=1), dim=-1).gather(1, batch["labels"].unsqueeze(1)).squeeze(1)


def linear_biases(name, parameter):
    return name.endswith("bias") and "LayerNorm" not in name and "classifier" not in name


CASES = {
    "bert lora": (bert_lora, text_loss, text_batch, None),
    "llama lora answers": (llama_lora, answer_loss, answer_batch, None),
    "llama lora, rank above the layer": (lambda: llama_lora(r=40), answer_loss, answer_batch, None),
    "llama lora, rank one": (lambda: llama_lora(r=1), answer_loss, answer_batch, None),
    "mlp in full": (Mlp, mlp_loss, mlp_batch, None),
    "mlp in full, three dimensions": (Mlp, token_mlp_loss, lambda: mlp_batch(tokens=4), None),
    "mlp, four dimensions": (
        Mlp,
        lambda m, b: token_mlp_loss(lambda x: m(x.unflatten(1, (2, 2))).flatten(1, 2), b),
        lambda: mlp_batch(tokens=4),
        None,
    ),
    "bias vectors of linears": (bert, text_loss, text_batch, linear_biases),
    "weights of linears, full bert": (bert, text_loss, text_batch, lambda n, p: "dense.weight" in n or "query" in n),
    "only lora_B": (bert_lora, text_loss, text_batch, lambda n, p: "lora_B" in n),
}


@pytest.fixture(params=CASES)
def case(request):
    build, forward, batch, select = CASES[request.param]
    model, batch = build(), batch()
    settings = {} if select is None else {"select": select}
    return model, forward, batch, weights_for(len(batch["labels"])), settings


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_against_two_pass(case, way):
    model, forward, batch, weight_B, settings = case
    want = take("two_pass", model, forward, [batch], [weight_B], **settings)
    assert_same(take(way, model, forward, [batch], [weight_B], **settings), want)


@pytest.mark.parametrize("way", WAYS)
def test_against_one_backward_pass_for_each_sample(case, way):
    model, forward, batch, weight_B, settings = case
    got = take(way, model, forward, [batch], [weight_B], **settings)
    assert_same(got, by_samples(model, forward, batch, weight_B, **settings))


def test_the_comparison_catches_a_weight_on_the_wrong_sample():
    model, batch = bert_lora(), text_batch()
    weight_B = weights_for(6)
    want = take("two_pass", model, text_loss, [batch], [weight_B])
    for wrong in (weight_B.roll(1), weight_B + 1e-4):
        got = take("single_pass", model, text_loss, [batch], [wrong])
        assert worst(got[0], want[0])[0] <= FP32
        assert worst(got[1], want[1])[0] > FP32


def test_the_plain_gradient_is_main():
    """single_pass changes the sum of no gradient: main is what PEFT and autograd alone give, head included."""
    model, batch = bert_lora(), text_batch()
    got, _ = take("single_pass", model, text_loss, [batch], [weights_for(6)])
    text_loss(model, batch).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("modules_to_save" in name for name in plain)
    assert worst(got, plain)[0] <= 1e-6


def checkpointed(model, reentrant):
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_activation_checkpointing(family, way, reentrant):
    build, forward, batch = (
        (bert_lora, text_loss, text_batch()) if family == "bert" else (llama_lora, answer_loss, answer_batch())
    )
    weight_B = weights_for(len(batch["labels"]))
    want = take("two_pass", build(), forward, [batch], [weight_B])
    assert_same(take(way, checkpointed(build(), reentrant), forward, [batch], [weight_B]), want)


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_lora_dropout_uses_one_mask_for_both(family, checkpointing):
    """shared_forward has one forward pass, so one mask; single_pass draws the same one from the same seed."""
    build, forward, batch = (
        (bert_lora, text_loss, text_batch()) if family == "bert" else (llama_lora, answer_loss, answer_batch())
    )
    weight_B = weights_for(len(batch["labels"]))
    want = take("shared_forward", build(dropout=0.4), forward, [batch], [weight_B], seed=7)
    model = build(dropout=0.4) if checkpointing is None else checkpointed(build(dropout=0.4), checkpointing)
    got = take("single_pass", model, forward, [batch], [weight_B], seed=7)
    assert_same(got, want)
    other = take("single_pass", model, forward, [batch], [weight_B], seed=8)
    assert worst(other[0], want[0])[0] > 0.05  # the masks do something


@pytest.mark.parametrize("way", WAYS)
def test_dropout_in_the_base_model_as_well(way):
    """Masks between adapter and loss: every way gives sum w_i g_i of the masks it drew; two_pass draws two."""
    model = with_lora(bert(dropout=0.3), dropout=0.3, task_type="SEQ_CLS")
    batch, weight_B = text_batch(), weights_for(6)
    got = take(way, model, text_loss, [batch], [weight_B], seed=5)
    want = take("shared_forward", model, text_loss, [batch], [weight_B], seed=5)
    assert worst(got[0], want[0])[0] <= FP32
    if way == "two_pass":
        assert worst(got[1], want[1])[0] > 0.05
    else:
        assert worst(got[1], want[1])[0] <= FP32


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_dropout_of_a_recomputed_layer_sees_what_it_saw_before(checkpointing, dropout):
    """Under autocast too: where a mask depends on the dtype (CUDA's does), another dtype is another mask."""
    model = llama_lora(dropout=dropout)
    if checkpointing is not None:
        checkpointed(model, checkpointing)
    batch = answer_batch()
    source = make_source("single_pass", model, selected_of(model))
    seen: dict[str, list] = {}
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.setdefault(name, []).append(inputs[0].dtype)
            )
    with torch.autocast("cpu", torch.bfloat16):
        loss_B = answer_loss(model, batch)
    source.backward(MicroBatch(loss_B, weights_for(5)))
    assert len(seen) == 2 * 7
    for name, dtypes in seen.items():
        assert len(set(dtypes)) == 1, f"{name} saw {dtypes}"
    source.detach()


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_bf16_autocast(family, way):
    """Rounding of 2^-9 at every operation: what a way may lose against fp32 is what plain PEFT itself loses, with room.

    bias has its weights rounded too (another 2^-9). 3 % is ten times the rounding of one operation, and a tenth of the
    error that a weight on the wrong sample makes.
    """
    build, forward, batch = (
        (bert_lora, text_loss, text_batch()) if family == "bert" else (llama_lora, answer_loss, answer_batch())
    )
    weight_B = weights_for(len(batch["labels"]))
    exact = take("two_pass", build(), forward, [batch], [weight_B])

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(model, batch)

    got = take(way, build(), autocast, [batch], [weight_B])
    assert all(gradient.dtype == torch.float32 for side in got for gradient in side.values())
    model = build()
    autocast(model, batch).sum().backward()
    plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    plain_error, _ = worst(plain, exact[0])
    assert 1e-4 < plain_error < 0.1, "autocast did nothing"
    assert worst(got[0], exact[0])[0] <= 1.5 * plain_error
    assert worst(got[1], exact[1])[0] <= 2 * plain_error + 2**-8
    assert worst(got[0], plain)[0] <= max(0.03, 1.5 * plain_error)
    assert_same(got, exact, tolerance=max(0.03, 2 * plain_error))


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_a_model_in_bf16(way):
    """Weights in bf16 without autocast: base layer bf16, adapter fp32 (PEFT's default)."""
    model = with_lora(llama().bfloat16(), task_type="CAUSAL_LM")
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    batch, weight_B = answer_batch(), weights_for(5)
    got = take(way, model, answer_loss, [batch], [weight_B])
    want = by_samples(model, answer_loss, batch, weight_B)
    assert_same(got, want, tolerance=0.06)
    model = with_lora(llama(), task_type="CAUSAL_LM")
    wrong = take(way, model, answer_loss, [batch], [weight_B.roll(1)])
    assert worst(wrong[1], want[1])[0] > 0.2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["bert", "llama", "mlp"])
def test_unequal_micro_batches_add_up_to_one_batch(family, way):
    build, forward, batch = {
        "bert": (bert_lora, text_loss, text_batch(14)),
        "llama": (llama_lora, answer_loss, answer_batch(14)),
        "mlp": (Mlp, mlp_loss, mlp_batch(14)),
    }[family]
    model, weight_B = build(), weights_for(14)
    parts = [(0, 4), (4, 11), (11, 14)]
    got = take(way, model, forward, [rows(batch, *p) for p in parts], [weight_B[slice(*p)] for p in parts])
    assert_same(got, take("two_pass", model, forward, [batch], [weight_B]))


class SharedInput(nn.Module):
    """Three layers read one tensor; one of them is called three times, also on what it made and in 3-D."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.start = nn.Linear(5, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.start(x))
        mixed = torch.tanh(self.q(x)) * self.k(x) + torch.tanh(self.v(x))
        return self.classifier(torch.tanh(self.v(mixed)) + self.v(mixed.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_one_input_for_many_layers_and_one_layer_called_three_times(lora, way):
    model = SharedInput()
    if lora:
        model = with_lora(model, target_modules=["q", "k", "v"])
    batch, weight_B = mlp_batch(), weights_for(6)
    want = by_samples(model, mlp_loss, batch, weight_B)
    assert_same(take(way, model, mlp_loss, [batch], [weight_B]), want)


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_two_adapters_of_which_one_is_active(way):
    from peft import LoraConfig

    model = bert_lora()
    model.add_adapter("second", LoraConfig(target_modules=["query", "value"], r=2, task_type="SEQ_CLS"))
    model.set_adapter("second")
    randomize_lora(model)
    batch, weight_B = text_batch(), weights_for(6)
    got = take(way, model, text_loss, [batch], [weight_B])
    assert got[1]
    assert all(".second." in name for name in got[1])
    assert_same(got, by_samples(model, text_loss, batch, weight_B))


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_two_adapters_active_at_once(way):
    """Some layers have both, some one."""
    from peft import LoraConfig

    model = llama_lora()
    model.add_adapter("second", LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    randomize_lora(model)
    batch, weight_B = answer_batch(), weights_for(5)
    got = take(way, model, answer_loss, [batch], [weight_B])
    assert any(".second." in name for name in got[1])
    assert any("k_proj.lora_A.default." in name for name in got[1])
    assert_same(got, by_samples(model, answer_loss, batch, weight_B))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_lora_with_trained_bias_vectors_of_the_base_layers(way, bias):
    def select(name, parameter):
        return "lora_" in name or linear_biases(name, parameter)

    model = bert_lora(bias=bias)
    batch, weight_B = text_batch(), weights_for(6)
    got = take(way, model, text_loss, [batch], [weight_B], select=select)
    assert any(name.endswith("bias") for name in got[1])
    assert_same(got, by_samples(model, text_loss, batch, weight_B, select=select))


@pytest.mark.parametrize("settings", [{"lora_bias": True}, {"use_rslora": True}, {"fan_in_fan_out": False}], ids=repr)
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_settings_of_lora(way, settings):
    model = bert_lora(**settings)
    batch, weight_B = text_batch(), weights_for(6)
    want = by_samples(model, text_loss, batch, weight_B)
    assert_same(take(way, model, text_loss, [batch], [weight_B]), want)


@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_gpt2_whose_linears_are_convolutions(way):
    model = with_lora(gpt2(), target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    batch, weight_B = answer_batch(), weights_for(5)
    want = by_samples(model, answer_loss, batch, weight_B)
    assert_same(take(way, model, answer_loss, [batch], [weight_B]), want)


@pytest.mark.parametrize("checkpointing", [None, True, False])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward"])
def test_four_bit_lora(way, checkpointing, tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama(hidden=64, layers=1).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.float32)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = with_lora(base, task_type="CAUSAL_LM", lora_alpha=3)
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    batch, weight_B = answer_batch(), weights_for(5)
    want = take("two_pass", model, answer_loss, [batch], [weight_B])
    assert_same(want, by_samples(model, answer_loss, batch, weight_B))
    if checkpointing is not None:
        checkpointed(model, checkpointing)
    assert_same(take(way, model, answer_loss, [batch], [weight_B]), want)


@pytest.mark.parametrize("way", WAYS)
def test_bias_gradients_do_not_share_memory_with_main(way):
    """Both come from one product: an in-place change of one must not reach the other, nor the next micro-batch."""
    model, batch = llama_lora(), answer_batch()
    source = make_source(way, model, selected_of(model))
    add_batch(source, model, answer_loss, batch, weights_for(5))
    kept = {name: gradient.clone() for name, gradient in source.bias.items()}
    for p in source.selected.values():
        p.grad.fill_(7.0)
    assert all(torch.equal(source.bias[name], kept[name]) for name in kept)
    assert set(kept) == set(source.selected)
    source.detach()


def test_weights_are_not_kept_after_backward():
    model, batch = bert_lora(), text_batch()
    source = make_source("single_pass", model, selected_of(model))
    assert isinstance(source, SinglePass)
    add_batch(source, model, text_loss, batch, weights_for(6))
    assert source.weights is None
    source.detach()


def test_two_pass_needs_the_second_forward():
    model = Mlp()
    source = make_source("two_pass", model, selected_of(model))
    with pytest.raises(ValueError, match="again"):
        source.backward(MicroBatch(mlp_loss(model, mlp_batch()), weights_for(6)))


@pytest.mark.parametrize("way", WAYS)
def test_an_error_in_the_backward_pass_leaves_the_gradients_alone(way):
    """What was accumulated before stays; the model is not left with somebody's gradients swapped in."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, delta):
            raise ArithmeticError

    model, weight_B = Mlp(), weights_for(6)
    source = make_source(way, model, selected_of(model))
    add_batch(source, model, mlp_loss, mlp_batch(), weight_B)
    kept = {name: p.grad.clone() for name, p in model.named_parameters()}
    with pytest.raises(ArithmeticError):
        source.backward(MicroBatch(Fails.apply(mlp_loss(model, mlp_batch())), weight_B, lambda: None))
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, kept[name])
    source.detach()


class InPlace(Mlp):
    """Models add to what a layer returned, or divide it, in place."""

    def forward(self, x):
        hidden = self.first(x)
        hidden /= 2.0
        out = self.second(torch.tanh(hidden))
        out += hidden
        return self.classifier(out)


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_a_layers_output_changed_in_place(lora, tokens):
    model = with_lora(InPlace(), target_modules=["first", "second"]) if lora else InPlace()
    batch, weight_B = mlp_batch(tokens=tokens), weights_for(6)
    forward = mlp_loss if tokens is None else token_mlp_loss
    got = take("single_pass", model, forward, [batch], [weight_B])
    assert_same(got, by_samples(model, forward, batch, weight_B))


def test_falcon_through_auto():
    """It adds attention to the output of its last linear layer in place."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, bos_token_id=1, eos_token_id=2))
    model = with_lora(base, task_type="CAUSAL_LM")
    batch, weight_B = answer_batch(), weights_for(5)
    got = take("auto", model, answer_loss, [batch], [weight_B])
    assert_same(got, by_samples(model, answer_loss, batch, weight_B))


def test_wide_layers_take_no_third_product_for_weights_that_16_bits_can_tell_from_one(monkeypatch):
    made = []
    usual = taps.sum_of_parts
    monkeypatch.setattr(taps, "sum_of_parts", lambda parts: made.append(len(parts)) or usual(parts))
    for size, weights, parts in (
        (300, [0.7, 0.25, 0.0], 1),
        (300, [0.7, 0.999, 0.0], 2),
        (300, [1.0, 1.0, 0.5], 1),
        (8, [0.7, 0.25, 0.0], 2),
    ):
        layer = nn.Linear(size, size)
        source = make_source("single_pass", nn.Sequential(layer), {"w": layer.weight}, verify=False)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(torch.randn(3, size))
        source.backward(MicroBatch(out.float().sum(dim=1), torch.tensor(weights)))
        assert made.pop() == parts, (size, weights)
        source.detach()


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 8), (8, 64)])
def test_a_weight_near_one_is_not_rounded_to_one_in_16_bits(inputs, outputs):
    """In main - bias what is left of such a sample is 1 - weight: by least squares over the samples' own gradients."""
    explained = torch.arange(400) % 2 == 0
    weight_B, found = torch.where(explained, 0.999, 0.002), []
    for seed in range(16):
        generator = torch.Generator().manual_seed(seed)
        layer = nn.Linear(inputs, outputs)
        x, delta = (torch.randn(400, n, generator=generator).bfloat16().float() for n in (inputs, outputs))
        source = make_source("single_pass", nn.Sequential(layer), {"w": layer.weight, "b": layer.bias}, verify=False)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        source.backward(MicroBatch((out.float() * delta).sum(dim=1), weight_B))
        x, delta = x.double(), delta.double()
        parts = torch.stack([(delta[of].T @ x[of]).flatten() for of in (explained, ~explained)], dim=1)
        found.append(torch.linalg.lstsq(parts, (layer.weight.grad - source.bias["w"]).double().flatten()).solution)
        assert torch.allclose(source.bias["b"].double(), (weight_B.double() @ delta), rtol=1e-5, atol=1e-5)
    # Both gradients end in 16 bits, which is noise and no lean: 2e-4 of one draw, a quarter of that of sixteen.
    left, rest = torch.stack(found).mean(dim=0).tolist()
    assert left == pytest.approx(0.001, abs=2e-4)  # 0 where 0.999 x is rounded to x
    assert rest == pytest.approx(0.998, abs=2e-4)
