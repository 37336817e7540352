"""`combine` against the oracle, on ugly inputs, and the properties that each rule must have.

Tolerance, for each element: `|got - oracle| <= TOLERANCE[dtype] * magnitude`, where magnitude is the sum of the
absolute values of what was added (see oracle.py). In float32 that is 1e-6, so an error of 1e-5 is caught; in bfloat16
half a unit in the last place is 0.2 %, the bound 0.4 %, so an error of 1 % is caught. `test_the_tolerance_catches`
holds us to it.
"""

import dataclasses
import itertools
import math

import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tables import FORMS, RATE, RULES, history, update_of

from debias.methods import (
    L2SP,
    MGDA,
    CAGrad,
    ComponentClip,
    Edge,
    GradVac,
    Gram,
    MainOnly,
    Orthogonal,
    PCGrad,
    Rule,
    StepFacts,
    Subtract,
    Vector,
    as_rows,
    combine,
    gram_of_rows,
    row_gram,
)
from debias.methods.combine import BLOCK_ELEMENTS, apply_coefficients

torch.set_num_threads(1)

rules = pytest.mark.parametrize("rule", RULES, ids=repr)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Rules that differ in a number alone are one code: each number in float32, each form in the other types.
rules_and_types = pytest.mark.parametrize(
    ("rule", "dtype"),
    [(rule, dtype) for dtype in DTYPES for rule in (RULES if dtype == torch.float32 else FORMS)],
    ids=lambda value: repr(value) if isinstance(value, Rule) else str(value),
)
forms = pytest.mark.parametrize("rule", FORMS, ids=repr)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2.0**-8}
SMALLEST = 1e-44  # a step of float32's subnormal numbers

# Derandomised: the same examples in every run, so that a red run is red again.
quick = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def by_oracle(rule: Rule, main: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(update, magnitude) float64 of the shape of main."""
    steps = [[matrix_of(v) for v in vectors] for vectors in history(rule, main, bias)]
    update, magnitude = oracle.update_of(rule.name, steps, RATE, **dataclasses.asdict(rule))
    return tuple(torch.tensor(t, dtype=torch.float64).reshape(main.shape) for t in (update, magnitude))


def matrix_of(tensor: torch.Tensor) -> list[list[float]]:
    wide = tensor.double()
    return [wide.tolist()] if tensor.dim() == 1 else wide.flatten(1).tolist()


def agrees(got: torch.Tensor, want: torch.Tensor, magnitude: torch.Tensor) -> bool:
    error = (got.double() - want).abs()
    return bool((error <= TOLERANCE[got.dtype] * magnitude + SMALLEST).all())


def check(rule: Rule, main: torch.Tensor, bias: torch.Tensor, name: str = "") -> None:
    got = update_of(rule, main, bias)
    assert got.shape == main.shape
    assert got.dtype == main.dtype
    want, magnitude = by_oracle(rule, main, bias)
    assert agrees(got, want, magnitude), f"{rule} {name}: {got.tolist()} is not {want.tolist()}"


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    main, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return main.to(dtype), (0.9 * main + 0.6 * noise).to(dtype)


@st.composite
def matrices(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    # No subnormal numbers: past a ratio of 5e36 between the two norms the shorter one counts as zero;
    # test_every_scale_of_each_side goes to 1e35, test_what_float32_cannot_scale_is_nothing beyond.
    size = st.floats(2**-20, 8, width=32)
    element = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), size, size.map(lambda value: -value))
    matrix = st.lists(st.lists(element, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    return draw(matrix), draw(matrix)


def well_defined(rule: Rule, main: list[list[float]], bias: list[list[float]], dtype: torch.dtype) -> bool:
    """False in the narrow band around the point where c counts as cancelled, where the rule is discontinuous."""
    if not isinstance(rule, Edge):
        return True
    low = 1e-3 if dtype == torch.float64 else 1e-8
    return all(ratio <= 1e-15 or ratio >= low for ratio in oracle.cancellation(main, bias))


@rules_and_types
@given(data=st.data())
@quick
def test_combine_is_the_oracle(rule, dtype, data):
    main, bias = (torch.tensor(m, dtype=dtype) for m in data.draw(matrices()))
    assume(well_defined(rule, main.double().tolist(), bias.double().tolist(), dtype))
    check(rule, main, bias)


SCALES = [1e-20, 1e-7, 1.0, 1e6, 1e15]


@forms
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_scale_of_each_side(rule, dtype):
    for main_scale, bias_scale in itertools.product(SCALES, SCALES):
        for shape in ((3, 4), (1, 4), (4, 1), (5,)):
            main, bias = pair(*shape)
            check(rule, (main * main_scale).to(dtype), (bias * bias_scale).to(dtype))


@forms
@pytest.mark.parametrize("size", [1e-38, 1e-40, 1e-42, 1e-44])
def test_what_float32_cannot_scale_is_nothing(rule, size):
    """A coefficient would be 1e38 and more; the oracle has no such bound, and is asked of a zero in its place."""
    for shape in ((3, 4), (1, 4), (5,)):
        main, bias = pair(*shape)
        for tensors in ((main, bias * size), (main * size, bias)) if Vector.BIAS in rule.looks_at else ():
            got = update_of(rule, *tensors)
            nothing = [torch.where(t.abs().max() < 1e-30, 0.0, t) for t in tensors]
            want, magnitude = by_oracle(rule, *nothing)
            off = (got.double() - want).abs() - 8 * size  # the short one itself, where a rule keeps it
            assert bool((off <= TOLERANCE[got.dtype] * magnitude).all()), (
                f"{rule}: {got.tolist()} is not {want.tolist()}"
            )


def ugly() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    main, bias = pair(4, 6)
    zero = torch.zeros_like(main)
    some_rows = main.clone()
    some_rows[1:3] = 0
    first_row = zero.clone()
    first_row[0] = 1
    rank_one = torch.outer(torch.arange(1.0, 5.0), torch.arange(-2.0, 4.0))
    ones = torch.ones(3, 3)
    return {
        "zero main": (zero, bias),
        "zero bias": (main, zero),
        "both zero": (zero, zero),
        "c cancels": (main, -main),
        "c cancels, other scale": (main, -main / 4),
        "c cancels, rounded": (main, -main / 3),
        "bias is main": (main, main.clone()),
        "bias is main, other scale": (main, main * 1e-3),
        "one row": (main[:1], bias[:1]),
        "one row, zero bias": (main[:1], zero[:1]),
        "one row, cancels": (main[:1], -2 * main[:1]),
        "one column": (main[:, :1].contiguous(), bias[:, :1].contiguous()),
        "one element": (main[:1, :1].contiguous(), bias[:1, :1].contiguous()),
        "rank one": (rank_one, rank_one.flip(0) + 1),
        "rank deficient": (ones, torch.tril(ones)),
        "zero rows of main": (some_rows, bias),
        "zero rows of bias": (main, some_rows.flip(0)),
        "rows that do not meet": (first_row, some_rows - some_rows * first_row),
        "one row cancels": (main, torch.cat([-main[:1], bias[1:]])),
        "orthogonal": (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [4.0, 0.0]])),
        "not contiguous": (main.T, bias.T),
    }


# A test for each rule and type, not for each input: what pytest does around a test takes longer than a rule.
@rules_and_types
def test_ugly_inputs(rule, dtype):
    for name, tensors in ugly().items():
        main, bias = (t.to(dtype) for t in tensors)
        if dtype == torch.bfloat16 and name == "c cancels, rounded":
            bias = -main / 2  # a third is not a third in bfloat16: c is then real, and tiny
        check(rule, main, bias, name)
        assert update_of(rule, main, bias).isfinite().all(), name


@rules_and_types
def test_any_number_of_dimensions(rule, dtype):
    for shape in ((), (5,), (1,), (2, 3, 4), (3, 2, 2, 2), (1, 2, 3)):
        main, bias = pair(*shape, dtype=dtype)
        got = update_of(rule, main, bias)
        assert got.shape == shape
        rows = [t.reshape(1, -1) if len(shape) < 2 else t.reshape(shape[0], -1) for t in (main, bias)]
        want, magnitude = by_oracle(rule, *rows)
        assert agrees(got.reshape(want.shape), want, magnitude), shape


@rules
def test_nothing_in_nothing_out(rule):
    for shape in ((0, 4), (3, 0), (0,), (0, 0), (2, 0, 3), (0, 2, 3)):
        assert update_of(rule, torch.zeros(shape), torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("rule", [rule for rule in FORMS if not isinstance(rule, ComponentClip)], ids=repr)
@given(data=st.data(), s=st.sampled_from([1e-12, 1e-3, 0.3, 7.0, 1e9]))
@quick
def test_scaling_both_scales_the_update(rule, data, s):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    assume(well_defined(rule, main.tolist(), bias.tolist(), torch.float64))
    want, magnitude = by_oracle(rule, main, bias)
    assert agrees(update_of(rule, main * s, bias * s), want * s, magnitude * s)


@pytest.mark.parametrize("rule", [Edge(0.0), Edge(0.0, "row"), Edge(0.0, "tensor"), Subtract(0.0), Orthogonal(0.0)])
@given(data=st.data())
@quick
def test_alpha_zero_is_main(rule, data):
    main, bias = (torch.tensor(m) for m in data.draw(matrices()))
    assert torch.equal(update_of(rule, main, bias), main)


@given(data=st.data())
@quick
def test_orthogonal_is_orthogonal(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    update = combine(Orthogonal(), main, bias)
    assert abs(float((update * bias).sum())) <= 1e-13 * float(main.norm() * bias.norm())


@given(data=st.data())
@quick
def test_pcgrad_main_never_goes_against_bias(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    update = combine(PCGrad("main"), main, bias)
    assert float((update * bias).sum()) >= -1e-13 * float(main.norm() * bias.norm())


@given(data=st.data())
@quick
def test_pcgrad_is_the_sum_where_nothing_conflicts(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    assume((main * bias).sum() >= 0)
    torch.testing.assert_close(combine(PCGrad(), main, bias), main + bias)


@given(data=st.data())
@quick
def test_mgda_makes_neither_loss_larger_and_is_the_shortest(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    update = combine(MGDA(), main, bias)
    square, scale = float((update * update).sum()), float((main * main).sum() + (bias * bias).sum())
    assert all(float((update * side).sum()) >= square - 1e-12 * scale for side in (main, bias))
    for share in (0.0, 0.3, 0.7, 1.0):
        assert square <= float((share * main + (1 - share) * bias).square().sum()) + 1e-12 * scale


@given(data=st.data())
@quick
def test_cagrad_stays_near_the_average_and_serves_the_worse_loss(data):
    """No step as near the average, of many in the plane of the two, makes the smaller gain larger."""
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    for c in (0.0, 0.4, 0.95):
        update, average = combine(CAGrad(c), main, bias), (main + bias) / 2
        reach, scale = c * float(average.norm()), float(main.norm() + bias.norm())
        assert float((update - average).norm()) <= reach + 1e-9 * scale
        gain = min(float((update * side).sum()) for side in (main, bias))
        for angle in range(24):
            way = math.cos(angle * math.pi / 12) * main + math.sin(angle * math.pi / 12) * bias
            other = average + reach * way / way.norm().clamp(min=1e-30)
            assert min(float((other * side).sum()) for side in (main, bias)) <= gain + 1e-7 * scale**2
        torch.testing.assert_close(combine(CAGrad(c, "code"), main, bias) * (1 + c * c), update)


@given(data=st.data())
@quick
def test_gradvac_brings_both_to_the_cosine_it_aims_at_and_without_a_target_is_pcgrad(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    torch.testing.assert_close(update_of(GradVac(0.0), main, bias), combine(PCGrad(), main, bias))
    cosine = float((main * bias).sum()) / max(float(main.norm() * bias.norm()), 1e-30)
    assume(-0.999 < cosine < 0.499 and main.any() and bias.any())
    target = torch.tensor([0.5], dtype=torch.float64)
    (x, y), after = GradVac(0.1).advance(Gram.of(row_gram(main, bias)), target, StepFacts(1, target))
    assert float(after) == pytest.approx(0.45 + 0.1 * cosine)
    for brought, other in ((main + (y[0] - 1) * bias, bias), (bias + (x[0] - 1) * main, main)):
        assert float((brought * other).sum() / (brought.norm() * other.norm())) == pytest.approx(0.5)


@given(data=st.data())
@quick
def test_published_edge_on_one_row_is_the_tensor_form(data):
    main, bias = (torch.tensor(m[:1]) for m in data.draw(matrices()))
    for shape in ((1, -1), (-1,)):
        tensors = main.reshape(shape), bias.reshape(shape)
        assert torch.equal(combine(Edge(), *tensors), combine(Edge(projection="tensor"), *tensors))


@pytest.mark.parametrize("projection", ["row", "tensor"])
def test_a_unit_direction_keeps_what_is_shared(projection):
    """Where bias is parallel to main everything is shared: nothing is taken away, whatever the two sizes."""
    main, _ = pair(5, 7, dtype=torch.float64)
    for scale in (1e-9, 0.3, 1e9):
        torch.testing.assert_close(combine(Edge(projection=projection), main, main * scale), main)


@given(data=st.data())
@quick
def test_tensor_edge_takes_away_only_what_is_orthogonal_to_c(data):
    main, bias = (torch.tensor(m, dtype=torch.float64) for m in data.draw(matrices()))
    assume(well_defined(Edge(), main.tolist(), bias.tolist(), torch.float64) and main.any() and bias.any())
    c = main / main.norm() + bias / bias.norm()
    assume(c.norm() > 1e-2)
    taken = main - combine(Edge(projection="tensor"), main, bias)
    assert abs(float((taken * c).sum())) <= 1e-11 * float(bias.norm() + main.norm())


def transcription(main: torch.Tensor, bias: torch.Tensor, alpha: float) -> torch.Tensor:
    """EDGE line by line as its authors' code has it, float64."""
    main, bias = main.double(), bias.double()
    c = main / main.norm() + bias / bias.norm()
    update = torch.empty_like(main)
    for r in range(main.shape[0]):
        s = torch.dot(bias[r], c[r])
        exclusive = bias[r] - s * c[r]
        update[r] = main[r] - alpha * exclusive
    return update


@pytest.mark.parametrize("alpha", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (8, 8), (2000, 4)], ids=str)
def test_published_edge_is_the_authors_form(shape, alpha):
    main, bias = pair(*shape)
    want = transcription(main, bias, alpha)
    torch.testing.assert_close(combine(Edge(alpha), main.double(), bias.double()), want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(combine(Edge(alpha), main, bias).double(), want, rtol=1e-6, atol=1e-6)


def test_published_edge_on_a_tall_matrix_is_nearly_subtraction():
    """With thousands of rows the published projection is under 1 % of bias."""
    main, bias = pair(4000, 4, dtype=torch.float64)
    update = combine(Edge(), main, bias)
    assert 0 < float((update - (main - bias)).norm() / bias.norm()) < 0.01


@forms
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_input_reaches_the_output(rule, value):
    sides = (0, 1) if len(rule.looks_at) > 1 else (0,)
    for shape, side, sign in itertools.product(((3, 4), (1, 4), (4,), ()), sides, (1, -1)):
        where = f"on side {side} of shape {shape}"
        tensors = [t.clone() for t in pair(*shape)]
        tensors[1] *= sign
        tensors[side].reshape(-1)[-1] = value
        assert not update_of(rule, *tensors).isfinite().all(), f"{rule} hides {value} {where}"
        tensors[1 - side].zero_()
        assert not update_of(rule, *tensors).isfinite().all(), f"{rule} hides {value} {where} beside zeros"


def advance(rule: Rule, gram: torch.Tensor, memory: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    rate = torch.full(gram.shape[:-2], RATE, dtype=torch.float64)
    return rule.advance(Gram.of(gram), memory, StepFacts(1, rate))


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, Subtract | L2SP | MainOnly)], ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gram_is_not_masked(rule, value):
    """Where gradients are sharded, the rank that holds no bad element sees the bad one in the sums only."""
    vectors = torch.tensor([[[1.0, 2.0], [2.0, 0.0]], [[0.0, 4.0], [1.5, 2.0]], [[3.0, 0.0], [-1.0, 1.0]]])
    gram = row_gram(*vectors[: len(rule.looks_at)])
    if gram.shape[1] > 1:
        gram[0, 1:] = value * torch.tensor([-1.0, *[1.0] * (gram.shape[1] - 2)])
    else:
        gram[0] = value
    coefficients, _ = advance(rule, gram, torch.zeros(rule.memory, dtype=torch.float64))
    assert not torch.stack(coefficients).isfinite().all()


@forms
@given(data=st.data(), count=st.integers(1, 4))
@quick
def test_batched_coefficients_are_those_of_one_at_a_time(rule, data, count):
    size = data.draw(st.integers(1, 4))
    shape = (2, len(rule.looks_at), count, size, 3)
    elements = st.lists(st.floats(-2, 2, width=32), min_size=math.prod(shape), max_size=math.prod(shape))
    # Whole rows of zeros too: numbers that are drawn are seldom 0.
    alive = data.draw(st.lists(st.booleans(), min_size=2 * len(rule.looks_at), max_size=2 * len(rule.looks_at)))
    vectors = torch.tensor(data.draw(elements)).view(shape) * torch.tensor(alive).view(2, -1, 1, 1, 1)
    before, gram_KOG = (gram_of_rows(*of_step) for of_step in vectors)
    _, memory_KS = advance(rule, before, torch.zeros(count, rule.memory, dtype=torch.float64))
    coefficients, after_KS = advance(rule, gram_KOG, memory_KS)
    assert [x_KO.shape for x_KO in coefficients] == [(count, size)] * len(rule.looks_at)
    assert after_KS.shape == (count, rule.memory)
    for k in range(count):
        one, after_S = advance(rule, gram_KOG[k], memory_KS[k])
        for x_KO, x_O in zip((*coefficients, after_KS), (*one, after_S), strict=True):
            torch.testing.assert_close(x_KO[k], x_O, rtol=1e-12, atol=1e-300, equal_nan=True)


@given(data=st.data(), ranks=st.integers(1, 4))
@quick
def test_gram_of_slices_adds_up(data, ranks):
    """Each rank sums what it owns of the flat tensor, a row may straddle ranks: together that is the whole Gram."""
    main, bias = pair(data.draw(st.integers(1, 5)), data.draw(st.integers(1, 7)), seed=3)
    rows, columns = main.shape
    cuts = sorted(data.draw(st.lists(st.integers(0, main.numel()), min_size=ranks - 1, max_size=ranks - 1)))
    total = torch.zeros(rows, 3, dtype=torch.float64)
    for start, stop in itertools.pairwise([0, *cuts, main.numel()]):
        own = [torch.zeros(rows * columns).index_copy_(0, i, t.flatten()[i]) for t in (main, bias)
               for i in [torch.arange(start, stop)]]  # fmt: skip
        total += row_gram(own[0].view(rows, columns), own[1].view(rows, columns))
    torch.testing.assert_close(total, row_gram(main, bias), rtol=1e-13, atol=1e-13)


def test_gram_in_blocks_is_the_whole_gram():
    """More elements than one block holds, with a last block that is not full; and a row longer than a block."""
    for shape in ((1030, 301), (2, BLOCK_ELEMENTS + 7), (BLOCK_ELEMENTS + 3, 1), (3, 1031, 101)):
        main, bias = pair(*shape)
        a, b = main.double(), bias.double()
        want = torch.stack([(a * a).sum(-1), (a * b).sum(-1), (b * b).sum(-1)], dim=-1)
        torch.testing.assert_close(gram_of_rows(main, bias), want, rtol=1e-12, atol=1e-12)


def test_gram_does_not_lose_small_elements_in_float32():
    """Float64 sums: 2^24 + 1 ones would stop growing in float32."""
    ones = torch.full((1, 5000), 1.0)
    ones[0, 0] = 1e5
    assert row_gram(ones, ones)[0, 0].item() == 1e10 + 4999


@rules_and_types
def test_inputs_stay_as_they_are(rule, dtype):
    main, bias = pair(4, 5, dtype=dtype)
    kept = main.clone(), bias.clone()
    update = update_of(rule, main, bias)
    update.zero_()
    assert torch.equal(main, kept[0])
    assert torch.equal(bias, kept[1])


@rules
def test_shapes_must_be_equal(rule):
    with pytest.raises(ValueError, match="shape"):
        update_of(rule, torch.zeros(2, 3), torch.zeros(3, 2))


def test_mixed_dtypes_give_the_dtype_of_main():
    """A bfloat16 parameter's main gradient beside a float32 bias gradient."""
    main, bias = pair(4, 5)
    update = combine(Edge(), main.bfloat16(), bias)
    assert update.dtype == torch.bfloat16
    want, magnitude = by_oracle(Edge(), main.bfloat16().double(), bias.double())
    assert agrees(update, want, magnitude)


def test_as_rows_is_a_view():
    for shape in ((), (5,), (3, 4), (2, 3, 4)):
        tensor = torch.zeros(shape)
        as_rows(tensor).fill_(1.0)
        assert tensor.eq(1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tolerance_catches(dtype):
    """1 % everywhere, 1e-5 in float32: the comparison above must fail on both, for every rule."""
    for rule in RULES:
        main, bias = pair(4, 5, seed=1, dtype=dtype)
        want, magnitude = by_oracle(rule, main, bias)
        got = update_of(rule, main, bias)
        assert agrees(got, want, magnitude)
        assert not agrees((want * 1.01).to(dtype), want, magnitude * 0.99)
        if dtype == torch.float32:
            assert not agrees((want * (1 + 1e-5)).float(), want, magnitude)


def test_apply_coefficients_on_a_batch():
    main, bias = pair(2, 3, 4)
    x, y = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[0.0, 1.0, -1.0], [2.0, -2.0, 0.5]])
    got = apply_coefficients([x.double(), y.double()], [main, bias])
    for k in range(2):
        for r in range(3):
            torch.testing.assert_close(got[k, r], x[k, r] * main[k, r] + y[k, r] * bias[k, r])
