import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import debias_eval
from debias.data.examples import Example
from debias.errors import InputError
from debias_eval.evaluate import evaluate_run
from debias_eval.predict import in_model_order, predict, suite_labels
from debias_eval.results import read_predictions, read_result
from debias_eval.suite import load_suite

TWO = {
    "labels": ["entailment", "not_entailment"],
    "merge": {"neutral": "not_entailment", "contradiction": "not_entailment"},
}
ROWS = [
    ("1", "p", "x entailment", "entailment", "easy"),
    ("2", "p", "x neutral", "not_entailment", "easy"),
    ("3", "p", "x contradiction", "not_entailment", "hard"),
    ("4", "p", "x entailment", "not_entailment", "hard"),
]
GAP = {"group_field": "group", "gap": {"aligned": ["easy"], "conflicting": ["hard"]}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_the_whole_verb(run, write_suite, fake):
    returned = evaluate_run(run, str(write_suite(ROWS, **TWO, **GAP)), predictor=fake())
    on_disk = json.loads((run / "eval" / "mine.json").read_text())
    assert on_disk == json.loads(json.dumps(returned))
    assert (on_disk["suite"], on_disk["version"], on_disk["n"], on_disk["accuracy"]) == ("mine", 1, 4, 0.75)
    assert on_disk["groups"]["hard"]["accuracy"] == 0.5
    assert (on_disk["gap"], on_disk["worst_group"]) == (0.5, {"name": "hard", "accuracy": 0.5})
    assert (on_disk["limit"], on_disk["available"]) == (None, 4)
    assert read_result(run / "eval" / "mine.json").accuracy == 0.75
    lines = read_predictions(run / "eval" / "mine.predictions.jsonl.gz")
    assert [(line.id, line.label, line.prediction, line.group) for line in lines] == [
        ("1", "entailment", "entailment", "easy"),
        ("2", "not_entailment", "not_entailment", "easy"),
        ("3", "not_entailment", "not_entailment", "hard"),
        ("4", "not_entailment", "entailment", "hard"),
    ]
    assert all(sum(line.probabilities.values()) == pytest.approx(1, abs=1e-5) for line in lines)


def test_the_same_model_gives_the_same_bytes(run, write_suite, fake):
    path = str(write_suite(ROWS, **TWO, **GAP))
    evaluate_run(run, path, predictor=fake())
    file = run / "eval" / "mine.predictions.jsonl.gz"
    before = file.read_bytes()
    evaluate_run(run, path, predictor=fake())
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["mine.json", "mine.predictions.jsonl.gz"]


def test_a_limit_is_said(run, write_suite, fake):
    result = evaluate_run(run, str(write_suite(ROWS, **TWO, **GAP)), limit=3, predictor=fake())
    assert (result["n"], result["available"], result["limit"], result["limit_seed"]) == (3, 4, 3, 0)
    assert read_result(run / "eval" / "mine.json").limited


def test_the_digest_tells_examples_apart(run, write_suite, fake):
    path = str(write_suite(ROWS, **TWO, **GAP))
    full, again, part = (evaluate_run(run, path, limit=n, predictor=fake()) for n in (None, 4, 2))
    assert full["examples_sha256"] == again["examples_sha256"] != part["examples_sha256"]


def test_no_run_folder(tmp_path, fake):
    with pytest.raises(InputError, match="no such run folder"):
        evaluate_run(tmp_path / "absent", "hans", predictor=fake())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("entailment", "neutral", "other"), r"the model answers \['other'\], which the suite cannot map"),
        (("neutral", "contradiction"), r"no label of the model .* counts as \['entailment'\]"),
    ],
)
def test_labels_that_do_not_fit_stop_before_the_model_runs(run, write_suite, fake, model, message):
    predictor = fake(labels=model)
    with pytest.raises(InputError, match=message):
        evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=predictor)
    assert predictor.seen == []
    assert not (run / "eval").exists()


@pytest.mark.parametrize("labels", [("entailment", "not_entailment"), ("not_entailment", "entailment")])
def test_a_model_with_the_suites_own_labels_needs_no_merge(labels):
    mapped = suite_labels(load_suite("hans"), labels)
    assert [load_suite("hans").labels[i] for i in mapped] == list(labels)


def test_the_models_label_order_is_its_own(write_suite, fake):
    suite = load_suite(write_suite(ROWS, **TWO))
    example = Example("1", ("p", "x contradiction"), 1)
    for labels in (("contradiction", "entailment", "neutral"), ("entailment", "neutral", "contradiction")):
        judged = predict(fake(labels=labels), suite, [example])
        assert judged.prediction_N.tolist() == [1]
        np.testing.assert_allclose(judged.probabilities_NC[0], [1 / (np.e**3 + 2), (np.e**3 + 1) / (np.e**3 + 2)])


@pytest.mark.parametrize(
    ("suite_fields", "model_fields", "texts"),
    [
        (("premise", "hypothesis"), ("premise", "hypothesis"), ("A", "B")),
        (("hypothesis", "premise"), ("premise", "hypothesis"), ("B", "A")),
        (("sentence1", "sentence2"), ("premise", "hypothesis"), ("A", "B")),
    ],
)
def test_texts_reach_the_model_in_its_order(suite_fields, model_fields, texts):
    ordered = in_model_order([Example("1", ("A", "B"), 0, "g")], suite_fields, model_fields, "s")
    assert ordered == [Example("1", texts, 0, "g")]


def test_a_model_of_one_text_cannot_judge_pairs():
    with pytest.raises(InputError, match=r"suite s: has text_fields \['a', 'b'\], the model reads \['text'\]"):
        in_model_order([], ["a", "b"], ["text"], "s")


def test_a_diverged_model_is_named_and_nothing_is_written(run, write_suite, fake):
    predictor = fake()
    predictor.label_scores = lambda examples, batch_size=None: np.full((len(examples), 3), np.nan)
    with pytest.raises(InputError, match="not finite for 4 of 4"):
        evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=predictor)
    assert not (run / "eval").exists()


def test_a_predictor_of_the_wrong_shape_is_refused(run, write_suite, fake):
    predictor = fake()
    predictor.label_scores = lambda examples, batch_size=None: np.zeros((1, 3))
    with pytest.raises(ValueError, match="label_scores gave"):
        evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=predictor)


def test_no_torch_until_a_model_is_loaded():
    modules = [f"debias_eval.{path.stem}" for path in Path(debias_eval.__file__).parent.glob("*.py")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
