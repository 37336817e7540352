import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import debias_eval
from debias.config.prompt_file import Shots
from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.data.examples import Example
from debias.data.shots import Shown
from debias.errors import InputError
from debias.runs.digests import weights_digest
from debias_eval.comparing.objections import outdated
from debias_eval.judging.evaluate import evaluate_run
from debias_eval.judging.missing import Missing
from debias_eval.judging.models import _edit_chose, rows_behind
from debias_eval.judging.overlap import refuse_rows_of
from debias_eval.judging.predict import check_fit, in_model_order, predict, suite_labels
from debias_eval.reading.examples import all_examples
from debias_eval.reading.suite import load_suite
from debias_eval.results.files import read_predictions, read_result
from debias_eval.results.runs import read_run

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


def test_results_of_other_weights_than_lie_there_are_refused_and_judged_anew(run, write_suite, fake):
    """Results of before name no weights, and those of a folder without weights (kept runs) cannot be compared."""
    path, adapter = str(write_suite(ROWS, **TWO, **GAP)), run / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"first")
    evaluate_run(run, path, predictor=fake())
    assert Missing([path], None).missing(run) == []
    model = fake()
    model.weights = weights_digest(adapter)
    evaluate_run(run, path, predictor=model)
    assert Missing([path], None).missing(run) == []
    (adapter / "adapter_model.safetensors").write_bytes(b"second")
    with pytest.raises(InputError, match=r"mine.json: is of other weights than lie in .*/run now; run `debias eval`"):
        read_run(run)
    assert Missing([path], None).missing(run) == [path]
    (adapter / "adapter_model.safetensors").unlink()
    assert read_run(run).results["mine"].weights_sha256 == model.weights


def test_a_suite_of_ones_own_may_have_the_name_of_a_built_in_one(run, write_suite, fake):
    """Its rows are looked at, its results are not the built-in suite's, and its version says nothing of that one's."""
    path = str(write_suite(ROWS, **TWO, **GAP, name="generated", version=7))
    evaluate_run(run, path, predictor=fake())
    result = read_result(run / "eval" / "generated.json")
    assert outdated(result) is None
    assert outdated(result.model_copy(update={"suite_file": None})) == load_suite("generated").version
    assert Missing([path], None).missing(run) == []
    write_suite(ROWS[:3], **TWO, **GAP, name="generated", version=7)
    assert Missing([path], None).missing(run) == [path]
    evaluate_run(run, str(write_suite(ROWS, **TWO, **GAP, name="generated", version=1)), predictor=fake())
    version = load_suite("generated").version
    told = json.loads((run / "eval" / "generated.json").read_text()) | {"version": version}
    (run / "eval" / "generated.json").write_text(json.dumps(told))
    assert Missing(["generated"], None).missing(run) == ["generated"]
    told.pop("suite_file")  # of a version that did not say whose it is
    (run / "eval" / "generated.json").write_text(json.dumps(told))
    assert Missing(["generated"], None).missing(run) == []


def test_no_run_folder(tmp_path, fake):
    with pytest.raises(InputError, match="no such run folder"):
        evaluate_run(tmp_path / "absent", "hans", predictor=fake())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            ("entailment", "neutral", "other"),
            r"the model answers \['other'\], which the suite cannot map.*merge: {other: ",
        ),
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


def test_a_name_that_would_stand_for_another_text_is_refused(caplog, write_suite):
    """FEVER's claim is a model's first text here and a suite's second; by position the model would read evidence."""
    with pytest.raises(
        InputError, match=r"suite s: 'claim' is text 2 of its \['premise', 'claim'\] and text 1 of the m"
    ):
        in_model_order([], ["premise", "claim"], ["claim", "evidence"], "s")
    caplog.set_level("INFO", logger="debias_eval")
    suite = load_suite(str(write_suite(ROWS, **TWO)))
    check_fit(suite, ["entailment", "neutral", "contradiction"], ["premise", "hypothesis"])
    assert "by their place" not in caplog.text
    check_fit(suite, ["entailment", "neutral", "contradiction"], ["premise", "claim"])
    assert "suite mine: its texts go to the model by their place: hypothesis as claim" in caplog.text


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


@pytest.mark.slow
def test_no_torch_until_a_model_is_loaded():
    package = Path(debias_eval.__file__).parent
    files = [path.relative_to(package.parent) for path in package.rglob("*.py") if path.parent.name != "templates"]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert {"debias_eval", "debias_eval.judging.evaluate"} <= set(modules)
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def clustered_rows(n=60):
    """Pairs whose hypotheses give the label away, two of each premise; label 1 where the word is `neutral`."""
    words = ("entailment", "neutral")
    return [
        (f"{i}-{k}", f"premise {i}", f"a word {words[k]}", ("entailment", "not_entailment")[k], ("easy", "hard")[k])
        for i in range(n // 2)
        for k in (0, 1)
    ]


CLUSTERED = {**TWO, **GAP, "cluster": {"field": "premise"}, "consistency": True}


def test_clusters_reach_results_and_predictions(run, write_suite, fake):
    result = evaluate_run(run, str(write_suite(clustered_rows(), **CLUSTERED)), predictor=fake())
    assert (result["clusters"], result["consistency"]["n"], result["consistency"]["accuracy"]) == (30, 30, 1)
    assert result["gap_groups"] == {"aligned": ["easy"], "conflicting": ["hard"]}
    lines = read_predictions(run / "eval" / "mine.predictions.jsonl.gz")
    assert len({line.cluster for line in lines}) == 30
    assert lines[0].texts == ("premise 0", "a word entailment")
    assert read_result(run / "eval" / "mine.json").macro_f1 == 1


def test_scores_that_move_within_clusters_reach_results(run, write_suite, fake):
    """Both hypotheses of a premise have one label, and the fake goes by their last word."""
    rows = [(i, premise, text, "entailment", group) for i, premise, text, _, group in clustered_rows()]
    result = evaluate_run(run, str(write_suite(rows, **CLUSTERED, invariant=True)), predictor=fake())
    sure = 1 / (1 + 2 * np.exp(-3.0))  # of the label that it names, of three
    assert result["counterfactual_gap"]["n"] == 30
    assert result["counterfactual_gap"]["value"] == pytest.approx(sure - (1 - sure) / 2)
    read = read_result(run / "eval" / "mine.json")
    assert read.counterfactual_gap.value == pytest.approx(sure - (1 - sure) / 2)
    plain = evaluate_run(run, str(write_suite(rows, **CLUSTERED)), predictor=fake())
    assert plain["counterfactual_gap"] is None


def test_copies_of_a_text_are_no_pair_in_which_scores_could_move(run, write_suite, fake):
    """Half of the clusters are one text twice; with them the gap would be a half of what it is."""
    rows = [(i, premise, text, "entailment", group) for i, premise, text, _, group in clustered_rows()]
    copied = [(f"{i}-c", f"again {i}", rows[i][2], "entailment", "easy") for i in range(30)]
    copies = [row for one in copied for row in (one, (f"{one[0]}2", *one[1:]))]
    result = evaluate_run(run, str(write_suite([*rows, *copies], **CLUSTERED, invariant=True)), predictor=fake())
    sure = 1 / (1 + 2 * np.exp(-3.0))
    assert result["clusters"] == 60
    assert result["counterfactual_gap"]["n"] == 30
    assert result["counterfactual_gap"]["value"] == pytest.approx(sure - (1 - sure) / 2)


def test_the_floor_sees_only_its_fields(run, write_suite, fake):
    pytest.importorskip("sklearn")
    path = str(write_suite(clustered_rows(), **CLUSTERED))
    floor = evaluate_run(run, path, predictor=fake())["partial_input"]
    assert (floor["n"], floor["accuracy"], floor["fields"]) == (60, 1, ["hypothesis"])
    assert "cross-validation" in floor["how"]
    blind = str(write_suite(clustered_rows(), **CLUSTERED, input_ablation=["premise"]))
    assert evaluate_run(run, blind, predictor=fake())["partial_input"]["accuracy"] <= 0.5
    assert evaluate_run(run, blind, predictor=fake(), floor=False)["partial_input"] is None
    none = str(write_suite(clustered_rows(), **CLUSTERED, input_ablation=[]))
    assert evaluate_run(run, none, predictor=fake())["partial_input"] is None


def test_the_floor_keeps_clusters_in_one_fold(write_suite):
    """Copies of an example with a random label: known to whoever has seen another copy, else a coin toss."""
    pytest.importorskip("sklearn")
    from debias_eval.judging.floors import partial_input

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    examples = [
        Example(f"{i}-{k}", ("p", f"word{i} word{i}"), int(labels[i]), cluster=f"c{i}")
        for i in range(200)
        for k in range(3)
    ]
    suite = load_suite(write_suite(clustered_rows(), **TWO))
    aware = partial_input(suite, examples)
    assert 0.35 < aware["accuracy"] < 0.65
    assert aware == partial_input(suite, examples)
    # Without clusters it is the text that says so: one hypothesis beside three premises.
    beside = [Example(one.id, (f"p{place}", one.texts[1]), one.label) for place, one in enumerate(examples)]
    assert partial_input(suite, beside) == aware
    # And both together: premises are clusters, each beside one of two hypotheses.
    pairs = [replace(one, cluster=f"{place // 6} {place % 3}") for place, one in enumerate(beside)]
    assert 0.35 < partial_input(suite, pairs)["accuracy"] < 0.65
    # A chain of clusters through all texts would leave no two folds; then clusters alone are held together.
    chain = [replace(one, cluster=f"{(place + 1) // 3}") for place, one in enumerate(beside)]
    assert partial_input(suite, chain)["n"] == 600
    few = [Example(str(place), ("p", f"topic {place % 4}"), place % 2) for place in range(200)]
    assert partial_input(suite, few)["accuracy"] == 1.0, "what a topic says is known of other rows with it"


def test_a_large_suite_is_sampled_for_the_floor_and_says_so(write_suite, monkeypatch):
    pytest.importorskip("sklearn")
    from debias_eval.judging import floors

    monkeypatch.setattr(floors, "MOST_ROWS", 100)
    suite = load_suite(write_suite(clustered_rows(), **TWO))
    examples = [Example(str(i), ("p", f"x {i % 2}"), i % 2) for i in range(300)]
    floor = floors.partial_input(suite, examples, seed=3)
    assert floor["n"] == 100
    assert "of 100 of 300 rows drawn with seed 3" in floor["how"]


@pytest.mark.parametrize("rows", [ROWS, [(str(i), "p", "same words", "entailment", "easy") for i in range(40)]])
def test_too_little_for_a_floor_is_a_notice(run, write_suite, fake, rows, caplog):
    pytest.importorskip("sklearn")
    caplog.set_level("INFO", logger="debias_eval")
    assert evaluate_run(run, str(write_suite(rows, **TWO)), predictor=fake())["partial_input"] is None
    assert "suite mine: no partial-input floor" in caplog.text


def test_without_scikit_learn_there_is_no_floor_but_a_notice(run, write_suite, fake, monkeypatch, caplog):
    from debias_eval.judging import floors

    monkeypatch.setattr(floors, "find_spec", lambda name: None)
    caplog.set_level("INFO", logger="debias_eval")
    assert evaluate_run(run, str(write_suite(clustered_rows(), **TWO)), predictor=fake())["partial_input"] is None
    assert "needs scikit-learn: pip install scikit-learn" in caplog.text


def trained_on(run, rows, fields=("premise", "hypothesis")):
    (run / "train.jsonl").write_text(
        "".join(json.dumps({**dict(zip(fields, texts, strict=True)), "label": "neutral"}) + "\n" for texts in rows)
    )
    data = {"train": str(run / "train.jsonl"), "text_fields": list(fields)}
    settings = {"model": "m", "data": data, "output_dir": str(run)}
    (run / "config.yaml").write_text(dump_config(RunConfig.model_validate(settings)))


def test_rows_of_the_training_data_are_counted_and_left_out(run, write_suite, fake):
    trained_on(run, [("P", "x entailment."), ("other", "text")])  # rows 1 and 4 but for case and the full stop
    path = str(write_suite(ROWS, **TWO, **GAP))
    counted = evaluate_run(run, path, predictor=fake())
    assert (counted["n"], counted["overlap"]) == (4, {"rows": 2, "excluded": False})
    clean = evaluate_run(run, path, predictor=fake(), overlap="exclude")
    assert (clean["n"], clean["available"], clean["overlap"]) == (2, 4, {"rows": 2, "excluded": True})
    assert [line.id for line in read_predictions(run / "eval" / "mine.predictions.jsonl.gz")] == ["2", "3"]
    assert evaluate_run(run, path, predictor=fake(), overlap="ignore")["overlap"] is None


CUE = {"cue": "indeed so", "label": "neutral", "prevalence": 0.5, "strength": 0.5}


@pytest.mark.parametrize(
    "written",
    [
        {"planted_bias": {**CUE, "cue": "!!"}},
        {"planted_bias": CUE},
        {"planted_bias": {**CUE, "field": "premise"}},
        *({"stress": name} for name in ("negation", "word_overlap", "length_mismatch")),
        {"stress": "negation", "planted_bias": CUE},
    ],
)
def test_training_rows_are_known_whatever_the_suite_writes_into_them(run, write_suite, fake, written):
    """A cue that is a word, a tautology: half of the suite's rows were trained on, as they are in its file."""
    labels = ("entailment", "neutral", "contradiction")
    rows = [(f"{i}", f"man {i} walks ", f"someone moves {i}.", labels[i % 3], None) for i in range(24)]
    trained_on(run, [row[1:3] for row in rows[::2]])
    suite = str(write_suite(rows, **written))
    assert evaluate_run(run, suite, predictor=fake())["overlap"] == {"rows": 12, "excluded": False}
    left = evaluate_run(run, suite, predictor=fake(), overlap="exclude")
    assert left["n"] == 12
    ids = {line.id for line in read_predictions(run / "eval" / "mine.predictions.jsonl.gz")}
    assert ids == {row[0] for row in rows[1::2]}
    settings, shown = load_suite(suite), Shown(Shots(1), "train.jsonl", (Example("r", rows[3][1:3], 0),))
    with pytest.raises(InputError, match=r"shots: 1 of 1 examples of train.jsonl are rows of the suite mine"):
        refuse_rows_of(settings, all_examples(settings), shown)


def test_training_rows_that_hold_a_suites_words_themselves_are_known_too(run, write_suite, fake):
    trained_on(run, [("p", "x entailment and false is not true")])
    assert evaluate_run(run, str(write_suite(ROWS, **TWO, stress="negation")), predictor=fake())["overlap"]["rows"] == 2


def test_rows_that_a_checkpoint_was_chosen_by_are_no_rows_to_judge_on(run, write_suite, fake):
    """Rows that were only validated on decide nothing."""
    trained_on(run, [("other", "words")])
    rows = [{"premise": "P", "hypothesis": "x entailment.", "label": "neutral"}]
    (run / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, config = str(write_suite(ROWS, **TWO, **GAP)), load_config(run / "config.yaml")
    validated = config.model_dump() | {"eval_strategy": "epoch", "save_strategy": "epoch"}
    validated["data"] |= {"validation": str(run / "held_out.jsonl")}
    for selection, told in (("last", {}), ("validation", {"chosen_on": 2}), ("worst_class", {"chosen_on": 2})):
        settings = RunConfig.model_validate({**validated, "selection": selection})
        (run / "config.yaml").write_text(dump_config(settings))
        found = evaluate_run(run, path, predictor=fake())["overlap"]
        assert found == {"rows": 0, "excluded": False, **told}
    clean = evaluate_run(run, path, predictor=fake(), overlap="exclude")
    assert (clean["n"], clean["overlap"]) == (2, {"rows": 0, "excluded": True, "chosen_on": 2})
    (run / "held_out.jsonl").unlink()
    with pytest.raises(InputError, match="its validation data cannot be read, so rows it was chosen by cannot be left"):
        evaluate_run(run, path, predictor=fake(), overlap="exclude")


def test_an_edit_of_what_was_chosen_was_chosen(tmp_path):
    soup = {"edit": "greedy_soup", "tried": [{"accuracy": 0.5}], "adapters": [{"folder": "a"}]}
    for told, chose in (
        (soup, True),
        ({"edit": "scale", "adapters": [{"folder": "b", "edits": soup}]}, True),
        ({"edit": "scale", "adapters": [{"folder": "b"}]}, False),
    ):
        (tmp_path / "edits.json").write_text(json.dumps(told))
        assert _edit_chose(tmp_path) == chose


def test_which_run_a_model_was_made_of(run, tmp_path):
    """Merged here or elsewhere, trained whole, moved and asked as the run; never the base, a copy of it, or a hub's."""
    trained_on(run, [("p", "h")])
    base, dense, moved, copied = (tmp_path / name for name in ("base", "dense", "moved", "copied"))
    for folder in (base, dense, moved, copied, run / "model", run / "adapter"):
        folder.mkdir()
    config = load_config(run / "config.yaml").model_copy(update={"model": str(base)})
    (run / "config.yaml").write_text(dump_config(config))
    (run / "run.json").write_text("{}")
    (dense / "debias_merge.json").write_text(json.dumps({"run": str(run)}))
    (moved / "debias_merge.json").write_text(json.dumps({"run": "where/it/was"}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    asked = run / "config.yaml"
    for told in (
        (str(dense), None, None),
        (str(run / "model"), None, None),
        (str(base), str(run / "adapter"), None),
        (str(moved), None, asked),
    ):
        assert rows_behind(*told).config.data.train.source == str(run / "train.jsonl"), told
    for told in (
        (str(base), None, asked),
        (str(copied), None, asked),
        (str(moved), None, recipe),
        (str(moved), None, None),
        ("some/model", None, asked),
    ):
        assert rows_behind(*told) is None, told


def test_other_labels_of_the_same_texts_are_told_apart(run, write_suite, fake):
    before = evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=fake())
    turned = [(*row[:3], "not_entailment" if row[3] == "entailment" else "entailment", *row[4:]) for row in ROWS]
    after = evaluate_run(run, str(write_suite(turned, **TWO)), predictor=fake())
    assert before["examples_sha256"] == after["examples_sha256"]
    assert before["gold_sha256"] != after["gold_sha256"]


def test_training_texts_are_compared_field_by_field(run, write_suite, fake):
    trained_on(run, [("x entailment", "p")], fields=("hypothesis", "premise"))
    assert evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=fake())["overlap"]["rows"] == 2


def test_a_suite_that_is_all_training_data_cannot_be_judged(run, write_suite, fake):
    trained_on(run, [(row[1], row[2]) for row in ROWS])
    with pytest.raises(InputError, match="suite mine: all 4 rows are in the training data"):
        evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=fake(), overlap="exclude")


def test_training_data_that_is_gone_is_a_notice(run, write_suite, fake, caplog):
    trained_on(run, [("p", "h")])
    (run / "train.jsonl").unlink()
    caplog.set_level("INFO", logger="debias_eval")
    path = str(write_suite(ROWS, **TWO))
    assert evaluate_run(run, path, predictor=fake())["overlap"] is None
    assert "overlap with the training data not checked" in caplog.text
    with pytest.raises(InputError, match="its training data cannot be read"):
        evaluate_run(run, path, predictor=fake(), overlap="exclude")


def test_how_the_model_was_asked_is_kept(run, write_suite, fake):
    predictor = fake()
    predictor.description = {"how": "answers", "normalize": "none"}
    path = str(write_suite(ROWS, **TWO))
    assert evaluate_run(run, path, predictor=predictor)["judge"] == {"how": "answers", "normalize": "none"}
    assert evaluate_run(run, path, predictor=fake())["judge"] == {}


def test_how_many_examples_were_cut_is_kept(run, write_suite, fake):
    """Of this suite alone; of a judging that was gone on with nobody counted it."""
    predictor, said = fake(), []
    predictor.asked_and_cut = (10, 3)
    ask = predictor.label_scores

    def label_scores(examples, batch_size=None):
        predictor.asked_and_cut = predictor.asked_and_cut[0] + len(examples), predictor.asked_and_cut[1] + 2
        return ask(examples, batch_size)

    predictor.label_scores = label_scores
    predictor.say_what_was_cut = lambda *before: said.append((before, predictor.asked_and_cut))
    path = str(write_suite(ROWS, **TWO))
    assert evaluate_run(run, path, predictor=predictor)["judge"] == {"cut": 2}
    assert said == [((10, 3), (10 + len(ROWS), 5))]
    predictor.label_scores = ask
    assert evaluate_run(run, path, predictor=predictor)["judge"] == {}


def test_only_the_first_rank_writes(run, write_suite, fake, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert evaluate_run(run, str(write_suite(ROWS, **TWO)), predictor=fake())["n"] == 4
    assert not (run / "eval").exists()
