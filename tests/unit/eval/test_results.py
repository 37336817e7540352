import gzip
import json
import os

import pytest

from debias.errors import InputError
from debias_eval import results
from debias_eval.results import read_predictions, read_result, read_results, write_whole


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
        write_whole(path, b"new")
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_whole(tmp_path / "file" / "eval" / "s.json", b"")


def test_hostile_text_survives_the_round_trip(tmp_path):
    import numpy as np

    from debias.data.examples import Example
    from debias_eval.scoring import Judged, score

    name = '<b>"{{x}}\u2028\n'
    judged = Judged(("yes", name), np.array([1]), np.array([1]), np.array([[0.0, 1.0]]), (name,))
    numbers = {"suite": "s", "version": 1, **score(judged)}
    results.write_results(tmp_path, numbers, [Example(name, (name, name), 1, name)], judged)
    assert list(read_results(tmp_path)["s"].groups) == [name]
    assert [line.id for line in read_predictions(results.predictions_path(tmp_path, "s"))] == [name]
