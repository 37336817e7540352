"""Rules on raw rows, on small files of a user's own: what is kept, labels and groups made from numbers."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from debias.errors import InputError
from debias_eval.reading.examples import all_examples
from debias_eval.reading.suite import load_suite

COLUMNS = ["id", "comment_text", "toxicity", "split", "article_id", "male", "female", "LGBTQ", "christian"]
COLUMNS += ["muslim", "other_religions", "black", "white"]


def suite_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"name": "mine", "version": 1, "description": "Mine.", "licence": "CC0", "task": "toxicity"}
    base |= {"source": "rows.jsonl", "text_fields": ["text"], "labels": ["nontoxic", "toxic"]}
    (folder / "suite.yaml").write_text(json.dumps(base | settings))  # JSON is YAML
    return load_suite(folder / "suite.yaml")


def row(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "text": f"text {id}", "label": "toxic"} | more


def test_rows_outside_keep_need_no_label_of_the_suite(tmp_path):
    rows = [row("a"), row("b", label="unsure"), row("c", label="nontoxic")]
    suite = suite_of(tmp_path, rows, keep={"field": "label", "values": ["toxic", "nontoxic"]})
    assert [one.id for one in all_examples(suite)] == ["a", "c"]


@pytest.mark.parametrize(("field", "value"), [("id", "b"), ("group", "g"), ("kind", "k")])
def test_keep_reads_the_id_the_group_or_any_column(tmp_path, field, value):
    rows = [row("a", of="h", kind="l"), row("b", of="g", kind="k")]
    suite = suite_of(tmp_path, rows, group_field="of", keep={"field": field, "values": [value]})
    assert [one.id for one in all_examples(suite)] == ["b"]


def test_a_kept_value_that_never_occurs_is_an_error(tmp_path):
    suite = suite_of(tmp_path, [row("a", kind="x")], keep={"field": "kind", "values": ["x", "y"]})
    with pytest.raises(InputError, match="keep names kind 'y'; the data has 'x'"):
        all_examples(suite)


def test_a_column_that_is_not_there_is_named(tmp_path):
    suite = suite_of(tmp_path, [row("a")], keep={"field": "kind", "values": ["x"]})
    with pytest.raises(InputError, match=r"row 1: no column 'kind' \(keep\); the columns are id, text, label"):
        all_examples(suite)


def test_a_threshold_makes_two_labels_of_a_number(tmp_path):
    rows = [row(str(i), label=value) for i, value in enumerate([0, 0.49999, 0.5, 1, "0.7", "1e-3"])]
    suite = suite_of(tmp_path, rows, label_threshold=0.5)
    assert [one.label for one in all_examples(suite)] == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("value", ["high", None, "", "nan"])
def test_a_threshold_needs_numbers(tmp_path, value):
    suite = suite_of(tmp_path, [row("a", label=0.1), row("b", label=value)], label_threshold=0.5)
    with pytest.raises(InputError, match=r"suite mine: row 2: label is .*, expected a number"):
        all_examples(suite)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_threshold": 0.5, "labels": ["a", "b", "c"]},
        {"label_threshold": 0.5, "label_map": {"1": "toxic"}},
        {"group_columns": {"names": ["x"], "at_least": 0.5}},
        {"cluster": {"field": "text", "mask": ["x"], "words": ["y"]}},
        {"cluster": {"field": "text", "mask": ["x"], "regex": "(y)"}},
    ],
)
def test_rules_that_do_not_go_together_are_refused(tmp_path, settings):
    with pytest.raises(InputError):
        suite_of(tmp_path, [row("a")], **settings)


def test_a_group_of_several_columns(tmp_path):
    values = [(0, 0), (0.5, 0.4), (0.2, 1), (0.9, 0.5), (None, 0.5), ("", float("nan"))]
    rows = [row(str(i), x=x, y=y) for i, (x, y) in enumerate(values)]
    suite = suite_of(tmp_path, rows, group_field="who", group_columns={"names": ["x", "y"], "at_least": 0.5})
    assert [one.group for one in all_examples(suite)] == ["none", "x", "y", "several", "y", "none"]


def test_rows_without_text_are_left_out_where_the_suite_says_so(tmp_path, caplog):
    rows = [row("a"), row("b", text="  "), row("c", text=None)]
    with caplog.at_level(logging.INFO):
        assert [one.id for one in all_examples(suite_of(tmp_path, rows, skip_empty=True))] == ["a"]
    assert "left out 2 rows without text" in caplog.text
    with pytest.raises(InputError, match="row 2: text is empty"):
        all_examples(suite_of(tmp_path, rows))


def test_a_row_may_lack_the_group_that_earlier_rows_have(tmp_path):
    suite = suite_of(tmp_path, [row("a", group="g"), row("b")], group_field="group")
    assert [one.group for one in all_examples(suite)] == ["g", None]


def test_a_group_column_that_no_row_has_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no column 'grup'"):
        all_examples(suite_of(tmp_path, [row("a", group="g")], group_field="grup"))


def test_masked_words_and_phrases_count_as_one(tmp_path):
    texts = ["The Old man", "the old man", "THE young man", "the youngster man", "the middle aged man", "the aged man"]
    rows = [row(str(i), text=text) for i, text in enumerate(texts)]
    suite = suite_of(tmp_path, rows, cluster={"field": "text", "mask": ["old", "young", "aged", "middle aged"]})
    clusters = [one.cluster for one in all_examples(suite)]
    assert clusters == ["The _ man", "the _ man", "THE _ man", "the youngster man", "the _ man", "the _ man"]


def test_texts_in_any_order_are_one_cluster(tmp_path):
    rows = [row("a", other="x y"), row("b", text="x y", other="text a"), row("c", other="x y")]
    suite = suite_of(tmp_path, rows, text_fields=["text", "other"], cluster={"field": "texts"})
    first, second, third = (one.cluster for one in all_examples(suite))
    assert first == second != third


def comments(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The columns of the published table, one comment a row."""
    (folder / "civil_comments").mkdir()
    with (folder / "civil_comments" / "all_data_with_identities.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *COLUMNS], restval=0)
        writer.writeheader()
        for number, one in enumerate(rows):
            writer.writerow({"": number, "split": "test", "article_id": 7} | one)


def test_civil_comments_by_identity_and_label(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    comments(
        tmp_path,
        [
            {"id": 1, "comment_text": "one, with a comma\nand a new line", "toxicity": 0.5, "muslim": 0.5},
            {"id": 2, "comment_text": "two", "toxicity": 0.4, "male": 1, "white": 0.75, "article_id": 8},
            {"id": 3, "comment_text": "three", "toxicity": 0.9, "split": "train", "black": 1},
            {"id": 4, "comment_text": "", "toxicity": 0.9},
            {"id": 5, "comment_text": "five", "toxicity": 0.0, "black": 0.49},
        ],
    )
    examples = all_examples(load_suite("civil_comments"))
    assert [(one.id, one.group, one.cluster) for one in examples] == [
        ("1", "muslim/toxic", "7"),
        ("2", "several/nontoxic", "8"),
        ("5", "none/nontoxic", "7"),
    ]
