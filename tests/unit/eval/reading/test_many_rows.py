"""Many rows of a suite lie in a kept table; they are the examples that few rows would be."""

import json
import logging

import pytest

from debias.data.tables import Examples
from debias.errors import InputError
from debias_eval.reading import examples as reading
from debias_eval.reading.examples import all_examples, suite_examples
from debias_eval.reading.suite import load_suite

LABELS = ("entailment", "neutral", "contradiction")


def rows(count=60):
    return [
        {
            "id": f"r-{i % 50}",  # ten are told again
            "premise": f"The man {i % 7} sleeps .",
            "hypothesis": f"He is ünder a tree {i} .",
            "label": LABELS[i * 7 % 3],
            "kind": f"k{i % 3}.x" if i % 5 else None,
            "template": None if i == 4 else i % 4,
            "number": i / 60,
            "toxic": i % 2,
            "gold": "-" if i % 4 == 0 else LABELS[i % 3],
        }
        for i in range(count)
    ]


CUE = {"cue": "!!", "field": "hypothesis", "label": "neutral", "prevalence": 0.4, "strength": 0.75}
SETTINGS = {
    "as it is": {},
    "clusters": {"cluster": {"field": "template"}},
    "clusters of texts": {"cluster": {"field": ["premise", "kind"], "words": ["the", "man"]}, "group_field": "kind"},
    "groups": {"group_field": "kind", "group_rule": {"keep_before": ".", "by_label": True}},
    "a gap": {"group_field": "kind", "gap": {"aligned": ["k0.x"], "conflicting": ["k1.x", "k2.x"]}},
    "a cue": {"planted_bias": CUE, "cluster": {"field": "id"}},
    "stress": {"stress": "negation", "group_field": "kind"},
    "some kept": {"keep": {"field": "template", "values": ["1", "2"]}},
    "a threshold": {"labels": ["low", "high"], "label_field": "number", "label_threshold": 0.5},
    "columns of groups": {"group_columns": {"names": ["toxic", "number"], "at_least": 0.5}, "group_field": "said"},
    "no label": {"label_field": "gold", "cluster": {"field": "template"}},
    "not called anything": {"id_field": "nowhere"},
}


@pytest.fixture
def suite_of(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))

    def make(settings, found=None, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found or rows()))
        base = {"name": "mine", "version": 1, "description": "Mine.", "licence": "CC0", "task": "nli", "source": name}
        (tmp_path / "suite.yaml").write_text(json.dumps(base | settings))
        return load_suite(tmp_path / "suite.yaml")

    return make


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(reading, "MANY", 0)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_table_has_the_examples_of_a_list(suite_of, monkeypatch, kind):
    suite = suite_of(SETTINGS[kind])
    few = all_examples(suite)
    monkeypatch.setattr(reading, "MANY", 0)
    found = all_examples(suite)
    assert isinstance(few, list)
    assert isinstance(found, Examples)
    assert [*found] == few
    assert len({one.id for one in found}) == len(few)


@pytest.mark.parametrize("kind", ["as it is", "clusters", "clusters of texts", "a cue"])
@pytest.mark.parametrize("limit", [16, 17, 59, 60])
def test_a_subset_is_the_same(suite_of, monkeypatch, kind, limit):
    suite = suite_of(SETTINGS[kind])
    few = [suite_examples(suite, limit, seed) for seed in (0, 5)]
    monkeypatch.setattr(reading, "MANY", 0)
    assert [[*suite_examples(suite, limit, seed)] for seed in (0, 5)] == few


@pytest.mark.usefixtures("many")
def test_other_settings_and_other_rows_are_another_table(suite_of):
    groups = [one.group for one in all_examples(suite_of(SETTINGS["groups"]))]
    assert groups != [one.group for one in all_examples(suite_of({"group_field": "kind"}))]
    changed = [row | {"hypothesis": "Other ."} for row in rows()]
    assert {one.texts[1] for one in all_examples(suite_of({"group_field": "kind"}, changed))} == {"Other ."}


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_field": "kind", "gap": {"aligned": ["k9"], "conflicting": ["k1.x"]}}, "gap names the group 'k9'"),
        ({"keep": {"field": "template", "values": ["1", "9"]}}, "keep names template '9'; the data has"),
        ({"cluster": {"field": "nowhere"}}, "no column 'nowhere'"),
        ({"labels": ["entailment", "neutral"]}, r"row 3: label 'contradiction' is not in labels"),
        ({"planted_bias": CUE | {"prevalence": 1.0, "strength": 1.0}}, "planted_bias: prevalence"),
    ],
)
def test_the_same_errors_in_one_line(suite_of, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        all_examples(suite_of(settings))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("many")
def test_what_is_asked_of_all_rows_at_once_is_a_list(suite_of):
    rule = {"partial_input": {"fields": ["hypothesis"], "train": "rows.jsonl"}}
    assert isinstance(all_examples(suite_of({"group_rule": rule})), list)
    assert isinstance(all_examples(suite_of({"source": {"source": "rows.jsonl", "limit": 20}})), list)


@pytest.mark.usefixtures("many")
def test_ids_that_are_told_again_are_numbered_past_those_of_the_data(suite_of):
    names = ["a", "a", "a#2", "a", "b", "a#4", "a"]
    found = all_examples(suite_of({}, [row | {"id": name} for row, name in zip(rows(7), names, strict=True)]))
    assert [one.id for one in found] == ["a", "a#3", "a#2", "a#5", "b", "a#4", "a#6"]


@pytest.mark.usefixtures("many")
def test_rows_are_read_once(suite_of, monkeypatch, caplog):
    suite = suite_of(SETTINGS["a cue"])
    first = [*all_examples(suite)]
    monkeypatch.setattr("debias.data.reader.Reader.example", None)  # would be called for each row
    with caplog.at_level(logging.INFO):
        assert [*all_examples(suite)] == first


def test_a_large_file_is_enough(suite_of, monkeypatch):
    suite = suite_of({})
    size = (suite.folder / "rows.jsonl").stat().st_size
    for most, kind in ((size, list), (size - 1, Examples)):
        monkeypatch.setattr(reading, "MANY", most)
        assert isinstance(all_examples(suite), kind)
