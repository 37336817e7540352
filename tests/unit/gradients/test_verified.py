"""single_pass proves itself: what it cannot do is found out, named, and done another way; what it can is left alone.

The oracle is autograd on the weighted sum of losses, in float64, without any of the project's layers in the model.
"""

import copy
import logging

import pytest
import torch
from gradient_checks import FP32, answer_loss, mlp_loss, selected_of, text_loss, weights_for, worst
from tiny_models import Mlp, answer_batch, bert_lora, llama, llama_lora, rows, text_batch, with_lora
from torch import nn

from debias.engines import attach
from debias.gradients import MicroBatch, NotExact, SinglePass, Verified, make_source
from debias.gradients.proof import powers_of_two, tolerance
from debias.losses import cross_entropy
from debias.methods import Edge

torch.set_num_threads(1)

B, T = 6, 4


def numbers(samples=B, tokens=None, seed=4):
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 5) if tokens is None else (samples, tokens, 5)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    return {"x": torch.randn(shape, generator=generator), "labels": labels}


def ordinary(model, forward, batch, weight_B):
    """(main, bias) by autograd alone."""
    model = copy.deepcopy(model).double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    found = []
    for w in (torch.ones(len(weight_B)), weight_B):
        model.zero_grad(set_to_none=True)
        (w.double() * forward(model, batch)).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    selected = selected_of(model)
    return found[0], {name: gradient for name, gradient in found[1].items() if name in selected}


# --- what is wrong in one pass


class TimeFirst(Mlp):
    """A layer of a user's that reads [T, B, C], where there are as many tokens as samples."""

    def forward(self, x):
        hidden = torch.tanh(self.first(x)).transpose(0, 1)
        return self.classifier(torch.tanh(self.second(hidden)).transpose(0, 1).mean(dim=1))


class Table(Mlp):
    """A table of B rows goes through the layer that samples go through."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(B, 7, generator=torch.Generator().manual_seed(9)))

    def forward(self, x):
        row = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        hidden = torch.tanh(self.first(x))
        return self.classifier(torch.tanh(self.second(hidden) + self.second(self.table)[row]))


class Sorted(Mlp):
    """Samples change places inside, as for a packed recurrent layer."""

    def forward(self, x):
        order = x[:, 0].argsort()
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))[order]))
        return self.classifier(hidden[order.argsort()])


class Routed(Mlp):
    """What the layer adds is chosen by the average over all samples, as some adapters route."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(7, 7)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.classifier(torch.tanh(self.second(hidden) * torch.sigmoid(self.gate(hidden)).mean(dim=0)))


class Beside(Mlp):
    """A weight is read beside its layer's call, as tied weights are."""

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.classifier(torch.tanh(self.second(hidden)) + 0.3 * hidden @ self.second.weight.T)


def penalised(model, batch):
    return mlp_loss(model, batch) + 0.05 * model.second.weight.square().sum()


def of_some(model, batch):
    return mlp_loss(model, batch)[batch["labels"] > 0]


def of_pairs(model, batch):
    """Each sample twice, in one forward pass: the answer that is preferred, and the other one."""
    log_p = torch.log_softmax(model(torch.cat([batch["x"], -batch["x"]])), dim=-1)
    at = torch.arange(len(batch["labels"]))
    better, worse = log_p[at, batch["labels"]], log_p[len(at) + at, batch["labels"]]
    return -torch.nn.functional.logsigmoid(better - worse)


def among_the_others(model, batch):
    """In-batch negatives."""
    out = torch.tanh(model(batch["x"]))
    return cross_entropy(out @ out.T, torch.arange(len(out)))


class Constant(Mlp):
    """A layer reads one row that all samples share, of one dimension."""

    def __init__(self):
        super().__init__()
        self.register_buffer("row", torch.linspace(-1, 1, 7))

    def forward(self, x):
        return self.classifier(torch.tanh(self.second(torch.tanh(self.first(x))) + self.second(self.row)))


FAULTS = {
    "one row for all": (Constant, mlp_loss, numbers()),
    "time first": (TimeFirst, mlp_loss, numbers(B, B)),
    "a table of B rows": (Table, mlp_loss, numbers()),
    "sorted inside": (Sorted, mlp_loss, numbers()),
    "an adapter that mixes": (Routed, mlp_loss, numbers()),
    "read beside its call": (Beside, mlp_loss, numbers()),
    "a penalty": (Mlp, penalised, numbers()),
    "losses of some": (Mlp, of_some, numbers()),
    "pairs": (Mlp, of_pairs, numbers()),
    "negatives": (Mlp, among_the_others, numbers()),
    "time first, other sizes": (TimeFirst, mlp_loss, numbers(B, T)),
}


# LoRA leaves the weight alone that these two read.
OF_A_WEIGHT = ("read beside its call", "a penalty")


@pytest.mark.parametrize(
    ("fault", "lora"),
    [(fault, lora) for fault in FAULTS for lora in (False, True) if not (lora and fault in OF_A_WEIGHT)],
)
def test_auto_goes_another_way_and_is_right(fault, lora, caplog):
    build, forward, batch = FAULTS[fault]
    model = with_lora(build(), target_modules=["first", "second"]) if lora else build()
    samples = len(forward(model, batch))
    weight_B = weights_for(samples)
    want = ordinary(model, forward, batch, weight_B)
    source = make_source("auto", model, selected_of(model))
    assert source.name == "single_pass"
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="debias"):
        source.backward(MicroBatch(forward(model, batch), weight_B))
    assert source.name == "shared_forward"
    assert "auto falls back to shared_forward; single_pass is not exact here: " in caplog.text
    assert any(name in caplog.text for name in source.selected)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, source.bias
    for ours, theirs in zip(got, want, strict=True):
        assert worst(ours, theirs)[0] <= FP32
    assert torch.equal(torch.get_rng_state(), state)
    # And it stays there, without another look; what was accumulated is kept.
    source.backward(MicroBatch(forward(model, batch), weight_B))
    assert worst(source.bias, {name: 2 * gradient for name, gradient in want[1].items()})[0] <= FP32


@pytest.mark.parametrize("fault", FAULTS)
def test_asked_for_by_name_it_is_an_error_of_one_line(fault):
    build, forward, batch = FAULTS[fault]
    model = build()
    source = make_source("single_pass", model, selected_of(model))
    loss_B = forward(model, batch)
    with pytest.raises(NotExact, match=r"single_pass' is not exact here: .*(first|second|gate|classifier).*use auto"):
        source.backward(MicroBatch(loss_B, weights_for(len(loss_B))))
    assert all(p.grad is None for p in model.parameters())
    assert source.bias == {}


def test_without_the_proof_these_are_silent():
    """Otherwise the tests above would say nothing about the proof."""
    for fault in ("time first", "a table of B rows", "sorted inside", "a penalty", "read beside its call"):
        build, forward, batch = FAULTS[fault]
        model, weight_B = build(), weights_for(B)
        want = ordinary(model, forward, batch, weight_B)
        source = make_source("single_pass", model, selected_of(model), verify=False)
        assert not isinstance(source, Verified)
        source.backward(MicroBatch(forward(model, batch), weight_B))
        assert worst(source.bias, want[1])[0] > 0.05, fault


def test_a_loss_of_the_batch_sends_auto_another_way():
    model, batch, weight_B = Mlp(), numbers(), weights_for(B)
    hook = attach(model, None, Edge())
    hook.backward(mlp_loss(model, batch), weight_B, batch_loss=model.second.weight.square().mean())
    assert hook.gradients == "shared_forward"
    assert worst(hook.source.bias, ordinary(Mlp(), mlp_loss, batch, weight_B)[1])[0] <= FP32


# --- what is right in one pass


def stays(model, forward, batches, weights, way="single_pass"):
    """NotExact would be raised where the proof gave a false alarm."""
    source = make_source(way, model, selected_of(model))
    for batch, weight_B in zip(batches, weights, strict=True):
        source.backward(MicroBatch(forward(model, batch), weight_B))
        source.reset()
        model.zero_grad(set_to_none=True)
    assert source.name == "single_pass"
    source.detach()


SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def autocast(forward, dtype):
    def run(model, batch):
        with torch.autocast("cpu", dtype, enabled=dtype.itemsize == 2):
            return forward(model, batch)

    return run


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, dtype) for family in ("bert", "llama", "biases") for dtype in SIXTEEN_BITS),
        *((family, torch.float32) for family in ("bert", "llama", "biases", "in bf16")),
    ],
)
def test_rounding_is_no_fault(family, dtype, caplog):
    """The key bias of an attention layer has a gradient of nothing but rounding."""
    build, forward, make = {
        "bert": (bert_lora, text_loss, text_batch),
        "llama": (llama_lora, answer_loss, answer_batch),
        "biases": (lambda: bert_lora(bias="all"), text_loss, text_batch),
        "in bf16": (lambda: with_lora(llama().bfloat16(), task_type="CAUSAL_LM").bfloat16(), answer_loss, answer_batch),
    }[family]
    model = build()
    for name, p in model.named_parameters():
        if "LayerNorm" in name:
            p.requires_grad_(False)
    batches = [make(5, seed=seed) for seed in range(8)]
    with caplog.at_level(logging.INFO, logger="debias"):
        stays(model, autocast(forward, dtype), batches, [weights_for(5, seed=seed) for seed in range(8)])
    assert caplog.text.count("agrees with an ordinary backward pass") == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_five_percent_are_a_fault(dtype):
    """In 16 bits too; the smallest error that is found is measured by making it."""
    model, batch, weight_B = bert_lora(), text_batch(), weights_for(6)
    forward = autocast(text_loss, dtype)
    name, p = next((n, p) for n, p in model.named_parameters() if "layer.1" in n and "lora_B" in n)
    main, _ = ordinary(model, text_loss, batch, weight_B)
    # d/dp of 6 k <p, p>/2 is 6 k p.
    strength = 0.05 * float(main[name].norm()) / (6 * float(p.detach().norm()))
    for factor, wrong in ((1.0, True), (1e-3, False)):
        source = make_source("single_pass", model, selected_of(model))
        loss_B = forward(model, batch) + factor * strength * p.square().sum() / 2
        if wrong:
            with pytest.raises(NotExact, match=name):
                source.backward(MicroBatch(loss_B, weight_B))
        else:
            source.backward(MicroBatch(loss_B, weight_B))
        source.detach()
        model.zero_grad(set_to_none=True)


def test_the_bounds_follow_the_type():
    assert tolerance({torch.float64}) == tolerance({torch.float32}) == (1e-3, 1e-5)
    assert tolerance({torch.float32, torch.float16})[0] == pytest.approx(3 * 2**-10)
    assert tolerance({torch.float32, torch.bfloat16})[0] == pytest.approx(3 * 2**-7)


@pytest.mark.parametrize("samples", [1, 2, 3, 64])
def test_the_trial_weights_are_powers_of_two_and_unequal(samples):
    state = torch.get_rng_state()
    scale_B = powers_of_two(samples, torch.zeros(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.exp2(torch.log2(scale_B).round()), scale_B)
    assert len(scale_B.unique()) == min(samples, 4)


# --- what is left as it was


class Recomputed(nn.Module):
    """A stretch that a backward pass runs again, with dropout and statistics that each run moves."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.classifier = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("average", torch.zeros(7))
        self.reentrant = reentrant

    def middle(self, hidden):
        with torch.no_grad():
            self.average.lerp_(hidden.mean(dim=0), 0.1)
        return torch.tanh(self.second(self.dropout(hidden)))

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        if self.reentrant is None:
            return self.classifier(self.middle(hidden))
        run = torch.utils.checkpoint.checkpoint
        return self.classifier(run(self.middle, hidden, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_the_same_run_to_the_bit(reentrant):
    """Weights, random state, statistics, what the user's hooks see, the gradient of a leaf beside the model."""

    def run(verify):
        model, temperature, seen = Recomputed(reentrant), torch.ones((), requires_grad=True), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        hook = attach(model, optimizer, Edge(), max_grad_norm=1.0, verify=verify)
        model.classifier.weight.register_hook(lambda gradient: seen.append(float(gradient.norm())))
        model.classifier.bias.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.norm())))
        torch.manual_seed(3)
        for step in range(9):
            for part in ((0, 4), (4, 6)):
                batch = rows(numbers(seed=step), *part)
                loss_B = mlp_loss(model, batch) / temperature
                hook.backward(loss_B, weights_for(6, seed=step)[slice(*part)])
            hook.step()
        state = {**model.state_dict(), "temperature": temperature.grad, "random": torch.get_rng_state()}
        return state, seen, hook.gradients

    (with_it, seen, way), (without, seen_without, _) = run(True), run(False)
    assert way == "single_pass"
    assert seen == seen_without
    assert with_it.keys() == without.keys()
    for name, tensor in without.items():
        assert torch.equal(with_it[name], tensor), name


def test_lora_with_dropout_trains_to_the_same_adapter():
    def run(verify):
        model = bert_lora(dropout=0.2)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        hook = attach(model, torch.optim.SGD(selected_of(model).values(), lr=0.1), Edge(), verify=verify)
        torch.manual_seed(5)
        for step in range(9):
            hook.backward(text_loss(model, text_batch(seed=step)), weights_for(6, seed=step))
            hook.step()
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    proven, plain = run(True), run(False)
    assert all(torch.equal(proven[name], plain[name]) for name in plain)


# --- when it looks


class Counted(Mlp):
    """Counts backward passes."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        out = super().forward(x)
        out.register_hook(lambda delta: setattr(self, "passes", self.passes + 1))
        return out


def test_it_looks_twice_in_a_run_and_once_more_at_a_shape_of_a_new_kind():
    model = Counted()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    per_step = []
    for step in range(12):
        before = model.passes
        for seed in range(2):
            hook.backward(mlp_loss(model, numbers(seed=step + seed)), weights_for(B))
        hook.step()
        per_step.append(model.passes - before)
    assert per_step == [4, *[2] * 6, 4, *[2] * 4]
    for tokens in (T, B, T, B, 1):  # three dimensions, then as many tokens as samples: looks that are left, one
        before = model.passes
        hook.backward(cross_entropy(model(numbers(B, tokens)["x"]).mean(dim=1), numbers()["labels"]), weights_for(B))
        hook.step()
        per_step.append(model.passes - before)
    assert per_step[12:] == [3, 1, 1, 1, 1]


def test_samples_that_are_mixed_from_some_step_on_are_found(caplog):
    """Mixing that a schedule turns on: nothing is wrong in the looks of the first steps."""

    class Later(Counted):
        mixes = False

        def forward(self, x):
            out = super().forward(x)
            return out + 0.5 * out.roll(1, dims=0) if self.mixes else out

    model = Later()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.01), Edge())
    found = []
    for step in range(66):
        model.mixes = step >= 20
        hook.backward(mlp_loss(model, numbers(seed=step)), weights_for(B))
        hook.step()
        found.append(hook.gradients)
    assert (found[62], found[63], found[-1]) == ("single_pass", "shared_forward", "shared_forward")
    assert [record for record in caplog.records if "falls back to shared_forward" in record.message]


def test_a_single_sample_proves_little():
    """With one sample every weight is right; the first batch of several is looked at."""
    model = Sorted()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    hook.backward(mlp_loss(model, numbers(1)), weights_for(1))
    hook.step()
    assert hook.gradients == "single_pass"
    hook.backward(mlp_loss(model, numbers()), weights_for(B))
    assert hook.gradients == "shared_forward"


def test_samples_that_happen_to_be_in_order_at_first():
    model = Sorted()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    for step in range(8):
        batch = numbers(seed=step)
        if step == 0:
            batch["x"][:, 0] = torch.arange(B)
        hook.backward(mlp_loss(model, batch), weights_for(B))
        hook.step()
        assert (hook.gradients == "single_pass") == (step < 7)


def test_in_the_middle_of_a_step_what_was_accumulated_is_kept():
    """Tokens come first where there are as many as samples: the second micro-batch shows it."""

    class Sometimes(Mlp):
        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            turned = hidden.transpose(0, 1) if x.shape[0] == x.shape[1] else hidden
            hidden = torch.tanh(self.second(turned))
            return self.classifier((hidden.transpose(0, 1) if x.shape[0] == x.shape[1] else hidden).mean(dim=1))

    model = Sometimes()
    source = make_source("auto", model, selected_of(model))
    wants = []
    for batch in (numbers(B, T), numbers(B, B)):
        wants.append(ordinary(Sometimes(), mlp_loss, batch, weights_for(B)))
        source.backward(MicroBatch(mlp_loss(model, batch), weights_for(B)))
    assert source.name == "shared_forward"
    main = {name: p.grad for name, p in model.named_parameters()}
    for got, (one, other) in zip((main, source.bias), zip(*wants, strict=True), strict=True):
        assert worst(got, {name: one[name] + other[name] for name in one})[0] <= FP32


def test_a_batch_that_is_not_finite_says_nothing():
    model = Mlp()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    for factor in (float("nan"), 1.0):
        hook.backward(penalised(model, numbers()) * factor, weights_for(B))
        done = hook.step()
        assert done.finite == (factor == 1.0)
    assert hook.gradients == "shared_forward"


# --- hooks


def lora_a(model):
    return model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense.lora_A.default")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["forward", "pre", "backward"])
def test_hooks_on_the_matrices_of_lora_are_honoured(kind, when):
    def hook_it(model):
        layer = lora_a(model)
        if kind == "forward":
            layer.register_forward_hook(lambda module, inputs, output: 2 * output)
        elif kind == "pre":
            layer.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))
        else:
            layer.register_full_backward_hook(lambda module, grad_in, grad_out: (3 * grad_in[0],))

    plain, model, batch, weight_B = bert_lora(), bert_lora(), text_batch(), weights_for(6)
    hook_it(plain)
    if when == "before":
        hook_it(model)
    hook = attach(model, None, Edge(), "single_pass")
    if when == "after":
        hook_it(model)
    loss_B = text_loss(model, batch)
    torch.testing.assert_close(loss_B, text_loss(plain, batch))
    assert float((loss_B - text_loss(bert_lora(), batch)).abs().detach().max()) > 1e-3 or kind == "backward"
    hook.backward(loss_B, weight_B)
    main, bias = ordinary(plain, text_loss, batch, weight_B)
    assert worst({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, main)[0] <= FP32
    assert worst(hook.source.bias, bias)[0] <= FP32
    hook.detach()
    assert "forward" not in vars(lora_a(model))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_acts_on_both_gradients(kind, when):
    def hook_it(model):
        def act(tensor):
            if kind == "register_hook":
                return 3 * tensor
            tensor.grad.mul_(3)
            return None

        getattr(model.second.weight, kind)(act)

    model, batch, weight_B = Mlp(), numbers(), weights_for(B)
    main, bias = ordinary(model, mlp_loss, batch, weight_B)
    for gradients in (main, bias):
        gradients["second.weight"] *= 3
    if when == "before":
        hook_it(model)
        with pytest.raises(
            ValueError, match=r"a hook on second\.weight \(register_hook\) would act on the main gradient"
        ):
            make_source("single_pass", model, selected_of(model))
    source = make_source("auto", model, selected_of(model))
    if when == "after":
        hook_it(model)
    source.backward(MicroBatch(mlp_loss(model, batch), weight_B))
    assert source.name == "shared_forward"
    assert worst({n: p.grad for n, p in model.named_parameters()}, main)[0] <= FP32
    assert worst(source.bias, bias)[0] <= FP32


def test_a_proven_source_is_a_single_pass():
    model = Mlp()
    source = make_source("auto", model, selected_of(model))
    assert isinstance(source, SinglePass)
    source.detach()
