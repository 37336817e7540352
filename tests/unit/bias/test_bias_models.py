"""Bias models: out of fold, floored, the same again; and the weights that are made of what they say."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from debias.bias import BIAS_MODELS, ModelWeight, balanced_weight, confidence_weight, gce_weight, make_bias_model
from debias.bias.base import FLOOR, digest_of, floored, folds_of
from debias.data import Example
from debias.readouts import Said

FIELDS = ("premise", "hypothesis")
# Settings of each row of the table on the data below.
ROWS: dict[str, dict[str, Any]] = {"partial_input": {"fields": ["hypothesis"]}}


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
    model, examples = make_bias_model({"name": name, **ROWS[name]}), shortcut()
    model.check(FIELDS)
    log_p_NC = model.log_p(examples, 3, FIELDS, seed=3)
    assert log_p_NC.shape == (300, 3)
    assert log_p_NC.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p_NC).sum(axis=1), 1.0, rtol=1e-12)
    assert log_p_NC.min() >= math.log(FLOOR / 2)
    right = (log_p_NC.argmax(axis=1) == [example.label for example in examples]).mean()
    assert 0.8 < right < 1.0
    np.testing.assert_array_equal(log_p_NC, model.log_p(examples, 3, FIELDS, seed=3))


@pytest.mark.parametrize("name", BIAS_MODELS)
def test_it_does_not_judge_what_it_was_fitted_on(name: str) -> None:
    """Labels drawn at random, a word of its own in each text: who had seen an example would know its label."""
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(1)
    examples = [Example(str(i), ("p", f"own{i} own{i} common"), int(draw.integers(3))) for i in range(240)]
    log_p_NC = make_bias_model({"name": name, **ROWS[name]}).log_p(examples, 3, FIELDS, seed=0)
    assert (log_p_NC.argmax(axis=1) == [example.label for example in examples]).mean() < 0.5


def test_a_label_that_is_rare_keeps_its_column() -> None:
    pytest.importorskip("sklearn")
    examples = [*shortcut(60), Example("rare", ("p", "thing 1 plainly"), 3)]
    log_p_NC = make_bias_model({"name": "partial_input", "fields": ["hypothesis"]}).log_p(examples, 4, FIELDS, seed=0)
    assert log_p_NC.shape == (61, 4)
    assert np.isfinite(log_p_NC).all()


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
