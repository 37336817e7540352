"""What is done to weights after the optimizer's step: a golden row, an oracle in plain loops, and in steps.

The golden row, by hand: a tensor 5 from its start, whose gradient leads back, is 10 from it after the step; half of the
way is taken back, and it is 5 from it again.
"""

import copy
import itertools
import math

import pytest
import torch
from gradient_checks import text_loss
from tiny_models import bert_lora, text_batch
from tiny_trainers import Words, collate, examples, trainer_of
from torch import nn

from debias.engines import attach
from debias.engines.grounds import WholeGround
from debias.engines.weight_projection import ProjectedSteps
from debias.losses import Classification
from debias.methods import L2SP, DiGraP, Edge, MainOnly
from debias.penalties import PEGO
from debias.projections import PROJECTIONS, SPD, make_projection
from debias.sharpness import SAM

# The row, the gradient, the way before and after the step, and the share that is taken back.
GOLDEN = [
    (SPD(), [1.0, 0.0], [3.0, 4.0], [6.0, 8.0], 0.5),
    (SPD(strength=0.5), [1.0, 0.0], [3.0, 4.0], [6.0, 8.0], 0.25),
    (SPD(strength=4.0), [1.0, 0.0], [3.0, 4.0], [6.0, 8.0], 2.0),
    (SPD(), [-1.0, 0.0], [3.0, 4.0], [6.0, 8.0], 0.0),  # the loss goes on falling along the way
    (SPD(), [4.0, -3.0], [3.0, 4.0], [6.0, 8.0], 0.0),
    (SPD(), [1.0, 0.0], [3.0, 4.0], [3.0, 0.0], 0.0),  # it has come nearer
    (SPD(), [1.0, 0.0], [0.0, 0.0], [6.0, 8.0], 0.0),
    (SPD(), [1.0, 0.0], [3.0, 4.0], [0.0, 0.0], 0.0),
]


@pytest.mark.parametrize(("row", "gradient", "before", "after", "share"), GOLDEN)
def test_golden(row, gradient, before, after, share):
    gradient, before, after = (torch.tensor(one, dtype=torch.float64) for one in (gradient, before, after))
    numbers = gradient @ before, before.norm(), after.norm()
    assert float(row.taken_back(*numbers)) == pytest.approx(share, abs=1e-15)


def test_every_row_has_a_golden_one():
    assert {type(row[0]) for row in GOLDEN} == set(PROJECTIONS.values())
    assert make_projection(None) is None
    assert make_projection({"name": "spd", "strength": 2, "towards": "zero"}) == SPD(strength=2.0, towards="zero")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "spd", "strength": -1}, r"weight_projection\.strength is -1, expected 0 or more"),
        ({"name": "spd", "towards": "base"}, r"weight_projection\.towards is 'base', not one of start, zero"),
        ({"name": "spd", "rate": 4}, r"weight_projection\.rate: spd has no such setting"),
        ("sdp", r"weight_projection\.name is 'sdp', not one of spd; did you mean spd\?"),
    ],
)
def test_wrong_settings_are_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        make_projection(block)


# The oracle: optimizers and SPD, element by element.


def sgd_step(state, p, g, lr=0.05, momentum=0.9):
    state["v"] = [momentum * v + x for v, x in zip(state["v"], g, strict=True)] if state else list(g)
    return [w - lr * v for w, v in zip(p, state["v"], strict=True)]


def plain_sgd_step(state, p, g):
    return sgd_step(state, p, g, momentum=0.0)


def adam_step(state, p, g, decay=0.0, lr=0.05, b1=0.9, b2=0.999):
    state.setdefault("m", [0.0] * len(p))
    state.setdefault("v", [0.0] * len(p))
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = [b1 * m + (1 - b1) * x for m, x in zip(state["m"], g, strict=True)]
    state["v"] = [b2 * v + (1 - b2) * x * x for v, x in zip(state["v"], g, strict=True)]
    moments = zip(p, state["m"], state["v"], strict=True)
    return [w * (1 - lr * decay) - lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8) for w, m, v in moments]


def adamw_step(state, p, g):
    return adam_step(state, p, g, decay=0.1)


def spd(p, p0, g, stepped, strength):
    if not math.fsum(x * (w - s) for x, w, s in zip(g, p, p0, strict=True)) > 0:
        return stepped, False
    before = math.sqrt(math.fsum((w - s) ** 2 for w, s in zip(p, p0, strict=True)))
    after = math.sqrt(math.fsum((w - s) ** 2 for w, s in zip(stepped, p0, strict=True)))
    share = strength * min(1.0, max(0.0, (after - before) / after)) if after else 0.0
    return [w - share * (w - s) for w, s in zip(stepped, p0, strict=True)], share > 0


OPTIMIZERS = {
    "sgd": (plain_sgd_step, lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (sgd_step, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": (adam_step, lambda p: torch.optim.Adam(p, lr=0.05)),
    "adamw": (adamw_step, lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1)),
}
SHAPES = {"matrix": (3, 4), "zeros": (5,), "tiny": (2, 2), "scalar": (), "still": (3,), "unused": (2,)}


class Tensors(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(name, nn.Parameter(torch.zeros_like(value) if name == "zeros" else value))

    def gradients(self, step):
        """Of one direction at first, and of the other then: what momentum carries on."""
        generator = torch.Generator().manual_seed(17 + step)
        for name, p in self.named_parameters():
            value = torch.randn(p.shape, generator=generator, dtype=torch.float64) + (1.0 if step < 4 else -1.5)
            value *= {"tiny": 1e-12, "still": 0.0}.get(name, 1.0)
            p.grad = None if name == "unused" else value.to(p.dtype)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("towards", ["start", "zero"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_the_formula(kind, towards, strength):
    by_hand, made = OPTIMIZERS[kind]
    model = Tensors()
    held = {name: p.detach().flatten().tolist() for name, p in model.named_parameters()}
    starts = {name: p if towards == "start" else [0.0] * len(p) for name, p in held.items()}
    states = {name: {} for name in held}
    optimizer = made(model.parameters())
    projected = ProjectedSteps(WholeGround(model, optimizer), SPD(strength=strength, towards=towards))
    applied = 0
    for step in range(10):
        model.gradients(step)
        for name, p in model.named_parameters():
            if p.grad is not None:
                g = p.grad.flatten().tolist()
                stepped = by_hand(states[name], held[name], g)
                held[name], was = spd(held[name], starts[name], g, stepped, strength)
                applied += was
        optimizer.step()
        for name, p in model.named_parameters():
            wanted = torch.tensor(held[name], dtype=torch.float64).view_as(p)
            torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-15)
    projected.detach()
    assert applied >= {"start": 3, "zero": 1}[towards] * (kind != "sgd")  # which carries nothing on
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_strength_of_one_is_the_sphere_that_the_tensor_was_on():
    model = Tensors()
    start, optimizer = model.matrix.detach().clone(), torch.optim.Adam(model.parameters(), lr=0.05)
    ProjectedSteps(WholeGround(model, optimizer), SPD())
    lengths = []
    for step in range(8):
        model.gradients(step)
        leads_back = bool((model.matrix.grad * (model.matrix - start)).sum() > 0)
        optimizer.step()
        lengths.append((leads_back, float((model.matrix.detach() - start).norm())))
    kept = [now == pytest.approx(was) for (_, was), (back, now) in itertools.pairwise(lengths) if back]
    assert len(kept) >= 3
    assert kept[0]


def test_sums_of_weights_in_16_bits_are_taken_in_32():
    """One large pair of elements against many small ones, which bfloat16 would lose."""
    model = nn.Linear(2049, 1, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    ProjectedSteps(WholeGround(model, optimizer), SPD())
    way = torch.full((1, 2049), 1 / 256)
    way[0, 0] = 1.0
    gradient = torch.full((1, 2049), 1 / 256)
    gradient[0, 0] = -1 / 64
    for g in (-way, gradient):
        model.weight.grad = g.bfloat16()
        optimizer.step()
    stepped = (way - (gradient - 0.9 * way)).double()
    before, after = way.double().norm(), stepped.norm()
    assert float((way * gradient).sum()) > 0
    wanted = (stepped - (after - before) / after * stepped).bfloat16()
    torch.testing.assert_close(model.weight.detach(), wanted, rtol=2**-7, atol=0)
    assert float((model.weight.detach().double() - stepped).norm()) > 0.3


# In steps of a hook.


def words_loss(model, batch):
    return Classification().said(model, batch).log_p_B.neg()


def trained(steps, projection=SPD(), *, model=None, rule=None, way="auto", cuts=((0, 8),), hook=None, **settings):  # noqa: B008
    """A model after some steps of a loop with `hook.step()`; `hook(hook)` is called before the first."""
    model = model or Words()
    make = settings.pop("make", lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9))
    optimizer = settings.pop("optimizer", None) or make([p for p in model.parameters() if p.requires_grad])
    made = attach(model, optimizer, rule or MainOnly(), way, weight_projection=projection, **settings)
    if hook is not None:
        hook(made)
    for step in steps:
        data = collate(examples(8, seed=step))
        for start, stop in cuts:
            part = {key: value[start:stop] for key, value in data.items()}
            loss, weight = words_loss(model, part), torch.ones(stop - start)
            made.backward(loss, weight, again=lambda p=part, w=weight: (words_loss(model, p), w))
        made.step()
    made.detach()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, made, optimizer


def apart(left, right):
    return max(float((left[name] - right[name]).detach().abs().max()) for name in left)


@pytest.mark.parametrize("kind", ["momentum", "adam", "adamw"])
def test_a_strength_of_zero_is_no_projection_bit_for_bit(kind):
    make = OPTIMIZERS[kind][1]
    plain, still, moved = (trained(range(6), one, make=make)[0] for one in (None, SPD(strength=0.0), SPD()))
    assert all(torch.equal(plain[name], still[name]) for name in plain)
    assert apart(plain, moved) > 1e-3


@pytest.mark.parametrize("towards", ["start", "zero"])
def test_however_a_step_is_cut(towards):
    whole, cut = (
        trained(range(6), SPD(towards=towards), cuts=cuts, rule=Edge())[0]
        for cuts in (((0, 8),), ((0, 1), (1, 6), (6, 8)))
    )
    assert apart(whole, cut) < 1e-5


def test_a_trainer_s_steps_are_projected_as_the_formula_has_it(tmp_path):
    """Clipped, accumulated and stepped by Accelerate's optimizer: each step is held to what it began and ended with."""
    trainer = trainer_of(
        tmp_path / "run",
        more={"weight_projection": SPD()},
        **{"max_steps": 8, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "optim_args": "momentum=0.9"},
    )
    seen = []
    trainer.create_optimizer()
    inner, names = trainer.optimizer, dict(trainer.model.named_parameters())
    start = {name: p.detach().clone() for name, p in names.items()}

    def before(*_):
        seen.append({name: (p.detach().clone(), p.grad.clone()) for name, p in names.items()})

    def stepped(*_):  # registered before the trainer's hook is: the optimizer's own step
        seen.append({name: p.detach().clone() for name, p in names.items()})

    inner.register_step_pre_hook(before)
    inner.register_step_post_hook(stepped)
    trainer.train()
    ends = [{name: p for name, (p, _) in one.items()} for one in seen[2::2]]
    ends.append({name: p.detach() for name, p in names.items()})
    applied = 0
    for (of, after), end in zip(zip(seen[::2], seen[1::2], strict=True), ends, strict=True):
        assert math.sqrt(sum(float(g.square().sum()) for _, g in of.values())) < 0.51
        for name, (p, g) in of.items():
            flat = [one.double().flatten().tolist() for one in (p, start[name], g, after[name])]
            wanted, was = spd(*flat, 1.0)
            torch.testing.assert_close(
                end[name].double().flatten(), torch.tensor(wanted).double(), rtol=1e-4, atol=1e-6
            )
            applied += was
    assert len(ends) == 8
    assert applied > 3


def test_sharpness_and_a_penalty_have_one_projection_a_step():
    """Of two passes, and of the weights as the optimizer has left them."""
    calls = []

    class Counted(SPD):
        def taken_back(self, along, before, after):
            calls.append(after.dim())
            return super().taken_back(along, before, after)

    trained(range(3), Counted(), sharpness=SAM(rho=0.5), cuts=((0, 4), (4, 8)))
    assert len(calls) == 3 * 4
    model = bert_lora()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    hook = attach(model, optimizer, DiGraP(), weight_penalty=PEGO(adapters=3), weight_projection=Counted())
    calls.clear()
    for _ in range(2):
        hook.backward(text_loss(model, text_batch()), torch.ones(6))
        hook.step()
    hook.detach()
    assert len(calls) == 2 * sum(p.requires_grad for p in model.parameters())


def test_the_first_step_of_lora_is_the_plain_one():
    found = []
    for projection in (None, SPD(strength=5.0), SPD(strength=5.0, towards="zero")):
        model = bert_lora()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
        hook = attach(model, optimizer, MainOnly(), weight_projection=projection)
        hook.backward(text_loss(model, text_batch()), torch.ones(6))
        hook.step()
        hook.detach()
        found.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    assert apart(found[0], found[1]) == 0.0
    assert apart(found[0], found[2]) > 0.0  # which is where its A is drawn to, and a randomized B


def test_a_step_that_is_left_out_moves_nothing():
    def broken(hook):
        loss = words_loss(hook.model, collate(examples(8))) * math.inf
        before = {name: p.detach().clone() for name, p in hook.model.named_parameters()}
        hook.backward(loss, torch.ones(8))
        assert not hook.step().finite
        assert apart(before, dict(hook.model.named_parameters())) == 0.0

    assert apart(trained(range(5))[0], trained(range(5), hook=broken)[0]) == 0.0


def test_what_is_thawed_later_is_held_where_it_began():
    model = Words()
    model.classifier.weight.requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    trained(range(3), model=model, optimizer=optimizer)
    start = model.classifier.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def thaw(hook):
        model.classifier.weight.requires_grad = True
        assert "classifier.weight/held_at" not in hook.state_dict()

    state = trained(range(3, 8), model=model, optimizer=optimizer, hook=thaw)[1].state_dict()
    assert torch.equal(state["classifier.weight/held_at"], start)


# Gone on with.


@pytest.mark.parametrize("rule", [MainOnly(), L2SP(alpha=0.1)], ids=lambda rule: rule.name)
@pytest.mark.parametrize("towards", ["start", "zero"])
def test_a_loop_goes_on_from_the_state(rule, towards):
    projection, make = SPD(towards=towards), lambda p: torch.optim.Adam(p, lr=0.05)
    whole = trained(range(8), projection, rule=rule, make=make)[0]
    first = Words()
    _, hook, optimizer = trained(range(4), projection, rule=rule, make=make, model=first)
    state, moments = hook.state_dict(), copy.deepcopy(optimizer.state_dict())
    second = Words(seed=5)
    second.load_state_dict(first.state_dict())
    fresh = make(second.parameters())
    fresh.load_state_dict(moments)

    def load(hook):
        hook.load_state_dict(state)

    settings = {"rule": rule, "model": second, "optimizer": fresh}
    assert apart(whole, trained(range(4, 8), projection, **settings, hook=load)[0]) == 0.0
    kept = [key for key in state if key.endswith("/held_at")]
    assert len(kept) == (4 if towards == "start" else 0)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "projection", "message"),
    [
        (lambda state: without(state, "inner.bias/held_at"), SPD(), "inner.bias/held_at is only in what weight_proj"),
        (lambda state: state | {"x/held_at": torch.ones(1)}, SPD(), "x/held_at is only in the saved state"),
        (lambda state: state | {"inner.bias/held_at": torch.ones(1)}, SPD(), r"inner.bias/held_at has shape \[1\]"),
        (lambda state: state, None, "classifier.bias/held_at is only in the saved state"),
        (lambda state: state, SPD(towards="zero"), "classifier.bias/held_at is only in the saved state"),
    ],
)
def test_the_state_of_something_else_is_refused(change, projection, message):
    state = change(trained(range(1))[1].state_dict())
    hook = trained([], projection)[1]
    before = hook.state_dict()
    with pytest.raises(ValueError, match=message):
        hook.load_state_dict(state)
    after = hook.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


# Refused.


class ScheduleFree(torch.optim.SGD):
    def train(self):
        """As those of the package are told."""

    eval = train


class Homemade:
    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"weight_projection spd follows the optimizer's step; give attach the optimizer \(None"),
        (torch.optim.LBFGS, r"attach: LBFGS\.step needs a closure"),
        (ScheduleFree, "weight_projection spd moves the weights that train, and a schedule-free optimizer"),
        (Homemade, r"weight_projection spd follows the step of a torch\.optim\.Optimizer; Homemade is none"),
    ],
    ids=["none", "lbfgs", "schedule-free", "homemade"],
)
def test_optimizers_that_cannot_be_followed(make, message):
    model = Words()
    with pytest.raises(ValueError, match=message):
        attach(model, make(model.parameters()), MainOnly(), weight_projection=SPD())


def test_a_closure_is_refused():
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, MainOnly(), weight_projection=SPD())
    for given, more in (((lambda: 0.0,), {}), ((), {"closure": lambda: 0.0})):
        with pytest.raises(RuntimeError, match=r"spd looks at the gradient .* step was given a closure"):
            optimizer.step(*given, **more)
    optimizer.step(None)
    hook.detach()
    optimizer.step(lambda: 0.0)


def test_a_schedule_free_trainer_is_refused_before_it_trains(tmp_path):
    with pytest.raises(ValueError, match=r"weight_projection spd moves the weights .* optim is 'schedule_free_sgd'"):
        trainer_of(tmp_path / "run", more={"weight_projection": SPD()}, optim="schedule_free_sgd")
