"""The update made of slices on many ranks, against the update of whole tensors. The ranks are threads."""

import threading

import pytest
import torch
import torch.distributed as dist
from covering import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import FORMS, RATE, history, last_update, update_of

from debias.engines.layout import Chunked, Flat, Replicated, Span
from debias.engines.pieces import combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.engines.step import report
from debias.methods import GRADIENTS, Edge
from debias.plan.payload import cut_rows

CPU = torch.device("cpu")
LARGE = 2.0**24 + 1  # a number that float32 does not have


class Ranks:
    """An all-reduce between threads: all add up, all get the sum."""

    def __init__(self, world):
        self.world, self.brought = world, []
        self.barrier, self.lock = threading.Barrier(world), threading.Lock()

    def all_reduce(self, buffer, group=None):
        with self.lock:
            self.brought.append(buffer.clone())
        self.barrier.wait(20)
        buffer.copy_(torch.stack(self.brought).sum(dim=0))
        if self.barrier.wait(20) == 0:
            self.brought.clear()
        self.barrier.wait(20)

    def run(self, work):
        """`work(rank)` of every rank, side by side."""
        results = [None] * self.world
        threads = [
            threading.Thread(target=lambda r=rank: results.__setitem__(r, work(r))) for rank in range(self.world)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results


def layouts_of(kind, shapes, world):
    if kind == "chunked":
        return [Chunked(shapes, rank, world, None) for rank in range(world)]
    if kind == "replicated":
        return [Replicated(shapes, None) for _ in range(world)]
    offsets, at = {}, 0
    for name, shape in shapes.items():
        offsets[name] = at
        at += shape.numel()
    span = Span(offsets, -(-at // (2 * world)) * 2)
    return [Flat(shapes, [span], rank, world, None) for rank in range(world)]


def by_pieces(kind, world, rule, main, bias, seen=1.0, written=None):
    """The last update of each tensor's `history`, put together from the pieces of all ranks, and rank 0's report."""
    shapes = {name: tensor.shape for name, tensor in main.items()}
    layouts = layouts_of(kind, shapes, world)
    ranks = Ranks(world)
    of_name = {name: history(rule, main[name], bias[name]) for name in main}
    steps = [[{n: of_name[n][step][v] for n in main} for v in range(len(rule.looks_at))]
             for step in range(len(of_name[next(iter(main))]))]  # fmt: skip

    def cut(tensors, pieces):
        return {name: tensors[name].flatten()[piece.start : piece.stop].clone() for name, piece in pieces.items()}

    def work(rank):
        pieces = layouts[rank].pieces
        plan = make_plan(layouts[rank], shapes, None, CPU)
        state = RuleState(rule, shapes, dict, lambda: dict.fromkeys(shapes, RATE))
        for step in steps:
            mine = [cut(vector, pieces) for vector in step]
            state.begin()
            done = combine_pieces(plan, state, mine, [1.0, LARGE + rank], lambda _: (seen, written or seen))
            state.keep()
        return mine[0], done

    before = dist.all_reduce, dist.get_world_size
    dist.all_reduce, dist.get_world_size = ranks.all_reduce, lambda group=None: world
    try:
        results = ranks.run(work)
    finally:
        dist.all_reduce, dist.get_world_size = before
    update = {name: torch.full_like(tensor, float("nan")).flatten() for name, tensor in main.items()}
    for layout, (mine, done) in zip(layouts, results, strict=True):
        assert done.extras == [float(world), world * LARGE + sum(range(world))]
        for name, piece in layout.pieces.items():
            update[name][piece.start : piece.stop] = mine[name]
    done = results[0][1]
    return {name: flat.view(main[name].shape) for name, flat in update.items()}, report(done.sums, 1.0, 1.0)


def ugly(seed):
    """Zeros, a single row, a single element, a vector, rank one, rows of unlike size, and nothing to remove."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    main = {
        "plain": random(5, 7),
        "another": random(5, 7),
        "no main": torch.zeros(3, 4),
        "no bias": random(3, 4),
        "one row": random(1, 9),
        "one": random(1),
        "scalar": random(),
        "vector": random(6),
        "cube": random(3, 2, 4),
        "rank one": random(6, 1) @ random(1, 5),
        "rows": random(7, 3) * torch.logspace(-8, 8, 7)[:, None],
        "parallel": random(4, 4),
    }
    bias = {name: random(*tensor.shape) for name, tensor in main.items()}
    bias["no bias"] = torch.zeros(3, 4)
    bias["rank one"] = random(6, 1) @ random(1, 5)
    bias["parallel"] = 0.5 * main["parallel"]
    return main, bias


def assert_close(got, want, main, bias):
    for name, tensor in want.items():
        # Row by row: what is left after a cancellation is as exact as what went into it, not more.
        size = (main[name].double().abs() + bias[name].double().abs()).reshape(_rows(tensor), -1).amax(dim=1)
        error = (got[name].double() - tensor.double()).abs().reshape(_rows(tensor), -1).amax(dim=1)
        assert bool((error <= 3e-6 * size.clamp(min=1e-37)).all()), (name, float((error / size).max()))


def _rows(tensor):
    return tensor.shape[0] if tensor.dim() > 1 else 1


# Each pair by turns: a rule, a way to cut tensors, and a number of ranks that share them.
CUTS = covering({"world": [1, 2, 3, 5], "kind": ["chunked", "flat", "replicated"], "rule": FORMS})


@pytest.mark.parametrize(("world", "kind", "rule"), [tuple(row.values()) for row in CUTS])
def test_pieces_are_the_whole(world, kind, rule):
    main, bias = ugly(world)
    want = {name: update_of(rule, main[name], bias[name]) for name in main}
    got, _ = by_pieces(kind, world, rule, main, bias)
    assert_close(got, want, main, bias)


@pytest.mark.parametrize("rule", FORMS, ids=repr)
@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_gradients_of_any_size(scale, rule):
    main, bias = ({name: t * scale for name, t in side.items() if name != "rows"} for side in ugly(0))
    want = {name: update_of(rule, main[name], bias[name]) for name in main}
    got, _ = by_pieces("chunked", 3, rule, main, bias)
    assert_close(got, want, main, bias)


@pytest.mark.parametrize("rule", [rule for rule in FORMS if not rule.is_plain], ids=repr)
def test_figures_of_every_rule(rule):
    main, bias = ({name: t for name, t in side.items() if name != "rows"} for side in ugly(7))
    got, figures = by_pieces("flat", 3, rule, main, bias)
    flat_main, flat_bias, flat_update = (
        torch.cat([t.flatten() for t in s.values()]).double() for s in (main, bias, got)
    )
    assert figures.main_norm == pytest.approx(float(flat_main.norm()), rel=1e-6)
    assert figures.bias_norm == pytest.approx(float(flat_bias.norm()) if rule.uses_bias else 0.0, rel=1e-6)
    assert figures.grad_norm == pytest.approx(float(flat_update.norm()), rel=1e-5)
    removed = float((flat_main - flat_update).norm() / flat_main.norm())
    assert removed > 0.01
    assert figures.removed_share == pytest.approx(removed, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from(["chunked", "flat", "replicated"]),
)
def test_sums_are_made_of_the_rows_that_ranks_share_and_of_no_other(shapes, world, kind):
    """Element by element: who holds it. A row has one rank that counts it, and is held by whoever has a part of it."""
    named = {f"p{i}": torch.Size(shape) for i, shape in enumerate(shapes)}
    layouts = layouts_of(kind, named, world)
    plans = [make_plan(layout, named, None, CPU) for layout in layouts]
    shared = 0
    for name, shape in named.items():
        rows = torch.arange(shape.numel()).view(_rows(torch.empty(shape)), -1).tolist()
        holders = [[rank for rank, layout in enumerate(layouts) if name in layout.pieces
                    and not {*row}.isdisjoint(range(layout.pieces[name].start, layout.pieces[name].stop))]
                   for row in rows]  # fmt: skip
        if kind != "replicated":
            shared += sum(len(ranks) > 1 for ranks in holders)
        for rank, plan in enumerate(plans):
            group = next(group for group in plan.alike if name in group.names)
            assert group.rows == sum(rank in ranks for ranks in holders)
            first = sum(rank in ranks and min(ranks) < rank for ranks in holders) if kind != "replicated" else 0
            assert group.counted == first
    assert {plan.sums for plan in plans} == {len(named) + shared}
    if kind == "chunked":  # what `debias plan` and `debias bench cost` count
        counted = sum(cut_rows(_rows(torch.empty(shape)), shape.numel(), world) for shape in named.values())
        assert counted == shared


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from(["chunked", "flat"]),
    st.sampled_from(FORMS),
    st.integers(0, 999),
)
def test_any_shapes_over_any_world(shapes, world, kind, rule, seed):
    generator = torch.Generator().manual_seed(seed)
    main, bias = ({f"p{i}": torch.randn(s, generator=generator) for i, s in enumerate(shapes)} for _ in range(2))
    want = {name: update_of(rule, main[name], bias[name]) for name in main}
    got, _ = by_pieces(kind, world, rule, main, bias)
    assert_close(got, want, main, bias)


def test_the_figures_do_not_depend_on_the_ranks():
    main, bias = ({name: t for name, t in side.items() if name != "rows"} for side in ugly(3))
    want = by_pieces("chunked", 1, Edge(), main, bias)[1]
    for kind, world in (("chunked", 3), ("flat", 4), ("replicated", 2)):
        got = by_pieces(kind, world, Edge(), main, bias)[1]
        for figure, value in vars(want).items():
            assert getattr(got, figure) == pytest.approx(value, rel=1e-6)
    flat = torch.cat([t.flatten() for t in main.values()]).double()
    assert want.main_norm == pytest.approx(float(flat.norm()), rel=1e-6)


@pytest.mark.parametrize("rule", FORMS, ids=repr)
def test_rules_see_scaled_gradients(rule):
    """The factor is applied once to the gradients that the rule sees, and once to its update; never to what moved."""
    main, bias = ugly(4)

    def scaled(vectors):
        return [t * 0.25 if v in GRADIENTS else t for v, t in zip(rule.looks_at, vectors, strict=True)]

    want = {name: last_update(rule, list(map(scaled, history(rule, main[name], bias[name])))) for name in main}
    got, figures = by_pieces("flat", 2, rule, main, bias, seen=0.25)
    assert_close(got, want, main, bias)
    assert figures.finite


def test_what_moved_is_in_the_units_of_the_update():
    """A loss scale of 64: gradients hold 64 times what the rule is to see, and the engine wants its update so."""
    rule = next(rule for rule in FORMS if not GRADIENTS.issuperset(rule.looks_at))
    main, bias = ugly(6)
    want = {name: 64 * update_of(rule, main[name], bias[name]) for name in main}
    got, _ = by_pieces("chunked", 3, rule, {name: 64 * t for name, t in main.items()}, bias, seen=1 / 64, written=1.0)
    assert_close(got, want, {name: 64 * t for name, t in main.items()}, bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_all(value):
    main, bias = ugly(5)
    main["plain"][4, 6] = value
    _, figures = by_pieces("chunked", 3, Edge(), main, bias)
    assert not figures.finite
