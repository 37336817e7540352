"""Groups by what a classifier of a part of the input can tell."""

import builtins
import json
from typing import Any

import pytest

from debias.errors import InputError
from debias_eval.reading import partial
from debias_eval.reading.examples import all_examples
from debias_eval.reading.partial import EASY, HARD
from debias_eval.reading.suite import load_suite

pytest.importorskip("sklearn")

TRAIN = [("any", "it is not so", "contradiction"), ("any", "it may well be", "neutral"), ("any", "it is", "entailment")]
TEST = [
    ("p", "he is not here", "contradiction"),  # the word tells
    ("p", "she may well sleep", "neutral"),
    ("p", "he is not there", "entailment"),  # the word misleads
    ("p", "they may well sing", "contradiction"),
]
EXPECTED = [EASY, EASY, HARD, HARD]


def write(path: Any, rows: Any) -> None:
    lines = [
        dict(zip(("premise", "hypothesis", "label"), row, strict=True)) | {"id": str(i)} for i, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def make(tmp_path):
    def suite(rows: Any = TEST, **settings: Any) -> Any:
        write(tmp_path / "train.jsonl", TRAIN * 20)
        write(tmp_path / "rows.jsonl", rows)
        rule = {"partial_input": {"fields": ["hypothesis"], "train": "train.jsonl"}}
        base = {"name": "mine", "version": 1, "description": "Mine.", "licence": "CC0", "task": "nli"}
        base |= {"source": "rows.jsonl", "group_rule": rule}
        (tmp_path / "suite.yaml").write_text(json.dumps(base | settings))
        return load_suite(tmp_path / "suite.yaml")

    return suite


def test_easy_is_what_the_hypothesis_alone_gives_away(make):
    assert [one.group for one in all_examples(make())] == EXPECTED


def test_the_premise_is_not_seen(make):
    other = [("it is not not not so", hypothesis, label) for _, hypothesis, label in TEST]
    assert [one.group for one in all_examples(make(other))] == EXPECTED


def test_groups_come_from_the_text_before_the_stress(make):
    gap = {"aligned": [EASY], "conflicting": [HARD]}
    examples = all_examples(make(stress="negation", gap=gap))
    assert [one.group for one in examples] == EXPECTED
    assert all(one.texts[1].endswith(" and false is not true") for one in examples)


def test_the_label_can_be_part_of_the_group(make):
    rule = {"by_label": True, "partial_input": {"fields": ["hypothesis"], "train": ["train.jsonl"]}}
    expected = [f"{group}/{row[2]}" for group, row in zip(EXPECTED, TEST, strict=True)]
    assert [one.group for one in all_examples(make(group_rule=rule))] == expected


def test_training_data_that_is_not_there_is_named(make, tmp_path, monkeypatch):
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    suite = make()
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"suite mine: no train\.jsonl; .*its classifier of hypothesis is fitted on it"
    ):
        all_examples(suite)


def test_training_data_from_the_hub(make, tmp_path, monkeypatch):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path / "data" / "a" / "b"
    folder.mkdir(parents=True)
    columns = {name: [row[i] for row in TRAIN * 20] for i, name in enumerate(("premise", "hypothesis", "label"))}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    hub = {"source": "a/b", "split": "train"}
    rule = {"partial_input": {"fields": ["hypothesis"], "train": "absent.jsonl", "hub": hub}}
    assert [one.group for one in all_examples(make(group_rule=rule))] == EXPECTED


def test_without_scikit_learn_the_extra_is_named(make, monkeypatch):
    suite, real = make(), builtins.__import__

    def blocked(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(InputError, match=r"needs scikit-learn: pip install scikit-learn"):
        all_examples(suite)


@pytest.fixture
def fits(monkeypatch):
    """How often a classifier was fitted."""
    counted, real = [], partial.classifier

    def classifier() -> Any:
        model = real()
        fit = model.fit
        model.fit = lambda *given: counted.append(1) or fit(*given)
        return model

    monkeypatch.setattr(partial, "classifier", classifier)
    return counted


def test_what_it_says_is_kept_for_the_same_data_alone(make, tmp_path, monkeypatch, fits):
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    assert [one.group for one in all_examples(make())] == EXPECTED
    assert len(fits) == 1
    assert [one.group for one in all_examples(make())] == EXPECTED
    assert len(fits) == 1
    fewer = TEST[1:]
    assert [one.group for one in all_examples(make(fewer))] == EXPECTED[1:]
    assert len(fits) == 2, "other texts to judge"
    suite = make()
    write(tmp_path / "train.jsonl", [(p, h, {"contradiction": "neutral"}.get(y, y)) for p, h, y in TRAIN * 20])
    assert [one.group for one in all_examples(suite)] == [HARD, EASY, HARD, HARD]
    assert len(fits) == 3, "other rows to fit"
    other = {"partial_input": {"fields": ["premise"], "train": "train.jsonl"}}
    assert len({one.group for one in all_examples(make(group_rule=other))}) > 0
    assert len(fits) == 4, "another part of the input"


def test_what_was_kept_and_is_damaged_is_made_again(make, tmp_path, monkeypatch, fits):
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    suite = make()
    all_examples(suite)
    for table in (tmp_path / "cache").rglob("table.arrow"):
        table.write_bytes(b"")
    assert [one.group for one in all_examples(suite)] == EXPECTED
    assert len(fits) == 2


@pytest.mark.slow
def test_the_accuracy_on_the_card_of_mnli(data_folder):
    """45.5 %, as the card says; counted here by the sizes of the groups."""
    examples = all_examples(load_suite("mnli"))
    assert sum(one.group == EASY for one in examples) / len(examples) == pytest.approx(0.455, abs=5e-4)
