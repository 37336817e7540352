"""Gradients that are taken elsewhere than at the weights: against an oracle, put back to the bit, on ugly inputs.

Golden rows: with gradients 3 and 4 |g| is 5. Of ASAM T = (1, 3) and a bias's 1: T g is (4, 3, 12) of length 13.
"""

import math

import oracle
import pytest
import torch
from gradient_checks import mlp_loss, text_loss
from tiny_models import Mlp, bert, bert_lora, rows, text_batch, with_lora
from torch import nn

from debias.engines import NonFiniteGradients, attach, attaching
from debias.engines.second_pass import restored
from debias.losses import gce_weight
from debias.methods import Edge, MainOnly
from debias.readouts.router import RouterLoss
from debias.sharpness import ASAM, SAM, SHARPNESS, make_sharpness

PARTS = [(0, 3), (3, 4), (4, 9)]
WAYS = ["single_pass", "shared_forward", "two_pass"]
Q = 0.7
# The row, weights and gradients by name, the moves.
GOLDEN = [
    (SAM(rho=0.5), {"a": [1.0], "b": [2.0]}, {"a": [3.0], "b": [4.0]}, {"a": [0.3], "b": [0.4]}),
    (SAM(rho=0.5), {"a": [1.0], "b": [2.0]}, {"a": [0.0], "b": [-4.0]}, {"a": [0.0], "b": [-0.5]}),
    (
        ASAM(rho=0.5, eta=0.0),
        {"weight": [1.0, -3.0], "x.bias": [7.0]},
        {"weight": [4.0, 1.0], "x.bias": [12.0]},
        {"weight": [4 / 26, 9 / 26], "x.bias": [12 / 26]},
    ),
    (ASAM(rho=0.5, eta=1.0), {"a": [0.0, -2.0]}, {"a": [4.0, 1.0]}, {"a": [0.4, 0.9]}),
]


def tensors(lists, dtype=torch.float64):
    return {name: torch.tensor(values, dtype=dtype) for name, values in lists.items()}


def every(name, parameter):
    return True


@pytest.mark.parametrize(("sharpness", "weights", "gradients", "moves"), GOLDEN)
def test_golden(sharpness, weights, gradients, moves):
    found = sharpness.moves(tensors(weights), list(tensors(gradients).values()))
    for got, want in zip(found, tensors(moves).values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-15, atol=1e-15)


def test_every_row_has_a_golden_one():
    assert {type(row[0]) for row in GOLDEN} == set(SHARPNESS.values())
    assert make_sharpness(None) is None
    assert make_sharpness("sam") == SAM()
    assert make_sharpness({"name": "asam", "rho": 1}) == ASAM(rho=1.0)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "sam", "rho": -1}, r"sharpness\.rho is -1, expected 0 or more"),
        ({"name": "asam", "eta": -0.1}, r"sharpness\.eta is -0\.1, expected 0 or more"),
        ({"name": "sam", "eta": 1}, r"sharpness\.eta: sam has no such setting"),
        ("samm", r"sharpness\.name is 'samm', not one of sam, asam; did you mean sam\?"),
    ],
)
def test_wrong_settings_are_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        make_sharpness(block)


# The oracle: a model of lists and loops, its gradient by hand.

SHAPES = {"first.weight": (4, 3), "first.bias": (1, 4), "classifier.weight": (3, 4), "classifier.bias": (1, 3)}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.first, self.classifier = nn.Linear(3, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.classifier(torch.tanh(self.first(x)))


def exact(model, batch):
    """In float64 from end to end: the library's own loss is taken in float32."""
    loss_B = nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")
    return loss_B, Q * torch.exp(-Q * loss_B.detach())


def batch_of(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.randint(0, 3, (9,), generator=generator)}


def zeros():
    return {name: [[0.0] * columns for _ in range(rows_)] for name, (rows_, columns) in SHAPES.items()}


def each():
    return [(name, i, j) for name, (rows_, columns) in SHAPES.items() for i in range(rows_) for j in range(columns)]


def slope_of_sample(theta, x, y):
    """The probability of the right label, and the gradient of its cross-entropy."""
    w1, (b1,), w2, (b2,) = (theta[name] for name in SHAPES)
    hidden = [math.tanh(oracle.dot(w1[i], x) + b1[i]) for i in range(4)]
    logits = [oracle.dot(w2[c], hidden) + b2[c] for c in range(3)]
    total = math.fsum(math.exp(value) for value in logits)
    p = [math.exp(value) / total for value in logits]
    delta = [p[c] - (c == y) for c in range(3)]
    back = [math.fsum(delta[c] * w2[c][i] for c in range(3)) * (1 - hidden[i] ** 2) for i in range(4)]
    found = zeros()
    found["first.weight"] = [[back[i] * x[j] for j in range(3)] for i in range(4)]
    found["first.bias"] = [back]
    found["classifier.weight"] = [[delta[c] * hidden[i] for i in range(4)] for c in range(3)]
    found["classifier.bias"] = [delta]
    return p[y], found


def summed(theta, xs, ys, weigh=lambda p: 1.0):
    total = zeros()
    for x, y in zip(xs, ys, strict=True):
        p, found = slope_of_sample(theta, x, y)
        for name, i, j in each():
            total[name][i][j] += weigh(p) * found[name][i][j]
    return total


def moved(theta, xs, ys, sharpness):
    """The weights where the gradients of these samples are taken."""
    slope, scale = summed(theta, xs, ys), zeros()
    for name, i, j in each():
        adapted = isinstance(sharpness, ASAM) and not name.endswith("bias")
        scale[name][i][j] = abs(theta[name][i][j]) + sharpness.eta if adapted else 1.0
    length = math.sqrt(math.fsum((scale[n][i][j] * slope[n][i][j]) ** 2 for n, i, j in each()))
    found = zeros()
    for name, i, j in each():
        found[name][i][j] = theta[name][i][j] + sharpness.rho * scale[name][i][j] ** 2 * slope[name][i][j] / length
    return found


def step_by_hand(theta, batch, parts, sharpness, rule, rate):
    main, bias = zeros(), zeros()
    for start, stop in parts:
        xs, ys = batch["x"][start:stop].tolist(), batch["labels"][start:stop].tolist()
        there = moved(theta, xs, ys, sharpness)
        for total, found in (
            (main, summed(there, xs, ys)),
            (bias, summed(there, xs, ys, weigh=lambda p: Q * p**Q)),
        ):
            for name, i, j in each():
                total[name][i][j] += found[name][i][j] / 9
    for name in SHAPES:
        vectors = [main[name], bias[name]] if rule.uses_bias else [main[name]]
        update, _ = oracle.update_of(rule.name, [vectors], rate)
        theta[name] = [
            [old - rate * new for old, new in zip(old_row, new_row, strict=True)]
            for old_row, new_row in zip(theta[name], update, strict=True)
        ]


def feed(hook, model, batch, parts, forward=exact):
    for start, stop in parts:
        part = rows(batch, start, stop)
        hook.backward(*forward(model, part), again=lambda p=part: forward(model, p))


def attached(model, rule=None, way="auto", sharpness=None, lr=0.1, **settings):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    return attach(model, optimizer, rule or MainOnly(), way, sharpness=sharpness, **settings)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", [MainOnly(), Edge()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("sharpness", [SAM(rho=0.3), ASAM(rho=0.6, eta=0.1)], ids=lambda one: one.name)
@pytest.mark.parametrize("parts", [[(0, 9)], PARTS], ids=len)
def test_steps_are_the_oracles(sharpness, rule, way, parts):
    """Float64, three steps, micro-batches of unequal size, each with a way up of its own."""
    model, rate = Small(), 0.4
    theta = {name: p.detach().reshape(SHAPES[name]).tolist() for name, p in model.named_parameters()}
    hook = attached(model, rule, way, sharpness, lr=rate, select=every)
    for step in range(3):
        batch = batch_of(step)
        feed(hook, model, batch, parts)
        hook.step()
        step_by_hand(theta, batch, parts, sharpness, rule, rate)
        for name, p in model.named_parameters():
            want = torch.tensor(theta[name], dtype=torch.float64).view_as(p)
            torch.testing.assert_close(p.detach(), want, rtol=1e-12, atol=1e-13)


def test_how_a_step_is_cut_matters():
    """Each micro-batch has a way up of its own (m-sharpness); plain training does not hear of the cut."""

    def trained(parts, sharpness):
        model = Small()
        hook = attached(model, sharpness=sharpness)
        feed(hook, model, batch_of(0), parts)
        hook.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    apart = {
        name: float((trained([(0, 9)], one) - trained(PARTS, one)).abs().max())
        for name, one in {"plain": None, "sam": SAM(rho=0.3)}.items()
    }
    assert apart["plain"] < 1e-15
    assert apart["sam"] > 1e-4


# What stays as it was.


def texts(model, batch):
    loss_B = text_loss(model, batch)
    return loss_B, gce_weight(-loss_B)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sharpness", [SAM(rho=0.0), ASAM(rho=0.0)], ids=lambda one: one.name)
def test_a_radius_of_zero_is_the_plain_run_to_the_bit(way, sharpness):
    """With dropout: both passes see one mask, and what is drawn next is drawn as without a first pass."""
    found = []
    for one in (None, sharpness):
        model = with_lora(bert(dropout=0.3), dropout=0.3, task_type="SEQ_CLS")
        hook = attached(model, Edge(), way, one, verify=False)
        torch.manual_seed(3)
        for step in range(3):
            feed(hook, model, text_batch(9, seed=step), PARTS, texts)
            hook.step()
        assert hook.gradients == way
        found.append((state_of(model), torch.get_rng_state()))
    (plain, drawn), (still, drawn_too) = found
    assert torch.equal(drawn, drawn_too)
    for name, tensor in plain.items():
        assert torch.equal(tensor, still[name]), name


def test_single_pass_proves_itself_where_the_weights_have_moved():
    model = bert_lora()
    hook = attached(model, Edge(), "single_pass", SAM(rho=0.5))
    for step in range(9):
        feed(hook, model, text_batch(9, seed=step), PARTS, texts)
        hook.step()
    assert hook.gradients == "single_pass"
    assert 2 <= hook.source._looks <= 3


class Noted(nn.Dropout):
    """Remembers its masks, and what ran through it while gradients were asked for."""

    def __init__(self):
        super().__init__(0.5)
        self.masks, self.weights = [], []

    def forward(self, x):
        out = super().forward(x)
        self.masks.append((out != 0).clone())
        return out


class Dropping(Mlp):
    def __init__(self):
        super().__init__()
        self.drop, self.norm = Noted(), nn.BatchNorm1d(7)

    def forward(self, x):
        return self.classifier(self.drop(self.norm(torch.tanh(self.first(x)))))


def mlp(model, batch):
    loss_B = mlp_loss(model, batch)
    return loss_B, gce_weight(-loss_B)


def mlp_batch(samples=9):
    generator = torch.Generator().manual_seed(4)
    return {
        "x": torch.randn(samples, 5, generator=generator),
        "labels": torch.randint(0, 3, (samples,), generator=generator),
    }


def test_both_passes_have_one_mask_and_statistics_move_once():
    plain, sharp = Dropping(), Dropping()
    for model, sharpness in ((plain, None), (sharp, SAM(rho=0.5))):
        hook = attached(model, Edge(), "shared_forward", sharpness)
        torch.manual_seed(0)
        feed(hook, model, mlp_batch(), [(0, 4), (4, 9)], mlp)
    first, second, third, fourth = sharp.drop.masks
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(first[:4], third[:4])
    assert [torch.equal(a, b) for a, b in zip(plain.drop.masks, (first, third), strict=True)] == [True, True]
    for (name, a), b in zip(plain.norm.named_buffers(), sharp.norm.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_both_passes_have_one_mask_whatever_a_loop_draws_before_it_calls_the_model():
    def noisy(model, batch):
        torch.rand(5)  # of the loop's own
        return mlp(model, batch)

    model = Dropping()
    hook = attached(model, Edge(), "shared_forward", SAM(rho=0.5))
    torch.manual_seed(0)
    with torch.no_grad():
        model(mlp_batch()["x"])  # what is looked at without gradients is no pass
    model.drop.masks.clear()
    feed(hook, model, mlp_batch(), [(0, 4), (4, 9)], noisy)
    first, second, third, fourth = model.drop.masks
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(first[:4], third[:4])


def test_weights_come_back_to_the_bit_and_gradients_do_not_pile_up():
    """Also of numbers that no subtraction would bring back."""
    model = Mlp()
    with torch.no_grad():
        model.second.weight.mul_(1e-30)
        model.first.weight.mul_(1e4)
    before = state_of(model)
    hook = attached(model, Edge(), "single_pass", SAM(rho=0.7), verify=False)
    feed(hook, model, mlp_batch(), [(0, 4), (4, 9)], mlp)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    weights = torch.full((3,), 0.1)
    with restored([weights]):
        weights.add_(1e9)
    assert torch.equal(weights, torch.full((3,), 0.1))


def test_a_pass_that_fails_leaves_weights_and_gradients():
    model = Mlp()
    before = state_of(model)
    hook = attached(model, Edge(), "single_pass", SAM(rho=0.7), verify=False)
    batch = mlp_batch()

    def fails():
        moved_by = max(float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters())
        assert moved_by > 1e-3
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        hook.backward(*mlp(model, batch), again=fails)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    feed(hook, model, batch, PARTS, mlp)  # the loop goes on
    assert hook.step().finite


def test_hooks_of_others_and_leaves_outside_see_one_pass():
    """A leaf beside the model (a learned temperature) gets its gradient once, and a hook is called once."""
    model, heat, called = Mlp(), torch.tensor(2.0, requires_grad=True), []
    model.first.weight.register_post_accumulate_grad_hook(lambda p: called.append(1))
    hook = attached(model, MainOnly(), "auto", SAM(rho=0.0))

    def warm(model, batch):
        loss_B = mlp_loss(model, batch) * heat
        return loss_B, gce_weight(-loss_B)

    batch = mlp_batch()
    feed(hook, model, batch, [(0, 9)], warm)
    assert float(heat.grad) == pytest.approx(float(mlp_loss(model, batch).sum().detach()), rel=1e-6)
    assert called == [1]


# Ugly inputs.


@pytest.mark.parametrize("sharpness", [SAM(rho=0.3), ASAM(rho=0.3)], ids=lambda one: one.name)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e18, 1e30])
def test_the_length_of_a_move_is_the_radius_whatever_the_gradient(sharpness, size):
    generator = torch.Generator().manual_seed(1)
    weights = {f"{i}.weight": torch.randn(3, 4, generator=generator) for i in range(3)}
    gradients = [size * torch.randn(3, 4, generator=generator) for _ in weights]
    gradients[1] = torch.zeros(3, 4)
    gradients[2][0, 0] = 1e6 * size  # one that is all
    moves = sharpness.moves(weights, [g.clone() for g in gradients])
    scales = [sharpness.scale(name, weight) for name, weight in weights.items()]
    parts = [m.double() / (1.0 if T is None else T.double()) for m, T in zip(moves, scales, strict=True)]
    length = math.sqrt(math.fsum(float(part.square().sum()) for part in parts))
    assert length == pytest.approx(0.3, rel=1e-5)
    assert not moves[1].any()
    assert all(bool(((m * g) >= 0).all()) for m, g in zip(moves, gradients, strict=True))  # up


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 0.0]])
@pytest.mark.parametrize("sharpness", [SAM(), ASAM()], ids=lambda one: one.name)
def test_where_there_is_no_way_up_nothing_moves(sharpness, bad):
    weights = tensors({"a": [1.0, 2.0], "b": [3.0]}, torch.float32)
    assert sharpness.moves(weights, [torch.tensor(bad), torch.zeros(1)]) == []
    assert sharpness.moves({}, []) == []


def test_a_gradient_of_zero_trains_plainly_and_one_that_is_not_finite_is_skipped():
    model = Mlp()
    hook = attached(model, MainOnly(), "auto", SAM(), max_nonfinite_steps=1)
    before, batch = state_of(model), mlp_batch()

    def still(model, batch):
        loss_B = 0 * mlp_loss(model, batch)
        return loss_B, gce_weight(-loss_B)

    def broken(model, batch):
        loss_B = mlp_loss(model, batch) * math.inf
        return loss_B, torch.ones(len(loss_B))

    feed(hook, model, batch, PARTS, still)
    assert hook.step().finite
    feed(hook, model, batch, PARTS, broken)
    assert not hook.step().finite
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    feed(hook, model, batch, PARTS, broken)
    with pytest.raises(NonFiniteGradients):
        hook.step()


# What is refused.


def test_what_has_no_second_pass_is_refused_by_name(monkeypatch):
    model, batch = Mlp(), mlp_batch()
    hook = attached(model, MainOnly(), "auto", SAM())
    with pytest.raises(ValueError, match=r"sharpness sam needs backward\(\.\.\., again=f\)"):
        hook.backward(*mlp(model, batch))
    with pytest.raises(ValueError, match=r"a loss of the batch .batch_loss. has no second pass"):
        hook.backward(*mlp(model, batch), again=lambda: mlp(model, batch), batch_loss=model(batch["x"]).sum())
    beside = {"x": model.first(batch["x"])}  # the model itself is not called
    loss_B = beside["x"].sum(dim=1)
    with pytest.raises(RuntimeError, match="the model was not called before backward"):
        hook.backward(loss_B, torch.ones(9), again=lambda: (model.first(batch["x"]).sum(dim=1), torch.ones(9)))
    hook.detach()
    monkeypatch.setattr(attaching, "is_sharded", lambda model: True)
    with pytest.raises(ValueError, match=r"sharpness sam moves .* cannot move weights that FSDP shards"):
        attached(Mlp(), sharpness=SAM())
    monkeypatch.setattr(attaching, "_is_engine", lambda model: True)
    with pytest.raises(ValueError, match=r"sharpness asam moves .* cannot move weights that DeepSpeed holds"):
        attach(Mlp(), MainOnly(), sharpness=ASAM())


def test_the_trainer_refuses_what_a_run_cannot_have():
    from debias.engines.second_pass import refuse_second_pass

    with pytest.raises(ValueError, match="sharpness sam moves the weights within a step, and DeepSpeed holds them"):
        refuse_second_pass("sam", Mlp(), deepspeed=True)
    model = Mlp()
    vars(model)["router_loss"] = RouterLoss(0.1)
    with pytest.raises(ValueError, match=r"the load balancing loss .router_aux_loss_coef. is of the batch"):
        refuse_second_pass("sam", model, deepspeed=False)


def test_detaching_leaves_the_model_as_it_was():
    model = Mlp()
    before = len(model._forward_pre_hooks)
    hook = attached(model, Edge(), "single_pass", SAM())
    hook.detach()
    assert len(model._forward_pre_hooks) == before


@pytest.mark.parametrize(
    ("name", "is_bias"),
    [
        *[
            ("classifier.bias", True),
            ("bias", True),
            ("layer.0.beft_bias.default", True),
            ("q.lora_B.default.bias", True),
        ],
        *[("bias_head.weight", False), ("q.lora_A.default.weight", False), ("k.ia3_l.default", False)],
    ],
)
def test_biases_are_told_by_their_names(name: str, is_bias: bool) -> None:
    """An adapter's, too, which has the adapter's own name behind it."""
    scale = ASAM(eta=0.5).scale(name, torch.tensor([-2.0, 0.0]))
    assert (scale is None) == is_bias
    assert is_bias or scale.tolist() == [2.5, 0.5]
