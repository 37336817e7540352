"""Rules that remember, step by step in a loop of one's own: against the oracle, across skipped steps and a resume."""

import copy
import dataclasses
import math

import oracle
import pytest
import torch
from gradient_checks import mlp_loss, text_loss, weights_for
from tables import EXAMPLES, RATE
from tiny_models import Mlp, bert_lora, text_batch
from torch import nn

from debias.engines import attach
from debias.methods import DiGraP, Edge, MainOnly, Rule, StepFacts, Vector, take_step

REMEMBER = [rule for rule in EXAMPLES if not rule.is_stateless]
# Rates that are not the same from step to step, the first of them the 0 of a warm-up.
RATES = [0.0, 0.2, 0.4, 0.3, 0.2, 0.1, 0.4, 0.2]
OPTIMIZERS = {"sgd": (torch.optim.SGD, 1.0), "adamw": (torch.optim.AdamW, 0.1)}
SHARP = DiGraP(mu=0.3, beta1=0.5, beta2=0.5)


class Narrow(nn.Module):
    """Matrices, a tensor of one row, one of one element, a vector, and one that stays at zero gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second, self.classifier = nn.Linear(5, 7), nn.Linear(7, 1), nn.Linear(1, 3)
        self.scale, self.unused = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return self.classifier(torch.tanh(self.second(torch.tanh(self.first(x)))) * self.scale + 0 * self.unused.sum())


def batch_of(seed, samples=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5, generator=generator, dtype=dtype)
    return {"x": x, "labels": torch.randint(0, 3, (samples,), generator=generator)}


def exact_loss(model, batch):
    """In float64 from end to end: the library's own loss is taken in float32."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def every(name, parameter):
    return True


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_of(hook, model, seed, forward=mlp_loss, batch=None):
    batch = batch or batch_of(seed, dtype=next(model.parameters()).dtype)
    hook.backward(
        forward(model, batch), weights_for(9, seed=seed), again=lambda: (forward(model, batch), weights_for(9))
    )
    return hook.step()


def matrix(tensor):
    return tensor.detach().reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1).tolist()


def by_the_oracle(model, optimizer, rule, rates):
    """Plain steps whose gradients are replaced by what the oracle makes of the whole way so far."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved_before = {name: torch.zeros_like(p) for name, p in start.items()}
    steps = {name: [] for name in start}
    for number, rate in enumerate(rates):
        set_rate(optimizer, rate)
        loss_B = exact_loss(model, batch_of(number))
        names, parameters = zip(*model.named_parameters(), strict=True)
        bias = torch.autograd.grad((loss_B * weights_for(9, seed=number)).mean(), parameters, retain_graph=True)
        main = torch.autograd.grad(loss_B.mean(), parameters)
        for name, p, main_grad, bias_grad in zip(names, parameters, main, bias, strict=True):
            moved = p.detach() - start[name]
            seen = {
                Vector.MAIN: main_grad,
                Vector.BIAS: bias_grad,
                Vector.MOVED: moved,
                Vector.MOVED_BEFORE: moved_before[name],
            }
            steps[name].append([matrix(seen[vector]) for vector in rule.looks_at])
            update, _ = oracle.update_of(rule.name, steps[name], rates[: number + 1], **dataclasses.asdict(rule))
            p.grad = torch.tensor(update, dtype=p.dtype).view_as(p)
            moved_before[name] = moved
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rule", [*REMEMBER, SHARP, DiGraP(mu=5.0)], ids=repr)
def test_steps_are_the_oracles(rule, name):
    maker, scale = OPTIMIZERS[name]
    rates = [scale * rate for rate in RATES]
    ours, theirs, plain = (Narrow().double() for _ in range(3))
    optimizers = [maker(model.parameters(), lr=1.0) for model in (ours, theirs, plain)]
    hook, ordinary = attach(ours, optimizers[0], rule, select=every), attach(plain, optimizers[2], MainOnly())
    for number, rate in enumerate(rates):
        for optimizer in optimizers[::2]:
            set_rate(optimizer, rate)
        step_of(hook, ours, number, exact_loss)
        step_of(ordinary, plain, number, exact_loss)
    by_the_oracle(theirs, optimizers[1], rule, rates)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    if rule != DiGraP():  # and it is not the ordinary run
        pairs = zip(ours.parameters(), plain.parameters(), strict=True)
        assert max(float((p - q).detach().abs().max()) for p, q in pairs) > 1e-4
    if rule in {SHARP, DiGraP(mu=5.0)}:
        assert any(float(memory_S[1]) > 0.1 for memory_S in hook.state.memory.values())


# --- ugly inputs


def facts(number, rate=RATE):
    return StepFacts(number, torch.tensor(rate, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-18, 1e15), (1e15, 1e-18), (1e-30, 1e-3)], ids=repr)
@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1), (6,), (1,), (), (2, 3, 2)], ids=str)
def test_many_steps_of_one_tensor(shape, scales, dtype):
    """Moves and gradients drawn at random, zeros among them: update, omega and moments at every step."""
    generator = torch.Generator().manual_seed(len(shape))

    def draw(scale):
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)

    memory_S, steps, before = torch.zeros(DiGraP.memory, dtype=torch.float64), [], torch.zeros(shape, dtype=dtype)
    rates = [0.1, 0.0, 0.3, 0.2, 0.2, 1e-5, 0.1, 0.1, 0.1, 0.1]
    largest = 0.0
    for number, rate in enumerate(rates, 1):
        main, moved = draw(scales[0]), torch.zeros_like(before) if number in (1, 6) else draw(scales[1])
        if number == 4:
            main = torch.zeros_like(main)
        if number > 6 and float(memory_S[4] * (main.double() * before.double()).sum()) > 0:
            main = -main  # or omega would seldom leave 0
        update, memory_S = take_step(SHARP, [main, moved, before], memory_S, facts(number, rate))
        steps.append([[[float(t)]] if t.dim() == 0 else matrix(t) for t in (main, moved, before)])
        want, magnitude = oracle.digrap(steps, rates[:number], **dataclasses.asdict(SHARP))
        error = (update.double().reshape(-1) - torch.tensor(want, dtype=torch.float64).reshape(-1)).abs()
        bound = torch.tensor(magnitude, dtype=torch.float64).reshape(-1)
        assert bool((error <= (1e-6 if dtype == torch.float32 else 1e-12) * bound + 1e-44).all()), number
        assert update.isfinite().all()
        assert memory_S.isfinite().all()
        assert 0 <= float(memory_S[1]) <= 1
        largest, before = max(largest, float(memory_S[1])), moved
    assert largest > 0.1


def test_weights_that_have_not_moved_leave_main():
    """The first step of every run, a rate of 0, and weights that came back: not a number must not come of 0 / 0."""
    main, zero = torch.randn(3, 4), torch.zeros(3, 4)
    memory_S = torch.zeros(DiGraP.memory, dtype=torch.float64)
    for number, rate in enumerate((0.1, 0.0, 0.1), 1):
        update, memory_S = take_step(DiGraP(mu=1.0), [main, zero, zero], memory_S, facts(number, rate))
        assert torch.equal(update, main)
        assert memory_S.tolist() == [number, 0.0, 0.0, 0.0, 0.0]


def test_what_leads_back_is_left_alone():
    """<main, moved> > 0: a step along -main goes towards where the weights started."""
    moved = torch.randn(4, 3, dtype=torch.float64)
    noise = torch.randn(4, 3, dtype=torch.float64)
    memory_S = torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # omega 1
    back, away = noise - (noise * moved).sum() / (moved * moved).sum() * moved + torch.stack([moved, -moved])
    update, _ = take_step(DiGraP(), [back, moved, moved], memory_S, facts(4))
    assert torch.equal(update, back)
    update, _ = take_step(DiGraP(), [away, moved, moved], memory_S, facts(4))
    assert abs(float((update * moved).sum())) < 1e-12
    assert float((away * moved).sum()) < -0.1


# --- skipped steps, and going on


def run(hook, model, steps):
    return [step_of(hook, model, seed) for seed in steps]


def attached(rule, dtype=torch.float32, lr=0.2):
    model = Mlp().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr / 10)
    return model, optimizer, attach(model, optimizer, rule, max_grad_norm=1.0)


def everything(hook):
    return {name: tensor.clone() for name, tensor in hook.state_dict().items()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", REMEMBER, ids=repr)
def test_a_skipped_step_is_not_remembered(rule, value):
    model, _, hook = attached(rule)
    run(hook, model, range(3))
    before = everything(hook)
    done = step_of(hook, model, 3, forward=lambda m, b: mlp_loss(m, b) * torch.tensor([value] + [1.0] * 8))
    assert not done.finite
    after = everything(hook)
    assert int(after.pop("skipped")) == 1 + int(before.pop("skipped"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    undisturbed, _, other = attached(rule)
    run(other, undisturbed, range(3))
    run(hook, model, range(4, 7))
    run(other, undisturbed, range(4, 7))
    for p, q in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [*EXAMPLES, SHARP], ids=repr)
def test_going_on_is_never_having_stopped(rule, dtype, tmp_path):
    from safetensors.torch import load_file, save_file

    whole, _, undisturbed = attached(rule, dtype)
    want = run(undisturbed, whole, range(6))
    model, optimizer, hook = attached(rule, dtype)
    run(hook, model, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    save_file(hook.state_dict(), str(tmp_path / "rule.safetensors"))
    model, optimizer, hook = attached(rule, dtype)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    hook.load_state_dict(load_file(str(tmp_path / "rule.safetensors")))
    got = run(hook, model, range(3, 6))
    assert got == want[3:]
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
    ours, theirs = hook.state_dict(), undisturbed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_is_kept():
    model = bert_lora()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    hook = attach(model, optimizer, DiGraP())
    for seed in range(2):
        hook.backward(text_loss(model, text_batch(9, seed=seed)), weights_for(9))
        hook.step()
    state = hook.state_dict()
    assert set(state) == {"steps", "skipped"} | {
        f"{name}/{kind}" for name in hook.selected for kind in ("start", "moved_before", "memory")
    }
    assert int(state["steps"]) == 2
    for name in hook.selected:
        assert torch.equal(state[f"{name}/start"], start[name])
        assert state[f"{name}/memory"].dtype == torch.float64
    assert any(bool(state[f"{name}/moved_before"].any()) for name in hook.selected)


def test_a_state_that_does_not_fit_is_refused_by_name():
    _, _, hook = attached(DiGraP())
    _, _, other = attached(Edge())
    with pytest.raises(ValueError, match=r"load_state_dict: first\.bias/memory is only in what digrap keeps here \(12"):
        hook.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"load_state_dict: first\.bias/memory is only in the saved state \(12"):
        other.load_state_dict(hook.state_dict())
    state = hook.state_dict() | {"second.weight/start": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"second\.weight/start has shape \[2, 2\], \[7, 7\] is wanted"):
        hook.load_state_dict(state)


def test_a_rule_that_asks_for_the_rate_needs_the_optimizer():
    with pytest.raises(ValueError, match="digrap needs the learning rate of each step; give the optimizer"):
        attach(Mlp(), None, DiGraP())


@dataclasses.dataclass(frozen=True)
class Counting(Rule):
    """Remembers how often it was asked, and by what rate: all that a step tells a rule."""

    name = "counting"
    memory = 2

    def advance(self, gram, memory_S, step):
        ones = torch.ones(gram.rows_OG.shape[:-1], dtype=torch.float64)
        number = torch.full_like(step.learning_rate, step.number)
        return (ones, 0 * ones), torch.stack([number, step.learning_rate], dim=-1)


def test_a_rule_is_told_the_number_and_the_rate_of_its_tensors_group():
    model = Mlp()
    groups = [{"params": list(model.first.parameters()), "lr": 0.3}, {"params": list(model.second.parameters())}]
    optimizer = torch.optim.SGD([*groups, {"params": list(model.classifier.parameters())}], lr=0.1)
    hook = attach(model, optimizer, Counting())
    run(hook, model, range(2))
    optimizer.param_groups[1]["lr"] = 0.05
    run(hook, model, range(1))
    memory = {name: hook.state.memory[name].tolist() for name in hook.selected}
    assert memory == {name: [3.0, 0.3 if "first" in name else 0.05] for name in hook.selected}
