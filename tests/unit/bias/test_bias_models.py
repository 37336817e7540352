"""Bias models: out of fold, floored, the same again; and the weights that are made of what they say."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from debias.bias import BIAS_MODELS, ModelWeight, balanced_weight, confidence_weight, gce_weight, make_bias_model
from debias.bias.base import FLOOR, BaseBiasModel, digest_of, floored, folds_of
from debias.bias.calibration import calibrated
from debias.data import Example
from debias.readouts import Said

FIELDS = ("premise", "hypothesis")
# Settings of each row of the table on the data below.
ROWS: dict[str, dict[str, Any]] = {"partial_input": {"fields": ["hypothesis"]}, "first_learned": {}, "embedding": {}}


class LastWords:
    """In the place of a run's base: it sees an example's last word, and a stage learns how often it goes with a label.

    A stage is told which examples it will judge, and learns from all others, as a run does that leaves out their fold.
    """

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        self.asked: list[Any] = []

    def hidden(self, layer: float) -> Any:
        self.asked.append(layer)
        words = sorted({example.texts[-1].split()[-1] for example in self.examples})
        return np.array([[float(e.texts[-1].split()[-1] == word) for word in words] for e in self.examples])

    def after_stage(self, stage: int, examples: Any) -> Any:
        self.asked.append((stage, [example.id for example in examples]))
        judged = {example.id for example in examples}
        seen = Counter((e.texts[-1].split()[-1], e.label) for e in self.examples if e.id not in judged)
        counts = np.array([[1 + seen[e.texts[-1].split()[-1], c] for c in range(3)] for e in examples], dtype=float)
        return np.log(counts / counts.sum(axis=1, keepdims=True))


def said_by(name: str, examples: list[Example], labels: int, seed: int) -> Any:
    model = make_bias_model({"name": name, **ROWS[name]})
    if isinstance(model, BaseBiasModel):
        return model.asked(examples, labels, seed, LastWords(examples))
    return model.log_p(examples, labels, FIELDS, seed)


def shortcut(count: int = 300, seed: int = 0) -> list[Example]:
    """Hypotheses whose last word gives the label away nine times in ten; premises that say nothing."""
    draw = np.random.default_rng(seed)
    words = ["plainly", "perhaps", "never"]
    examples = []
    for index in range(count):
        label = int(draw.integers(3))
        told = label if draw.random() < 0.9 else int(draw.integers(3))
        examples.append(Example(str(index), (f"premise {draw.integers(50)}", f"thing {index} {words[told]}"), label))
    return examples


def test_every_bias_model_has_a_row() -> None:
    assert set(ROWS) == set(BIAS_MODELS)


@pytest.mark.parametrize("name", BIAS_MODELS)
def test_it_finds_the_shortcut_out_of_fold_and_the_same_again(name: str) -> None:
    pytest.importorskip("sklearn")
    examples = shortcut()
    make_bias_model({"name": name, **ROWS[name]}).check(FIELDS)
    log_p_NC = said_by(name, examples, 3, seed=3)
    assert log_p_NC.shape == (300, 3)
    assert log_p_NC.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p_NC).sum(axis=1), 1.0, rtol=1e-12)
    assert log_p_NC.min() >= math.log(FLOOR / 2)
    right = (log_p_NC.argmax(axis=1) == [example.label for example in examples]).mean()
    assert 0.8 < right < 1.0
    np.testing.assert_array_equal(log_p_NC, said_by(name, examples, 3, seed=3))


@pytest.mark.parametrize("name", BIAS_MODELS)
def test_it_does_not_judge_what_it_was_fitted_on(name: str) -> None:
    """Labels drawn at random, a word of its own in each text: who had seen an example would know its label."""
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(1)
    examples = [Example(str(i), ("p", f"own{i} own{i} common"), int(draw.integers(3))) for i in range(240)]
    examples = [Example(e.id, (*e.texts[:-1], f"{e.texts[-1]} own{e.id}"), e.label) for e in examples]
    log_p_NC = said_by(name, examples, 3, seed=0)
    assert (log_p_NC.argmax(axis=1) == [example.label for example in examples]).mean() < 0.5


def test_a_label_that_is_rare_keeps_its_column() -> None:
    pytest.importorskip("sklearn")
    examples = [*shortcut(60), Example("rare", ("p", "thing 1 plainly"), 3)]
    log_p_NC = make_bias_model({"name": "partial_input", "fields": ["hypothesis"]}).log_p(examples, 4, FIELDS, seed=0)
    assert log_p_NC.shape == (61, 4)
    assert np.isfinite(log_p_NC).all()


def test_first_learned_asks_each_fold_of_the_run_that_left_it_out() -> None:
    examples = shortcut(40)
    base, model = LastWords(examples), make_bias_model({"name": "first_learned", "folds": 3, "steps": 7, "lora_r": 2})
    assert isinstance(model, BaseBiasModel)
    log_p_NC = model.asked(examples, 3, 5, base)
    fold_N = folds_of(examples, 3, seed=5)
    assert base.asked == [(k, [e.id for e, fold in zip(examples, fold_N, strict=True) if fold == k]) for k in range(3)]
    # One temperature for all of them: odds are those of the stages, to one power.
    raw = np.concatenate([base.after_stage(0, [examples[i] for i in np.flatnonzero(fold_N == k)]) for k in range(3)])
    said = np.concatenate([log_p_NC[fold_N == k] for k in range(3)])
    odds, told = raw[:, :1] - raw[:, 1:], said[:, :1] - said[:, 1:]
    power = told[np.abs(odds) > 0.1] / odds[np.abs(odds) > 0.1]
    np.testing.assert_allclose(power, power.mean(), rtol=1e-9)


def test_first_learneds_runs_are_plain_and_leave_out_one_fold_each() -> None:
    run = {"seed": 4, "adapter": {"type": "full"}, "data": {"text_fields": ["a"], "leave_out": None, "validation": "v"}}
    stages = make_bias_model({"name": "first_learned", "folds": 3, "steps": 7, "lora_r": 2}).stages(run)
    left_out = [{"fold": fold, "folds": 3, "seed": 4} for fold in range(3)]
    assert [stage["data"]["leave_out"] for stage in stages] == left_out
    for stage in stages:
        chosen = [stage[key] for key in ("max_steps", "adapter", "lora_r", "lora_alpha", "method", "loss")]
        assert chosen == [7, "lora", 2, 4.0, "erm", "cross_entropy"]
        assert stage["data"]["validation"] is None
    targets = {"type": "lora", "targets": ["q"]}
    own = make_bias_model("first_learned").stages({**run, "adapter": targets})
    assert [stage["adapter"] for stage in own] == [targets, targets]
    with pytest.raises(ValueError, match=r"data\.leave_out: the bias model's runs leave out folds of their own"):
        make_bias_model("first_learned").stages({**run, "data": {**run["data"], "leave_out": left_out[0]}})  # type: ignore[dict-item]


def test_a_base_is_no_bias_model_by_itself() -> None:
    with pytest.raises(ValueError, match="bias_model embedding asks the base model of a run, and here is none"):
        make_bias_model("embedding").log_p(shortcut(4), 3, FIELDS, seed=0)
    with pytest.raises(ValueError, match="reads the hidden states of texts, and the data is pictures"):
        make_bias_model("embedding").check(())


@pytest.mark.parametrize("sharper", [0.3, 1.0, 4.0])
def test_calibration_finds_the_temperature_that_labels_were_drawn_at(sharper: float) -> None:
    draw = np.random.default_rng(7)
    logits = draw.normal(size=(2000, 3))
    p_NC = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label_N = np.array([draw.choice(3, p=row) for row in p_NC])
    found = calibrated(sharper * np.log(p_NC), label_N)
    # Against a search over a grid of temperatures: what it finds is the same for whatever the model's own was.
    grid = np.linspace(0.5, 1.5, 401)
    powered = np.log(p_NC) * grid[:, None, None]
    powered -= np.logaddexp.reduce(powered, axis=2, keepdims=True)
    best = powered[powered[:, np.arange(2000), label_N].mean(axis=1).argmax()]
    np.testing.assert_allclose(found, best, atol=1e-2)


def test_what_says_nothing_is_calibrated_to_nothing() -> None:
    label_N = np.array([0, 1] * 50)
    wrong = np.log(np.where(np.eye(2)[1 - label_N] > 0, 0.9, 0.1))  # always wrong: no temperature above 0 helps
    np.testing.assert_allclose(calibrated(wrong, label_N), np.log(0.5))
    right = np.log(np.where(np.eye(2)[label_N] > 0, 0.6, 0.4))  # always right: as sharp as it may become
    assert np.isfinite(calibrated(right, label_N)).all()


def test_pictures_have_folds_and_a_digest_too() -> None:
    """Without texts they would all be one example."""
    pictures = [np.full((3, 2, 2), i % 20, dtype=np.uint8) for i in range(60)]
    examples = [Example(str(i), (), 0, image=picture) for i, picture in enumerate(pictures)]
    fold_N = folds_of(examples, 2, seed=0)
    assert set(Counter(fold_N.tolist()).values()) == {30}
    assert all(len(set(fold_N[i::20].tolist())) == 1 for i in range(20))
    other = [*examples[:-1], Example("x", (), 0, image=pictures[0] + 100)]
    assert digest_of("m", examples, 2, 0) != digest_of("m", other, 2, 0)


def test_copies_share_a_fold_and_folds_are_even() -> None:
    examples = [Example(str(i), (f"text {i % 50}",), 0) for i in range(200)]
    fold_N = folds_of(examples, 5, seed=0)
    assert all(len({int(fold_N[i]) for i in range(k, 200, 50)}) == 1 for k in range(50))
    assert set(Counter(fold_N.tolist()).values()) == {40}
    assert (folds_of(examples, 5, seed=1) != fold_N).any()


def test_no_label_is_impossible() -> None:
    p_NC = np.exp(floored(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])))
    assert p_NC.min() > FLOOR / 2
    np.testing.assert_allclose(p_NC.sum(axis=1), 1.0)


def test_the_digest_is_of_texts_labels_settings_and_seed() -> None:
    examples = shortcut(20)
    other = [*examples[:-1], Example("x", examples[-1].texts, (examples[-1].label + 1) % 3)]
    told = [("m", examples, 3, 0), ("m", other, 3, 0), ("m", examples, 3, 1), ("n", examples, 3, 0)]
    digests = {digest_of(*one) for one in told}
    assert len(digests) == 4
    assert digest_of("m", list(examples), 3, 0) in digests


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "partial_input"}, "bias_model.fields: missing, and partial_input has no default for it"),
        ({"name": "partial_input", "fields": []}, "bias_model.fields: none is given"),
        ({"name": "partial_input", "fields": ["hypothesis"], "folds": 1}, "bias_model.folds is 1, expected 2 or more"),
        ({"name": "first_learned", "steps": 0}, "bias_model.steps is 0, expected 1 or more"),
        ({"name": "first_learned", "lora_r": 0}, "bias_model.lora_r is 0, expected 1 or more"),
        ({"name": "first_learned", "learning_rate": 0}, "bias_model.learning_rate is 0.0, expected more than 0"),
        ({"name": "first_learned", "folds": 1}, "bias_model.folds is 1, expected 2 or more"),
        ({"name": "embedding", "folds": 0}, "bias_model.folds is 0, expected 2 or more"),
        ({"name": "embedding", "layer": -2}, "bias_model.layer is -2.0, expected -1, a layer's number, or a fraction"),
        ({"name": "embedding", "layer": 1.5}, "bias_model.layer is 1.5, expected -1, a layer's number, or a fraction"),
        ({"name": "embedding", "layer": "last"}, "bias_model.layer is 'last', expected -1, a layer's number"),
        ("partial_imput", "did you mean partial_input?"),
    ],
)
def test_wrong_settings(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make_bias_model(block)


@pytest.mark.parametrize(
    ("fields", "message"),
    [(["hypotesis"], "'hypotesis' is not one of data.text_fields"), (list(FIELDS), "leave out at least one")],
)
def test_fields_that_do_not_fit_the_data(fields: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_bias_model({"name": "partial_input", "fields": fields}).check(FIELDS)


def test_nothing_to_fit_on_is_said() -> None:
    pytest.importorskip("sklearn")
    examples = [Example(str(i), ("p", f"word{i}"), i % 2) for i in range(10)]
    with pytest.raises(ValueError, match="bias_model partial_input: nothing to fit on in 8 examples"):
        make_bias_model({"name": "partial_input", "fields": ["hypothesis"]}).log_p(examples, 2, FIELDS, seed=0)


# Weights.


def mass_left(p_C: list[float]) -> list[float]:
    """Of each label's examples, the mass that is left where they occur as often as `p` says."""
    log_p = torch.tensor([p_C]).log()
    return [p * (1 - float(balanced_weight(log_p, torch.tensor([label])))) for label, p in enumerate(p_C)]


@pytest.mark.parametrize("p_C", [[0.5, 0.5], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5], [1 - 3e-4, 1e-4, 1e-4, 1e-4]])
def test_balanced_weights_leave_every_label_the_same_mass(p_C: list[float]) -> None:
    left = mass_left(p_C)
    assert left == pytest.approx([left[0]] * len(left), rel=1e-3)
    assert left[0] == pytest.approx(1 / math.fsum(1 / p for p in p_C), rel=1e-3)


def test_for_two_labels_balanced_is_confidence() -> None:
    log_p, label = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).log(), torch.tensor([0, 0])
    torch.testing.assert_close(balanced_weight(log_p, label), confidence_weight(log_p[:, 0]))


def test_forms_of_the_weight() -> None:
    log_p, label = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log(), torch.tensor([0, 1])
    facts, said = {"bias_log_p": log_p, "labels": label}, Said(torch.zeros(2), torch.zeros(2), 2)
    own = torch.tensor([0.7, 0.1])
    torch.testing.assert_close(ModelWeight("gce", 0.5)(said, facts), gce_weight(own.log(), 0.5))
    torch.testing.assert_close(ModelWeight("confidence")(said, facts), own)
    torch.testing.assert_close(ModelWeight("balanced")(said, facts), balanced_weight(log_p, label))
    for form in ("gce", "confidence", "balanced"):
        weight_B = ModelWeight(form)(said, facts)
        assert not weight_B.requires_grad
        assert ((weight_B >= 0) & (weight_B < 1)).all()
