"""Judging piece by piece: what is kept as it comes, and what is gone on with."""

import json

import numpy as np
import pytest

from debias.errors import InputError
from debias_eval.judging import pieces
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.judging.pieces import KeptScores, in_pieces
from debias_eval.results.files import read_predictions

PIECE = 10
ROWS = [(f"{i}", f"p {i}", f"h {i}", ("entailment", "neutral", "contradiction")[i % 3], None) for i in range(37)]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    monkeypatch.setattr(pieces, "PROVED", 4)


class Model:
    """Scores that depend on the text; `dies_after` so many pieces. `description` as a model of ours."""

    labels = ("entailment", "neutral", "contradiction")
    text_fields = ("premise", "hypothesis")

    def __init__(self, shift=0.0, dies_after=99):
        self.description = {"how": "classification", "dtype": "float32"}
        self.shift, self.dies_after = shift, dies_after
        self.asked, self.forgot = [], 0

    def label_scores(self, examples, batch_size=None):
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        self.asked.append([one.id for one in examples])
        number_N = np.array([float(one.texts[1].split()[1]) for one in examples])
        return np.stack([np.sin(number_N) + self.shift, np.cos(number_N), 0 * number_N], axis=1)

    def forget(self):
        self.forgot += 1

    def from_first(self, scores):
        return scores


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_text("1")
    return folder


def files(run):
    return sorted(path.name for path in (run / "eval").iterdir())


def judged(run):
    return [(one.id, one.prediction, one.probabilities) for one in read_predictions(run / "eval" / PREDICTIONS)]


PREDICTIONS = "mine.predictions.jsonl.gz"
WRITTEN = ["mine.json", PREDICTIONS]


def test_piece_by_piece_is_the_same_as_all_at_once(run, write_suite, monkeypatch):
    path, model = write_suite(ROWS), Model()
    evaluate_run(run, path, predictor=model)
    assert [len(one) for one in model.asked] == [10, 10, 10, 7]
    assert model.forgot == 4
    found = judged(run)
    monkeypatch.setattr(pieces, "PIECE", 1000)
    whole = Model()
    evaluate_run(run, path, predictor=whole)
    assert [len(one) for one in whole.asked] == [37]
    assert whole.forgot == 0  # what was scored serves other suites
    assert judged(run) == found
    assert files(run) == WRITTEN


@pytest.mark.parametrize("done", [1, 2, 3])
def test_it_goes_on_where_it_was_cut_off(run, write_suite, done):
    path = write_suite(ROWS)
    evaluate_run(run, path, predictor=Model())
    whole = judged(run)
    for file in WRITTEN:
        (run / "eval" / file).unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, path, predictor=Model(dies_after=done))
    assert files(run) == [".mine.scores"]
    model = Model()
    evaluate_run(run, path, predictor=model)
    asked_again, *new = model.asked
    assert asked_again == [str(i) for i in range(4)]
    assert [one[0] for one in new] == [str(i) for i in range(10 * done, 37, 10)]
    assert judged(run) == whole
    assert files(run) == WRITTEN


def test_twice_cut_off(run, write_suite):
    path = write_suite(ROWS)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, path, predictor=Model(dies_after=2))  # the second one's first asks again
    model = Model()
    evaluate_run(run, path, predictor=model)
    assert [one[0] for one in model.asked] == ["0", "30"]


@pytest.mark.parametrize("what", ["weights", "scores", "rows", "torn", "cut", "labels"])
def test_nothing_of_something_else_is_mixed_in(run, write_suite, what):
    path = write_suite(ROWS)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, path, predictor=Model(dies_after=2))
    kept, model, rows, first = run / "eval" / ".mine.scores", Model(), ROWS, "0"
    if what == "weights":  # trained again, though it says nearly the same
        (run / "adapter" / "weights").write_text("22")
    elif what == "scores":  # the same files as far as anyone can see
        model = Model(shift=0.5)
    elif what == "rows":
        rows = [*ROWS[:5], ("5", "p 5", "h 555", "neutral", None), *ROWS[6:]]
        path = write_suite(rows)
    elif what == "torn":
        kept.write_bytes(b"\x00" + kept.read_bytes()[1:])
    elif what == "cut":  # in the middle of the second piece
        kept.write_bytes(kept.read_bytes()[:-8])
        first = "10"
    elif what == "labels":
        told, _, rest = kept.read_bytes().partition(b"\n")
        kept.write_bytes(json.dumps(json.loads(told) | {"labels": 2}).encode() + b"\n" + rest)
    evaluate_run(run, path, predictor=model)
    new = [one for one in model.asked if len(one) > 4]
    assert new[0][0] == first
    fresh = Model(model.shift)
    evaluate_run(run, path, predictor=fresh, overlap="ignore")
    expected = judged(run)
    assert len(expected) == 37
    right = fresh.label_scores([*map(_Asked, rows)])
    want = np.exp(right) / np.exp(right).sum(axis=1, keepdims=True)
    got = np.array([[one[2][name] for name in Model.labels] for one in expected])
    np.testing.assert_allclose(got, want, rtol=1e-5)


class _Asked:
    def __init__(self, row):
        self.id, self.texts = row[0], row[1:3]


def test_the_scores_of_pieces_are_those_that_came(tmp_path):
    score_NM = np.random.default_rng(0).normal(size=(37, 3))
    kept = KeptScores(tmp_path, "mine", ["about"])
    got = in_pieces(lambda places: score_NM[places], 37, kept)
    assert (got == score_NM).all()
    assert (KeptScores(tmp_path, "mine", ["about"]).read() == score_NM[:30]).all()
    assert KeptScores(tmp_path, "mine", ["other"]).read().size == 0
    kept.remove()
    assert kept.read().size == 0


def test_few_examples_leave_nothing(tmp_path):
    kept = KeptScores(tmp_path, "mine", [])
    assert in_pieces(lambda places: np.zeros((10, 2)), 10, kept).shape == (10, 2)
    assert not kept.path.exists()


def test_a_full_disk_is_said_in_one_line(tmp_path):
    (tmp_path / "eval").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"\.mine\.scores: cannot be written") as caught:
        in_pieces(lambda places: np.zeros((10, 2)), 37, KeptScores(tmp_path, "mine", []))
    assert "\n" not in str(caught.value)
