"""How much copies count: as one row as far as their labels agree, whatever other texts there are."""

from collections import Counter

import numpy as np
import pytest

from debias.bias.copies import AGREEMENTS, weights_of_copies
from debias.data import Example

pytest.importorskip("scipy")


def rows(*cells: tuple[str, int]) -> list[Example]:
    return [Example(str(at), (text,), label) for at, (text, label) in enumerate(cells)]


def chance_of(labels: list[int], agreed: float, share: dict[int, float]) -> float:
    """Of labels drawn one after the other from Polya's urn, which agree so far: in plain numbers."""
    told, drawn = 1.0, Counter[int]()
    for at, label in enumerate(labels):
        told *= ((1 - agreed) * share[label] + agreed * drawn[label]) / (1 + agreed * (at - 1)) if at else share[label]
        drawn[label] += 1
    return told


def weights_by_hand(examples: list[Example]) -> list[float]:
    size = Counter(one.label for one in examples)
    share = {label: count / len(examples) for label, count in size.items()}
    together: dict[tuple[str, ...], list[int]] = {}
    for one in examples:
        together.setdefault(one.texts, []).append(one.label)
    several = {text: labels for text, labels in together.items() if len(labels) > 1}
    often, said = [1 / len(AGREEMENTS)] * len(AGREEMENTS), {}
    for _ in range(1001):  # and one more, in the light of the last
        if said:
            often = [sum(given[at] for given in said.values()) / len(said) for at in range(len(AGREEMENTS))]
        for text, labels in several.items():
            both = [p * chance_of(labels, float(r), share) for p, r in zip(often, AGREEMENTS, strict=True)]
            said[text] = [one / sum(both) for one in both]
    found = []
    for one in examples:
        m = len(together[one.texts])
        agreed = sum(p * float(r) for p, r in zip(said[one.texts], AGREEMENTS, strict=True)) if m > 1 else 0.0
        found.append(1 / (1 + (m - 1) * agreed))
    return found


def test_weights_are_those_of_plain_loops() -> None:
    draw = np.random.default_rng(0)
    drawn = [int(draw.integers(9)) for _ in range(30)]
    ugly = rows(*[(f"t{text}", int(draw.choice(3, p=[0.7, 0.2, 0.1])) if text % 2 else text % 3) for text in drawn])
    ugly += rows(("once", 2), ("twice", 1), ("twice", 0))
    np.testing.assert_allclose(weights_of_copies(ugly), weights_by_hand(ugly), rtol=1e-7)


def test_a_copy_with_its_label_is_none_and_what_was_labelled_one_by_one_is_as_many_rows() -> None:
    assert weights_of_copies(rows(("a", 0), ("b", 0), ("c", 1))) is None
    copied = [*rows(("a", 0), ("b", 1)) * 4, *rows(("c", 0), ("d", 1))]
    np.testing.assert_allclose(weights_of_copies(copied), [0.25] * 8 + [1, 1], rtol=1e-12)
    by_chance = rows(*[("a", 0), ("a", 1)] * 50, *[("b", 1), ("b", 0)] * 50)
    np.testing.assert_allclose(weights_of_copies(by_chance), [1.0] * 200, rtol=1e-3)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_text_that_was_copied_is_one_row_beside_many_that_were_labelled_by_chance(shift: int) -> None:
    draw = np.random.default_rng(shift)
    disputed = [(f"d{at}", int(draw.integers(2))) for at in range(300) for _ in range(2)]
    both = rows(*disputed, *[("spam", shift)] * 100)
    weight_N = weights_of_copies(both)
    assert weight_N is not None
    assert weight_N[600:].sum() < 1.1
    assert weight_N[:600].sum() > 0.8 * 600  # and these stay nearly as many as they are


def test_a_text_that_was_labelled_one_by_one_makes_no_rows_of_many_that_were_copied() -> None:
    copied = [(f"c{at}", at % 2) for at in range(300) for _ in range(2)]
    weight_N = weights_of_copies(rows(*copied, *[("disputed", at % 2) for at in range(100)]))
    assert weight_N is not None
    assert weight_N[:600].sum() < 310
    assert weight_N[600:].sum() > 90


def test_labels_that_mostly_agree_are_little_more_than_one_row() -> None:
    """One hypothesis beside sixteen premises, nine labels in ten its own; in many rows a little agreement is enough."""
    draw = np.random.default_rng(0)
    own = [int(draw.integers(3)) for _ in range(30)]
    cells = [(f"h{at}", label if draw.random() < 0.9 else int(draw.integers(3))) for at, label in enumerate(own * 16)]
    beside = rows(*[(f"h{at % 30}", label) for at, (_, label) in enumerate(cells)])
    weight_N = weights_of_copies(beside)
    assert weight_N is not None
    assert 30 < weight_N.sum() < 60
    leaning = rows(*[("template", int(at % 5 == 0)) for at in range(4000)], *[(f"o{at}", at % 2) for at in range(4000)])
    counted = weights_of_copies(leaning)
    assert counted is not None
    assert counted[:4000].sum() < 60


@pytest.mark.parametrize("written", ["Spam  it is", "SPAM it is ", "\uff53pam it is"])
def test_a_copy_that_was_written_a_little_otherwise_is_one(written: str) -> None:
    near = rows(*[("spam it is", 1), (written, 1)] * 4, *[(f"one {at}", at % 2) for at in range(4)])
    np.testing.assert_allclose(weights_of_copies(near), [1 / 8] * 8 + [1] * 4, rtol=1e-9)
