"""Orders of the data and a run before the run: JTT, resampling, and logit correction by an early stage."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import adapter_of, cut_off, largest_difference, save_bert, settings_for
from train_many import on_ranks

from debias.config.run import RunConfig
from debias.data import generate
from debias.data.disagreement import Disagreement
from debias.errors import InputError
from debias.inference.loading import load_run
from debias.train import train

CUE = {"cue": "!!", "prevalence": 0.5, "strength": 0.6}
DATA = {"train": {"source": "generated", "limit": 96}, "planted_bias": CUE}
JTT = {"first_stage": {"settings": {"max_steps": 3}}, "order": {"name": "upsampled", "times": 5}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    save_bert(folder / "bert")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    return settings_for(place / "bert", place / name, **{"data": DATA, "per_device_train_batch_size": 12, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


def test_jtt_sees_the_first_stages_errors_more_often(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the stage got wrong is what its adapter, loaded anew, gets wrong; the epoch is longer by just these."""
    from debias.building.examples import training_examples

    caplog.set_level(logging.INFO, "debias")
    whole = {**JTT, "max_steps": -1, "num_train_epochs": 1}
    done = run(settings(place, "jtt", **whole))
    stage = done / "stages" / "1"
    examples = training_examples(RunConfig.model_validate(settings(place, "x")), None)
    scores = load_run(stage).label_scores(examples)
    wrong = int((scores.argmax(axis=1) != [example.label for example in examples]).sum())
    assert 0 < wrong < 96
    assert f"first stage: wrong on {wrong} of 96 training examples" in caplog.text
    steps = json.loads((done / "run.json").read_text())["steps"]
    assert steps == -(-(96 + 4 * wrong) // 12)
    told = json.loads((stage / "run.json").read_text())
    assert told["method"] == {"name": "erm"}
    assert told["steps"] == 3
    assert json.loads((done / "run.json").read_text())["seconds"] > told["seconds"] > 0


def test_a_stage_is_trained_once_and_a_run_goes_on(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "max_steps": 4, **JTT}
    whole = run(settings(place, "whole", **saving))
    cut = cut_off(whole, place / "cut")
    shutil.rmtree(cut / "stages" / "1")  # what it said is kept beside it
    run(settings(place, "cut", resume=True, **saving))
    assert not (cut / "stages" / "1").exists()
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    before = (whole / "stages" / "said.npz").stat().st_mtime_ns
    run(settings(place, "whole", resume=True, **saving))  # finished: left as it is
    assert (whole / "stages" / "said.npz").stat().st_mtime_ns == before


def test_other_settings_of_the_stage_are_another_stage(place: Path) -> None:
    run(settings(place, "again", **JTT))
    first = (place / "again" / "stages" / "said.npz").read_bytes()
    other = {**JTT, "first_stage": {"settings": {"max_steps": 4, "seed": 5}}}
    run(settings(place, "again", overwrite_output_dir=True, **other))
    assert (place / "again" / "stages" / "said.npz").read_bytes() != first


def test_an_early_stage_stands_in_for_a_bias_model(place: Path) -> None:
    early = {"first_stage": {"keep": "log_p", "settings": {"max_steps": 3}}}
    done = run(settings(place, "lc", loss="logit_correction", method="erm", **early))
    with np.load(done / "stages" / "said.npz") as held:
        assert np.allclose(np.exp(held["log_p"]).sum(axis=1), 1)
    plain = run(settings(place, "plain", method="erm"))
    assert largest_difference(adapter_of(done), adapter_of(plain)) > 1e-4
    weighted = {"bias_weight": {"source": "bias_model", "form": "balanced"}, "method": "subtract"}
    assert (run(settings(place, "weighted", **early, **weighted)) / "adapter").is_dir()


@pytest.mark.parametrize("by", ["group", "label"])
def test_resampling_changes_what_is_seen(place: Path, by: str) -> None:
    done = run(settings(place, f"resampled_{by}", order={"name": "resampled", "by": by}))
    assert largest_difference(adapter_of(done), adapter_of(run(settings(place, f"not_{by}")))) > 1e-4


@pytest.mark.parametrize("early", ["bias_model", "first_stage"])
def test_disagreement_draws_by_what_was_said(place: Path, early: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whomever: what the order reads is what was kept of each example."""
    blocks: dict[str, dict[str, Any]] = {
        "bias_model": {"bias_model": {"name": "partial_input", "fields": ["hypothesis"]}},
        "first_stage": {"first_stage": {"keep": "log_p", "settings": {"max_steps": 3}}},
    }
    drew, read = Disagreement.epoch, []

    def spied(order: Disagreement, facts: Any, generator: Any) -> Any:
        read.append(facts["bias_log_p"])
        return drew(order, facts, generator)

    monkeypatch.setattr(Disagreement, "epoch", spied)
    done = run(settings(place, f"dpr_{early}", order="disagreement", method="erm", **blocks[early]))
    with np.load(done / ("bias/partial_input.npz" if early == "bias_model" else "stages/said.npz")) as held:
        assert read
        assert all(np.allclose(one.numpy(), held["log_p"], atol=1e-3) for one in read)
    assert largest_difference(adapter_of(done), adapter_of(run(settings(place, f"even_{early}", method="erm")))) > 1e-4


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(place: Path) -> None:
    sgd = {"optim": "sgd", "learning_rate": 0.05, **JTT}
    on_ranks(2, [settings(place, "two", **{**sgd, "per_device_train_batch_size": 6})])
    one = run(settings(place, "one", **sgd))
    assert largest_difference(adapter_of(place / "two"), adapter_of(one)) < 1e-6
    losses = [json.loads((done / "run.json").read_text())["train_loss"] for done in (place / "two", one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "upsampled"}, "order upsampled sees more of what a first stage got wrong; set first_stage.keep"),
        (
            {"order": "dpr"},
            "order disagreement reads a bias model's probabilities, but bias_model is missing; name one",
        ),
        ({"order": {"name": "resampled"}, "data": {"train": "my.jsonl"}}, "order resampled needs a group of each row"),
        (
            {"loss": "logit_correction"},
            "loss logit_correction reads a bias model's probabilities",
        ),
        ({"first_stage": {"settings": {"max_stepz": 3}}}, "first_stage.settings: max_stepz"),
        (
            {"first_stage": {"settings": {"output_dir": "x"}}},
            "output_dir is not the first stage's",
        ),
        ({"first_stage": {"kept": "errors"}}, "kept"),
        (
            {"first_stage": {"keep": "log_p"}, "bias_model": {"name": "partial_input", "fields": ["hypothesis"]}},
            "both say what is easy; remove one of the two",
        ),
    ],
)
def test_what_does_not_fit_leaves_nothing(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        run(settings(place, "refused", **changes))
    assert not (place / "refused").exists()


def test_a_stage_that_is_replaced_is_trained_once_and_what_it_took_counts(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked of training and of validation examples; a run that replaces one takes what it said as it is."""
    data = {"train": {"source": "generated", "limit": 96}, "validation": {"source": "generated", "limit": 60}}
    early = {"first_stage": {"keep": "log_p", "settings": {"max_steps": 3}}, "loss": "logit_correction"}
    asked = {**early, "data": data, "eval_strategy": "epoch", "overwrite_output_dir": True, "method": "erm"}
    for seed in (0, 1):  # the second time another stage lies there
        caplog.clear()
        with caplog.at_level("INFO"):
            found = run(settings(place, "replaced", **asked, seed=seed))
        lengths = [one for one in caplog.messages if "trainable of" in one]
        assert len(lengths) == 2, "of the stage, and of the run"
    stage = found / "stages" / "1" / "run.json"
    stage.write_text(json.dumps({**json.loads(stage.read_text()), "seconds": 5000.0, "cpu_seconds": 4000.0}))
    found = run(settings(place, "replaced", **asked, seed=1))
    told = json.loads((found / "run.json").read_text())
    assert 5000 < told["seconds"] < 6000
    assert 4000 < told["cpu_seconds"] < 5000


def test_what_only_the_data_shows_is_found_before_the_first_stage_trains(place: Path, tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("premise", "hypothesis", "label")} for row in generate("train", 60, 0)]
    rows = [{**row, "kind": "even" if i % 7 else ""} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "group_field": "kind"}
    changes = {"data": data, "loss": "group_dro", "first_stage": {}}
    with pytest.raises(InputError, match=r"loss group_dro: example '\S+' has no group"):
        run(settings(place, "groupless", **changes))
    assert not (place / "groupless").exists()
