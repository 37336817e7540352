"""Bias models that ask the run's own base: `first_learned` and `embedding` through whole runs."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_digits import write_digits
from tiny_runs import PROMPT, adapter_of, cut_off, largest_difference, save_bert, save_llama, settings_for
from train_many import on_ranks

from debias.bias.base import folds_of
from debias.bias.calibration import calibrate
from debias.building.examples import training_examples
from debias.building.facts import ask_bias_model
from debias.building.method import build_bias_model
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError, Interrupted
from debias.inference.asking import hidden_of
from debias.inference.loading import load_run, load_untrained
from debias.train import train

CUE = {"cue": "!!", "prevalence": 0.5, "strength": 0.6}
DATA = {"train": {"source": "generated", "limit": 96}, "planted_bias": CUE}
FIRST = {"name": "first_learned", "steps": 3, "learning_rate": 1e-2, "lora_r": 2}
# Annealed, so that a run which goes on has to know how far it was.
ANNEALED = {"name": "logit_correction", "tau_end": 0.2, "cross_entropy": 0.3}
ASKED = {"loss": ANNEALED, "method": "erm", "bias_model": FIRST}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    save_bert(folder / "bert")
    save_llama(folder / "llama")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    return settings_for(place / "bert", place / name, **{"data": DATA, "per_device_train_batch_size": 12, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


def said(run: Path, name: str = "first_learned") -> np.ndarray:
    with np.load(run / "bias" / f"{name}.npz") as held:
        found: np.ndarray = held["log_p"]
    return found


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    return run(settings(place, "done", save_strategy="steps", save_steps=2, save_total_limit=None, **ASKED))


def test_each_half_is_judged_by_the_model_of_the_other(place: Path, done: Path) -> None:
    examples = training_examples(load_config(done / "config.yaml"), None)
    fold_N = folds_of(examples, 2, seed=0)
    raw_NC = np.empty((len(examples), 3))
    halves = []
    for fold in (0, 1):
        stage = done / "stages" / f"bias_{fold + 1}"
        half = training_examples(load_config(stage / "config.yaml"), None)
        assert [e.id for e in half] == [e.id for e, of in zip(examples, fold_N, strict=True) if of != fold]
        told = json.loads((stage / "run.json").read_text())
        assert (told["method"], told["steps"], told["train_examples"]) == ({"name": "erm"}, 3, len(half))
        halves.append({example.texts for example in half})
        judged = np.flatnonzero(fold_N == fold)
        raw_NC[judged] = load_run(stage).label_scores([examples[i] for i in judged])
    assert not halves[0] & halves[1]
    want = calibrate(raw_NC, np.array([example.label for example in examples]))
    np.testing.assert_allclose(said(done), want, atol=1e-9)
    for name, changes in {
        "plain": {"loss": "cross_entropy", "bias_model": None},
        "even": {"loss": {**ANNEALED, "tau_end": None}},
    }.items():
        other = run(settings(place, name, **{**ASKED, **changes}))
        assert largest_difference(adapter_of(done), adapter_of(other)) > 1e-5


def test_in_16_bits_it_says_almost_the_same_and_the_run_itself_stays(place: Path, done: Path) -> None:
    half = run(settings(place, "half", save_strategy="no", **{**ASKED, "bias_model": {**FIRST, "bf16": True}}))
    stages = [load_config(half / "stages" / f"bias_{number}" / "config.yaml") for number in (1, 2)]
    assert [stage.bf16 for stage in stages] == [True, True]
    assert not load_config(half / "config.yaml").bf16
    moved = np.abs(np.exp(said(half)) - np.exp(said(done)))
    assert 0 < moved.max() < 0.05


def test_a_stage_is_made_again_by_its_own_config(place: Path, done: Path) -> None:
    stage = done / "stages" / "bias_2"
    config = load_config(stage / "config.yaml", [f"output_dir={place / 'again'}", "resume=false"])
    assert largest_difference(adapter_of(train(config)), adapter_of(stage)) == 0.0


def test_what_is_kept_is_not_trained_again(place: Path, done: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "debias")
    cut = cut_off(done, place / "cut")
    shutil.rmtree(cut / "stages")
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    run(settings(place, "cut", resume=True, **saving, **ASKED))
    assert not (cut / "stages").exists()
    assert largest_difference(adapter_of(cut), adapter_of(done)) == 0.0
    other = {**ASKED, "bias_model": {**FIRST, "steps": 5}}
    run(settings(place, "cut", overwrite_output_dir=True, **saving, **other))
    assert json.loads((cut / "stages" / "bias_1" / "run.json").read_text())["steps"] == 5
    assert "bias_model.steps is 5: with 12 a step its models see their 48 examples more than once; 4 are" in caplog.text


def test_a_base_with_other_weights_at_its_old_place_is_asked_anew(place: Path, tmp_path: Path) -> None:
    """By a bias model and by a first stage; what the old weights said is no answer, also where nobody can be asked."""
    early = {"first_stage": {"settings": {"max_steps": 1}}, "order": {"name": "upsampled", "times": 2}}
    asks = {**early, "bias_model": {"name": "embedding"}, "loss": "logit_correction", "method": "erm", "max_steps": 1}
    told = []
    for spread in (0.2, 0.2, 0.5):
        save_bert(tmp_path / "bert", initializer_range=spread)
        done = run(settings(tmp_path, "run", overwrite_output_dir=True, **asks))
        stage = done / "stages" / "1" / "run.json"
        with np.load(done / "stages" / "said.npz") as held:
            told.append((said(done, "embedding"), held["log_p"], stage.stat().st_mtime_ns))
        bases = [json.loads(one.read_text())["base_sha256"] for one in (stage, done / "run.json")]
        assert bases[0] == bases[1]
    same, other = ([np.array_equal(a, b) for a, b in zip(told[0], later, strict=True)] for later in told[1:])
    assert (same, other) == ([True] * 3, [False] * 3)
    save_bert(tmp_path / "bert", initializer_range=0.2)
    kept = load_config(done / "config.yaml")
    model = build_bias_model(kept)
    assert model is not None
    with pytest.raises(InputError, match="kept no answers about its training rows by its weights as they are now"):
        ask_bias_model(kept, model, training_examples(kept, None))


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_was_stopped_in_its_second_stage_goes_on_there(
    place: Path, done: Path, monkeypatch: pytest.MonkeyPatch, resume: Any
) -> None:
    from debias.engines.hf_trainer import DebiasTrainer

    step, stopped = DebiasTrainer.training_step, []

    def stop_once(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.args.output_dir.endswith("bias_2") and trainer.state.global_step == 1 and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(DebiasTrainer, "training_step", stop_once)
    name = f"stopped_{resume}"
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    with pytest.raises(Interrupted, match="bias_2: stopped by SIGTERM at step"):
        run(settings(place, name, **saving, **ASKED))
    first = (place / name / "stages" / "bias_1" / "run.json").stat().st_mtime_ns
    finished = run(settings(place, name, resume=resume, **saving, **ASKED))
    assert (finished / "stages" / "bias_1" / "run.json").stat().st_mtime_ns == first
    assert largest_difference(adapter_of(finished), adapter_of(done)) == 0.0
    took = [json.loads((run / "run.json").read_text())["seconds"] for run in (finished, *finished.glob("stages/*"))]
    assert len(took) == 3
    assert took[0] > sum(took[1:]) > 0  # those of the first attempt, too


def test_causal_models_of_one_and_of_several_tokens(place: Path) -> None:
    """Logit correction reads every label, and refuses longer answers before anything is trained; weights take them."""
    causal = {"head": "causal_lm", "prompt": PROMPT, "data": DATA}
    short = run(settings_for(place / "llama", place / "short", **causal, **ASKED))
    assert np.ptp(said(short)) > 0
    long = {**causal, "prompt": {**PROMPT, "verbalizers": {**PROMPT["verbalizers"], "neutral": " maybe no"}}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="answers of one token each, the longest here has 2; choose verbalizers"):
        run(settings_for(place / "llama", place / "long", **long, **ASKED))
    assert not (place / "long").exists()
    weighted = {"method": "subtract", "bias_weight": {"source": "bias_model", "form": "balanced"}}
    assert np.ptp(said(run(settings_for(place / "llama", place / "w", bias_model=FIRST, **long, **weighted)))) > 0


@pytest.mark.slow
def test_a_four_bit_base(place: Path) -> None:
    pytest.importorskip("bitsandbytes")
    causal = {"head": "causal_lm", "prompt": PROMPT, "data": DATA, "load_in_4bit": True}
    found = run(settings_for(place / "llama", place / "four_bit", **causal, **ASKED))
    stage = json.loads((found / "stages" / "bias_1" / "run.json").read_text())
    assert stage["parameters"]["four_bit"] > 0
    assert np.ptp(said(found)) > 0


@pytest.mark.slow
def test_pictures_keep_the_runs_adapter(place: Path) -> None:
    train_file = write_digits(place / "digits", 80)
    pictures = {
        "model": "vision:mlp",
        "head": "image_classification",
        "data": {"train": str(train_file), "labels": list(range(10)), "planted_color": {"strength": 0.9}},
        "adapter": "full",
        "output_dir": str(place / "pictures"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
    }
    found = run({**pictures, **ASKED})
    assert (found / "stages" / "bias_2" / "model").is_dir()
    assert said(found).shape == (80, 10)
    with pytest.raises(InputError, match="bias_model embedding reads the hidden states of texts"):
        run({**pictures, **ASKED, "bias_model": "embedding", "output_dir": str(place / "no")})


# Hidden states.


@pytest.mark.parametrize(("name", "layer", "place_of"), [("bert", -1, 2), ("bert", 0.5, 1), ("llama", 0, 0)])
def test_hidden_states_are_means_over_an_examples_own_tokens(
    place: Path, name: str, layer: float, place_of: int
) -> None:
    """Against one example at a time, which has no padding."""
    causal = {"head": "causal_lm", "prompt": PROMPT} if name == "llama" else {}
    config = RunConfig.model_validate(settings_for(place / name, place / "unused", data=DATA, **causal))
    examples = training_examples(config, None)[:9]
    predictor = load_untrained(config)
    found_ND = hidden_of(predictor, examples, layer)
    encoded = predictor.task.encode(examples, with_answer=False)
    for row_D, feature in zip(found_ND, encoded.features, strict=True):
        given = {key: torch.tensor([value]) for key, value in feature.items()}
        with torch.no_grad():
            states = predictor.model(**given, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(row_D, states[place_of][0].double().mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"bias_model\.layer is 3, and the model has 2 layers"):
        hidden_of(predictor, examples, 3)


def test_embedding_through_a_run(place: Path) -> None:
    pytest.importorskip("sklearn")
    asked = {**ASKED, "bias_model": {"name": "embedding", "layer": 0, "folds": 3}}
    found = run(settings(place, "embedding", **asked))
    assert not (found / "stages").exists()
    assert said(found, "embedding").shape == (96, 3)
    with pytest.raises(InputError, match=r"bias_model\.layer is 9, and the model has 2 layers"):
        run(settings(place, "deep", **{**asked, "bias_model": {"name": "embedding", "layer": 9}}))
    assert not (place / "deep").exists()


def test_experts_hear_an_auxiliary_model_of_the_half_that_they_are_trained_on(place: Path) -> None:
    model = {"name": "bias_experts", "steps": 3, "auxiliary_steps": 2, "learning_rate": 1e-2, "lora_r": 2}
    found = run(settings(place, "experts", **{**ASKED, "bias_model": model}))
    assert said(found, "bias_experts").shape == (96, 3)
    experts, auxiliary = (found / "stages" / name for name in ("bias_2", "bias_2/stages/1"))
    told = [json.loads((stage / "run.json").read_text()) for stage in (experts, auxiliary)]
    assert [(one["steps"], one["train_examples"]) for one in told] == [(3, 48), (2, 48)]
    assert load_config(experts / "config.yaml").loss == {"name": "one_vs_rest", "q": 0.2}
    assert load_config(auxiliary / "config.yaml").loss["name"] == "cross_entropy"
    answers = {"prompt": PROMPT, "head": "causal_lm", "bias_model": model}
    with pytest.raises(InputError, match="bias_model bias_experts: loss one_vs_rest reads a classifier's logits"):
        run(settings(place, "answers", **{**ASKED, **answers}))
    assert not (place / "answers").exists()


# What does not fit.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bias_model": {**FIRST, "steps": 21}},
            "steps is 21: with 12 a step its models see their 48 examples more than 5 times",
        ),
        (
            {"bias_model": {**FIRST, "folds": 1, "steps": 9}},
            "steps is 9: with 12 a step its models see their 96 examples more than once, and judge them; give 8",
        ),
        (
            {"bias_model": {**FIRST, "name": "bias_experts", "auxiliary_steps": 21}},
            "auxiliary_steps is 21: with 12 a step its models see their 48 examples more than 5 times, .* give 20",
        ),
        ({"bias_model": {**FIRST, "folds": 200}}, "bias_model.folds is 200, but the training examples have fewer"),
        (
            {"data": {**DATA, "leave_out": {"fold": 0}}},
            "data.leave_out: the bias model's runs leave out folds of their",
        ),
        ({"data": {**DATA, "leave_out": {"fold": 2}}, "bias_model": None}, "fold is 2, expected less than folds, 2"),
        ({"first_stage": {"keep": "log_p"}}, "both say what is easy; remove one of the two"),
    ],
)
def test_what_does_not_fit_leaves_nothing(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        run(settings(place, "refused", **{**ASKED, **changes}))
    assert not (place / "refused").exists()


def test_a_bias_model_that_nobody_hears_is_not_trained(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "debias")
    idle = run(settings(place, "idle", method="erm", bias_model=FIRST))
    assert not (idle / "stages").exists()
    assert "neither the loss, the order nor the bias weight reads it" in caplog.text


@pytest.mark.slow
def test_ranks_train_and_judge_what_one_process_does(place: Path) -> None:
    """DDP and two ZeRO stages, with every option of the loss that looks at the whole training set or at progress."""
    pytest.importorskip("deepspeed")
    sgd = {"optim": "sgd", "learning_rate": 0.05, "bias_model": {**FIRST, "learning_rate": 0.05}, "method": "erm"}
    weighed = {"loss": {"name": "logit_correction", "tau": 0.6, "weights": True, "prior": "labels"}, **sgd}
    annealed = {"loss": {"name": "logit_correction", "tau_end": 0.5, "cross_entropy": 0.3}, **sgd}
    edge = {**annealed, "method": "norm_balance", "bias_weight": {"source": "bias_model", "form": "confidence"}}
    embedded = {**weighed, "bias_model": {"name": "embedding", "layer": 0.5}}
    ways: dict[str, dict[str, Any]] = {
        "embedding_ddp": embedded,
        "ddp": weighed,
        "accumulated": {**edge, "gradient_accumulation_steps": 2},
        "zero2": {**edge, "deepspeed": "zero2"},
        "zero3": {**weighed, "deepspeed": "zero3"},
        "embedding_zero3": {**embedded, "deepspeed": "zero3"},
    }
    batch = {name: 3 if "gradient_accumulation_steps" in way else 6 for name, way in ways.items()}
    runs = [settings(place, name, **{**way, "per_device_train_batch_size": batch[name]}) for name, way in ways.items()]
    on_ranks(2, runs)
    alone = {"weighed": weighed, "edged": edge, "embedded": embedded}
    done = {name: run(settings(place, name, **way)) for name, way in alone.items()}
    for name, way in ways.items():
        of_embedding = way["bias_model"]["name"] == "embedding"
        one = done["embedded" if of_embedding else "weighed" if "weights" in way["loss"] else "edged"]
        asked = [said(run, way["bias_model"]["name"]) for run in (place / name, one)]
        np.testing.assert_allclose(asked[0], asked[1], atol=1e-4 if of_embedding else 2e-6)
        assert np.ptp(asked[0]) > 0
        assert largest_difference(adapter_of(place / name), adapter_of(one)) < 2e-6 + 1e-4 * of_embedding, name
