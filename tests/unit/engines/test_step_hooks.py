"""What follows an optimizer's steps: masks that hold elements, and weight projections."""

import copy

import pytest
import torch
from gradient_checks import mlp_loss, weights_for
from tiny_models import Mlp
from torch import nn

from debias.engines import attach
from debias.engines.rule_state import on_the_cpu
from debias.masks import GMT, SAFT
from debias.methods import MainOnly
from debias.projections import SPD


class Decaying(torch.optim.AdamW):
    """Does more to the weights after the step of the class that it is of."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)


def chosen_by(hook):
    return hook._followers.mask.chosen


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(8, 5, generator=generator), "labels": torch.randint(0, 3, (8,), generator=generator)}


def taken(hook, model, steps=3):
    for seed in range(steps):
        hook.backward(mlp_loss(model, batch_of(seed)), weights_for(8))
        hook.step()


@pytest.mark.parametrize("plain_before", [False, True])
def test_a_step_that_calls_the_step_above_it_is_one(plain_before):
    if plain_before:  # PyTorch's hooks are of each class that was ever made
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).step()
    model = Mlp()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook = attach(
        model, Decaying(model.parameters(), lr=0.1), MainOnly(), gradient_mask=SAFT(share=0.1), weight_projection=SPD()
    )
    taken(hook, model)
    moved = {name: start[name] != p for name, p in model.named_parameters()}
    assert sum(int(one.sum()) for one in moved.values()) > 0
    for name, chosen in chosen_by(hook).items():
        assert not (moved[name] & ~chosen).any(), name


def test_a_step_that_ended_in_an_error_does_not_hide_the_next():
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            super().step(closure)
            if self.fails:
                raise MemoryError

    model = Mlp()
    optimizer = Failing(model.parameters(), lr=0.1, weight_decay=0.5)
    hook = attach(model, optimizer, MainOnly(), gradient_mask=SAFT(share=0.1))
    taken(hook, model, 2)
    optimizer.fails = True
    with pytest.raises(MemoryError):
        taken(hook, model, 1)
    optimizer.fails = False
    model.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken(hook, model, 2)
    for name, p in model.named_parameters():
        assert torch.equal(before[name][~chosen_by(hook)[name]], p[~chosen_by(hook)[name]]), name


def test_what_is_taken_back_is_of_the_step_as_it_is_put_back():
    """Adam moves what a mask holds, by momentum; none of that is a way from the start."""

    def made(**more):
        model = Mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        mask = GMT(share=0.1, hold=True)
        return model, optimizer, attach(model, optimizer, MainOnly(), gradient_mask=mask, **more)

    (model, optimizer, hook), (twin, other, alone) = made(weight_projection=SPD()), made()
    start, led_on = [p.detach().clone() for p in model.parameters()], 0
    for seed in range(14):
        before = [p.detach().clone() for p in model.parameters()]
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for net, one, step in ((model, hook, optimizer), (twin, alone, other)):
            one.backward(mlp_loss(net, batch_of(seed)), weights_for(8))
            one.combine()
            grads = [p.grad.clone() for p in net.parameters()]
            step.step()
            step.zero_grad()
        for at, was, grad, p, q in zip(start, before, grads, model.parameters(), twin.parameters(), strict=True):
            now, then, without = ((one.detach() - at).double().norm() for one in (p, was, q))
            assert torch.equal(p[grad == 0], was[grad == 0])
            if (grad * (was - at)).sum() > 0 and without > then:
                led_on += 1
                assert then - 1e-6 <= now <= without + 1e-6  # what is put back is not nearer than it was
            else:
                assert torch.equal(p, q)
    assert led_on


@pytest.mark.parametrize(
    "more", [{"gradient_mask": SAFT(share=0.1)}, {"weight_projection": SPD()}], ids=["mask", "spd"]
)
def test_two_optimizers_are_said(more, caplog):
    model = Mlp()
    body = torch.optim.SGD([*model.first.parameters(), *model.second.parameters()], lr=0.1)
    attach(model, body, MainOnly(), select=lambda name, p: "classifier" not in name, **more).detach()
    (said,) = [record.message for record in caplog.records if "follows the steps of the optimizer" in record.message]
    assert "classifier.weight trains but is not in it (2 such parameters)" in said
    caplog.clear()
    model.classifier.requires_grad_(False)
    attach(model, body, MainOnly(), **more).detach()
    assert not [record for record in caplog.records if "follows the steps" in record.message]


def test_a_wrapper_that_is_an_optimizer_itself_is_the_one_that_is_followed():
    class Around(torch.optim.Optimizer):
        def __init__(self, optimizer):
            super().__init__(optimizer.param_groups, {})
            self.optimizer = optimizer

        def step(self, closure=None):
            self.optimizer.step()
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.mul_(0.9)

    model = Mlp()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Around(torch.optim.SGD(model.parameters(), lr=0.1))
    hook = attach(model, optimizer, MainOnly(), gradient_mask=SAFT(share=0.1))
    taken(hook, model)
    for name, p in model.named_parameters():
        assert torch.equal(start[name][~chosen_by(hook)[name]], p[~chosen_by(hook)[name]]), name


def test_what_is_kept_of_weights_in_another_order_can_be_saved():
    strange = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert on_the_cpu(strange).is_contiguous()
    assert torch.equal(on_the_cpu(strange), strange)


@pytest.mark.parametrize("mask", [GMT(share=0.2), SAFT(share=0.2, scope="tensor")], ids=["gmt", "saft"])
def test_an_empty_parameter_has_nothing_to_choose(mask):
    model = Mlp()
    model.nothing = nn.Parameter(torch.zeros(0, 3))
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), MainOnly(), gradient_mask=mask)
    for seed in range(2):
        loss_B = mlp_loss(model, batch_of(seed)) + model.nothing.sum()
        hook.backward(loss_B, weights_for(8))
        assert hook.step().finite


def test_a_layer_that_was_frozen_after_the_choice():
    def hooked():
        model = Mlp()
        return model, attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), MainOnly(), gradient_mask=SAFT(share=0.1)
        )

    model, hook = hooked()
    taken(hook, model, 2)
    model.second.requires_grad_(False)
    taken(hook, model, 1)
    other, again = hooked()
    other.second.requires_grad_(False)
    again.load_state_dict(hook.state_dict())
    assert all(torch.equal(chosen_by(again)[name], chosen) for name, chosen in chosen_by(hook).items())


class Rebinding(torch.optim.SGD):
    """As some optimizers do: a parameter has other memory after each step."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.data = p.data - self.param_groups[0]["lr"] * (1.0 + p.detach().sign()) * p.grad


@pytest.mark.parametrize("settings", [{"gradient_mask": SAFT(share=0.1)}, {"gradient_mask": GMT(share=0.2, hold=True)}])
def test_what_is_put_back_is_put_where_the_weights_are(settings):
    model = Mlp()
    hook = attach(model, Rebinding(model.parameters(), lr=0.1), MainOnly(), **settings)
    taken(hook, model, 1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    taken(hook, model, 1)
    moved = sum(int((start[name] != p).sum()) for name, p in model.named_parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert 0 < moved <= 0.25 * whole


def test_what_is_taken_back_is_taken_from_where_the_weights_are():
    ends = []
    for projection in (None, SPD(towards="zero")):
        model = Mlp()
        hook = attach(model, Rebinding(model.parameters(), lr=2.0), MainOnly(), weight_projection=projection)
        taken(hook, model, 4)
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    assert max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0]) > 1e-3
