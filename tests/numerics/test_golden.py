"""One golden row for each method and each of its forms: small matrices, numbers worked out by hand as fractions.

The rows are in tests/tables.py, for the other tests of the rules to walk.
"""

import dataclasses
import logging

import oracle
import pytest
import torch
from tables import BIAS, EXAMPLES, FORMS, GOLDEN, MAIN, RATE, RULES, history, settings_of, update_of

from debias.methods import METHODS, DiGraP, Edge, Gram, MainOnly, Rule, combine, make_rule, row_gram, take_step
from debias.methods.edge import _notice_one_row

rows = pytest.mark.parametrize(
    ("rule", "other", "update"), GOLDEN, ids=lambda v: repr(v) if isinstance(v, Rule) else ""
)


@rows
def test_golden_row(rule, other, update):
    got = update_of(rule, torch.tensor(MAIN, dtype=torch.float64), torch.tensor(other, dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor(update, dtype=torch.float64), rtol=1e-14, atol=1e-14)


@rows
def test_the_oracle_says_the_same(rule, other, update):
    steps = [[v.tolist() for v in vectors] for vectors in history(rule, torch.tensor(MAIN), torch.tensor(other))]
    got, _ = oracle.update_of(rule.name, steps, RATE, **dataclasses.asdict(rule))
    torch.testing.assert_close(torch.tensor(got), torch.tensor(update), rtol=1e-6, atol=1e-6)


def test_every_method_has_a_golden_row():
    assert {rule.name for rule in RULES} == set(METHODS)
    assert all(METHODS[name].name == name for name in METHODS)


def test_the_tests_walk_all_of_the_table():
    assert [rule.name for rule in EXAMPLES] == list(METHODS)
    assert {rule.name for rule in FORMS} == set(METHODS)
    assert [rule for rule in FORMS if isinstance(rule, Edge)] == [
        Edge(projection=form) for form in ("published", "row", "tensor")
    ]
    assert all(make_rule(settings_of(rule)) == rule for rule in RULES)


def test_gram():
    gram = row_gram(torch.tensor(MAIN), torch.tensor(BIAS))
    assert gram.dtype == torch.float64
    assert gram.tolist() == [[5.0, 4.0, 16.0], [4.0, 6.0, 9.0]]


def test_coefficients_of_published_edge():
    x, y = Edge().coefficients(Gram.of(row_gram(torch.tensor(MAIN), torch.tensor(BIAS))))
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
    for block, message in (
        ({"name": "digrap", "mu": -1}, r"^method\.mu is -1, expected 0 or more"),
        ({"name": "digrap", "beta2": 1}, r"^method\.beta2 is 1, expected 0 or more and less than 1"),
        ({"name": "gradvac", "beta": 1}, r"^method\.beta is 1, expected 0 or more and less than 1"),
        ({"name": "cagrad", "c": 1}, r"^method\.c is 1, expected 0 or more and less than 1"),
        ({"name": "cagrad", "form": "papers"}, r"^method\.form is 'papers', not one of paper, code"),
        ({"name": "component_clip", "max_norm": 0}, r"^method\.max_norm is 0, expected more than 0"),
        ({"name": "l2_sp", "alpha": -0.1}, r"^method\.alpha is -0\.1, expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            make_rule(block)


def test_what_a_rule_looks_at():
    assert [name for name, rule in METHODS.items() if rule.is_plain] == ["erm"]
    assert (Edge().uses_bias, MainOnly().uses_bias, DiGraP().uses_bias) == (True, False, False)
    assert (Edge().is_stateless, MainOnly().is_stateless, DiGraP().is_stateless) == (True, True, False)
    main = torch.tensor(MAIN)
    with pytest.raises(
        ValueError, match="digrap looks at main, moved, moved_before and at steps before; use take_step"
    ):
        combine(DiGraP(), main, main)
    with pytest.raises(ValueError, match="digrap looks at main, moved, moved_before; 2 tensors are given"):
        take_step(DiGraP(), [main, main], torch.zeros(5), None)
