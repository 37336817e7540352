"""One golden row for each method and each of its forms: small matrices, numbers worked out by hand as fractions.

With main = [[2, 1], [2, 0]] (norm 3) and bias = [[0, 4], [3, 0]] (norm 5) the row sums are mm = (5, 4), mb = (4, 6),
bb = (16, 9), so published EDGE has s = (4/3 + 16/5, 6/3 + 9/5) = (68/15, 57/15), x = 1 + s/3 and y = s/5 - 1.
"""

import dataclasses
import logging

import oracle
import pytest
import torch

from debias.methods import METHODS, Edge, MainOnly, Orthogonal, PCGrad, Rule, Subtract, combine, make_rule, row_gram
from debias.methods.edge import _notice_one_row

MAIN = [[2.0, 1.0], [2.0, 0.0]]
BIAS = [[0.0, 4.0], [3.0, 0.0]]
AGAINST = [[0.0, -4.0], [-3.0, 0.0]]  # conflicts with MAIN: the inner product is -10

GOLDEN: list[tuple[Rule, list[list[float]], list[list[float]]]] = [
    (Edge(), BIAS, [[226 / 45, 481 / 225], [858 / 225, 0.0]]),
    (Edge(alpha=0.5), BIAS, [[2 + (226 / 45 - 2) / 2, 1 + (481 / 225 - 1) / 2], [2 + (858 / 225 - 2) / 2, 0.0]]),
    # Row 2 of bias is parallel to row 2 of main: nothing there is exclusive, main stays.
    (Edge(projection="row"), BIAS, [[1458 / 389, -11 / 389], [2.0, 0.0]]),
    (Edge(projection="tensor"), BIAS, [[11 / 3, -1 / 6], [13 / 6, 0.0]]),
    (Subtract(), BIAS, [[2.0, -3.0], [-1.0, 0.0]]),
    (Subtract(alpha=0.25), BIAS, [[2.0, 0.0], [1.25, 0.0]]),
    (Orthogonal(), BIAS, [[2.0, -0.6], [0.8, 0.0]]),
    (Orthogonal(alpha=0.5), BIAS, [[2.0, 0.2], [1.4, 0.0]]),
    (PCGrad(), BIAS, [[2.0, 5.0], [5.0, 0.0]]),
    (PCGrad(), AGAINST, [[38 / 9, 19 / 9 - 5.6], [38 / 9 - 4.2, 0.0]]),
    (PCGrad(keep="main"), BIAS, MAIN),
    (PCGrad(keep="main"), AGAINST, [[2.0, -0.6], [0.8, 0.0]]),
    (MainOnly(), BIAS, MAIN),
]


@pytest.mark.parametrize(("rule", "bias", "update"), GOLDEN, ids=lambda v: repr(v) if isinstance(v, Rule) else "")
def test_golden_row(rule, bias, update):
    got = combine(rule, torch.tensor(MAIN, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(update, dtype=torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("rule", "bias", "update"), GOLDEN, ids=lambda v: repr(v) if isinstance(v, Rule) else "")
def test_the_oracle_says_the_same(rule, bias, update):
    settings = dataclasses.asdict(rule)
    got, _ = getattr(oracle, rule.name)(MAIN, bias, **settings)
    torch.testing.assert_close(torch.tensor(got), torch.tensor(update), rtol=1e-6, atol=1e-6)


def test_every_method_has_a_golden_row():
    assert {rule.name for rule, _, _ in GOLDEN} == set(METHODS)
    assert all(METHODS[name].name == name for name in METHODS)


def test_gram():
    gram = row_gram(torch.tensor(MAIN), torch.tensor(BIAS))
    assert gram.dtype == torch.float64
    assert gram.tolist() == [[5.0, 4.0, 16.0], [4.0, 6.0, 9.0]]


def test_coefficients_of_published_edge():
    x, y = Edge().coefficients(row_gram(torch.tensor(MAIN), torch.tensor(BIAS)))
    torch.testing.assert_close(x, torch.tensor([113 / 45, 102 / 45], dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(y, torch.tensor([-7 / 75, -18 / 75], dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(1, 2), (2,)])
def test_published_edge_on_one_row_takes_the_tensor_form_and_says_so(shape, caplog):
    """main = (1, 0), bias = (0, 2): the printed formula would give (3, 0); the tensor form gives (2, -1)."""
    _notice_one_row.cache_clear()
    with caplog.at_level(logging.WARNING):
        got = combine(Edge(), torch.tensor([1.0, 0.0]).reshape(shape), torch.tensor([0.0, 2.0]).reshape(shape))
    assert got.flatten().tolist() == pytest.approx([2.0, -1.0])
    assert got.shape == shape
    assert "one-row" in caplog.text


def test_make_rule_reads_the_settings_and_names_what_is_wrong():
    assert make_rule({"name": "edge", "alpha": 0.5, "projection": "row"}) == Edge(alpha=0.5, projection="row")
    assert make_rule({"name": "erm"}) == MainOnly()
    with pytest.raises(ValueError, match="did you mean edge"):
        make_rule({"name": "egde"})
    with pytest.raises(ValueError, match=r"method\.beta"):
        make_rule({"name": "edge", "beta": 1})
    with pytest.raises(ValueError, match=r"method\.projection is 'rows'"):
        make_rule({"name": "edge", "projection": "rows"})
    with pytest.raises(ValueError, match=r"method\.alpha is 'x'"):
        make_rule({"name": "edge", "alpha": "x"})
    for wrong in (float("nan"), float("inf"), True, None, 10**400):
        with pytest.raises(ValueError, match=r"method\.alpha is .*, expected a finite number"):
            make_rule({"name": "edge", "alpha": wrong})
