"""Masks of single elements: golden rows, an oracle that sorts in plain Python, and in a step.

The golden row of both, by hand: gradients [3, -1] and [0, 2, -4]. Of a share of 0.4 two of all five elements are taken,
and of each tensor (0.8 and 1.2) one.
"""

import itertools
import math
import random
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gradient_checks import text_loss, weights_for
from tiny_models import bert_lora, rows, text_batch
from torch import nn

from debias.engines import attach
from debias.masks import GMT, MASKS, SAFT, count_of, largest, make_mask
from debias.methods import DiGraP, Edge, MainOnly
from debias.penalties import PEGO
from debias.projections import SPD

GRADIENTS = [[3.0, -1.0], [0.0, 2.0, -4.0]]
GOLDEN = [
    (SAFT(share=0.4), [[True, False], [False, False, True]]),
    (SAFT(share=0.6), [[True, False], [False, True, True]]),
    (SAFT(share=0.6, scope="tensor"), [[True, False], [False, False, True]]),
    (GMT(share=0.4), [[True, False], [False, False, True]]),
    (GMT(share=0.7), [[True, False], [False, True, True]]),
    (GMT(share=0.2, scope="model"), [[False, False], [False, False, True]]),
]


@pytest.mark.parametrize(("mask", "wanted"), GOLDEN)
def test_golden(mask, wanted):
    assert [one.tolist() for one in mask.chosen([torch.tensor(row) for row in GRADIENTS])] == wanted


def test_every_row_has_a_golden_one():
    assert {type(row[0]) for row in GOLDEN} == set(MASKS.values())
    assert make_mask(None) is None
    assert make_mask({"name": "saft", "steps": 3}) == SAFT(steps=3)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "saft", "share": 0}, r"gradient_mask\.share is 0, expected a number between 0 and 1, neither"),
        ({"name": "gmt", "share": 1.5}, r"gradient_mask\.share is 1.5, expected a number between 0 and 1"),
        (
            {"name": "gmt", "share": 1},
            r"gradient_mask\.share is 1: every element would train, as without gradient_mask",
        ),
        ({"name": "saft", "steps": 0}, r"gradient_mask\.steps is 0, expected 1 or more"),
        ({"name": "saft", "scope": "layer"}, r"gradient_mask\.scope is 'layer'"),
        ({"name": "gmt", "steps": 2}, r"gradient_mask\.steps: gmt has no such setting"),
        ("saftt", r"gradient_mask\.name is 'saftt', not one of saft, gmt; did you mean saft\?"),
    ],
)
def test_wrong_settings_are_one_line(block, message):
    with pytest.raises(ValueError, match=message):
        make_mask(block)


# The oracle: every magnitude is rounded to float32, and all are sorted, the first of equal ones first.


def rounded(value):
    """float32, where what is too large for it is infinite."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf


def sorted_masks(lists, count):
    places = [(i, j) for i, row in enumerate(lists) for j in range(len(row))]
    best = {*sorted(places, key=lambda at: -rounded(abs(lists[at[0]][at[1]])))[:count]}
    return [[(i, j) in best for j in range(len(row))] for i, row in enumerate(lists)]


def drawn(seed, kind):
    """Three tensors, ugly in one way."""
    generator = random.Random(seed)
    make = {
        "normal": lambda: generator.gauss(0, 1),
        "ties": lambda: generator.choice([-2.0, -1.0, 0.0, 1.0, 2.0]),
        "zeros": lambda: generator.choice([0.0, -0.0, 0.0, 1e-3]),
        "equal": lambda: 0.5,
        "scales": lambda: generator.gauss(0, 1) * 10.0 ** generator.randint(-44, 38),
        "close": lambda: 1.0 + generator.randint(0, 3) * 2.0**-23,
    }[kind]
    return [[make() for _ in range(size)] for size in (7, 1, 30)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "equal", "scales", "close"])
@pytest.mark.parametrize("chunk", [5, 1 << 22])
def test_the_largest_are_those_of_a_sort(dtype, kind, chunk, monkeypatch):
    """However many elements are looked at together, and by both ways to the last one that is taken."""
    monkeypatch.setattr("debias.masks.choosing.CHUNK", chunk)
    for seed in range(3):
        tensors = [torch.tensor(row, dtype=dtype) for row in drawn(seed, kind)]
        tensors[2] = tensors[2].view(5, 6).t().contiguous().t()  # row-major order, however it lies
        lists = [tensor.reshape(-1).double().tolist() for tensor in tensors]
        for count in (1, 2, 8, 20, 37, 38):
            got = list(largest(tensors, count))
            assert [one.reshape(-1).tolist() for one in got] == sorted_masks(lists, count)
            assert [one.shape for one in got] == [one.shape for one in tensors]


class Thread:
    """A rank that is a thread: what one of them counts, all of them learn."""

    def __init__(self, rank, told, barrier):
        self.rank, self._told, self._barrier = rank, told, barrier

    def counts(self, own):
        self._told[self.rank] = own
        self._barrier.wait()
        found = torch.stack(list(self._told))
        self._barrier.wait()
        return found


def on_threads(world, of_rank):
    """What `of_rank(ranks)` gives on each of so many ranks that wait for each other."""
    told, barrier = [None] * world, threading.Barrier(world, timeout=20)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: of_rank(Thread(rank, told, barrier)), range(world)))


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "equal", "close"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ranks_with_pieces_get_the_pieces_of_the_masks(kind, scope):
    """Cut anywhere, a rank may have nothing of a tensor, or of any; of equal elements the first ranks' come first."""
    for seed, world in itertools.product(range(4), (1, 2, 3)):
        lists = [*drawn(seed, kind), []]
        generator = random.Random(seed)
        cuts = [sorted(generator.choices(range(len(row) + 1), k=world - 1)) for row in lists]
        cuts = [[0, *some, len(row)] for some, row in zip(cuts, lists, strict=True)]
        mask = GMT(share=generator.choice([0.03, 0.2, 0.9]), scope=scope)

        def pieces(ranks, lists=lists, cuts=cuts, mask=mask):
            own = [row[ends[ranks.rank] : ends[ranks.rank + 1]] for row, ends in zip(lists, cuts, strict=True)]
            return [one.tolist() for one in mask.chosen([torch.tensor(row) for row in own], ranks)]

        found = [list(itertools.chain(*parts)) for parts in zip(*on_threads(world, pieces), strict=True)]
        if scope == "model":
            assert found == sorted_masks(lists, count_of(mask.share, 38))
        else:
            assert found == [sorted_masks([row], count_of(mask.share, len(row)))[0] if row else [] for row in lists]


def test_a_single_element_is_always_taken_and_shares_are_counted_as_written():
    assert next(largest([torch.zeros(())], 1)).tolist() is True
    assert [count_of(share, n) for share, n in [(0.29, 100), (0.001, 10), (1e-5, 10**6), (0.999, 1000)]] == [
        29,
        1,
        10,
        999,
    ]
    assert not list(GMT().chosen([])) + list(SAFT().chosen([]))


def test_a_mask_hangs_on_the_numbers_alone():
    """So that ranks, whose gradients are equal after their sum, have equal masks without asking one another."""
    tensors = [torch.tensor(row) for row in drawn(4, "ties")]
    copies = [torch.empty(2 * len(one))[::2].copy_(one) for one in tensors]  # the same, elsewhere and strided
    for mask in (SAFT(share=0.3), GMT(share=0.3)):
        pairs = zip(mask.chosen(tensors), mask.chosen(copies), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


# In a step.

BATCH = text_batch()
STEPS = 4


def trained(mask, model=None, steps=STEPS, parts=((0, 6),), optimizer=None, rule=None, hooked=None, **settings):
    """What that many steps make of every parameter that trains, and the hook's reports."""
    model = model or bert_lora()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer or (lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1))
    stepper = optimizer(list(named.values()))
    hook = attach(model, stepper, rule or Edge(), gradient_mask=mask, **settings)
    if hooked is not None:
        hooked(hook)
    reports = []
    for _ in range(steps):
        for start, stop in parts:
            hook.backward(text_loss(model, rows(BATCH, start, stop)), weights_for(6)[start:stop])
        reports.append(hook.step())
    hook.detach()
    return {name: p.detach().clone() for name, p in named.items()}, reports, hook


def start():
    return {name: p.detach().clone() for name, p in bert_lora().named_parameters() if p.requires_grad}


def moved(found):
    return {name: found[name] != before for name, before in start().items()}


def first_gradient(rule=None, model=None, **settings):
    """The update of the first step, before an optimizer sees it."""
    model = model or bert_lora()
    hook = attach(model, None, rule or Edge(), **settings)
    hook.backward(text_loss(model, BATCH), weights_for(6))
    hook.combine()
    hook.detach()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.5),
        lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.5),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True),
        lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2], lr=0.1, weight_decay=0.1),
    ],
    ids=["adamw", "adam with decay", "sgd with momentum", "muon"],
)
def test_saft_moves_what_it_chose_and_nothing_else(optimizer):
    """By the first gradient, in an oracle that sorts; whatever decay, momentum and whole matrices do to the others."""
    gradient = {name: one.double() for name, one in first_gradient().items()}
    whole = sum(one.numel() for one in gradient.values())
    lists = [one.reshape(-1).tolist() for one in gradient.values()]
    wanted = dict(zip(gradient, sorted_masks(lists, int(0.05 * whole)), strict=True))
    found, reports, hook = trained(SAFT(share=0.05), optimizer=optimizer)
    for name, moves in moved(found).items():
        stays = ~torch.tensor(wanted[name]).view(moves.shape)
        assert not (moves & stays).any(), name
    if optimizer([nn.Parameter(torch.zeros(2, 2))]).__class__ is not torch.optim.Muon:
        assert sum(int(one.sum()) for one in moved(found).values()) == int(0.05 * whole)
    assert [report.measured for report in reports] == [True, False, False, False]
    assert (hook.measured, hook.skipped) == (1, 0)


@pytest.mark.parametrize("towards", ["start", "zero"])
def test_what_is_held_is_put_back_after_a_projection_and_both_go_on(towards):
    """SPD towards zero pulls at a whole tensor; a state has what both keep."""
    both = {"steps": 3, "optimizer": lambda ps: torch.optim.SGD(ps, lr=0.5)}
    plain, _, _ = trained(SAFT(share=0.05), **both)
    both["weight_projection"] = SPD(strength=5.0, towards=towards)
    found, _, hook = trained(SAFT(share=0.05), **both)
    if towards == "zero":  # in so few steps nothing leads back to the start
        assert any(not torch.equal(found[name], plain[name]) for name in plain)
    assert sum(int(one.sum()) for one in moved(found).values()) <= count_of(0.05, sum(map(torch.numel, found.values())))
    state = hook.state_dict()
    kinds = {key.rsplit("/", 1)[-1] for key in state}
    assert kinds == {"steps", "skipped", "mask_steps", "mask", *(["held_at"] if towards == "start" else [])}
    trained(SAFT(share=0.05), hooked=lambda new: new.load_state_dict(state), **both)


def test_steps_that_measure_leave_weights_and_optimizer_as_they_are():
    stepper = []

    def kept(ps):
        stepper.append(torch.optim.AdamW(ps, lr=0.1, weight_decay=0.5))
        return stepper[0]

    found, reports, hook = trained(SAFT(share=0.5, steps=3), steps=3, optimizer=kept)
    assert not any(one.any() for one in moved(found).values())
    assert not stepper[0].state
    assert (hook.measured, [report.measured for report in reports]) == (3, [True] * 3)
    assert reports[0].grad_norm == pytest.approx(trained(None, steps=1)[1][0].grad_norm)


def test_saft_sums_before_it_takes_absolute_values():
    """Two steps whose gradients cancel in the first tensor's element choose the second's."""
    model = nn.Linear(2, 1, bias=False)
    stepper = torch.optim.SGD(model.parameters(), lr=1.0)
    hook = attach(model, stepper, MainOnly(), select=lambda *_: True, gradient_mask=SAFT(share=0.5, steps=2))
    before = model.weight.detach().clone()
    for x in ([[9.0, 1.0]], [[-9.0, 1.0]], [[5.0, 2.0]]):
        hook.backward(model(torch.tensor(x)).sum(1), torch.ones(1))
        hook.step()
    assert (before - model.weight.detach()).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("mask", [SAFT(share=0.1), GMT(share=0.1), GMT(share=0.1, hold=True)], ids=str)
def test_it_is_the_same_however_a_step_is_cut(mask):
    sgd = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.1)}
    whole, _, _ = trained(mask, **sgd)
    cut, _, _ = trained(mask, parts=((0, 1), (1, 4), (4, 6)), **sgd)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-6)


def test_gmt_keeps_the_share_of_each_tensor_or_of_the_model_with_pego_in_it():
    """After the rule and the weights' term, whose slopes are gradients like others."""
    term = {"weight_penalty": PEGO(strength=0.05, adapters=3)}
    gradient = first_gradient(**term)
    of_tensors, of_model = first_gradient(gradient_mask=GMT(share=0.25), **term), None
    for name, one in gradient.items():
        (mask,) = sorted_masks([one.reshape(-1).double().tolist()], max(1, int(0.25 * one.numel())))
        assert torch.equal(of_tensors[name], one.masked_fill(~torch.tensor(mask).view(one.shape), 0))
    of_model = first_gradient(gradient_mask=GMT(share=0.25, scope="model"), **term)
    masks = sorted_masks(
        [one.reshape(-1).double().tolist() for one in gradient.values()],
        int(0.25 * sum(one.numel() for one in gradient.values())),
    )
    for (name, one), mask in zip(gradient.items(), masks, strict=True):
        assert torch.equal(of_model[name], one.masked_fill(~torch.tensor(mask).view(one.shape), 0))


def test_momentum_moves_what_gmt_masks_unless_it_holds():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    moves = {}
    for hold in (False, True):
        model.weight.data.copy_(before)
        stepper = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5, weight_decay=0.0)
        hook = attach(model, stepper, MainOnly(), select=lambda *_: True, gradient_mask=GMT(share=0.5, hold=hold))
        for x in ([[4.0, 1.0]], [[1.0, 3.0]]):
            hook.backward(model(torch.tensor(x)).sum(1), torch.ones(1))
            hook.step()
        hook.detach()
        moves[hold] = (before - model.weight.detach()).tolist()
    assert moves == {False: [[6.0, 3.0]], True: [[4.0, 3.0]]}  # by 4 and then by its half, or by 4 alone


def test_the_update_is_clipped_as_it_is_left():
    found, reports, _ = trained(
        GMT(share=0.1), steps=1, max_grad_norm=1e-3, optimizer=lambda ps: torch.optim.SGD(ps, lr=1.0)
    )
    norm = math.sqrt(sum(float((found[name] - before).square().sum()) for name, before in start().items()))
    assert norm == pytest.approx(1e-3, rel=1e-2)
    kept = first_gradient(gradient_mask=GMT(share=0.1))
    assert reports[0].grad_norm == pytest.approx(math.sqrt(sum(float(one.square().sum()) for one in kept.values())))


@pytest.mark.parametrize("mask", [SAFT(share=0.999999), GMT(share=0.999999, scope="model")], ids=str)
def test_a_share_of_almost_all_is_the_plain_run_but_for_one_element(mask):
    """Which has the smallest gradient of all; SAFT begins a step later."""
    sgd = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.01), "rule": MainOnly()}
    found, _, _ = trained(mask, steps=1 + mask.measures, **sgd)
    plain, _, _ = trained(None, steps=1, **sgd)
    differs = sum(int((found[name] != plain[name]).sum()) for name in plain)
    assert differs <= 1


def test_of_lora_at_its_start_saft_trains_b_alone():
    model = bert_lora()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(SAFT(share=0.1), model=model)
    moves = {name: not torch.equal(p, before[name]) for name, p in model.named_parameters()}
    assert not any(moving for name, moving in moves.items() if "lora_B" not in name and "classifier" not in name)
    assert any(moving for name, moving in moves.items() if "lora_B" in name)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_skipped_chooses_nothing(bad):
    """Whichever elements it would have kept."""
    model = bert_lora()
    named = [p for p in model.parameters() if p.requires_grad]
    hook = attach(model, torch.optim.AdamW(named, lr=0.1), MainOnly(), gradient_mask=SAFT(share=0.1))
    seen = []
    for factor in (bad, 1.0, bad, 1.0):
        hook.backward(text_loss(model, BATCH) * factor, weights_for(6))
        report = hook.step()
        seen.append((report.finite, report.measured))
        assert all(p.isfinite().all() for p in named)
    assert seen == [(False, False), (True, True), (False, False), (True, False)]
    assert (hook.measured, hook.skipped) == (1, 2)


@pytest.mark.parametrize(
    ("mask", "at"),
    [(SAFT(share=0.1), 2), (SAFT(share=0.1, steps=3), 2), (SAFT(share=0.1, steps=2), 0), (GMT(share=0.1), 2)],
    ids=str,
)
@pytest.mark.parametrize("rule", [Edge(), DiGraP()], ids=lambda rule: rule.name)
def test_what_goes_on_from_a_state_is_what_was_not_cut(mask, at, rule):
    sgd = {"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.05), "rule": rule}
    whole, _, last = trained(mask, steps=5, **sgd)
    model = bert_lora()
    _, _, first = trained(mask, model=model, steps=at, **sgd)
    state = first.state_dict()
    other = bert_lora()
    hooked = {"hooked": lambda hook: (other.load_state_dict(model.state_dict()), hook.load_state_dict(state))}
    cut, _, second = trained(mask, model=other, steps=5 - at, **sgd, **hooked)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    assert second.measured == last.measured
    assert bool(second.remembers) == (rule.name == "digrap" or mask.name == "saft")


def test_a_state_of_other_parameters_is_refused():
    _, _, hook = trained(SAFT(share=0.1), steps=2)
    state = hook.state_dict()
    name = next(key for key in state if key.endswith("/mask"))
    assert state[name].dtype == torch.uint8

    def go_on(changed, mask=SAFT(share=0.1)):  # noqa: B008
        model = bert_lora()
        named = [p for p in model.parameters() if p.requires_grad]
        attach(model, torch.optim.SGD(named, lr=0.1), Edge(), gradient_mask=mask).load_state_dict(changed)

    go_on(state)
    for changed, message in (
        ({key: one for key, one in state.items() if key != name}, "is only in what gradient_mask saft keeps here"),
        ({**state, "other/mask": state[name]}, "other/mask is only in the saved state"),
        ({**state, name: state[name][:-1]}, "does not fit a parameter of shape"),
        ({key: one for key, one in state.items() if "mask" not in key}, "mask_steps is only in what"),
    ):
        with pytest.raises(ValueError, match=message):
            go_on(changed)
    with pytest.raises(ValueError, match="is only in the saved state"):
        go_on(state, None)


def test_what_trains_later_was_not_chosen_among():
    model = bert_lora()
    frozen = model.get_parameter("base_model.model.classifier.modules_to_save.default.bias")
    frozen.requires_grad = False
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), MainOnly(), gradient_mask=SAFT(share=0.1))
    hook.backward(text_loss(model, BATCH), weights_for(6))
    hook.step()
    frozen.requires_grad = True
    hook.backward(text_loss(model, BATCH), weights_for(6))
    with pytest.raises(RuntimeError, match="trains now and did not when gradient_mask saft chose its elements"):
        hook.step()


class Wrapper:
    """As Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups


def test_what_cannot_have_it_is_refused_by_name():
    model = bert_lora()
    named = [p for p in model.parameters() if p.requires_grad]
    for mask in (SAFT(), GMT(hold=True)):
        with pytest.raises(ValueError, match=f"gradient_mask {mask.name} puts elements back .* NoneType given"):
            attach(model, None, Edge(), gradient_mask=mask)
    attach(model, None, Edge(), gradient_mask=GMT()).detach()
    attach(model, Wrapper(torch.optim.SGD(named)), Edge(), gradient_mask=SAFT()).detach()
    two_modes = torch.optim.SGD(named)
    two_modes.eval = lambda: None
    with pytest.raises(ValueError, match=r"gradient_mask saft puts .* SGD moves weights outside of its steps too"):
        attach(model, two_modes, Edge(), gradient_mask=SAFT())


def test_the_optimizer_is_left_as_it_was():
    stepper = []

    def kept(ps):
        stepper.append(torch.optim.SGD(ps, lr=0.1))
        return stepper[0]

    trained(SAFT(), optimizer=kept)
    assert not stepper[0]._optimizer_step_pre_hooks
    assert not stepper[0]._optimizer_step_post_hooks
