"""`attach` on a loop of one's own: denominators, order of operations, figures, and everything that may go wrong."""

import copy
import dataclasses
import logging
import math

import pytest
import torch
from gradient_checks import answer_loss, by_samples, mlp_loss, text_loss, weights_for
from tables import FORMS, first_update
from tiny_models import Mlp, answer_batch, bert, bert_lora, llama_lora, rows, text_batch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from debias.engines import NonFiniteGradients, attach, not_head, select_parameters
from debias.engines.marks import Marks
from debias.engines.reduce import BUCKET_ELEMENTS, _buckets
from debias.engines.stacks import CPU_LARGE, STACK_ELEMENTS, groups_of_one_shape, together
from debias.losses import Answers, cross_entropy
from debias.methods import L2SP, ComponentClip, Edge, MainOnly, Orthogonal, Rule, Subtract, each_row

torch.set_num_threads(1)

PARTS = [(0, 4), (4, 11), (11, 14)]
WAYS = ["single_pass", "shared_forward", "two_pass"]


def mlp_batch(samples=14, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(samples, 5, generator=generator),
        "labels": torch.randint(0, 3, (samples,), generator=generator),
    }


def feed(hook, model, batch, weight_B, forward=mlp_loss, parts=((0, None),), count=None):
    for start, stop in parts:
        part, w = rows(batch, start, stop), weight_B[start:stop]
        hook.backward(forward(model, part), w, count=count, again=lambda p=part, v=w: (forward(model, p), v))


def direct_updates(rule, model, forward, batch, weight_B, count, select=not_head):
    """main and bias as means from single samples, each tensor's update by the rule: what `p.grad` must become."""
    main, bias = by_samples(model, forward, batch, weight_B, select)
    return {
        name: first_update(rule, gradient / count, bias[name] / count) if name in bias else gradient / count
        for name, gradient in main.items()
    }


def assert_grads(model, want, tolerance=1e-5):
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(want)
    largest = max(float(update.norm()) for update in want.values())
    for name, update in want.items():
        error = float((got[name].double() - update.double()).norm())
        assert error <= tolerance * max(float(update.norm()), 1e-2 * largest), f"{name}: {error:.2e}"


def attached(model, rule=None, gradients="auto", lr=0.1, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return attach(model, optimizer, rule or Edge(), gradients, **settings)


# --- what the update is


@pytest.mark.parametrize("rule", FORMS, ids=repr)
@pytest.mark.parametrize("gradients", WAYS)
def test_the_update_of_unequal_micro_batches(rule, gradients):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    want = direct_updates(rule, model, mlp_loss, batch, weight_B, 14)
    hook = attached(model, rule, gradients)
    assert hook.gradients == (gradients if rule.uses_bias else "plain")
    feed(hook, model, batch, weight_B, parts=PARTS)
    hook.combine()
    assert_grads(model, want)


@pytest.mark.parametrize("rule", FORMS, ids=repr)
def test_the_update_of_lora(rule):
    """Many tensors of one shape: combined in stacks, each by itself."""
    model, batch, weight_B = bert_lora(), text_batch(14), weights_for(14)
    want = direct_updates(rule, model, text_loss, batch, weight_B, 14)
    hook = attached(model, rule)
    assert hook.gradients == ("single_pass" if rule.uses_bias else "plain")
    feed(hook, model, batch, weight_B, text_loss, PARTS)
    hook.combine()
    assert_grads(model, want)


def test_micro_batches_are_summed_before_the_rule_not_after():
    """The rules are not linear: the mean of the micro-batches' updates is another update."""
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    whole = direct_updates(Edge(), model, mlp_loss, batch, weight_B, 14)
    parts = [direct_updates(Edge(), model, mlp_loss, rows(batch, *p), weight_B[slice(*p)], p[1] - p[0]) for p in PARTS]
    name = "second.weight"
    mean = sum(part[name] * (stop - start) / 14 for part, (start, stop) in zip(parts, PARTS, strict=True))
    assert float((mean - whole[name]).norm() / whole[name].norm()) > 1e-3


@pytest.mark.parametrize("gradients", WAYS)
def test_count_is_the_denominator(gradients):
    """Answers with a mean over tokens: 1 to 3 answer tokens a sample, micro-batches of unequal token counts."""
    model, batch, weight_B = llama_lora(), answer_batch(14), weights_for(14)
    tokens = int(batch["answer_mask"].sum())
    assert tokens != 14
    want = direct_updates(Edge(), model, answer_loss, batch, weight_B, tokens)
    hook = attached(model, Edge(), gradients)
    objective = Answers([[5], [6]], mean_over="tokens")
    for start, stop in PARTS:
        part, w = rows(batch, start, stop), weight_B[start:stop]
        said = objective.said(model, part)
        assert said.count == int(part["answer_mask"].sum())
        hook.backward(-said.log_p_B, w, count=said.count, again=lambda p=part, v=w: (answer_loss(model, p), v))
    done = hook.combine()
    assert done.samples == tokens
    assert_grads(model, want)


@dataclasses.dataclass(frozen=True)
class BySize(Rule):
    """A rule that depends on how large the gradients are, and on nothing else."""

    name = "by_size"

    def coefficients(self, gram):
        return each_row(gram, gram.whole_1G[..., 0]), each_row(gram, 0.0)


def test_rules_see_means_not_sums():
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    want = direct_updates(BySize(), model, mlp_loss, batch, weight_B, 14)
    hook = attached(model, BySize())
    feed(hook, model, batch, weight_B, parts=PARTS)
    hook.combine()
    assert_grads(model, want)


def test_two_steps_do_not_leak_into_each_other():
    model, weight_B = Mlp(), weights_for(14)
    hook = attached(model, lr=0.05)
    feed(hook, model, mlp_batch(seed=1), weight_B)
    hook.step()
    want = direct_updates(Edge(), model, mlp_loss, mlp_batch(seed=2), weight_B, 14)
    feed(hook, model, mlp_batch(seed=2), weight_B)
    hook.combine()
    assert_grads(model, want)


@pytest.mark.parametrize("gradients", WAYS)
def test_head_parameters_follow_main_only(gradients):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    main, _ = by_samples(model, mlp_loss, batch, weight_B)
    hook = attached(model, Subtract(), gradients)
    assert all("classifier" not in name for name in hook.selected)
    feed(hook, model, batch, weight_B)
    hook.combine()
    for name, p in model.named_parameters():
        follows_main = torch.allclose(p.grad.double(), main[name] / 14, rtol=1e-5, atol=1e-7)
        assert follows_main == ("classifier" in name), name


@pytest.mark.parametrize("maker", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("gradients", ["auto", "single_pass"])
def test_main_only_is_plain_training(maker, gradients):
    ours, plain = bert_lora(), bert_lora()
    optimizers = [maker([p for p in m.parameters() if p.requires_grad], lr=0.01) for m in (ours, plain)]
    hook = attach(ours, optimizers[0], MainOnly(), gradients, max_grad_norm=0.5)
    for step in range(3):
        batch = text_batch(seed=step)
        hook.backward(text_loss(ours, batch), weights_for(6))
        hook.step()
        text_loss(plain, batch).mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizers[1].step()
        optimizers[1].zero_grad()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-6


# --- clipping


@pytest.mark.parametrize("limit", [1e-3, 0.1, 1e3])
def test_clipping_acts_on_the_update_and_is_torchs(limit):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    want = direct_updates(Edge(), model, mlp_loss, batch, weight_B, 14)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    for name, p in twin.named_parameters():
        p.grad = want[name].float()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), limit)
    hook = attached(model, lr=1.0, max_grad_norm=limit)
    feed(hook, model, batch, weight_B)
    done = hook.step()
    assert done.grad_norm == pytest.approx(float(norm), rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(start[name] - p, q.grad, rtol=2e-5, atol=max(1e-7, 1e-6 * limit))


def test_without_a_limit_nothing_is_clipped():
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    want = direct_updates(Edge(), model, mlp_loss, {**batch, "x": 100 * batch["x"]}, weight_B, 14)
    start = model.first.weight.detach().clone()
    hook = attached(model, lr=1.0)
    feed(hook, model, {**batch, "x": 100 * batch["x"]}, weight_B)
    hook.step()
    torch.testing.assert_close(start - model.first.weight, want["first.weight"].float(), rtol=1e-4, atol=1e-4)


# --- gradients that are not finite


def poisoned(model, batch, value=float("nan")):
    loss_B = mlp_loss(model, batch)
    return loss_B * torch.tensor([value] + [1.0] * (len(loss_B) - 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("gradients", WAYS)
def test_a_non_finite_loss_skips_the_step(gradients, value, caplog):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    hook = attach(model, optimizer, Edge(), gradients)
    feed(hook, model, batch, weight_B)
    assert hook.step().finite
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    feed(hook, model, batch, weight_B)
    hook.backward(poisoned(model, batch, value), weight_B, again=lambda: (mlp_loss(model, batch), weight_B))
    with caplog.at_level(logging.WARNING):
        done = hook.step()
    assert not done.finite
    assert hook.skipped == 1
    assert "skipped" in caplog.text
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    after = optimizer.state_dict()
    for key, values in state["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after["state"][key][k])) for k, v in values.items())
    assert all(p.grad is None for p in model.parameters())
    # The next step is as if nothing had happened.
    want = direct_updates(Edge(), model, mlp_loss, batch, weight_B, 14)
    feed(hook, model, batch, weight_B)
    assert hook.combine().finite
    assert_grads(model, want)
    assert hook.skipped == 1


@pytest.mark.parametrize("gradients", WAYS)
def test_a_non_finite_weight_skips_the_step(gradients):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    weight_B[3] = float("nan")
    hook = attached(model, Edge(), gradients)
    feed(hook, model, batch, weight_B)
    assert not hook.step().finite
    assert all(p.isfinite().all() for p in model.parameters())


def test_bias_weights_too_small_for_float32_are_no_bias_and_no_overflow():
    model, plain = Mlp(), Mlp()
    small = attach(model, None, Orthogonal())
    feed(small, model, mlp_batch(), weights_for(14) * 1e-42)
    feed(hook := attach(plain, None, MainOnly()), plain, mlp_batch(), weights_for(14))
    hook.combine()
    assert small.combine().finite
    assert_grads(model, {name: p.grad for name, p in plain.named_parameters()})


def test_a_head_that_is_not_finite_skips_the_step():
    model, batch = Mlp(), mlp_batch()
    hook = attached(model)
    handle = model.classifier.weight.register_hook(lambda gradient: gradient / 0)
    feed(hook, model, batch, weights_for(14))
    handle.remove()
    assert not hook.combine().finite


def test_too_many_skipped_steps_stop_the_run():
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    hook = attached(model, max_nonfinite_steps=2)
    for skipped in (1, 2):
        hook.backward(poisoned(model, batch), weight_B)
        hook.step()
        assert hook.skipped == skipped
    hook.backward(poisoned(model, batch), weight_B)
    with pytest.raises(NonFiniteGradients, match="max_nonfinite_steps=2"):
        hook.step()
    assert all(p.grad is None for p in model.parameters())


# --- figures


@pytest.mark.parametrize("rule", FORMS, ids=repr)
def test_figures_against_direct_computation(rule):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    main, bias = by_samples(model, mlp_loss, batch, weight_B)
    updates = direct_updates(rule, model, mlp_loss, batch, weight_B, 14)
    flat_main = torch.cat([main[name].flatten() for name in bias]) / 14
    flat_bias = torch.cat([bias[name].flatten() for name in bias]) / 14
    flat_update = torch.cat([updates[name].flatten() for name in bias])
    hook = attached(model, rule)
    feed(hook, model, batch, weight_B, parts=PARTS)
    done = hook.combine()
    assert done is hook.last
    assert done.finite
    assert done.samples == 14
    if rule.is_plain:
        assert (done.main_norm, done.bias_norm, done.cosine, done.removed_share) == (0.0, 0.0, 0.0, 0.0)
        return
    if not rule.uses_bias:
        flat_bias = torch.zeros_like(flat_bias)
    assert done.main_norm == pytest.approx(float(flat_main.norm()), rel=1e-5)
    assert done.bias_norm == pytest.approx(float(flat_bias.norm()), rel=1e-5)
    assert done.cosine == pytest.approx(float(nn.functional.cosine_similarity(flat_main, flat_bias, dim=0)), rel=1e-5)
    removed = float((flat_main - flat_update).norm() / flat_main.norm())
    assert done.removed_share == pytest.approx(removed, rel=1e-4, abs=1e-6)
    whole = torch.cat([update.flatten() for update in updates.values()])
    assert done.grad_norm == pytest.approx(float(whole.norm()), rel=1e-5)


def test_figures_of_a_bias_gradient_that_is_zero():
    model, batch = Mlp(), mlp_batch()
    hook = attached(model)
    feed(hook, model, batch, torch.zeros(14))
    done = hook.combine()
    assert (done.bias_norm, done.cosine, done.removed_share) == (0.0, 0.0, 0.0)
    assert done.finite


def test_equal_weights_make_bias_parallel_to_main():
    model, batch = Mlp(), mlp_batch()
    hook = attached(model)
    feed(hook, model, batch, torch.full((14,), 0.3))
    done = hook.combine()
    assert done.cosine == pytest.approx(1.0, abs=1e-6)
    assert done.bias_norm == pytest.approx(0.3 * done.main_norm, rel=1e-5)


# --- what may go wrong


def test_step_before_backward():
    hook = attached(Mlp())
    for call in (hook.step, hook.combine):
        with pytest.raises(RuntimeError, match="without a backward"):
            call()


def test_a_second_step_needs_a_second_backward():
    model = Mlp()
    hook = attached(model)
    feed(hook, model, mlp_batch(), weights_for(14))
    hook.step()
    with pytest.raises(RuntimeError, match="without a backward"):
        hook.step()


def test_step_without_an_optimizer():
    model = Mlp()
    hook = attach(model, None, Edge())
    feed(hook, model, mlp_batch(), weights_for(14))
    with pytest.raises(RuntimeError, match="without an optimizer"):
        hook.step()


@pytest.mark.parametrize("gradients", WAYS)
def test_shapes_of_loss_and_weight(gradients):
    model, batch = Mlp(), mlp_batch()
    hook = attached(model, Edge(), gradients)
    loss_B = mlp_loss(model, batch)
    with pytest.raises(ValueError, match=r"weight_B has shape \(13,\), loss_B \(14,\)"):
        hook.backward(loss_B, weights_for(13))
    with pytest.raises(ValueError, match=r"weight_B has shape \(14, 1\)"):
        hook.backward(loss_B, weights_for(14).unsqueeze(1))
    with pytest.raises(ValueError, match=r"loss_B has shape \(\)"):
        hook.backward(loss_B.mean(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="does not require grad"):
        hook.backward(loss_B.detach(), weights_for(14))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("wrong", [lambda w: w[:1], lambda w: w.unsqueeze(1)])
def test_the_second_forward_of_two_pass_is_checked_too(wrong):
    """A weight of another shape would broadcast silently."""
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    hook = attached(model, Edge(), "two_pass")
    with pytest.raises(ValueError, match="weight_B has shape"):
        hook.backward(mlp_loss(model, batch), weight_B, again=lambda: (mlp_loss(model, batch), wrong(weight_B)))


def test_the_weight_may_hang_on_the_graph_and_be_of_any_dtype():
    model, batch = Mlp(), mlp_batch()
    loss_B = mlp_loss(model, batch)
    want = None
    for weight_B in (torch.exp(-loss_B.detach()), torch.exp(-loss_B), torch.exp(-loss_B).double()):
        hook = attached(model)
        hook.backward(mlp_loss(model, batch), weight_B)
        hook.combine()
        found = model.second.weight.grad.clone()
        torch.testing.assert_close(found, found if want is None else want)
        want = found
        hook.detach()
        model.zero_grad()


def test_an_optimizer_that_lacks_a_selected_parameter():
    model = Mlp()
    optimizer = torch.optim.SGD([*model.first.parameters(), *model.classifier.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"second\.weight is trainable but not in the optimizer \(2 such"):
        attach(model, optimizer, Edge())
    assert not [m for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimized", ["together", "apart"])
def test_a_head_beside_the_model(way, optimized):
    """Its gradient would be a sum that nobody divides; of one module that holds both it is the mean of autograd."""
    torch.manual_seed(0)
    encoder, head = nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3)
    batch = mlp_batch(6)
    each = nn.CrossEntropyLoss(reduction="none")

    def loss():
        return each(head(encoder(batch["x"])), batch["labels"])

    weight_B = weights_for(6)
    told = r"tensors of shapes \[3, 6\], \[3\] are not of the attached model: .* holds them all, such as nn.ModuleDict"
    if optimized == "together":
        with pytest.raises(ValueError, match=r"^optimizer: 2 trainable " + told):
            attach(encoder, torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=1.0), Edge(), way)
    hook = attach(encoder, torch.optim.SGD(encoder.parameters(), lr=1.0), Edge(), way)
    with pytest.raises(ValueError, match=r"^backward: 2 trainable " + told):
        hook.backward(loss(), weight_B, again=lambda: (loss(), weight_B))
    assert all(p.grad is None for p in [*encoder.parameters(), *head.parameters()])
    hook.detach()
    both = nn.ModuleDict({"model": encoder, "classifier": head})
    want = torch.autograd.grad(loss().mean(), list(head.parameters()))
    hook = attach(both, torch.optim.SGD(both.parameters(), lr=1.0), Edge(), way)
    hook.backward(loss(), weight_B, again=lambda: (loss(), weight_B))
    hook.combine()
    torch.testing.assert_close([p.grad for p in head.parameters()], list(want))


@pytest.mark.parametrize("way", WAYS)
def test_a_head_that_joins_later(way):
    """A second stage of a loop: it is refused as at the beginning, and not trained by sums."""
    torch.manual_seed(0)
    model, head, batch, weight_B = Mlp(), nn.Linear(5, 3), mlp_batch(6), weights_for(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, Edge(), way)
    feed(hook, model, batch, weight_B)
    hook.step()
    optimizer.add_param_group({"params": list(head.parameters())})
    with pytest.raises(ValueError, match=r"^optimizer: 2 trainable tensors of shapes \[3, 5\], \[3\] are not of the"):
        feed(hook, model, batch, weight_B)
    optimizer.param_groups.pop()
    model.later = head  # as a part of the model it is none of its own
    optimizer.add_param_group({"params": list(head.parameters())})
    with pytest.raises(RuntimeError, match=r"later\.weight trains now and did not when the hook was attached"):
        feed(hook, model, batch, weight_B)


def test_frozen_parameters_of_others_are_nobodys_business():
    model, teacher = Mlp(), nn.Linear(3, 3).requires_grad_(False)
    optimizer = torch.optim.SGD([*model.parameters(), *teacher.parameters()], lr=0.1)
    batch = mlp_batch(6)
    hook = attach(model, optimizer, Edge(), "shared_forward")
    loss_B = mlp_loss(model, batch) + teacher(batch["x"][:, :3]).square().sum(dim=1)
    hook.backward(loss_B, weights_for(6))
    hook.combine()
    assert all(p.grad is None for p in teacher.parameters())


def test_nothing_selected():
    with pytest.raises(ValueError, match="act on nothing: 0 trainable"):
        attach(Mlp().requires_grad_(False), None, Edge())
    with pytest.raises(ValueError, match="act on nothing: 6 trainable tensors, none selected"):
        attach(Mlp(), None, Edge(), select=lambda name, parameter: False)


def test_unknown_gradients():
    with pytest.raises(ValueError, match="gradients is 'both'"):
        attach(Mlp(), None, Edge(), "both")


def test_unknown_gradients_are_unknown_to_every_rule():
    """A setting that is ignored silently is a bug."""
    with pytest.raises(ValueError, match="gradients is 'both'"):
        attach(Mlp(), None, MainOnly(), "both")


def test_single_pass_where_it_is_not_exact():
    with pytest.raises(ValueError, match="not exact here"):
        attach(bert(), None, Edge(), "single_pass")


@pytest.mark.parametrize("gradients", WAYS)
def test_loss_backward_beside_the_hook_is_noticed(gradients):
    """Somebody's `loss.backward()` before, after or between: main would count it, bias would not."""
    for order in ("before", "between", "after"):
        model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
        hook = attached(model, Edge(), gradients)
        if order == "before":
            mlp_loss(model, batch).sum().backward()
        else:
            feed(hook, model, batch, weight_B)
            mlp_loss(model, batch).sum().backward()
        with pytest.raises(RuntimeError, match=r"beside hook\.backward \(loss\.backward\(\)"):
            hook.step() if order == "after" else feed(hook, model, batch, weight_B)
        # Once the gradients are cleared the hook goes on as if nothing had happened.
        model.zero_grad()
        want = direct_updates(Edge(), model, mlp_loss, batch, weight_B, 14)
        feed(hook, model, batch, weight_B)
        hook.combine()
        assert_grads(model, want)


def unscaled(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))


def averaged(model):
    """As all_reduce leaves a gradient, whose version it does not count: of two ranks of which one had none."""
    for p in model.parameters():
        p.grad.data.div_(2)


def broadcast(model):
    list(model.parameters())[2].grad.data.copy_(torch.ones(7, 7))


def not_a_number(model):
    model.first.bias.grad.data[3] = torch.nan


@pytest.mark.parametrize("touch", [unscaled, averaged, broadcast, not_a_number])
def test_what_changes_gradients_past_their_version_is_noticed(touch):
    for order in ("between", "after"):
        model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
        hook = attached(model)
        feed(hook, model, batch, weight_B)
        versions = [p.grad._version for p in model.parameters()]
        touch(model)
        assert versions == [p.grad._version for p in model.parameters()]  # or this says nothing
        with pytest.raises(RuntimeError, match=r"beside hook\.backward .*GradScaler\.unscale_"):
            hook.step() if order == "after" else feed(hook, model, batch, weight_B)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_are_the_same_as_themselves(value):
    model, batch = Mlp(), mlp_batch()
    hook = attached(model)
    hook.backward(mlp_loss(model, batch) * value, weights_for(14))
    feed(hook, model, batch, weights_for(14))
    assert not hook.combine().finite


def test_an_accelerator_is_asked_once_a_step(monkeypatch):
    """What differs is kept until the end of the step, where it is found, though it was put right again."""
    model = Mlp()
    marks = Marks(dict(model.named_parameters()))
    mlp_loss(model, mlp_batch()).sum().backward()
    monkeypatch.setattr("debias.engines.marks.WAITS", frozenset())
    marks.take()
    model.second.weight.grad.data.mul_(2)
    marks.check(last=False)
    model.second.weight.grad.data.div_(2)
    with pytest.raises(RuntimeError, match=r"second\.weight was changed beside"):
        marks.check(last=True)


@pytest.mark.parametrize("rule", [Edge(), ComponentClip(max_norm=0.15), L2SP(alpha=1.0), Subtract()], ids=repr)
def test_a_loss_scaler_whose_scale_the_count_takes_off(rule):
    """The order that attach's docstring gives, through an overflow: the same as without a scaler."""

    def run(scaler):
        model, losses = Mlp(), []
        hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.5), rule, max_grad_norm=1.0)
        for step in range(4):
            for start, stop in PARTS:
                part, weight_B = rows(mlp_batch(seed=step), start, stop), weights_for(14)[start:stop]
                loss_B = mlp_loss(model, part) * (math.inf if step == 1 else 1.0)
                hook.backward(scaler.scale(loss_B), weight_B, count=len(loss_B) * scaler.get_scale())
            report = hook.step()
            scaler.update(scaler.get_scale() * (1.0 if report.finite else 0.5))
            losses.append((report.finite, report.grad_norm if report.finite else 0.0))
        return losses, {name: p.detach().clone() for name, p in model.named_parameters()}, scaler.get_scale()

    scaled, plain = (run(torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=on)) for on in (True, False))
    assert [finite for finite, _ in scaled[0]] == [True, False, True, True]
    assert scaled[2] == 2.0**15
    for (_, ours), (_, theirs) in zip(scaled[0], plain[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    for name, weight in plain[1].items():
        assert torch.allclose(scaled[1][name], weight, rtol=1e-5, atol=1e-7), name


def test_a_step_by_the_loss_scaler_is_refused():
    model, batch = Mlp(), mlp_batch()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    hook = attach(model, optimizer, Edge())
    hook.backward(scaler.scale(mlp_loss(model, batch)), weights_for(14))
    hook.combine()
    with pytest.raises(RuntimeError, match=r"GradScaler\.step after the hook's combine"):
        scaler.step(optimizer)
    hook.detach()
    scaler.step(torch.optim.SGD(model.parameters(), lr=0.1))  # nobody's any more
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("gradients", WAYS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_cleared_either_way_before_a_step_are_fine(gradients, set_to_none):
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    mlp_loss(model, batch).sum().backward()
    model.zero_grad(set_to_none=set_to_none)
    want = direct_updates(Edge(), copy.deepcopy(model), mlp_loss, batch, weight_B, 14)
    hook = attached(model, Edge(), gradients)
    feed(hook, model, batch, weight_B, parts=PARTS)
    hook.combine()
    assert_grads(model, want)


@pytest.mark.parametrize("gradients", WAYS)
@pytest.mark.parametrize("at", ["first micro-batch", "second micro-batch"])
def test_a_backward_pass_that_fails_leaves_nothing(gradients, at):
    """Memory that runs out in the middle of it, and a loop that leaves the batch out and goes on."""

    class Fails(Mlp):
        broken = False

        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            if self.broken:
                hidden.register_hook(lambda _: (_ for _ in ()).throw(MemoryError("out")))
            return self.classifier(torch.tanh(self.second(hidden)))

    model, batch, weight_B = Fails(), mlp_batch(), weights_for(14)
    want = direct_updates(Edge(), copy.deepcopy(model), mlp_loss, batch, weight_B, 14)
    hook = attached(model, Edge(), gradients)
    if at == "second micro-batch":
        feed(hook, model, batch, weight_B)
    model.broken = True
    with pytest.raises((MemoryError, RuntimeError)):
        feed(hook, model, batch, weight_B)
    model.broken = False
    with pytest.raises(RuntimeError, match=r"step without a backward|clear the gradients"):
        hook.step()
    model.zero_grad()
    feed(hook, model, batch, weight_B)
    hook.combine()
    assert_grads(model, want)


@pytest.mark.parametrize("gradients", WAYS)
def test_a_batch_that_counts_nothing(gradients):
    model = Mlp()
    hook = attached(model, Edge(), gradients)
    feed(hook, model, mlp_batch(), weights_for(14), count=0)
    with pytest.raises(RuntimeError, match="count 0 on all ranks together: there is nothing to divide by"):
        hook.step()


def test_another_adapter_made_active_after_attach():
    from peft import LoraConfig

    model = bert_lora()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    hook = attach(model, None, Edge())
    for name, parameter in model.named_parameters():
        if "second" in name:
            parameter.requires_grad = True
    hook._at_attach |= {name for name, p in model.named_parameters() if p.requires_grad}  # as if it had trained then
    model.set_adapter("second")
    batch = text_batch()
    hook.backward(text_loss(model, batch), weights_for(6))
    with pytest.raises(RuntimeError, match="no parameter that the rule acts on has a gradient: another adapter"):
        hook.combine()


def test_unfreezing_after_attach():
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    model.first.requires_grad_(False)
    hook = attached(model)
    feed(hook, model, batch, weight_B)
    hook.step()
    model.first.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"first\.weight trains now and did not when the hook was attached"):
        feed(hook, model, batch, weight_B)
    hook.detach()
    hook = attached(model)
    feed(hook, model, batch, weight_B)
    want = direct_updates(Edge(), copy.deepcopy(model), mlp_loss, batch, weight_B, 14)
    hook.combine()
    assert_grads(model, want)


def test_unfreezing_in_the_middle_of_a_step():
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    model.classifier.requires_grad_(False)
    hook = attached(model)
    feed(hook, model, batch, weight_B)
    model.classifier.requires_grad_(True)
    feed(hook, model, batch, weight_B)
    with pytest.raises(RuntimeError, match=r"classifier\.weight was unfrozen in the middle of a step"):
        hook.step()


def test_tensors_that_are_spread_over_ranks_are_refused():
    """By anything but FSDP2 (tests/world2/test_fsdp.py)."""
    model = Mlp()
    model.second.weight.placements = ("Shard(0)",)
    with pytest.raises(ValueError, match=r"second\.weight is a DTensor of tensor parallelism.*fully_shard alone"):
        attached(model)


def test_the_older_fsdp_is_refused():
    class FullyShardedDataParallel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Mlp()

    with pytest.raises(ValueError, match=r"\(FSDP1\) is not supported.*fully_shard \(FSDP2\)"):
        attached(FullyShardedDataParallel())


def test_what_trains_outside_the_optimizer_does_not_pile_up():
    """A head that nobody steps: its gradient must not grow from step to step and shrink the clipped update."""
    model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
    optimizer = torch.optim.SGD([*model.first.parameters(), *model.second.parameters()], lr=0.0)
    hook = attach(model, optimizer, Edge())
    norms = []
    for _ in range(3):
        feed(hook, model, batch, weight_B)
        norms.append(hook.step().grad_norm)
    assert norms == pytest.approx([norms[0]] * 3)


@pytest.mark.parametrize("gradients", WAYS)
def test_zero_grad_between_micro_batches_is_noticed(gradients):
    """It would wipe main and keep bias."""
    for set_to_none in (True, False):
        model, batch, weight_B = Mlp(), mlp_batch(), weights_for(14)
        hook = attached(model, Edge(), gradients)
        feed(hook, model, batch, weight_B)
        model.zero_grad(set_to_none=set_to_none)
        with pytest.raises(RuntimeError, match="beside hook"):
            feed(hook, model, batch, weight_B)


@pytest.mark.parametrize("verify", [True, False])
def test_a_weight_used_without_calling_its_layer_is_noticed(verify):
    """In the first backward pass; a weight that is used so later on, in the step."""

    class Silent(Mlp):
        def forward(self, x):
            hidden = nn.functional.linear(torch.tanh(self.first(x)), self.second.weight)
            return self.classifier(hidden)

    model = Silent(bias=False)
    hook = attached(model, Edge(), "single_pass", verify=verify)
    if not verify:
        feed(hook, model, mlp_batch(), weights_for(14))
    with pytest.raises(RuntimeError, match=r"second\.weight got a main gradient and no bias gradient.*shared_forward"):
        feed(hook, model, mlp_batch(), weights_for(14)) if verify else hook.step()


@pytest.mark.parametrize("gradients", WAYS)
def test_a_parameter_that_the_batch_does_not_use(gradients):
    model = Mlp()
    model.unused = nn.Linear(3, 3)
    hook = attached(model, Edge(), gradients)
    feed(hook, model, mlp_batch(), weights_for(14))
    assert hook.combine().finite
    assert model.unused.weight.grad is None


@pytest.mark.parametrize("gradients", WAYS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_layer_that_some_steps_do_not_use(gradients, set_to_none):
    """Zeros that `zero_grad(set_to_none=False)` left are no gradient of the step."""
    model = Mlp()
    model.now_and_then = nn.Linear(5, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0)
    hook = attach(model, optimizer, Edge(), gradients)
    for step in range(4):
        used, batch = step != 2, mlp_batch(seed=step)

        def forward(model, batch, used=used):
            x = batch["x"] + model.now_and_then(batch["x"]) if used else batch["x"]
            return nn.functional.cross_entropy(model(x), batch["labels"], reduction="none")

        weight_B = weights_for(14)
        want = direct_updates(Edge(), copy.deepcopy(model), forward, batch, weight_B, 14) if used else None
        feed(hook, model, batch, weight_B, forward=forward)
        assert hook.combine().finite
        if want is not None:
            assert_grads(model, want)
        else:
            left = model.now_and_then.weight.grad
            assert left is None if set_to_none else not left.any()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def test_detach_gives_the_model_back():
    model, batch = Mlp(), mlp_batch()
    hook = attached(model, Edge(), "single_pass")
    hook.detach()
    assert not [m for m in model.modules() if "forward" in vars(m)]
    mlp_loss(model, batch).mean().backward()
    assert model.first.weight.grad is not None


# --- models trained in other ways than LoRA


def biases_and_head(model):
    for name, p in model.named_parameters():
        p.requires_grad = name.endswith("bias") or "classifier" in name
    return model


@pytest.mark.parametrize("rule", [Edge(), Subtract()], ids=repr)
@pytest.mark.parametrize("train", ["bitfit", "full"])
def test_bitfit_and_full_fine_tuning(train, rule, caplog):
    """auto falls back to shared_forward; the rule acts on every tensor but the head, layer norms and embeddings too."""
    model = bert() if train == "full" else biases_and_head(bert())
    batch, weight_B = text_batch(), weights_for(6)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    main, bias = by_samples(model, text_loss, batch, weight_B)
    want = direct_updates(rule, model, text_loss, batch, weight_B, 6)
    with caplog.at_level(logging.INFO, logger="debias"):
        hook = attached(model, rule)
    assert hook.gradients == "shared_forward"
    assert set(hook.selected) == {name for name in trainable if "classifier" not in name} == set(bias)
    assert f"the rule acts on {len(hook.selected)} tensors" in caplog.text
    assert "2 other trainable tensors follow main only: classifier.weight, classifier.bias" in caplog.text
    feed(hook, model, batch, weight_B, text_loss)
    hook.combine()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(update.norm()) for update in want.values())
    assert set(got) == set(want)
    for name, update in want.items():
        if "key.bias" in name:
            continue  # softmax ignores it: main and bias are rounding there, and so is any direction made of them
        assert float((got[name] - update).norm()) <= 1e-4 * max(float(update.norm()), 1e-3 * largest), name
        acted = float((update - main[name] / 6).norm()) > 1e-3 * float(main[name].norm() / 6)
        assert acted == (name in bias), name


def test_a_step_lowers_the_loss_in_every_form():
    for build, forward, batch in (
        (bert, text_loss, text_batch()),
        (bert_lora, text_loss, text_batch()),
        (llama_lora, answer_loss, answer_batch()),
    ):
        model = build()
        hook = attach(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3), Edge(0.5))
        first = None
        for _ in range(15):
            loss_B = forward(model, batch)
            first = first or loss_B.mean().item()
            hook.backward(loss_B, 0.7 * torch.exp(-0.7 * loss_B.detach()))
            hook.step()
        assert forward(model, batch).mean().item() < 0.9 * first


def test_selection_says_what_it_acts_on(caplog):
    with caplog.at_level(logging.INFO, logger="debias"):
        selected = select_parameters(bert_lora())
    assert "26 tensors" in caplog.text
    assert "13 lora_A, 13 lora_B" in caplog.text
    assert len(selected) == 26
    assert not any("classifier" in name for name in selected)


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", True),
        ("classifier.dense.weight", False),
        ("base_model.model.score.modules_to_save.default.weight", False),
        ("lm_head.weight", True),
        ("encoder.classifiers.weight", True),
    ],
)
def test_the_head_by_its_name(name, selected):
    assert not_head(name, nn.Parameter(torch.zeros(1))) is selected


# --- inside


def test_tensors_are_grouped_by_shape_and_none_is_lost():
    def tensors(*shape, dtype=torch.float32):
        return "name", [torch.zeros(shape), torch.zeros(shape, dtype=dtype)]

    pairs = [tensors(2, 3), tensors(3, 2), tensors(2, 3), tensors(6), tensors(2, 3, dtype=torch.float64)]
    groups = list(groups_of_one_shape(pairs))
    assert sorted(len(group) for group in groups) == [1, 1, 1, 2]
    assert sorted(id(v[0]) for group in groups for _, v in group) == sorted(id(v[0]) for _, v in pairs)
    for device, elements in (("meta", STACK_ELEMENTS // 2 + 1), ("cpu", CPU_LARGE)):
        large = torch.empty(elements, device=device)
        assert [len(group) for group in groups_of_one_shape([("name", [large, large])] * 3)] == [1, 1, 1]
        assert together(elements // 4, large.device) >= 4


class Calls(TorchDispatchMode):
    """Counts what is asked of a device: on a GPU each call but a view is a launch, of microseconds however small."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_calls_for_the_adapters_of_a_large_model():
    """72 tensors that fill one stack take what one tensor takes: not a call for each, nor for each block of a CPU."""
    counts = []
    for tensors in (1, 72):
        model = nn.ModuleList(nn.Linear(16, 4096, bias=False, device="meta") for _ in range(tensors))
        hook = attach(model, None, Edge(), "two_pass")
        for name, p in model.named_parameters():
            p.grad, hook.source.bias[name] = torch.empty_like(p), torch.empty_like(p)
        hook._trainable = dict(model.named_parameters())
        with Calls() as calls:
            hook._write_update(1.0)
        counts.append(len(calls.names))
    assert counts[0] < 80
    assert counts[1] < 2 * counts[0] + 40  # two stacks, a few blocks in each


def test_a_step_walks_over_the_model_once_and_sees_what_trains_now():
    model, batch = Mlp(), mlp_batch()
    model.classifier.requires_grad_(False)
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Edge())
    walks, walk = [], model.named_parameters
    model.named_parameters = lambda *args, **kwargs: walks.append(1) or walk(*args, **kwargs)
    for frozen in (True, False):
        model.classifier.requires_grad_(not frozen)
        before = model.classifier.weight.detach().clone()
        feed(hook, model, batch, torch.rand(14), parts=PARTS)
        hook.step()
        assert torch.equal(before, model.classifier.weight) is frozen
        assert all(p.grad is None for _, p in walk())
    assert len(walks) == 2


def test_buckets_keep_order_and_dtype():
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(1, dtype=torch.float64), torch.zeros(2)]
    buckets = list(_buckets(tensors))
    assert [t for bucket in buckets for t in bucket] == tensors or [len(b) for b in buckets] == [2, 1, 1]
    assert all(len({t.dtype for t in bucket}) == 1 for bucket in buckets)
    half = torch.empty(BUCKET_ELEMENTS // 2 + 1)
    assert [len(bucket) for bucket in _buckets([half, half, half])] == [1, 1, 1]
    assert list(_buckets([])) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gradients", WAYS)
def test_parameters_of_other_dtypes(gradients, dtype):
    model, weight_B = Mlp().to(dtype), weights_for(14)
    batch = mlp_batch()
    batch["x"] = batch["x"].to(dtype)

    def forward(model, batch):
        logits = model(batch["x"])
        return cross_entropy(logits, batch["labels"]) if dtype == torch.bfloat16 else nn.functional.cross_entropy(
            logits, batch["labels"], reduction="none"
        )  # fmt: skip

    want = direct_updates(Edge(), model, forward, batch, weight_B, 14)
    hook = attached(model, Edge(), gradients)
    feed(hook, model, batch, weight_B, forward, PARTS)
    hook.combine()
    assert all(p.grad.dtype == dtype for p in model.parameters())
    assert_grads(model, want, tolerance=1e-6 if dtype == torch.float64 else 0.03)
