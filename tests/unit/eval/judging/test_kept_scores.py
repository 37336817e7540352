"""Judging piece by piece: what is kept as it comes, and what is gone on with."""

import json

import numpy as np
import pytest

from debias_eval.judging import pieces
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.judging.pieces import KeptScores, in_pieces
from debias_eval.results.files import read_predictions

PIECE = 10
ROWS = [(f"{i}", f"p {i}", f"h {i}", ("entailment", "neutral", "contradiction")[i % 3], None) for i in range(37)]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    monkeypatch.setattr(pieces, "PROVED", 4)  # the first, the last, and two between


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


def kept_in(run):
    return [name for name in files(run) if name.endswith(".scores")]


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
    assert len(files(run)) == len(kept_in(run)) == 1
    model = Model()
    evaluate_run(run, path, predictor=model)
    asked_again, *new = model.asked
    assert [int(one) for one in asked_again] == [round(i * (10 * done - 1) / 3 - 0.5 + 1e-9) for i in range(4)]
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
    (name,) = kept_in(run)
    kept, model, rows, first = run / "eval" / name, Model(), ROWS, "0"
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
    if what == "scores":  # asked again, and found to be another's; what the others left has another name, or is none
        assert len(model.asked) == len(new) + 1
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


def scored(score_NM):
    return lambda places: score_NM[list(places)]


def test_the_scores_of_pieces_are_those_that_came(tmp_path):
    score_NM = np.random.default_rng(0).normal(size=(37, 3))
    kept = KeptScores(tmp_path, "mine", ["about"])
    assert (in_pieces(scored(score_NM), 37, kept) == score_NM).all()
    kept.close()
    again = KeptScores(tmp_path, "mine", ["about"])
    assert (again.read() == score_NM[:30]).all()
    assert KeptScores(tmp_path, "mine", ["other"]).read().size == 0
    again.remove()
    assert KeptScores(tmp_path, "mine", ["about"]).read().size == 0


def test_few_examples_leave_nothing(tmp_path):
    kept = KeptScores(tmp_path, "mine", [])
    assert in_pieces(lambda places: np.zeros((10, 2)), 10, kept).shape == (10, 2)
    assert not kept.path.exists()


@pytest.mark.parametrize("place", [0, 14, 29])
def test_scores_that_moved_at_one_end_are_found(tmp_path, place):
    """A model that was trained on a little says something else of some rows, wherever these are."""
    score_NM = np.random.default_rng(0).normal(size=(37, 3))
    in_pieces(scored(score_NM), 37, kept := KeptScores(tmp_path, "mine", []))
    kept.close()
    moved_NM = score_NM.copy()
    moved_NM[max(0, place - 5) : place + 6] += 0.01
    asked = []
    got = in_pieces(
        lambda places: asked.append(len(places)) or moved_NM[list(places)], 37, KeptScores(tmp_path, "mine", [])
    )
    assert asked == [4, 10, 10, 10, 7]
    assert (got == moved_NM).all()


def test_of_two_that_judge_the_same_one_keeps(tmp_path, caplog):
    score_NM = np.random.default_rng(0).normal(size=(37, 3))
    first, second = KeptScores(tmp_path, "mine", []), KeptScores(tmp_path, "mine", [])

    def asked(places):
        if places == range(10, 20):  # the first is at its second piece
            assert (in_pieces(scored(score_NM), 37, second) == score_NM).all()
        return score_NM[list(places)]

    assert (in_pieces(asked, 37, first) == score_NM).all()
    assert "another process is judging the same" in caplog.text
    second.remove()  # which is not its own
    first.close()
    assert (KeptScores(tmp_path, "mine", []).read() == score_NM[:30]).all()


def test_a_look_at_a_few_rows_leaves_what_is_kept_of_all(run, write_suite):
    path = write_suite(ROWS)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, path, predictor=Model(dies_after=3))
    evaluate_run(run, path, limit=5, predictor=Model())
    evaluate_run(run, path, limit=25, predictor=Model())  # of several pieces itself
    model = Model()
    evaluate_run(run, path, predictor=model)
    assert [one[0] for one in model.asked] == ["0", "30"]
    assert files(run) == WRITTEN


@pytest.mark.parametrize("named", ["model", "adapter"])
def test_a_model_that_was_only_judged_and_changed_in_its_place(tmp_path, write_suite, named):
    out, weights = tmp_path / "out", tmp_path / "weights"
    out.mkdir()
    weights.mkdir()
    (weights / "w").write_text("1")
    (out / "run.json").write_text(json.dumps({"judged": {"model": "some/hub-id", named: str(weights)}}))
    path = write_suite(ROWS)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(out, path, predictor=Model(dies_after=2))
    (weights / "w").write_text("22")
    model = Model()
    evaluate_run(out, path, predictor=model)
    assert [one[0] for one in model.asked] == ["0", "10", "20", "30"]


def test_scores_that_cannot_be_kept_are_no_failure(tmp_path, caplog, monkeypatch):
    score_NM = np.random.default_rng(0).normal(size=(37, 3))
    (tmp_path / "eval").write_text("a file where a folder should be")
    assert (in_pieces(scored(score_NM), 37, KeptScores(tmp_path, "mine", [])) == score_NM).all()
    (tmp_path / "eval").unlink()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces.os, "fsync", full)
    assert (in_pieces(scored(score_NM), 37, kept := KeptScores(tmp_path, "mine", [])) == score_NM).all()
    assert not kept.path.exists()
    told = [record.getMessage() for record in caplog.records]
    assert [("are not kept as they come" in one, "\n" in one) for one in told] == [(True, False)] * 2
