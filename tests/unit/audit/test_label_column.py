"""The labels of a column: whether -1 and - are some, and which are one but for how they are written."""

import pytest

from debias.audit.labels import column_of
from debias.config.data import twins
from debias.errors import InputError

SNLI = ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize(
    ("values", "labels", "left_out"),
    [
        (["-1", "0", "1"] * 10, ("-1", "0", "1"), {}),
        ([-1, 0, 1] * 10, ("-1", "0", "1"), {}),
        (["-1", "1"] * 10, ("-1", "1"), {}),
        ([-1.0, 1.0] * 10, ("-1.0", "1.0"), {}),
        (["-1", "0"] * 10, ("-1", "0"), {}),
        (["-2", "-1", "1"] * 10, ("-1", "-2", "1"), {}),
        (["-1", "-0.5", "0.5", "1"] * 5, ("-0.5", "-1", "0.5", "1"), {}),
        (["+", "-", "0"] * 10, ("+", "-", "0"), {}),
        (["+", "-"] * 10, ("+", "-"), {}),
        # What means no label: of SNLI beside words, of classes beside their numbers, and rarely beside a pair.
        ([*SNLI * 30, "-", "-"], tuple(sorted(SNLI)), {"-": 2}),
        ([*SNLI * 3, *["-"] * 9], tuple(sorted(SNLI)), {"-": 9}),
        ([*SNLI * 30, "-1"], tuple(sorted(SNLI)), {"-1": 1}),
        ([0, 1, 2] * 10 + [-1] * 9, ("0", "1", "2"), {"-1": 9}),
        (["0", "1"] * 30 + ["-1"] * 2, ("0", "1"), {"-1": 2}),
        ([0.0, 1.0, 2.0] * 10 + [-1.0] * 9, ("0.0", "1.0", "2.0"), {"-1.0": 9}),
        (["1", "2"] * 10 + ["-", None, ""], ("1", "2"), {"-": 1}),
    ],
)
def test_which_marks_are_labels(values: list[object], labels: tuple[str, ...], left_out: dict[str, int]) -> None:
    column = column_of("x.csv", "label", values, None)
    assert (column.labels, column.unlabelled) == (labels, left_out)
    assert sum(column.counts.values()) + sum(left_out.values()) == sum(value not in (None, "") for value in values)
    lines = column.about_marks()
    assert column.empty == sum(value in (None, "") for value in values)
    assert len(lines) == len(left_out) + len(column.marks) + bool(column.empty)
    for line in lines:
        assert ("left out" in line) == bool(left_out)
        assert "data.labels" in line or "are empty" in line
    assert column.about_twins() == []


def test_cells_that_hold_nothing_are_no_label_and_are_counted() -> None:
    for empty in (None, "", "  ", float("nan")):
        column = column_of("x.jsonl", "label", [*["1", "0"] * 9, empty, empty], None)
        assert (column.labels, column.empty, column.rows) == (("0", "1"), 2, 20)
        assert column.about_marks() == [
            "label: 2 of 20 rows (10.0 %) are empty, have no label for it, and are left out"
        ]
        with pytest.raises(InputError, match="label is 'yes' in every row but 2 that are empty: with fewer than two"):
            column_of("x.jsonl", "label", ["yes", empty, "yes", empty], None)


def test_beside_names_of_classes_minus_one_is_none() -> None:
    column = column_of("x.parquet", "label", [0, 1, -1] * 10, ["neg", "pos"])
    assert (column.labels, column.unlabelled) == (("neg", "pos"), {"-1": 10})
    (line,) = column.about_marks()
    assert "10 of 30 rows (33.3 %)" in line


def test_where_a_mark_leaves_one_label_it_is_said() -> None:
    with pytest.raises(InputError, match="is 'yes' in every row but 5 with '-', which means no label"):
        column_of("x.csv", "label", ["yes", "-"] * 5, None)


def test_labels_that_are_one_but_for_how_they_are_written() -> None:
    values = ["pos"] * 3 + ["Pos"] * 2 + ["pos "] * 2 + ["neg ", "neg ", "NEG"] + ["new york", "New  York"] + ["other"]
    column = column_of("x.csv", "mood", values, None)
    assert column.label_map == {"Pos": "pos", "pos ": "pos", "NEG": "neg", "neg ": "neg", "New  York": "new york"}
    assert len(column.labels) == 8
    lines = column.about_twins()
    assert len(lines) == 3
    assert "'Pos' (2), 'pos' (3), 'pos ' (2)" in " ".join(lines)
    assert twins(("1", "1.0", "2", "01", "a", "b")) == [("1", "1.0")]
    assert twins(("caf\u00e9", "cafe\u0301", "STRASSE", "straße")) == [
        ("caf\u00e9", "cafe\u0301"),
        ("STRASSE", "straße"),
    ]
    assert twins(("entailment", "not_entailment")) == []
