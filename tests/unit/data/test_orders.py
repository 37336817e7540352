"""Every order of the table: the same from the same seed, as often as it says, in steps as random as it says."""

from collections import Counter
from typing import Any

import pytest
import torch

from debias.data.order import LengthBuckets, Order, drawn_by_weight
from debias.data.orders import ORDERS, make_order

# Settings of each row.
ROWS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "resampled": {"by": "group"},
    "upsampled": {"times": 4},
    "disagreement": {},
    "spare": {},
    "expanding": {"cap": 4, "warmup": 3, "added": 20, "rounds": 2, "stages": 2},
}
GROUPS = [0] * 90 + [1] * 9 + [2]
FACTS = {
    "index": torch.arange(100),
    "labels": torch.tensor([0, 1] * 50),
    "group": torch.tensor(GROUPS),
    "error": torch.tensor([i % 10 == 3 for i in range(100)]),
    "draw_weight": torch.tensor([1.0 + i % 5 for i in range(100)]),
    "bias_log_p": torch.log(torch.tensor([[0.9 - i / 125, 0.1 + i / 125] for i in range(100)])),
}


def order_of(name: str) -> Order:
    return make_order({"name": name, **ROWS[name]})


def epoch(order: Order, seed: int = 0) -> list[int]:
    return order.epoch(FACTS, torch.Generator().manual_seed(seed)).tolist()


def test_every_order_has_a_row() -> None:
    assert set(ROWS) == set(ORDERS)


@pytest.mark.parametrize("name", ORDERS)
def test_it_is_a_function_of_the_generator(name: str) -> None:
    order = order_of(name)
    assert epoch(order) == epoch(order)
    assert epoch(order) != epoch(order, seed=1)
    assert len(epoch(order)) == order.size(FACTS)
    assert order.reads <= set(FACTS)


@pytest.mark.parametrize("name", ORDERS)
def test_buckets_hold_what_the_order_says(name: str) -> None:
    """And an epoch of its own for each number, a length that the Trainer plans with, and batches of like length where
    no row comes twice.
    """
    order, lengths = order_of(name), [i % 7 for i in range(100)]
    sampler = LengthBuckets(lengths, 4, 3, order, FACTS)
    first = list(sampler)
    assert len(first) == len(sampler) == order.size(FACTS)
    want = order.epoch(FACTS, torch.Generator().manual_seed(3 * 1_000_003)).tolist()
    assert Counter(first) == Counter(want)
    assert list(LengthBuckets(lengths, 4, 3, order, FACTS)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    if order.in_turn:
        assert first == want
        return
    batches = [[lengths[i] for i in first[k : k + 4]] for k in range(0, 96, 4)]
    spread = sum(max(batch) - min(batch) for batch in batches) / len(batches)
    assert spread > 3 if order.repeats else spread < 2


@pytest.mark.parametrize("name", ORDERS)
def test_it_says_whether_it_repeats_rows(name: str) -> None:
    order = order_of(name)
    assert order.repeats == (max(Counter(epoch(order)).values()) > 1)


def test_errors_that_are_seen_once_are_no_repeats() -> None:
    assert not make_order({"name": "upsampled", "times": 1}).repeats


def skewed(rows: int) -> dict[str, torch.Tensor]:
    """Facts of which each order makes some rows frequent: of a group, errors, hard ones, a cluster."""
    rare_N = torch.arange(rows) % 30 == 7
    label_N = torch.arange(rows) % 2
    own_N = torch.where(rare_N, 0.02, 0.98)
    p_N2 = torch.stack([torch.where(label_N == 0, own_N, 1 - own_N), torch.where(label_N == 1, own_N, 1 - own_N)], 1)
    told = {"group": rare_N.long(), "error": rare_N, "draw_weight": 1.0 + 30 * rare_N, "bias_log_p": p_N2.log()}
    return {"index": torch.arange(rows), "labels": label_N, **told}


def distinct(order_N: list[int], size: int) -> torch.Tensor:
    """How many different rows each whole step has."""
    steps = [order_N[k : k + size] for k in range(0, len(order_N) - size + 1, size)]
    return torch.tensor([float(len(set(step))) for step in steps])


@pytest.mark.parametrize("name", ORDERS)
def test_a_step_has_no_more_copies_of_a_row_than_random_order_has(name: str) -> None:
    """Different rows of a step, on average over ten epochs, beside those of ten epochs in the order's own sequence; and
    those that steps of like length would have, which the test would see.
    """
    rows, size, facts = 900, 24, skewed(900)
    order = order_of(name)
    lengths = torch.randint(3, 60, (rows,), generator=torch.Generator().manual_seed(5)).tolist()
    made, like, random = [], [], []
    for seed in range(10):
        sampler = LengthBuckets(lengths, size, seed, order, facts)
        made.append(distinct(list(sampler), size))
        drawn = order.epoch(facts, torch.Generator().manual_seed(77 + seed)).tolist()
        random.append(distinct(drawn, size))
        block = 50 * size
        parts = [sorted(drawn[k : k + block], key=lengths.__getitem__) for k in range(0, len(drawn), block)]
        like.append(distinct([i for part in parts for i in part], size))
    made_S, like_S, random_S = (torch.cat(one) for one in (made, like, random))
    error = float((made_S.var() / len(made_S) + random_S.var() / len(random_S)) ** 0.5)
    assert abs(float(made_S.mean() - random_S.mean())) <= 4 * error
    if order.repeats:
        assert float(random_S.mean() - like_S.mean()) > 10 * error + 0.5


def steps_by_hand(
    drawn: list[int], lengths: list[int], size: int, block: int, generator: torch.Generator
) -> list[list[int]]:
    """Of each block of that many rows the longest first, cut into steps, which come in random order, a short one last;
    from the generator that drew the rows.
    """
    found: list[int] = []
    for start in range(0, len(drawn), block):
        found += sorted(drawn[start : start + block], key=lambda i: -lengths[i])
    whole = len(found) // size
    turns = torch.randperm(whole, generator=generator).tolist()
    return [found[k * size : (k + 1) * size] for k in [*turns, whole]]


@pytest.mark.parametrize("block", ["shuffled", {"name": "upsampled", "times": 1}])
@pytest.mark.parametrize("by_length", [True, False])
def test_rows_that_come_once_have_the_steps_they_had(block: Any, by_length: bool) -> None:
    """Of kept runs: by hand, over blocks of 50 steps; and of random rows where a loss asks for it."""
    rows, size, seed, turn = 1234, 8, 3, 2
    lengths = torch.randint(3, 60, (rows,), generator=torch.Generator().manual_seed(5)).tolist()
    order, facts = make_order(block), {"index": torch.arange(rows), "error": torch.arange(rows) % 3 == 0}
    sampler = LengthBuckets(lengths, size, seed, order, facts, by_length=by_length)
    sampler.set_epoch(turn)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    drawn = order.epoch(facts, generator).tolist()
    steps = steps_by_hand(drawn, lengths, size, (50 if by_length else 1) * size, generator)
    assert list(sampler) == [i for step in steps for i in step]


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("by_length", [True, False])
def test_rows_of_one_length_have_the_steps_they_had(name: str, by_length: bool) -> None:
    """Pictures: whatever repeats rows or compares groups, kept runs of them are what they were."""
    order, facts = order_of(name), skewed(300)
    sampler = LengthBuckets([0] * 300, 8, 3, order, facts, by_length=by_length)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    drawn = order.epoch(facts, generator).tolist()
    steps = [drawn] if order.in_turn else steps_by_hand(drawn, [0] * 300, 8, 400, generator)
    assert list(sampler) == [i for step in steps for i in step]


@pytest.mark.parametrize("name", ORDERS)
def test_it_says_how_often_it_sees_each_example(name: str) -> None:
    """Counted over 400 epochs, within five standard errors; in all as many as an epoch has."""
    order, epochs = order_of(name), 400
    seen_EN = torch.stack([torch.bincount(torch.tensor(epoch(order, seed)), minlength=100) for seed in range(epochs)])
    told_N = order.seen(FACTS)
    told_N = torch.ones(100, dtype=torch.float64) if told_N is None else told_N
    assert float(told_N.sum()) == pytest.approx(order.size(FACTS))
    error_N = seen_EN.double().std(dim=0) / epochs**0.5
    assert ((seen_EN.double().mean(dim=0) - told_N).abs() <= 5 * error_N + 1e-9).all()


@pytest.mark.parametrize(("by", "exponent"), [("group", 0.5), ("group", -1.0), ("group", 1.0), ("label", 0.0)])
def test_resampled_says_so_with_any_exponent(by: str, exponent: float) -> None:
    """By hand: groups of 90, 9 and 1 examples, labels of 50 each."""
    seen_N = make_order({"name": "resampled", "by": by, "exponent": exponent}).seen(FACTS)
    of_groups = [float(seen_N[torch.tensor(GROUPS) == group].sum()) for group in range(3)]
    weights = [size**exponent for size in (90, 9, 1)]
    want = [90, 9, 1] if by == "label" else [100 * weight / sum(weights) for weight in weights]
    assert of_groups == pytest.approx(want)


def test_expanding_begins_even_and_lets_others_join() -> None:
    """By counting what each part of the epoch has."""
    small = {**FACTS, "group": torch.tensor([0] * 90 + [1] * 10)}  # pairs of 45, 45, 5 and 5
    pair = [(int(y), int(g)) for y, g in zip(small["labels"], small["group"], strict=True)]
    order = order_of("expanding")
    seen = order.epoch(small, torch.Generator().manual_seed(7)).tolist()
    assert len(seen) == order.size(small) == 3 * 16 + 2 * 36 + 2 * 56
    begun = set(seen[:16])
    assert Counter(pair[i] for i in begun) == dict.fromkeys([(0, 0), (1, 0), (0, 1), (1, 1)], 4)
    assert all(set(seen[k : k + 16]) == begun for k in (16, 32))
    assert seen[:16] != seen[16:32]
    first, second = set(seen[48:84]), set(seen[120:176])
    assert (len(first), len(second)) == (36, 56)
    assert begun < first < second
    assert set(seen[84:120]) == first
    assert set(seen[176:]) == second
    whole = make_order({"name": "expanding", "cap": 4, "warmup": 1, "added": 60, "rounds": 1, "stages": 9})
    assert whole.size(small) == 16 + 76 + 100  # everything has joined: no further stage
    assert len(whole.epoch(small, torch.Generator().manual_seed(7))) == 192
    assert order.size(FACTS) == 3 * 5 + 2 * 25 + 2 * 45  # a pair of one example


def test_shuffled_is_every_example_once() -> None:
    assert sorted(epoch(order_of("shuffled"))) == list(range(100))


@pytest.mark.parametrize(("by", "fact"), [("group", "group"), ("label", "labels")])
def test_resampled_sees_every_group_equally_often(by: str, fact: str) -> None:
    order = make_order({"name": "resampled", "by": by})
    drawn = Counter[int]()
    within = Counter[int]()
    for seed in range(60):
        for i in epoch(order, seed):
            drawn[int(FACTS[fact][i])] += 1
            within[i] += 1
    groups = len(set(FACTS[fact].tolist()))
    for count in drawn.values():
        assert count == pytest.approx(6000 / groups, rel=0.1)  # four standard deviations
    assert set(within) == set(range(100))
    if by == "group":  # within a group all alike: of 90 examples, each 22 times of 2000
        assert max(within[i] for i in range(90)) < 45


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0])
def test_an_exponent_says_how_often_groups_of_a_size_are_seen(exponent: float) -> None:
    """Of 90, 9 and 1 examples: in proportion to n^exponent, and within a group all alike."""
    order = make_order({"name": "resampled", "exponent": exponent})
    drawn = Counter(i for seed in range(60) for i in epoch(order, seed))
    whole = 90**exponent + 9**exponent + 1
    for members, size in ((range(90), 90), (range(90, 99), 9), (range(99, 100), 1)):
        wanted = 6000 * size**exponent / whole
        assert sum(drawn[i] for i in members) == pytest.approx(wanted, abs=4 * wanted**0.5)
        assert max(drawn[i] for i in members) < wanted / size + 6 * (wanted / size) ** 0.5 + 3


def test_without_an_exponent_the_draws_are_what_they_were() -> None:
    """Of kept runs: as a group's number, then a place in it, from the same generator."""
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(3, (100,), generator=generator)
    place = torch.rand(100, generator=generator, dtype=torch.float64)
    first, count = torch.tensor([0, 90, 99]), torch.tensor([90, 9, 1])
    wanted = first[group] + (place * count[group]).long()
    assert epoch(order_of("resampled")) == wanted.tolist()


def test_disagreement_draws_what_the_bias_model_does_not_say() -> None:
    """In proportion to 1 - p_b(y), by plain loops."""
    drawn = Counter(i for seed in range(300) for i in epoch(order_of("disagreement"), seed))
    p_b = FACTS["bias_log_p"].double().exp().tolist()
    weights = [1 - p_b[i][i % 2] for i in range(100)]
    for i, weight in enumerate(weights):
        wanted = 30_000 * weight / sum(weights)
        assert drawn[i] == pytest.approx(wanted, abs=5 * wanted**0.5)
    assert max(weights) > 5 * min(weights)


def test_spare_draws_by_the_weights_of_its_clusters() -> None:
    drawn = Counter(i for seed in range(300) for i in epoch(order_of("spare"), seed))
    for i in range(100):
        assert drawn[i] == pytest.approx(100 * (1 + i % 5), abs=5 * (100 * (1 + i % 5)) ** 0.5)


def test_a_place_without_weight_is_never_drawn() -> None:
    weight_N = torch.tensor([0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0])
    drawn = Counter(drawn_by_weight(weight_N, 3000, torch.Generator().manual_seed(0)).tolist())
    assert set(drawn) == {2, 4}
    assert drawn[2] == pytest.approx(2000, abs=120)
    one = drawn_by_weight(torch.tensor([0.0, 1e-300, 0.0], dtype=torch.float64), 50, torch.Generator().manual_seed(0))
    assert set(one.tolist()) == {1}


def test_groups_may_have_any_numbers() -> None:
    facts = {**FACTS, "group": torch.tensor([7] * 50 + [3] * 50)}
    drawn = order_of("resampled").epoch(facts, torch.Generator().manual_seed(0)).tolist()
    assert 30 < sum(i < 50 for i in drawn) < 70


def test_upsampled_repeats_errors_alone() -> None:
    order = order_of("upsampled")
    assert order.size(FACTS) == 100 + 3 * 10
    assert Counter(epoch(order)) == Counter({i: 4 if i % 10 == 3 else 1 for i in range(100)})
    none = {**FACTS, "error": torch.zeros(100, dtype=torch.bool)}
    assert order.size(none) == 100


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "upsampled", "times": 0}, "order.times is 0, expected 1 or more"),
        (
            {"name": "resampled", "exponent": 11},
            "order.exponent is 11.0, expected a number from -10 to 10; 0 is all alike",
        ),
        ({"name": "resampled", "by": "colour"}, "order.by is 'colour', not one of group, label"),
        ({"name": "expanding", "cap": 0}, "order.cap is 0, expected 1 or more"),
        ({"name": "expanding", "stages": -1}, "order.stages is -1, expected 0 or more"),
        ("resample", "order.name is 'resample', .*; did you mean resampled?"),
    ],
)
def test_wrong_settings(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_order(block)
