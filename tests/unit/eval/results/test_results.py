import gzip
import json
import os

import pytest

from debias.errors import InputError
from debias.runs.whole import write_or_say
from debias_eval.results.files import (
    predictions_path,
    read_predictions,
    read_result,
    read_results,
    write_results,
)


@pytest.fixture
def path(tmp_path, put):
    return put(tmp_path, "s", {"bias-aligned": 90, "bias-conflicting": 20})


def test_round_trip(path, tmp_path):
    result = read_results(tmp_path)["s"]
    assert (result.accuracy, result.gap, result.n) == (0.55, pytest.approx(0.7), 200)
    assert len(read_predictions(tmp_path / "eval" / "s.predictions.jsonl.gz")) == 200


def test_a_run_without_results_has_none(tmp_path):
    assert read_results(tmp_path) == {}


def test_keys_of_a_later_version_are_left_alone(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"macro_f1": 0.5}))
    assert read_result(path).n == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.5}, "accuracy: "),
        ({"accuracy": None}, "accuracy: "),
        ({"accuracy": 0.99}, "does not hold the accuracy"),
        ({"ece": float("nan")}, "ece: "),
        ({"groups": {"a": {"n": 0, "accuracy": 0, "ci95": [0, 1]}}}, "groups.a.n: "),
        ({"groups": [1]}, "groups: "),
        ({"gap": 3}, "gap: "),
        ({"suite": "other"}, "holds results of the suite 'other'"),
        ({"accuracy": 0.5512}, "accuracy 0.5512 is no share of 200 examples"),
        ({"available": 150}, "n is 200, but the suite has 150 examples available"),
        ({"groups": {"a": {"n": 201, "accuracy": 1, "ci95": [0, 1]}}, "worst_group": None}, "groups hold 201 examples"),
        ({"labels": {"yes": {"n": 150, "predicted": 200}}}, "labels.*.n add up to 150, but n is 200"),
        ({"labels": {"yes": {"n": 200, "predicted": 1}}}, "labels.*.predicted add up to 1, but n is 200"),
        ({"worst_group": {"name": "zebra", "accuracy": 0.2}}, "worst_group is 'zebra', not one of the groups"),
        ({"worst_group": {"name": "bias-aligned", "accuracy": 0.9}}, "is not the lowest among the groups"),
        ({"adjusted_accuracy": {"n": 9, "accuracy": 0.5, "ci95": [0, 1]}}, "adjusted_accuracy is 0.5, but that is not"),
        ({"balanced_accuracy": {"n": 9, "accuracy": 0.5, "ci95": [0.6, 1]}}, "does not hold the accuracy"),
        ({"counterfactual_gap": {"n": 9, "value": 0.5, "ci95": [0.6, 1]}}, "does not hold the value 0.5"),
        ({"gap": 0.6}, "gap is 0.6, but aligned - conflicting is not"),
        ({"gap_ci95": [0.8, 0.9]}, "gap_ci95 [0.8, 0.9] does not hold 0.7"),
        ({"gap_ci95": [0.8]}, "gap_ci95.1: "),
        ({"macro_f1": -0.1}, "macro_f1: "),
        ({"clusters": 201}, "clusters is 201, but n is 200"),
        (
            {"consistency": {"n": 9, "accuracy": 1, "ci95": [0, 1]}},
            "consistency counts 9 clusters, but clusters is None",
        ),
        ({"reliability": [{"low": 0, "high": 1, "n": 7}]}, "reliability counts 7 examples, but n is 200"),
        ({"reliability": [{"low": 0, "high": 2, "n": 200}]}, "reliability.0.high: "),
        ({"partial_input": {"n": 9, "accuracy": 0.9, "ci95": [0, 0.5], "fields": []}}, "does not hold the accuracy"),
        ({"partial_input": {"n": 9, "accuracy": 0.5, "ci95": [0, 1]}}, "partial_input.fields: "),
        ({"overlap": {"rows": -1}}, "overlap.rows: "),
        ({"judge": "sum"}, "judge: "),
    ],
)
def test_damaged_values_are_one_line(path, change, message):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_result(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"suite": "s"}'])
def test_damaged_files_are_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.json: damaged results: .*; run `debias eval` again") as caught:
        read_result(path)
    assert "\n" not in str(caught.value)


def good_line(**change):
    line = {"id": "1", "label": "yes", "prediction": "no", "probabilities": {"yes": 0.4, "no": 0.6}, "group": None}
    return json.dumps(line | change) + "\n"


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b"no gzip", 1),
        (gzip.compress((good_line() + "{").encode()), 2),
        (gzip.compress((good_line() + good_line(prediction="maybe")).encode()), 2),
        (gzip.compress(good_line(probabilities={"yes": 2, "no": -1}).encode()), 1),
        (gzip.compress(good_line().encode())[:-6], 1),
        (gzip.compress(b"\xff\n"), 1),
    ],
    ids=["no gzip", "half a line", "unknown label", "no probabilities", "cut short", "no UTF-8"],  # bytes hold the time
)
def test_damaged_predictions_name_the_line(path, content, row):
    file = path.with_name("s.predictions.jsonl.gz")
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"predictions\.jsonl\.gz, line \d+: damaged predictions") as caught:
        read_predictions(file)
    assert f"line {row}" in str(caught.value) or content.endswith(gzip.compress(good_line().encode())[-8:-6])
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_keeps_the_old_results(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"s\.json: cannot be written: No space left on device"):
        write_or_say(path, b"new")
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_or_say(tmp_path / "file" / "eval" / "s.json", b"")


def test_hostile_text_survives_the_round_trip(tmp_path):
    import numpy as np

    from debias.data.examples import Example
    from debias_eval.scores.scoring import Judged, score

    name = '<b>"{{x}}\u2028\n'
    judged = Judged(("yes", name), np.array([1]), np.array([1]), np.array([[0.0, 1.0]]), (name,))
    numbers = {"suite": "s", "version": 1, **score(judged)}
    write_results(tmp_path, numbers, [Example(name, (name, name), 1, name)], judged)
    assert list(read_results(tmp_path)["s"].groups) == [name]
    assert [line.id for line in read_predictions(predictions_path(tmp_path, "s"))] == [name]


def vouched(path):
    return read_result(path), path.with_name("s.predictions.jsonl.gz")


def test_predictions_that_belong_are_read(path):
    result, file = vouched(path)
    assert len(read_predictions(file, result)) == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "holds 199 predictions, the results count 200"),
        (lambda lines: [lines[0]] * 200, "holds 200 right answers, the results count 110"),
        (lambda lines: lines[::-1], "is not the file that the results were counted from"),
    ],
)
def test_predictions_of_something_else_are_refused(path, change, message):
    result, file = vouched(path)
    lines = gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True)
    file.write_bytes(gzip.compress("".join(change(lines)).encode()))
    with pytest.raises(InputError) as caught:
        read_predictions(file, result)
    assert str(caught.value) == f"{file}: {message} (s version 1); run `debias eval` again"


def test_results_from_before_the_digest_are_still_read(path):
    known = json.loads(path.read_text())
    del known["predictions_sha256"], known["gap_groups"], known["reliability"], known["macro_f1"]
    del known["balanced_accuracy"], known["adjusted_accuracy"]
    path.write_text(json.dumps(known))
    result, file = vouched(path)
    assert len(read_predictions(file, result)) == 200
