"""`debias edit`: from the folders of runs to an adapter that is judged and folded as the runs' own are."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from command_line import Command, command_line
from safetensors.torch import load_file
from typer.testing import CliRunner

from debias.bias import make_bias_model
from debias.building.facts import ask_bias_model
from debias.cli.app import app
from debias.config.data import DataSource
from debias.config.reading import dump_config, load_config
from debias.data import load_examples
from debias.inference.any_model import Given, load_given
from debias.inference.last_layer import inputs_of
from debias.inference.loading import load_run
from debias.merging import EDITS
from debias.merging.editing import edit_adapters
from debias.train import train

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained classifiers of one base whose rates differ, and a causal model."""
    place = tmp_path_factory.mktemp("runs")
    bert, llama = tiny_runs.save_bert(place / "bert"), tiny_runs.save_llama(place / "llama")
    settings = {"head": "causal_lm", "prompt": tiny_runs.PROMPT}
    return [
        train(tiny_runs.config_for(bert, place / "one")),
        train(tiny_runs.config_for(bert, place / "two", learning_rate=5e-2, lora_r=2)),
        train(tiny_runs.config_for(llama, place / "three", **settings)),
    ]


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


def with_settings(run: Path, target: Path, **changes: Any) -> Path:
    """The run again, with other settings in its file."""
    shutil.copytree(run / "adapter", target / "adapter")
    config = load_config(run / "config.yaml").model_copy(update=changes)
    (target / "config.yaml").write_text(dump_config(config))
    return target


def test_a_soup_of_two_runs(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    """A run's folder or an adapter's; judged without being told labels, tokenizer or base."""
    one, two, _ = runs
    said = debias("edit", "soup", one, two / "adapter", "-o", tmp_path / "soup", "--set", "weights=[1, 3]")
    assert said.code == 0, said.err
    assert said.out.startswith(f"{tmp_path}/soup: soup of 2 adapters, 13 modules, rank 2-4 to 6; the change has ")
    names = {path.name for path in (tmp_path / "soup").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "edits.json", "origin.yaml"} <= names
    examples = load_examples(load_config(one / "config.yaml").data.train, load_config(one / "config.yaml").data)[:8]
    scores = {name: load_run(run).label_scores(examples) for name, run in (("one", one), ("two", two))}
    soup = load_given(Given(adapter=str(tmp_path / "soup"))).label_scores(examples)
    assert min(np.abs(soup - score).max() for score in scores.values()) > 1e-3
    # A soup of one says what the run says, and so does one that leaves the other out.
    for weights, of in (("weights=[1]", [two]), ("weights=[0, 1]", [one, two])):
        assert debias("edit", "soup", *of, "-o", tmp_path / "alone", "--set", weights).code == 0
        alone = load_given(Given(adapter=str(tmp_path / "alone"))).label_scores(examples)
        np.testing.assert_allclose(alone, scores["two"], atol=1e-4 * np.abs(scores["two"]).max())


@pytest.mark.parametrize(("edit", "setting"), [("truncate", "keep=1"), ("scale", "alpha=0.25")])
def test_an_edited_adapter_is_judged_and_folded(
    runs: list[Path], debias: Command, edit: str, setting: str, tmp_path: Path
) -> None:
    """Of a causal model: asked with the prompt of its run, and `merge` takes it for the run's own."""
    out = tmp_path / "edited"
    assert debias("edit", edit, runs[2], "-o", out, "--set", setting).code == 0
    told = ("--suite", "generated", "--limit", "6", "-o", tmp_path / "judged", "--overlap", "ignore")
    said = debias("eval", "--adapter", out, *told)
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "judged" / "eval" / "generated.json").read_text())
    said = debias("merge", runs[2], "--adapter", out, "-o", tmp_path / "dense")
    assert said.code == 0, said.err
    if edit == "scale":  # the same edit while folding
        assert debias("merge", runs[2], "--scale", "0.25", "-o", tmp_path / "scaled").code == 0
        one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("dense", "scaled"))
        assert tiny_runs.largest_difference(one, two) < 1e-6


def test_a_greedy_soup_is_chosen_on_validation_rows(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    """Of runs whose settings name them, by accuracies that are those of the adapters themselves; of no others."""
    validation = DataSource(source="generated", split="validation", limit=40)
    data = load_config(runs[0] / "config.yaml").data.model_copy(update={"validation": validation})
    one, two = (with_settings(run, tmp_path / run.name, data=data) for run in runs[:2])
    said = debias("edit", "greedy_soup", one, two / "adapter", "-o", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    tried = json.loads(said.out)["tried"]
    rows = load_examples(validation, data)
    right = {}
    for name, run in (("one", one), ("two", two)):
        scores = load_run(runs[0].parent / name).label_scores(rows)
        right[str(run / "adapter")] = np.mean(scores.argmax(axis=1) == [row.label for row in rows])
    assert {told["folder"]: told["alone"] for told in tried} == pytest.approx(right)
    assert tried[0]["alone"] == max(right.values())
    found = load_given(Given(adapter=str(tmp_path / "out"))).label_scores(rows).argmax(axis=1)
    best = max(told["together"] for told in tried if told["kept"])
    assert np.mean(found == [row.label for row in rows]) == pytest.approx(best)
    other = with_settings(two, tmp_path / "other", data=data.model_copy(update={"validation": None}))
    assert (
        "other: its settings have no data.validation"
        in debias("edit", "greedy_soup", one, other, "-o", tmp_path / "x").error
    )
    fewer = data.model_copy(update={"validation": validation.model_copy(update={"limit": 20})})
    other = with_settings(two, tmp_path / "fewer", data=fewer)
    assert (
        "fewer: validates on other data than " in debias("edit", "greedy_soup", one, other, "-o", tmp_path / "x").error
    )
    bare = shutil.copytree(runs[0] / "adapter", tmp_path / "bare" / "adapter")
    assert "no settings of a run lie beside it" in debias("edit", "greedy_soup", bare, one, "-o", tmp_path / "x").error
    assert not (tmp_path / "x").exists()


def test_a_last_layer_is_retrained_on_validation_rows(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    validation = DataSource(source="generated", split="validation", limit=40)
    data = load_config(runs[0] / "config.yaml").data.model_copy(update={"validation": validation})
    one, causal = (with_settings(run, tmp_path / run.name, data=data) for run in (runs[0], runs[2]))
    rows = load_examples(validation, data)
    predictor = load_run(one)
    scores_NC = predictor.label_scores(rows)
    inputs_ND = inputs_of(predictor, rows, "classifier")
    head = load_file(one / "adapter" / "adapter_model.safetensors")
    weight, bias = (head[f"base_model.model.classifier.{name}"].double().numpy() for name in ("weight", "bias"))
    logits_NC = inputs_ND @ weight.T + bias
    said_NC = logits_NC - np.logaddexp.reduce(logits_NC, axis=1, keepdims=True)
    np.testing.assert_allclose(said_NC, scores_NC, atol=1e-5)  # what the layer is given is what makes the scores
    told = ("--set", "gamma=0", "--set", "steps=300", "--set", "learning_rate=0.5", "--set", "max_norm=0")
    said = debias("edit", "afr_last_layer", one, "-o", tmp_path / "out", *told)
    assert said.code == 0, said.err
    after_NC = load_given(Given(adapter=str(tmp_path / "out"))).label_scores(rows)
    label_N = np.array([row.label for row in rows])
    # At gamma 0 every label weighs the same, and on the rows it was fitted to each label's mean loss is what falls.
    before, after = (
        np.mean([-scores[label_N == label, label].mean() for label in range(3)]) for scores in (scores_NC, after_NC)
    )
    assert after < before - 1e-3
    assert "trained no last layer whole" in debias("edit", "afr_last_layer", causal, "-o", tmp_path / "x").error
    assert not (tmp_path / "x").exists()


def test_a_last_layer_is_fitted_to_the_groups_of_validation_rows(
    runs: list[Path], debias: Command, tmp_path: Path
) -> None:
    validation = DataSource(source="generated", split="validation", limit=200)
    read = {"validation": validation, "group_field": "group"}
    data = load_config(runs[0] / "config.yaml").data.model_copy(update=read)
    one = with_settings(runs[0], tmp_path / "one", data=data)
    rows = load_examples(validation, data)
    label_N = np.array([row.label for row in rows])
    cells = [np.array([(row.label, row.group) == pair for row in rows]) for pair in {(r.label, r.group) for r in rows}]
    said = debias("edit", "dfr_last_layer", one, "-o", tmp_path / "out", "--set", "c=[0.1,0.03]", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)["rows"]
    assert (found["cells"], found["of_each_cell"]) == (len(cells), min(int(cell.sum()) for cell in cells))
    for folder, key in ((one / "adapter", "worst_before"), (tmp_path / "out", "worst_after")):
        guess_N = load_given(Given(adapter=str(folder))).label_scores(rows).argmax(axis=1)
        assert found[key] == pytest.approx(min(float((guess_N == label_N)[cell].mean()) for cell in cells))
    told = ("--set", "s=[1.0,0.8]", "--set", "c=[0.1,0.03]", "--set", "retrainings=3", "--json")
    mixed = debias("edit", "dispel_last_layer", one, "-o", tmp_path / "dispel", *told)
    assert mixed.code == 0, mixed.err
    made = json.loads(mixed.out)["rows"]
    assert [made[key] for key in ("cells", "of_each_cell", "worst_before")] == [
        found[key] for key in ("cells", "of_each_cell", "worst_before")
    ]
    assert (made["alpha"], made["s"] in (1.0, 0.8), made["c"] in (0.1, 0.03)) == (1.0, True, True)
    guess_N = load_given(Given(adapter=str(tmp_path / "dispel"))).label_scores(rows).argmax(axis=1)
    assert made["worst_after"] == pytest.approx(min(float((guess_N == label_N)[cell].mean()) for cell in cells))
    by_influence = debias("edit", "gsr_last_layer", one, "-o", tmp_path / "gsr", "--set", "steps=2", "--json")
    assert by_influence.code == 0, by_influence.err
    made = json.loads(by_influence.out)["rows"]
    assert (made["fitted"], made["worst_before"]) == (
        sum((int(cell.sum()) + 1) // 2 for cell in cells),
        found["worst_before"],
    )
    other = with_settings(runs[0], tmp_path / "other", data=data.model_copy(update={"group_field": None}))
    for name in ("dfr_last_layer", "dispel_last_layer"):
        assert f"{name} reads groups" in debias("edit", name, other, "-o", tmp_path / "x").error
    causal = with_settings(runs[2], tmp_path / "causal", data=data)
    refused = debias("edit", "dispel_last_layer", causal, "-o", tmp_path / "x").error
    assert "trained no last layer whole" in refused
    assert "there is nothing that dispel_last_layer could retrain" in refused


def test_a_rank_is_chosen_over_the_pseudo_groups_of_a_run(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    """By the guesses of its bias model, and by answers that are those of the truncated adapters themselves."""
    validation = DataSource(source="generated", split="validation", limit=240)
    data = load_config(runs[0] / "config.yaml").data.model_copy(update={"validation": validation})
    one = with_settings(runs[0], tmp_path / "one", data=data, bias_model={"name": "lexical", "folds": 2})
    said = debias("edit", "truncate", one, "-o", tmp_path / "out", "--set", "keep=[1,2,4]", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    rows = load_examples(validation, data)
    guesses = ask_bias_model(
        config_of := load_config(one / "config.yaml").model_copy(update={"output_dir": str(tmp_path / "nowhere")}),
        make_bias_model(config_of.bias_model),
        load_examples(data.train, data),
        None,
        rows,
    ).of_validation.argmax(axis=1)
    reached = {}
    for keep in (1, 2, 4):
        assert debias("edit", "truncate", one, "-o", tmp_path / f"keep{keep}", "--set", f"keep={keep}").code == 0
        answers = load_given(Given(adapter=str(tmp_path / f"keep{keep}"))).label_scores(rows).argmax(axis=1)
        cells: dict[tuple[int, int], list[bool]] = {}
        for row, guess, answer in zip(rows, guesses, answers, strict=True):
            cells.setdefault((row.label, int(guess)), []).append(bool(answer == row.label))
        assert all(len(cell) >= 10 for cell in cells.values())  # smaller ones are left out
        reached[keep] = float(np.mean([np.mean(cell) for cell in cells.values()]))
    assert {one["settings"]["keep"]: one["pseudo_group_accuracy"] for one in told["variants"]} == pytest.approx(reached)
    assert told["settings"]["keep"] == max(reached, key=lambda keep: reached[keep])
    bare = with_settings(runs[0], tmp_path / "bare", data=data)
    wrong = ("-o", tmp_path / "x", "--set", "keep=[1,2]")
    assert "bare: its settings have no bias_model" in debias("edit", "truncate", bare, *wrong).error
    assert "its settings have no data.validation" in debias("edit", "truncate", runs[0], *wrong).error
    assert "edit.keep is 0, expected 1 or more" in debias("edit", "truncate", one, *wrong[:3], "keep=[0,1]").error
    asking = with_settings(runs[0], tmp_path / "asking", data=data, bias_model={"name": "first_learned", "steps": 2})
    refused = debias("edit", "truncate", asking, *wrong).error
    assert f"{asking}: bias_model first_learned: asks the run's base, and the run kept no answers" in refused
    assert "about validation rows by its weights as they are now; train with eval_strategy: epoch" in refused
    assert not (tmp_path / "x").exists()


def test_a_classifier_is_retrained_on_the_rows_of_its_run(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    said = debias("edit", "crt_last_layer", runs[0], "-o", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    config = load_config(runs[0] / "config.yaml")
    rows = load_examples(config.data.train, config.data)
    label_N, found = np.array([row.label for row in rows]), json.loads(said.out)["rows"]
    assert found["count"] == len(rows)
    for folder, key in ((runs[0] / "adapter", "balanced_before"), (tmp_path / "out", "balanced_after")):
        guess_N = load_given(Given(adapter=str(folder))).label_scores(rows).argmax(axis=1)
        assert found[key] == pytest.approx(np.mean([(guess_N == label_N)[label_N == k].mean() for k in range(3)]))
    assert found["balanced_after"] > found["balanced_before"]
    refused = debias("edit", "crt_last_layer", runs[0], "-o", tmp_path / "x", "--set", "rows=validation").error
    assert "its settings have no data.validation" in refused
    assert "trained no last layer whole" in debias("edit", "crt_last_layer", runs[2], "-o", tmp_path / "x").error
    assert not (tmp_path / "x").exists()


def test_json(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    said = debias("edit", "truncate", runs[0], "-o", tmp_path / "out", "--set", "energy=0.9", "--json")
    assert json.loads(said.out) == json.loads((tmp_path / "out" / "edits.json").read_text())
    assert json.loads(said.out)["settings"] == {"keep": None, "energy": 0.9}


def test_labels_in_another_order_are_not_averaged(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    """Shapes are alike, and outputs are not: known from the runs, or from what an edit has kept of them."""
    one, two, _ = runs
    config = load_config(two / "config.yaml")
    turned = config.data.model_copy(update={"labels": tuple(reversed(config.data.labels))})
    other = with_settings(two, tmp_path / "other", data=turned)
    wanted = "has the labels ['contradiction', 'neutral', 'entailment'], "
    assert wanted in debias("edit", "soup", one, other, "-o", tmp_path / "out").error
    assert debias("edit", "scale", other, "-o", tmp_path / "scaled").code == 0
    assert wanted in debias("edit", "soup", one, tmp_path / "scaled", "-o", tmp_path / "out").error
    # An adapter alone, far from its run: by the names that lie beside it.
    for name, names in (
        ("here", ("entailment", "neutral", "contradiction")),
        ("there", ("neutral", "entailment", "no")),
    ):
        shutil.copytree(one / "adapter", tmp_path / name)
        (tmp_path / name / "labels.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    wanted = "there has the labels ['neutral', 'entailment', 'no'], "
    assert wanted in debias("edit", "soup", one, tmp_path / "there", "-o", tmp_path / "out").error
    assert wanted in debias("edit", "soup", tmp_path / "here", tmp_path / "there", "-o", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_texts_in_another_order_are_not_averaged(
    runs: list[Path], debias: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = runs
    data = load_config(two / "config.yaml").data
    turned = with_settings(
        two, tmp_path / "turned", data=data.model_copy(update={"text_fields": ("hypothesis", "premise")})
    )
    said = debias("edit", "soup", one, turned, "-o", tmp_path / "out")
    assert "turned/adapter reads ['hypothesis', 'premise'] in this order, " in said.error
    named = with_settings(two, tmp_path / "named", data=data.model_copy(update={"text_fields": ("first", "second")}))
    assert debias("edit", "soup", one, named, "-o", tmp_path / "out").code == 0
    assert "have not the same data.text_fields: is it one task?" in caplog.text


def test_heads_that_began_differently_are_said(
    runs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, _, causal = runs
    for run, warned in ((one, True), (causal, False)):  # which trained no module whole
        other = with_settings(run, tmp_path / run.name, seed=7)
        caplog.clear()
        edit_adapters("soup", [run, other], tmp_path / "out")
        said = "WARNING: the seeds of the runs are 0 and 7: modules trained whole (classifier.bias, classifier.weight)"
        assert (said in caplog.text) == warned, caplog.text


def test_settings_of_another_program(
    runs: list[Path], debias: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its `config.yaml` beside an adapter is no run's: neither compared nor copied."""
    shutil.copytree(runs[0] / "adapter", tmp_path / "other" / "adapter")
    (tmp_path / "other" / "config.yaml").write_text("trainer: theirs\n")
    assert debias("edit", "soup", tmp_path / "other" / "adapter", runs[0], "-o", tmp_path / "out").code == 0
    assert "other/config.yaml is not read, so labels and prompt are unknown" in caplog.text
    assert not (tmp_path / "out" / "origin.yaml").exists()


def test_mistakes_are_one_line(runs: list[Path], debias: Command, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    cases = {
        (
            "soop",
            runs[0],
            *out,
        ): "error: edit.name is 'soop', not one of soup, greedy_soup, model_stock, truncate, scale, ",
        ("truncate", runs[0], *out, "--set", "kep=1"): "edit.kep: truncate has no such setting; did you mean keep?",
        ("truncate", runs[0], *out, "--set", "keep"): "error: 'keep': expected key=value",
        ("truncate", runs[0], *out): "error: edit.keep and energy: give one of them",
        ("scale", runs[0], runs[1], *out): "error: edit: scale is an edit of one adapter, 2 were given",
        ("scale", tmp_path / "nowhere", *out): "adapter holds no adapter_config.json",
        ("soup", runs[0], runs[2], *out): "was trained on ",
        ("scale", runs[0], "-o", runs[0]): "which is read here; choose another folder",
    }
    for arguments, message in cases.items():
        assert message in debias("edit", *arguments).error
    assert not (tmp_path / "out").exists()


def test_help_names_every_edit() -> None:
    words = CliRunner().invoke(app, ["edit", "--help"]).output
    assert all(name in words for name in EDITS)
