"""The Triton kernels of the combination without a GPU, in a process of their own: how Triton is loaded is of a process.

    TRITON_INTERPRET=1 python tests/interpreted_kernels.py     # runs every check of CHECKS, by Triton's interpreter
    python tests/interpreted_kernels.py                        # compiles what is launched, for every GPU of TARGETS

Printed: JSON, what went wrong by name (null: nothing did). The oracle is plain loops over Python's floats, which are
float64. Shapes: K parameters of O rows and I columns, V vectors, G products.
"""

import itertools
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path

import torch

TARGETS = (("cuda", 80, 32), ("cuda", 89, 32), ("cuda", 90, 32))
# Short rows and one column, sizes beside a block's or its own, more rows than one program takes, a row that is cut.
SHAPES = ((2, 3, 1), (1, 130, 8), (3, 2, 65), (2, 5, 7), (1, 2, 1025), (2, 2, 64), (1, 1, 4099), (1, 2, 8193))
EMPTY = ((1, 0, 4), (0, 3, 4), (2, 2, 0))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels():
    from debias.methods import triton_kernels

    return triton_kernels


def in_a_buffer(values_KOI: torch.Tensor, before: int = 3, between: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """The values as a view of a flat buffer, at an odd place, something between the parameters; and the buffer."""
    members, rows, columns = values_KOI.shape
    step = rows * columns + between
    flat = torch.full((before + members * step + 1,), 7.0, dtype=values_KOI.dtype)
    view = flat.as_strided((members, rows, columns), (step, columns, 1), before)
    view.copy_(values_KOI)
    return view, flat


def drawn(count: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [in_a_buffer(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)]


def gram_by_loops(vectors) -> torch.Tensor:
    sides = [vector.double().tolist() for vector in vectors]
    rows = [
        [list(zip(*of_row, strict=True)) for of_row in zip(*of_k, strict=True)] for of_k in zip(*sides, strict=True)
    ]
    pairs = [(i, j) for i in range(len(sides)) for j in range(i, len(sides))]
    finite = all(vector.isfinite().all() for vector in vectors)
    add = math.fsum if finite else sum  # fsum rounds once, and refuses inf - inf
    sums = [[[add([e[i] * e[j] for e in row]) for i, j in pairs] for row in of_k] for of_k in rows]
    return torch.tensor(sums, dtype=torch.float64).reshape(*vectors[0].shape[:2], len(pairs))


def gram_by_kernel(vectors) -> torch.Tensor:
    """Into a part of a larger tensor, whose products lie apart; what lies around has to stay."""
    members, rows, _ = vectors[0].shape
    products = len(vectors) * (len(vectors) + 1) // 2
    whole_GKO = torch.full((products, members + 1, rows + 2), -1.0, dtype=torch.float64)
    into_KOG = whole_GKO[:, 1:, 1:-1].movedim(0, -1)
    kernels().write_gram(into_KOG, vectors)
    got = into_KOG.clone()
    into_KOG.fill_(-1.0)
    assert (whole_GKO == -1.0).all(), "it wrote beside its place"
    return got


def check_gram(vectors) -> None:
    want = gram_by_loops(vectors)
    # What rounding may do to a sum of so many terms is measured by the lengths, not by a sum that cancels.
    lengths = gram_by_loops([vector.abs() for vector in vectors])
    error = (gram_by_kernel(vectors) - want).abs()
    assert (error <= 1e-14 * lengths).all(), f"{tuple(vectors[0].shape)}: {error.max()}"


def gram_of_all_shapes() -> None:
    for shape, count in itertools.product((*SHAPES, *EMPTY), (1, 2, 3)):
        check_gram([view for view, _ in drawn(count, shape)])


def gram_of_all_dtypes() -> None:
    for dtypes in itertools.product(DTYPES, DTYPES):
        check_gram([drawn(1, (2, 5, 65), dtype, seed)[0][0] for seed, dtype in enumerate(dtypes)])


def gram_of_rows_with_gaps() -> None:
    wide = torch.randn(2, 3, 5, 90)
    check_gram([wide[0, :, :, 3:70], wide[1, :, :, 9:76]])
    check_gram([wide[0, :1, ::2, :1], wide[1, :1, ::2, 4:5]])
    check_gram([wide[0].transpose(0, 1), wide[1].transpose(0, 1)])


def gram_of_ugly_values() -> None:
    """Squares beyond float32 on both sides, a sum that cancels to its last element, and rows of zeros."""
    (main, _), (bias, _) = drawn(2, (1, 6, 33))
    main[0, 0], bias[0, 0] = 3e38, 1e-40
    main[0, 1], bias[0, 1] = 1e-40, -1e-42
    main[0, 2], main[0, 3] = 0.0, 0.0
    bias[0, 3] = 0.0
    check_gram([main, bias])
    main[0, 0], bias[0, 0] = 1e4, 1e4
    bias[0, 0, :16], main[0, 0, -1], bias[0, 0, -1] = -1e4, 1.0, 3.0
    assert gram_by_kernel([main, bias])[0, 0, 1] == 3.0
    ones = torch.ones(1, 1, 5000)
    ones[0, 0, 0] = 1e5
    assert gram_by_kernel([ones, ones])[0, 0].tolist() == [1e10 + 4999] * 3


def gram_of_values_that_are_no_numbers() -> None:
    """They reach the sums of their row, and no other."""
    for shape, value in itertools.product(((1, 3, 5), (2, 3, 1030), (1, 3, 4100)), (float("nan"), float("inf"))):
        (main, _), (bias, _) = drawn(2, shape)
        main[0, 1, -1] = value
        got, want = gram_by_kernel([main, bias]), gram_by_loops([main, bias])
        assert torch.equal(got.isfinite(), want.isfinite())
        assert not got[0, 1, :2].isfinite().any()


def update_by_loops(coefficients, vectors) -> tuple[torch.Tensor, torch.Tensor]:
    """What is exact but for float64's rounding, and the sum of the terms' sizes."""
    exact, sizes = torch.zeros_like(vectors[0], dtype=torch.float64), torch.zeros_like(vectors[0], dtype=torch.float64)
    for x_KO, vector_KOI in zip(coefficients, vectors, strict=True):
        rounded = x_KO.float().double()
        for k, o in itertools.product(*map(range, x_KO.shape)):
            term = torch.tensor([rounded[k, o].item() * v for v in vector_KOI[k, o].double().tolist()]).double()
            exact[k, o] += term
            sizes[k, o] += term.abs()
    return exact, sizes


def check_update(coefficients, given) -> None:
    """`given`: views and their buffers. What is no element of main stays as it was."""
    views, buffers = [view for view, _ in given], [flat.clone() for _, flat in given]
    exact, sizes = update_by_loops(coefficients, views)
    kernels().write_update(coefficients, views)
    got, dtype = views[0].double(), views[0].dtype
    most = 2 * torch.finfo(torch.float32).eps * sizes
    if dtype != torch.float32:  # to bfloat16 the interpreter cuts digits off; `compiled` sees that a GPU rounds
        last = torch.finfo(dtype).eps / (1 if dtype == torch.bfloat16 else 2)
        most = most + last * exact.abs() + torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert ((got - exact).abs() <= most).all(), f"{tuple(got.shape)} {dtype}: {(got - exact).abs().max()}"
    around = in_a_buffer(torch.ones_like(views[0]))[1] != 1
    assert (given[0][1][around] == 7.0).all(), "it wrote beside its place"
    assert all(torch.equal(flat, before) for (_, flat), before in zip(given[1:], buffers[1:], strict=True))


def made_coefficients(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64):
    """Parts of one tensor, as the engines cut them."""
    members, rows = shape
    whole_VKO = torch.randn(count, members + 1, rows + 2, dtype=torch.float64).to(dtype)
    return list(whole_VKO[:, 1:, 1:-1].unbind())


def update_of_all_shapes() -> None:
    for shape, count in itertools.product((*SHAPES, *EMPTY), (1, 2, 3)):
        check_update(made_coefficients(count, shape[:2]), drawn(count, shape))


def update_of_all_dtypes() -> None:
    for main, other, own in itertools.product(DTYPES, DTYPES, (torch.float64, torch.float32)):
        given = [*drawn(1, (2, 5, 33), main), *drawn(1, (2, 5, 33), other, seed=1)]
        check_update(made_coefficients(2, (2, 5), own), given)


def update_of_whole_numbers() -> None:
    """Nothing is rounded: equal to plain torch, bit for bit."""
    from debias.methods import write_update

    for shape, count, dtype in itertools.product(SHAPES[:6], (1, 2, 3), DTYPES):
        coefficients = [x.round() for x in made_coefficients(count, shape[:2])]
        got, want = ([(view * 4).round() for view, _ in drawn(count, shape, dtype)] for _ in range(2))
        kernels().write_update(coefficients, got)
        write_update(coefficients, want)
        assert torch.equal(got[0], want[0])


def update_of_values_that_are_no_numbers() -> None:
    """A coefficient that is none spoils its row, an element itself."""
    views = [view for view, _ in drawn(2, (2, 3, 1030))]
    coefficients = made_coefficients(2, (2, 3))
    coefficients[1][0, 1], views[1][1, 2, 5] = float("nan"), float("inf")
    kernels().write_update(coefficients, views)
    bad = ~views[0].isfinite()
    assert bad[0, 1].all()
    assert bad[1, 2, 5]
    assert bad.sum() == 1031


def the_combination_by_kernels() -> None:
    """Whole adapters, and the share of one of several ranks, whose rows are cut: as by plain torch."""
    from debias.bench.combine import group_of_one, made_pieces
    from debias.engines.layout import Chunked
    from debias.engines.pieces import combine_pieces, make_plan
    from debias.engines.rule_state import RuleState
    from debias.methods import Edge, fused

    cpu = torch.device("cpu")
    shapes = {f"{i}": torch.Size(size) for i, size in enumerate([(8, 600), (300, 8), (8, 600), (300, 8), (77,), ()])}
    for ranks, rank in ((1, 0), (7, 0), (7, 3)):
        layout = Chunked(shapes, rank=rank, world=ranks, group=None)
        sizes = {name: len(piece) for name, piece in layout.pieces.items()}
        updates = []
        for wanted in (False, True):
            vectors = [made_pieces(sizes, side, cpu) for side in (0, 1)]
            fused._on_gpu = lambda tensor, wanted=wanted: wanted
            fused.written.clear()
            with group_of_one(cpu):
                plan = make_plan(layout, shapes, None, cpu)
                combine_pieces(plan, RuleState(Edge(), (), dict, dict), vectors, [1.0], lambda summed: (0.5, 0.5))
            updates.append(torch.cat([piece for piece in vectors[0].values()]))
            assert not fused._given_up, fused._given_up
            # That they were asked says nothing: what they do not take is left to plain torch, which gives the same.
            assert [fused.written[kind] > 0 for kind in ("Gram", "update")] == [wanted] * 2, fused.written
        torch.testing.assert_close(updates[1], updates[0], rtol=1e-6, atol=1e-6)
        assert updates[0].norm() > 1


CHECKS = (
    gram_of_all_shapes,
    gram_of_all_dtypes,
    gram_of_rows_with_gaps,
    gram_of_ugly_values,
    gram_of_values_that_are_no_numbers,
    update_of_all_shapes,
    update_of_all_dtypes,
    update_of_whole_numbers,
    update_of_values_that_are_no_numbers,
    the_combination_by_kernels,
)


def launches():
    """Short rows and long ones, one that is cut, one column, every dtype; views at odd places of their buffers."""
    kinds = (
        ((2, 300, 16), 2, torch.float32, torch.float64),
        ((3, 5, 1), 2, torch.float32, torch.float64),
        ((2, 16, 4096), 3, torch.float32, torch.float32),
        ((1, 1, 8193), 2, torch.bfloat16, torch.float32),
        ((2, 300, 16), 1, torch.float16, torch.float64),
    )
    for shape, count, dtype, own in kinds:
        vectors = [view for view, _ in drawn(count, shape, dtype)]
        cuts = 3 if shape[-1] > 8000 else 1
        sums = torch.empty(*shape[:2], count * (count + 1) // 2, cuts, dtype=torch.float64)
        title = f"{count} x {list(shape)}, {dtype}"
        yield title, kernels().gram_launch(sums, vectors)
        yield title, kernels().update_launch(made_coefficients(count, shape[:2], own), vectors)


class NoGpu:
    """What Triton asks of a machine before it compiles; a device for each target, for what it made is kept for each."""

    def __init__(self, target: tuple[str, int, int]):
        self.target = target

    def get_current_device(self) -> int:
        return self.target[1]

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*self.target)


def compiled(launch, target: tuple[str, int, int]) -> None:
    """By Triton's own way to a launch, up to it: what it makes of these arguments is compiled."""
    from triton.runtime import driver

    driver.set_active(NoGpu(target))
    given = {**launch.arguments, **launch.constants, **launch.options}
    made = launch.kernel.warmup(**given, grid=(launch.programs,))
    assert made.asm["cubin"]
    words = set(re.findall(r"\b[a-z]+\.[\w.:]+", made.asm["ptx"]))
    assert any(word.startswith("ld.global") for word in words)
    assert not [word for word in words if word.startswith(("atom", "red.")) or ".ftz" in word], (
        "neither atomics nor ftz"
    )
    if launch.kernel.__name__ == "gram_kernel":
        assert "fma.rn.f64" in words
    elif launch.arguments["a"].dtype != torch.float32:
        assert any(word.startswith("cvt.rn") for word in words), "rounded to the nearest"


def outcome(check, *given) -> str | None:
    try:
        check(*given)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        found = {check.__name__: outcome(check) for check in CHECKS}
    else:
        made = [(title, launch, target) for title, launch in launches() for target in TARGETS]
        found = {f"{m[1].kernel.__name__}, {m[0]}, {m[2][0]} {m[2][1]}": outcome(compiled, m[1], m[2]) for m in made}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "pipeline")]
    torch.manual_seed(0)
    main()
