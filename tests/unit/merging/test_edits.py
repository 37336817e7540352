"""debias.merging's edits as mathematics: against plain loops and numpy in float64 on the dense changes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from debias.errors import InputError
from debias.merging import EDITS, Edit
from debias.merging.afr_last_layer import AFRLastLayer
from debias.merging.editing import make_edit
from debias.merging.edits import LastLayer, LowRank, Tried
from debias.merging.greedy_soup import GreedySoup
from debias.merging.model_stock import ModelStock
from debias.merging.scale import Scale
from debias.merging.soup import Soup
from debias.merging.truncate import Truncate, directions

# O, I, R: wide, tall, square, of one row, with a rank above what the weight can have.
SIZES = [(5, 9, 3), (9, 5, 3), (6, 6, 6), (1, 7, 2), (4, 3, 8), (7, 2, 1)]
# A stack of experts is three changes at once.
STACKS = [(), (3,)]


def drawn(seed: int, o: int, i: int, r: int, stack: tuple[int, ...] = ()) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*stack, *size, generator=generator, dtype=torch.float64) for size in ((r, i), (o, r)))
    return LowRank(a, b)


def dense(change: LowRank) -> np.ndarray:
    """The change of the weight itself, by loops."""
    a, b = change.a_RI.numpy(), change.b_OR.numpy()
    if a.ndim == 3:
        return np.stack([dense(LowRank(*map(torch.from_numpy, pair))) for pair in zip(a, b, strict=True)])
    found = np.zeros((b.shape[0], a.shape[1]))
    for row in range(b.shape[0]):
        for column in range(a.shape[1]):
            found[row, column] = math.fsum(b[row, k] * a[k, column] for k in range(a.shape[0]))
    return found


def best(weight: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of a rank, from numpy's SVD of the dense one."""
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    s[..., rank:] = 0
    return (u * s[..., None, :]) @ vh


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("o", "i", "r"), SIZES)
def test_svd_is_that_of_the_dense_change(o: int, i: int, r: int, stack: tuple[int, ...]) -> None:
    change = drawn(0, o, i, r, stack)
    u, s, vh = change.svd()
    count = min(o, i, r)
    assert (u.shape[-2:], s.shape[-1], vh.shape[-2:]) == ((o, count), count, (count, i))
    np.testing.assert_allclose(s, np.linalg.svd(dense(change), compute_uv=False)[..., :count], atol=1e-12)
    np.testing.assert_allclose((u * s.unsqueeze(-2)) @ vh, dense(change), atol=1e-12)
    np.testing.assert_allclose(u.mT @ u, np.broadcast_to(np.eye(count), (*stack, count, count)), atol=1e-12)
    assert change.squared_norm() == pytest.approx(float((dense(change) ** 2).sum()), rel=1e-12)


# Soup.


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("o", "i", "r"), SIZES)
def test_soup_is_the_mean_of_the_dense_changes(o: int, i: int, r: int, stack: tuple[int, ...]) -> None:
    """Of adapters whose ranks differ."""
    changes = [drawn(seed, o, i, rank, stack) for seed, rank in enumerate((r, r + 2, 1))]
    made = Soup().change(changes)
    assert made.rank == 2 * r + 3
    np.testing.assert_allclose(dense(made), sum(map(dense, changes)) / 3, atol=1e-12)


def test_the_average_of_the_factors_is_another_matrix() -> None:
    changes = [drawn(seed, 5, 9, 3) for seed in range(3)]
    factors = LowRank(sum(one.a_RI for one in changes) / 3, sum(one.b_OR for one in changes) / 3)
    wanted = sum(map(dense, changes)) / 3
    assert np.abs(dense(factors) - wanted).max() > 0.1 * np.abs(wanted).max()
    np.testing.assert_allclose(dense(Soup().change(changes)), wanted, atol=1e-12)


def test_soup_with_weights() -> None:
    """Any scale of the weights; one of 0 leaves its adapter out."""
    one, two, three = changes = [drawn(seed, 5, 9, 3) for seed in range(3)]
    for weights in ((1.0, 3.0, 0.0), (0.25, 0.75, 0.0), (1e-300, 3e-300, 0.0)):
        made = Soup(weights).change(changes)
        np.testing.assert_allclose(dense(made), 0.25 * dense(one) + 0.75 * dense(two), rtol=1e-12, atol=1e-12)
    alone = Soup((0.0, 0.0, 2.0)).change(changes)
    np.testing.assert_allclose(dense(alone), dense(three), atol=1e-13)


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_soup_brought_back_to_a_rank(rank: int) -> None:
    changes = [drawn(seed, 6, 9, 3) for seed in range(2)]
    made = Soup(rank=rank).change(changes)
    assert made.rank == min(rank, 6)
    np.testing.assert_allclose(dense(made), best(sum(map(dense, changes)) / 2, rank), atol=1e-12)


def test_soup_of_one_is_itself_and_order_does_not_matter() -> None:
    changes = [drawn(seed, 5, 9, 3) for seed in range(4)]
    alone = Soup().change(changes[:1])
    assert torch.equal(alone.a_RI, changes[0].a_RI)
    assert torch.equal(alone.b_OR, changes[0].b_OR)
    there, back = Soup().change(changes), Soup().change(changes[::-1])
    np.testing.assert_allclose(dense(there), dense(back), atol=1e-13)
    weighted = Soup((1.0, 2.0, 3.0, 4.0)).change(changes), Soup((4.0, 3.0, 2.0, 1.0)).change(changes[::-1])
    np.testing.assert_allclose(dense(weighted[0]), dense(weighted[1]), atol=1e-13)
    np.testing.assert_allclose(dense(Soup().change([changes[0]] * 3)), dense(changes[0]), atol=1e-13)


def test_soup_of_what_was_trained_whole() -> None:
    heads = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 5.0]])]
    assert Soup().whole(heads).tolist() == [[2.0, 1.5]]
    assert Soup((3.0, 1.0)).whole(heads).tolist() == [[1.5, -0.25]]
    halves = Soup().whole([head.bfloat16() for head in heads])
    assert (halves.dtype, halves.tolist()) == (torch.bfloat16, [[2.0, 1.5]])
    steps = [torch.tensor([3]), torch.tensor([4])]
    assert Soup().whole(steps).tolist() == [3]


# Greedy soup.

# How well soups do on rows held out, by their members.
TOLD = {"0": 0.70, "1": 0.80, "2": 0.75, "3": 0.80, "1-3": 0.82, "1-3-2": 0.81, "1-3-0": 0.82}


def test_greedy_soup_keeps_what_does_not_make_it_worse() -> None:
    """Best first (of equals the first given); the third makes it worse and stays out, the fourth changes nothing."""
    asked: list[str] = []

    def held_out(members: Sequence[int]) -> float:
        asked.append("-".join(map(str, members)))
        return TOLD[asked[-1]]

    tried = GreedySoup().choose(4, held_out)
    assert tried == [
        Tried(1, 0.80, 0.80, kept=True),
        Tried(3, 0.80, 0.82, kept=True),
        Tried(2, 0.75, 0.81, kept=False),
        Tried(0, 0.70, 0.82, kept=True),
    ]
    assert asked == ["0", "1", "2", "3", "1-3", "1-3-2", "1-3-0"]  # 2 N - 1 passes
    kept = [drawn(one.member, 5, 9, 3) for one in tried if one.kept]
    np.testing.assert_allclose(dense(GreedySoup().change(kept)), sum(map(dense, kept)) / 3, atol=1e-12)
    np.testing.assert_allclose(dense(GreedySoup(1).change(kept)), best(sum(map(dense, kept)) / 3, 1), atol=1e-12)


# Model Stock.


def stocked(weights: list[np.ndarray]) -> np.ndarray:
    """By plain loops on dense changes, and in the plane of the paper: the foot of the perpendicular from the centre."""
    pairs = [(one, other) for place, one in enumerate(weights) for other in weights[place + 1 :]]
    cosines = []
    for one, other in pairs:
        inner = math.fsum(float(a) * float(b) for a, b in zip(one.flat, other.flat, strict=True))
        cosines.append(inner / math.sqrt(float((one**2).sum()) * float((other**2).sum())))
    cosine = max(0.0, math.fsum(cosines) / len(cosines))
    return len(weights) * cosine / (1 + (len(weights) - 1) * cosine) * sum(weights) / len(weights)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("o", "i", "r"), SIZES)
def test_model_stock(o: int, i: int, r: int, stack: tuple[int, ...], count: int) -> None:
    """Of adapters that share a change and have one of their own each; of a stack each expert by itself."""
    shared = drawn(9, o, i, r, stack)
    changes = [
        Soup((1.0, 0.5)).change([shared, drawn(seed, o, i, rank, stack)]) for seed, rank in enumerate((r, 1, 2, r))
    ]
    made = ModelStock().change(changes[:count])
    dense_ones = [dense(change) for change in changes[:count]]
    wanted = np.stack([stocked([one[e] for one in dense_ones]) for e in range(3)]) if stack else stocked(dense_ones)
    np.testing.assert_allclose(dense(made), wanted, atol=1e-12)
    assert made.rank == sum(change.rank for change in changes[:count])
    if not stack:
        np.testing.assert_allclose(dense(ModelStock(rank=1).change(changes[:count])), best(wanted, 1), atol=1e-12)


def test_model_stock_of_two_by_hand() -> None:
    """Lengths 1 at 60 degrees: t = 2 * 0.5 / 1.5; at right angles nothing is left, nor where they conflict."""

    def row(*values: float) -> LowRank:
        return LowRank(torch.tensor([values], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))

    found = dense(ModelStock().change([row(1.0, 0.0), row(0.5, math.sqrt(0.75))]))
    np.testing.assert_allclose(found, [[2 / 3 * 0.75, 2 / 3 * math.sqrt(0.75) / 2]], atol=1e-12)
    for other in (row(0.0, 2.0), row(-1.0, 0.1)):
        np.testing.assert_allclose(dense(ModelStock().change([row(1.0, 0.0), other])), [[0.0, 0.0]], atol=1e-12)
    one = drawn(1, 5, 9, 3)
    np.testing.assert_allclose(dense(ModelStock().change([one, one, one])), dense(one), atol=1e-12)


def test_model_stock_is_the_nearest_point_to_the_centre_of_a_sphere() -> None:
    """The paper's geometry: many models of one centre and one radius; the foot for two of them is nearer to it."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(40, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    noise -= (noise @ centre / (centre @ centre)).unsqueeze(1) * centre  # at right angles to the centre ...
    noise[1] -= (noise[1] @ noise[0]) / (noise[0] @ noise[0]) * noise[0]  # ... and to each other
    noise *= 2 * centre.norm() / noise.norm(dim=1, keepdim=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    changes = [LowRank((centre + part).unsqueeze(0), one) for part in noise]
    found = torch.from_numpy(dense(ModelStock().change(changes)))[0]
    mean = (changes[0].a_RI + changes[1].a_RI)[0] / 2
    assert abs(float((found - centre) @ mean)) < 1e-10
    assert float((found - centre).norm()) < float((mean - centre).norm()) < float(noise[0].norm())


# Truncate.


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("keep", [1, 2, 5, 50])
@pytest.mark.parametrize(("o", "i", "r"), SIZES)
def test_truncate_keeps_the_best_approximation(o: int, i: int, r: int, keep: int, stack: tuple[int, ...]) -> None:
    change = drawn(1, o, i, r, stack)
    made = Truncate(keep=keep).change([change])
    assert made.rank == min(keep, o, i, r)
    np.testing.assert_allclose(dense(made), best(dense(change), keep), atol=1e-12)


def test_truncate_at_full_rank_is_the_identity_and_twice_is_once() -> None:
    change = drawn(2, 6, 9, 4)
    np.testing.assert_allclose(dense(Truncate(keep=4).change([change])), dense(change), atol=1e-12)
    np.testing.assert_allclose(dense(Truncate(energy=1.0).change([change])), dense(change), atol=1e-12)
    once = Truncate(keep=2).change([change])
    np.testing.assert_allclose(dense(Truncate(keep=2).change([once])), dense(once), atol=1e-12)
    np.testing.assert_allclose(dense(Truncate(keep=1).change([once])), best(dense(change), 1), atol=1e-12)


def with_values(*values: float, seed: int = 0) -> LowRank:
    """A change [6, 8] whose singular values are these."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(n, len(values), generator=generator, dtype=torch.float64) for n in (6, 8))
    return LowRank(
        torch.linalg.qr(v)[0].mT.contiguous(), torch.linalg.qr(u)[0] * torch.tensor(values, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("energy", "rank"),
    [(1e-9, 1), (0.64, 1), (0.6401, 2), (0.99, 2), (0.9999, 2), (1.0, 2)],
)
def test_truncate_by_energy(energy: float, rank: int) -> None:
    """Squares 0.64 and 0.36 of the whole, then nothing: three stored directions of a change of rank 2."""
    change = with_values(0.8, 0.6, 0.0)
    made = Truncate(energy=energy).change([change])
    assert made.rank == rank
    np.testing.assert_allclose(dense(made), best(dense(change), rank), atol=1e-12)


def test_a_share_that_rounding_alone_misses_is_reached() -> None:
    """The share that k directions hold asks for k directions, however the sums are rounded."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        s = torch.rand(7, generator=generator, dtype=torch.float64).add(0.1).sort(descending=True).values
        squares = [value**2 for value in s.tolist()]
        shares = [math.fsum(squares[:k]) / math.fsum(squares) for k in range(1, 8)]
        assert [directions(s, share) for share in shares] == list(range(1, 8))


def test_energy_is_that_of_each_expert() -> None:
    """As many directions for all as the one with the flattest spectrum needs."""
    steep, flat = with_values(1.0, 0.2, 0.1), with_values(1.0, 0.9, 0.1, seed=1)
    change = LowRank(torch.stack([steep.a_RI, flat.a_RI]), torch.stack([steep.b_OR, flat.b_OR]))
    made = Truncate(energy=0.9).change([change])
    assert made.rank == 2
    np.testing.assert_allclose(dense(made), best(dense(change), 2), atol=1e-12)
    assert Truncate(energy=0.9).change([steep]).rank == 1


def test_a_change_that_is_zero_stays_zero() -> None:
    """An adapter as it begins: B is zero."""
    change = LowRank(torch.randn(3, 9, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64))
    for edit in (Truncate(keep=2), Truncate(energy=0.5), Soup(rank=1), Scale(0.5), ModelStock()):
        made = edit.change([change] * (2 if isinstance(edit, ModelStock) else 1))
        assert dense(made).any() == np.False_
        assert made.a_RI.isfinite().all()
        assert made.b_OR.isfinite().all()


# Scale.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("stack", STACKS)
def test_scale(alpha: float, stack: tuple[int, ...]) -> None:
    change = drawn(3, 5, 9, 3, stack)
    np.testing.assert_allclose(dense(Scale(alpha).change([change])), alpha * dense(change), atol=1e-13)


@pytest.mark.parametrize("edit", [Truncate(keep=1), Scale(0.5)])
def test_what_was_trained_whole_stays(edit: Truncate | Scale) -> None:
    head = torch.randn(3, 4)
    assert edit.whole([head]) is head


# AFR's second stage.

Rows = list[list[float]]


def afr_by_hand(edit: AFRLastLayer, inputs: Rows, labels: list[int], weight: Rows, bias: list[float]) -> list[float]:
    """All of W, then b, after the steps: by central differences of the loss as it is written."""
    columns, start = len(inputs[0]), [*(w for row in weight for w in row), *bias]

    def log_p(theta: list[float], x: list[float], label: int) -> float:
        rows = [theta[c * columns : (c + 1) * columns] for c in range(len(bias))]
        logits = [math.fsum(w * one for w, one in zip(row, x, strict=True)) for row in rows]
        logits = [one + b for one, b in zip(logits, theta[len(bias) * columns :] or [0.0] * len(bias), strict=True)]
        return logits[label] - math.log(math.fsum(math.exp(one) for one in logits))

    raw = [
        math.exp(-edit.gamma * math.exp(log_p(start, x, y))) / labels.count(y)
        for x, y in zip(inputs, labels, strict=True)
    ]
    shares = [one / math.fsum(raw) for one in raw]

    def loss(theta: list[float]) -> float:
        fit = math.fsum(-w * log_p(theta, x, y) for w, x, y in zip(shares, inputs, labels, strict=True))
        return fit + edit.pull * math.fsum((a - b) ** 2 for a, b in zip(theta, start, strict=True))

    theta = start[:]
    for _ in range(edit.steps):
        slope = []
        for place in range(len(theta)):
            ends = [loss([one + way * (at == place) for at, one in enumerate(theta)]) for way in (1e-5, -1e-5)]
            slope.append((ends[0] - ends[1]) / 2e-5)
        length = math.sqrt(math.fsum(one**2 for one in slope))
        cut = edit.max_norm / length if 0 < edit.max_norm < length else 1.0
        theta = [one - edit.learning_rate * cut * s for one, s in zip(theta, slope, strict=True)]
    return theta


def last_layer(rows: int = 7, labels: int = 3, columns: int = 2) -> LastLayer:
    generator = torch.Generator().manual_seed(3)
    shapes = ((rows, columns), (labels, columns), (labels,))
    inputs, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return LastLayer(inputs, torch.tensor([0, 1, 2, 0, 0, 2, 0][:rows]), weight, bias)


@pytest.mark.parametrize(
    "edit",
    [
        AFRLastLayer(gamma=0.0, steps=1, learning_rate=0.5, max_norm=0.0),
        AFRLastLayer(gamma=3.0, pull=0.4, steps=4, learning_rate=0.5),
        AFRLastLayer(gamma=9.0, steps=3, learning_rate=1.0, max_norm=0.05),
    ],
    ids=repr,
)
def test_afr_retrains_the_last_layer_as_it_is_written(edit: AFRLastLayer) -> None:
    last = last_layer()
    made = edit.retrained(last)
    assert last.bias_C is not None
    assert made.bias_C is not None
    wanted = afr_by_hand(
        edit, last.inputs_ND.tolist(), last.label_N.tolist(), last.weight_CD.tolist(), last.bias_C.tolist()
    )
    assert [*made.weight_CD.flatten().tolist(), *made.bias_C.tolist()] == pytest.approx(wanted, abs=1e-8)


def test_afr_of_a_layer_without_bias_and_of_one_that_is_held() -> None:
    last = last_layer()
    bare = dataclasses.replace(last, bias_C=torch.zeros(3, dtype=torch.float64))
    without = AFRLastLayer(steps=1).retrained(dataclasses.replace(last, bias_C=None))
    assert without.bias_C is None
    # A first step with a bias of 0 moves W alike, but for what its length cuts off: nothing here.
    torch.testing.assert_close(without.weight_CD, AFRLastLayer(steps=1).retrained(bare).weight_CD)
    free, held = (AFRLastLayer(pull=pull, steps=400).retrained(last).weight_CD for pull in (0.0, 5.0))
    moved = [float((one - last.weight_CD).norm()) for one in (free, held)]
    assert moved[1] < 0.1 * moved[0]


def test_afr_mends_the_rows_that_are_hard() -> None:
    """A cue in column 0 that is right nine times in ten, and what is honest in column 1: gamma moves weight over."""
    label_N = torch.tensor([0, 1] * 20)
    sign_N = 2.0 * label_N.double() - 1
    cue_N = torch.where(torch.arange(40) < 36, sign_N, -sign_N)
    inputs_ND = torch.stack([cue_N, sign_N], dim=1)
    weight_CD = torch.tensor([[-2.0, -0.1], [2.0, 0.1]], dtype=torch.float64)
    last = LastLayer(inputs_ND, label_N, weight_CD, torch.zeros(2, dtype=torch.float64))
    right = {}
    for gamma in (0.0, 8.0):
        made = AFRLastLayer(gamma=gamma, steps=200, learning_rate=0.05).retrained(last)
        right[gamma] = ((inputs_ND[36:] @ made.weight_CD.T).argmax(dim=1) == label_N[36:]).double().mean()
    assert (float(right[0.0]), float(right[8.0])) == (0.0, 1.0)


# Settings.


def test_settings() -> None:
    assert make_edit("soup", {}) == Soup()
    assert make_edit("soup", {"weights": [1, 2.5], "rank": 3}) == Soup((1.0, 2.5), 3)
    assert make_edit("truncate", {"keep": 4}) == Truncate(keep=4)
    assert make_edit("truncate", {"energy": "1e-1"}) == Truncate(energy=0.1)
    assert make_edit("scale", {"alpha": 1}) == make_edit("wise_ft", {"alpha": 1}) == Scale(1.0)
    assert make_edit("model_stock", {"rank": 3}) == ModelStock(3)
    assert all(name == edit.name and edit.__doc__ and "arXiv" in edit.__doc__ for name, edit in EDITS.items())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "soop",
            {},
            r"edit.name is 'soop', not one of soup, greedy_soup, model_stock, .*, wise_ft; did you mean soup\?",
        ),
        ("wise", {}, r"edit.name is 'wise', not one of soup, greedy_soup, model_stock, truncate, scale, .*wise_ft"),
        ("afr_last_layer", {"gamma": -1}, r"edit.gamma is -1.0, expected 0 or more"),
        ("afr_last_layer", {"steps": 0}, r"edit.steps is 0, expected 1 or more"),
        ("afr_last_layer", {"learning_rate": 0}, r"edit.learning_rate is 0.0, expected more than 0"),
        ("model_stock", {"rank": 0}, r"edit.rank is 0, expected 1 or more"),
        ("greedy_soup", {"rank": 0}, r"edit.rank is 0, expected 1 or more"),
        ("truncate", {"kep": 4}, r"edit.kep: truncate has no such setting; did you mean keep\?"),
        ("scale", {"zz": 4}, r"edit.zz: scale has no such setting; it has alpha"),
        ("scale", {"name": "soup"}, r"edit.name is 'soup', but the edit is scale"),
        ("scale", {"alpha": -1}, r"edit.alpha is -1.0, expected a number of 0 or more"),
        ("scale", {"alpha": "much"}, r"edit.alpha is 'much'"),
        ("scale", {"alpha": float("inf")}, r"edit.alpha is inf"),
        ("scale", {"alpha": True}, r"edit.alpha is True"),
        ("truncate", {}, r"edit.keep and energy: give one of them"),
        ("truncate", {"keep": 2, "energy": 0.5}, r"edit.keep and energy: give one of them"),
        ("truncate", {"keep": 0}, r"edit.keep is 0, expected 1 or more"),
        ("truncate", {"keep": 2.5}, r"edit.keep is 2.5"),
        ("truncate", {"energy": 0}, r"edit.energy is 0.0, expected a share above 0 and up to 1"),
        ("truncate", {"energy": 1.5}, r"edit.energy is 1.5, expected a share"),
        ("soup", {"weights": [1, -1]}, r"edit.weights are \[1.0, -1.0\], expected numbers of 0 or more"),
        ("soup", {"weights": [0, 0]}, r"edit.weights are \[0.0, 0.0\], expected"),
        ("soup", {"weights": []}, r"edit.weights are \[\], expected"),
        ("soup", {"weights": 3}, r"edit.weights is 3"),
        ("soup", {"rank": 0}, r"edit.rank is 0, expected 1 or more"),
    ],
)
def test_settings_that_are_wrong(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_edit(name, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "adapters", "message"),
    [
        (Truncate(keep=1), 2, "truncate is an edit of one adapter, 2 were given"),
        (Scale(0.5), 3, "scale is an edit of one adapter, 3 were given"),
        (Soup((1.0, 2.0)), 3, "weights: 2 of them for 3 adapters"),
        (Soup(), 0, "soup of no adapters"),
        (GreedySoup(), 1, "greedy_soup chooses among two adapters or more, 1 given"),
        (ModelStock(), 1, "model_stock is of two adapters or more, 1 given; `scale` draws one to its base"),
    ],
)
def test_how_many_adapters(edit: Edit, adapters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit.check(adapters)
