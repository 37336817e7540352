"""Which slice a rank owns: all ranks' pieces together are each parameter once, whatever the shapes and the world."""

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from debias.engines import layout as layouts
from debias.engines.layout import ByRows, Chunked, Flat, Replicated, Span

SHAPES = st.lists(st.lists(st.integers(0, 7), max_size=3).map(torch.Size), min_size=1, max_size=6).map(
    lambda shapes: {f"p{i}": shape for i, shape in enumerate(shapes)}
)
WORLDS = st.integers(1, 9)


def flat_spans(shapes, world, groups):
    """Groups in DeepSpeed's way: end to end, padded to a multiple of twice the world."""
    spans = []
    for group in range(groups):
        offsets, at = {}, 0
        for index, (name, shape) in enumerate(shapes.items()):
            if index % groups == group:
                offsets[name] = at
                at += shape.numel()
        spans.append(Span(offsets, -(-at // (2 * world)) * 2))
    return spans


def chunked(shapes, world):
    return [Chunked(shapes, rank, world, None) for rank in range(world)]


def flat(shapes, world, groups=2):
    spans = flat_spans(shapes, world, groups)
    return [Flat(shapes, spans, rank, world, None) for rank in range(world)]


def assert_tiles(ranks, shapes):
    for name, shape in shapes.items():
        owned = [rank.pieces[name] for rank in ranks if name in rank.pieces]
        assert all(len(piece) > 0 for piece in owned)
        assert [i for piece in owned for i in range(piece.start, piece.stop)] == list(range(shape.numel()))


@settings(deadline=None)
@given(SHAPES, WORLDS)
def test_chunks_tile_every_parameter(shapes, world):
    assert_tiles(chunked(shapes, world), shapes)


@settings(deadline=None)
@given(SHAPES, WORLDS)
def test_rows_are_dealt_out_as_torch_chunks_them(shapes, world):
    """Which is FSDP2's way; it shards no parameter of no dimension."""
    shapes = {name: shape for name, shape in shapes.items() if len(shape)}
    ranks = [ByRows(shapes, rank, world, None) for rank in range(world)]
    assert_tiles(ranks, shapes)
    for name, shape in shapes.items():
        parts = [part.numel() for part in torch.empty(shape).chunk(world)] if shape[0] else []
        parts += [0] * (world - len(parts))
        assert [len(rank.pieces[name]) if name in rank.pieces else 0 for rank in ranks] == parts


@settings(deadline=None)
@given(SHAPES, WORLDS, st.integers(1, 3))
def test_stretches_tile_every_parameter(shapes, world, groups):
    assert_tiles(flat(shapes, world, groups), shapes)


@settings(deadline=None)
@given(SHAPES, WORLDS)
def test_stretches_of_what_is_selected_only(shapes, world):
    """A parameter that the rule leaves alone keeps its place in the group, and nobody's piece of it is asked for."""
    selected = dict(list(shapes.items())[::2])
    ranks = [Flat(selected, flat_spans(shapes, world, 1), rank, world, None) for rank in range(world)]
    assert_tiles(ranks, selected)
    assert {name for rank in ranks for name in rank.pieces} <= set(selected)


@settings(deadline=None, max_examples=50)
@given(SHAPES, st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_a_reduction_leaves_the_sum_in_the_pieces(shapes, world, chunks, seed):
    """Every rank brings full tensors, one of them missing on all but rank 0."""
    ranks = chunked(shapes, world) if chunks else flat(shapes, world)
    generator = torch.Generator().manual_seed(seed)
    full = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in ranks]
    for other in full[1:]:
        del other["p0"]
    buffers = []

    def keep(buffer, world, group):
        buffers.append(buffer)
        return buffer[: buffer.numel() // world]

    for rank, tensors in zip(ranks, full, strict=True):
        with replaced(layouts, "reduce_scatter", keep):
            rank.reduce(tensors, torch.device("cpu"))
    total = torch.stack(buffers).sum(dim=0)
    for index, rank in enumerate(ranks):
        with replaced(layouts, "reduce_scatter", lambda b, w, g, i=index: total.chunk(w)[i] if b.numel() else b):
            got = rank.reduce(full[index], torch.device("cpu"))
        assert got.keys() == rank.pieces.keys()
        for name, piece in rank.pieces.items():
            want = sum(tensors[name].flatten() for tensors in full if name in tensors)
            torch.testing.assert_close(got[name], want[piece.start : piece.stop])


def test_everything_is_everybodys_at_stage_0(monkeypatch):
    shapes = {"a": torch.Size([2, 3]), "b": torch.Size([]), "c": torch.Size([0])}
    layout = Replicated(shapes, None)
    monkeypatch.setattr(dist, "all_reduce", lambda flat, group: flat.mul_(2))
    got = layout.reduce({"a": torch.ones(2, 3)}, torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in got.items()} == {"a": [2.0] * 6, "b": [0.0], "c": []}
    assert {name: len(piece) for name, piece in layout.pieces.items()} == {"a": 6, "b": 1, "c": 0}
    assert not layout.sharded


class replaced:
    """Another function in the place of a module's, inside; hypothesis does not take pytest's fixture."""

    def __init__(self, module, name, function):
        self.module, self.name, self.function = module, name, function

    def __enter__(self):
        self.before = getattr(self.module, self.name)
        setattr(self.module, self.name, self.function)

    def __exit__(self, *_):
        setattr(self.module, self.name, self.before)
