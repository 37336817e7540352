"""Bias models: out of fold, floored, the same again; and the weights that are made of what they say."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from debias.bias import BIAS_MODELS, ModelWeight, balanced_weight, confidence_weight, gce_weight, make_bias_model
from debias.bias.base import FLOOR, BaseBiasModel, digest_of, even_folds, floored, folds_by_source, folds_of
from debias.bias.calibration import calibrate, log_softmax, temperature
from debias.bias.degenerate import calibration_error, faults
from debias.bias.features import relations, sequences
from debias.config.words import words_of
from debias.data import Example
from debias.readouts import Said

FIELDS = ("premise", "hypothesis")
# Settings of each row of the table on the data below.
PARTIAL = {"name": "partial_input", "fields": ["hypothesis"]}
ROWS: dict[str, dict[str, Any]] = {
    "partial_input": {"fields": ["hypothesis"]},
    "lexical": {},
    "artifacts": {},
    "groups": {},
    "column": {"columns": ["p0", "p1", "p2"]},
    "product": {"of": [PARTIAL, "groups"]},
    "first_learned": {},
    "bias_experts": {},
    "embedding": {},
}
FITTED = [name for name in BIAS_MODELS if name != "column"]


class LastWords:
    """In the place of a run's base: it sees an example's last word, and a stage learns how often it goes with a label.

    A stage is told which examples it will judge, and learns from all others, as a run does that leaves out their fold.
    """

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        self.asked: list[Any] = []

    def hidden(self, layer: float, examples: Any) -> Any:
        self.asked.append(layer)
        words = sorted({example.texts[-1].split()[-1] for example in self.examples})
        return np.array([[float(e.texts[-1].split()[-1] == word) for word in words] for e in examples])

    def after_stage(self, stage: int, examples: Any) -> Any:
        self.asked.append((stage, [example.id for example in examples]))
        judged = {example.id for example in examples}
        seen = Counter((e.texts[-1].split()[-1], e.label) for e in self.examples if e.id not in judged)
        counts = np.array([[1 + seen[e.texts[-1].split()[-1], c] for c in range(3)] for e in examples], dtype=float)
        return np.log(counts / counts.sum(axis=1, keepdims=True))


def said_by(name: str, examples: list[Example], labels: int, seed: int, others: Any = ()) -> Any:
    model = make_bias_model({"name": name, **ROWS[name]})
    if isinstance(model, BaseBiasModel):
        return model.asked(examples, labels, seed, LastWords(examples), others)
    return model.log_p(examples, labels, FIELDS, seed, others)


def shortcut(count: int = 300, seed: int = 0) -> list[Example]:
    """Hypotheses whose last word gives the label away nine times in ten; premises that say nothing.

    `group` is that word, and `bias_p` what somebody says who knows it.
    """
    draw = np.random.default_rng(seed)
    words = ["plainly", "perhaps", "never"]
    examples = []
    for index in range(count):
        label = int(draw.integers(3))
        told = label if draw.random() < 0.9 else int(draw.integers(3))
        texts = (f"premise {draw.integers(50)}", f"thing {index} {words[told]}")
        p_C = tuple(0.92 if one == told else 0.04 for one in range(3))
        examples.append(Example(str(index), texts, label, group=words[told], bias_p=p_C))
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
def test_it_judges_others_of_which_nothing_is_learned(name: str) -> None:
    """Validation examples: they change nothing of what is said of training, nor of each other."""
    pytest.importorskip("sklearn")
    examples, others = shortcut(), [replace(one, id=f"other {one.id}") for one in shortcut(80, seed=9)]
    alone, both = said_by(name, examples, 3, 3), said_by(name, examples, 3, 3, others)
    assert both.shape == (380, 3)
    np.testing.assert_array_equal(both[:300], alone)
    beside = both[300:]
    np.testing.assert_allclose(np.exp(beside).sum(axis=1), 1.0, rtol=1e-12)
    assert beside.min() >= math.log(FLOOR / 2)
    assert 0.8 < (beside.argmax(axis=1) == [one.label for one in others]).mean() < 1.0
    some = [replace(others[7], label=(others[7].label + 1) % 3), *others[20:30]]
    np.testing.assert_allclose(said_by(name, examples, 3, 3, some)[300:], beside[[7, *range(20, 30)]], rtol=1e-9)


def test_a_part_of_the_input_is_not_judged_by_what_it_was_fitted_on() -> None:
    """Hypotheses that come with many premises, and premises that come with a hypothesis of each label."""
    pytest.importorskip("sklearn")
    draw = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.integers(60)}" for _ in range(count))

    known = [(words(6), int(draw.integers(2))) for _ in range(60)]
    many = [Example(f"{i}-{k}", (f"{words(5)} {k}", text), y) for k in range(6) for i, (text, y) in enumerate(known)]
    model = make_bias_model({"name": "partial_input", "fields": ["hypothesis"], "calibrated": False})
    right = model.log_p(many, 2, FIELDS, 0).argmax(axis=1) == [one.label for one in many]
    assert right.mean() < 0.7
    texts = [words(8) for _ in range(60)]
    each = [Example(f"{i}-{y}", (text, words(5)), y) for i, text in enumerate(texts) for y in range(3)]
    model = make_bias_model({"name": "partial_input", "fields": ["premise"], "calibrated": False})
    right = model.log_p(each, 3, FIELDS, 0).argmax(axis=1) == [one.label for one in each]
    assert right.mean() == pytest.approx(1 / 3)  # of one premise's three exactly one, whatever is guessed
    assert model.unseen(each, 3, 0, FIELDS) == []
    rare = [Example(str(i), (f"premise {i}", "the one text"), 2) for i in range(8)]
    model = make_bias_model({"name": "partial_input", "fields": ["hypothesis"]})
    assert model.unseen([*shortcut(40), *rare], 4, 0) == []
    assert model.unseen([*(replace(one, label=one.label % 2) for one in shortcut(40)), *rare], 3, 0, FIELDS) == [2]


def test_others_hear_the_geometric_mean_of_all_folds() -> None:
    """In plain loops; a group that training lacks has the labels' shares."""
    examples = shortcut(90)
    others = [Example("a", ("x",), 0, group="never"), Example("b", ("y",), 0, group="elsewhere")]
    fold_N = folds_of(examples, 3, seed=5)
    model = make_bias_model({"name": "groups", "folds": 3, "smoothing": 2.0, "calibrated": False})
    found = np.exp(model.log_p(examples, 3, FIELDS, 5, others)[90:])
    for other, said in zip(others, found, strict=True):
        products = [1.0, 1.0, 1.0]
        for fold in range(3):
            rest = [one for one, at in zip(examples, fold_N, strict=True) if at != fold]
            mine = [one for one in rest if one.group == other.group]
            for label in range(3):
                prior = sum(one.label == label for one in rest) / len(rest)
                share = (sum(one.label == label for one in mine) + 2.0 * prior) / (len(mine) + 2.0)
                products[label] *= max(share, FLOOR)
        means = [product ** (1 / 3) for product in products]
        np.testing.assert_allclose(said, [mean / math.fsum(means) for mean in means], rtol=1e-3)


def test_what_others_lack_is_said() -> None:
    bare = [Example("v1", ("p", "h"), 0)]
    for block in ("groups", {"name": "product", "of": [PARTIAL, "groups"]}):
        assert make_bias_model(block).missing(bare) == "example 'v1' of the validation data has no group"
        assert make_bias_model(block).missing([]) is None
    told = make_bias_model({"name": "column", **ROWS["column"]}).missing(bare)
    assert told == "['p0', 'p1', 'p2'] of the validation data were not read"
    assert make_bias_model("lexical").missing(bare) is None


@pytest.mark.parametrize("name", FITTED)
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


def test_first_learned_of_one_fold_trains_one_model_on_all_and_asks_it_of_all() -> None:
    examples = shortcut(40)
    base, model = LastWords(examples), make_bias_model({"name": "first_learned", "folds": 1, "steps": 7})
    run = {"seed": 4, "adapter": {"type": "lora"}, "data": {"text_fields": ["a"], "leave_out": None, "validation": "v"}}
    (stage,) = model.stages(run)
    assert (stage["max_steps"], stage["data"]["leave_out"], stage["data"]["validation"]) == (7, None, None)
    assert isinstance(model, BaseBiasModel)
    log_p_NC = model.asked(examples, 3, 5, base, examples[:3])
    assert base.asked == [(0, [e.id for e in examples] + [e.id for e in examples[:3]])]
    np.testing.assert_allclose(np.exp(log_p_NC).sum(axis=1), 1.0)
    np.testing.assert_allclose(log_p_NC[-3:], log_p_NC[:3], rtol=1e-6)


def test_experts_are_trained_one_against_the_rest_after_a_run_of_their_own() -> None:
    run = {"seed": 4, "adapter": {"type": "lora"}, "data": {"text_fields": ["a"], "leave_out": None}}
    stages = make_bias_model({"name": "bias_experts", "steps": 9, "auxiliary_steps": 7, "q": 0.3}).stages(run)
    assert [stage["data"]["leave_out"]["fold"] for stage in stages] == [0, 1]
    for stage in stages:
        assert (stage["max_steps"], stage["loss"]) == (9, {"name": "one_vs_rest", "q": 0.3})
        assert stage["first_stage"] == {"keep": "log_p", "settings": {"max_steps": 7}}
        assert stage["bias_model"] is None


def test_first_learneds_runs_compute_in_16_bits_where_it_says_so() -> None:
    run = {"seed": 4, "bf16": False, "adapter": {"type": "lora"}, "data": {"text_fields": ["a"], "leave_out": None}}
    blocks: list[dict[str, Any]] = [{}, {"bf16": True}, {"bf16": False}]
    plain, half, whole = (make_bias_model({"name": "first_learned", **more}) for more in blocks)
    assert "bf16" not in plain.stages(run)[0]  # as the run
    assert [model.stages(run)[0]["bf16"] for model in (half, whole)] == [True, False]
    # What its runs are asked is in their settings; of a version without the setting, the same question.
    assert repr(half) == repr(plain)


def test_first_learned_that_could_never_stop_early_is_refused() -> None:
    assert make_bias_model({"name": "first_learned", "stop_at": 0.2, "steps": 6})
    with pytest.raises(ValueError, match=r"steps is 5; with stop_at, which looks every 5, expected more"):
        make_bias_model({"name": "first_learned", "stop_at": 0.2, "steps": 5})


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
    found = calibrate(sharper * np.log(p_NC), label_N)
    # Against a search over a grid of temperatures: what it finds is the same for whatever the model's own was.
    grid = np.linspace(0.5, 1.5, 401)
    powered = np.log(p_NC) * grid[:, None, None]
    powered -= np.logaddexp.reduce(powered, axis=2, keepdims=True)
    best = powered[powered[:, np.arange(2000), label_N].mean(axis=1).argmax()]
    np.testing.assert_allclose(found, best, atol=1e-2)


def test_what_says_nothing_is_calibrated_to_nothing() -> None:
    label_N = np.array([0, 1] * 50)
    wrong = np.log(np.where(np.eye(2)[1 - label_N] > 0, 0.9, 0.1))  # always wrong: no temperature is too hot
    np.testing.assert_allclose(np.exp(calibrate(wrong, label_N)), 0.5, atol=0.03)
    right = np.log(np.where(np.eye(2)[label_N] > 0, 0.6, 0.4))  # always right: as sharp as it may become
    assert np.isfinite(calibrate(right, label_N)).all()


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
        (
            {"name": "first_learned", "folds": 0},
            "bias_model.folds is 0, expected 1 .judges what it is trained on. or more",
        ),
        ({"name": "bias_experts", "auxiliary_steps": 0}, "bias_model.auxiliary_steps is 0, expected 1 or more"),
        ({"name": "bias_experts", "q": -0.1}, "bias_model.q is -0.1, expected 0 .all examples count the same. or more"),
        ({"name": "bias_experts", "stop_at": 0.2}, "stop_at"),
        ({"name": "embedding", "folds": 0}, "bias_model.folds is 0, expected 2 or more"),
        ({"name": "embedding", "layer": -2}, "bias_model.layer is -2.0, expected -1, a layer's number, or a fraction"),
        ({"name": "embedding", "layer": 1.5}, "bias_model.layer is 1.5, expected -1, a layer's number, or a fraction"),
        ({"name": "embedding", "layer": "last"}, "bias_model.layer is 'last', expected -1, a layer's number"),
        ("partial_imput", "did you mean partial_input?"),
        ({"name": "lexical", "longest": 0}, "bias_model.longest is 0, expected 1 or more words"),
        ({"name": "groups", "smoothing": -1}, "bias_model.smoothing is -1.0, expected 0 or more"),
        ({"name": "groups", "folds": 1}, "bias_model.folds is 1, expected 2 or more"),
        ("column", "bias_model.columns: give them, one for each label, or a file"),
        ({"name": "column", "columns": ["a"], "file": "b"}, "exactly one of the two"),
        ({"name": "column", "columns": ["a", "a"]}, "has a column twice"),
        ("product", "bias_model.of: missing, and product has no default for it"),
        ({"name": "product", "of": ["groups"]}, "bias_model.of: 1 given, expected two or more"),
        ({"name": "product", "of": ["groups", "lexicl"]}, "bias_model.of.name is 'lexicl', .*did you mean lexical?"),
        ({"name": "product", "of": 3}, "expected a list of bias models"),
        (
            {"name": "product", "of": ["groups", "embedding"]},
            "bias_model.of: embedding asks the run's own base",
        ),
    ],
)
def test_wrong_settings(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?") if "*" not in message else message):
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


def test_a_word_counts_in_its_own_field_alone() -> None:
    """The cue stands in both fields as often, and says something in one of them."""
    pytest.importorskip("sklearn")
    draw, examples = np.random.default_rng(4), []
    for index in range(400):
        label, noise = int(draw.integers(2)), int(draw.integers(2))
        texts = (f"one {'cue' if noise else 'none'} {index}", f"two {'cue' if label else 'none'} {index}")
        examples.append(Example(str(index), texts, label))
    log_p_NC = make_bias_model("lexical").log_p(examples, 2, FIELDS, seed=0)
    assert (log_p_NC.argmax(axis=1) == [example.label for example in examples]).mean() > 0.98
    blind = make_bias_model({"name": "lexical", "fields": ["premise"]}).log_p(examples, 2, FIELDS, seed=0)
    assert (blind.argmax(axis=1) == [example.label for example in examples]).mean() < 0.65


@pytest.mark.parametrize("texts", [("overlap",), FIELDS], ids=["one field", "two fields"])
def test_lexical_takes_any_number_of_fields(texts: tuple[str, ...]) -> None:
    pytest.importorskip("sklearn")
    examples = [Example(str(i), tuple(f"{'yes' if i % 2 else 'no'} {i}" for _ in texts), i % 2) for i in range(60)]
    model = make_bias_model("lexical")
    model.check(texts)
    assert (model.log_p(examples, 2, texts, seed=0).argmax(axis=1) == [i % 2 for i in range(60)]).all()


def test_overlap_is_seen_where_no_word_says_anything() -> None:
    pytest.importorskip("sklearn")
    draw, examples = np.random.default_rng(2), []
    for index in range(300):
        words = [f"w{n}" for n in draw.choice(400, size=8, replace=False)]
        label = int(draw.integers(2))
        examples.append(Example(str(index), (" ".join(words[:4]), " ".join(words[:4] if label else words[4:])), label))
    right = [example.label for example in examples]
    whole, words_alone = (
        make_bias_model({"name": "lexical", "relations": seen}).log_p(examples, 2, FIELDS, seed=0)
        for seen in (True, False)
    )
    assert (whole.argmax(axis=1) == right).mean() == 1.0
    assert (words_alone.argmax(axis=1) == right).mean() < 0.65


def test_examples_of_one_premise_are_judged_together() -> None:
    """One hypothesis of each label a premise: who knows two of them knows the third, and it is no word that tells."""
    pytest.importorskip("sklearn")
    examples = [Example(f"{i}", (f"premise own{i // 3} own{i // 3}", f"said {i % 7}"), i % 3) for i in range(300)]
    fold_N = folds_by_source(examples, 5, seed=0)
    assert all(len({int(fold) for fold in fold_N[i : i + 3]}) == 1 for i in range(0, 300, 3))
    log_p_NC = make_bias_model("lexical").log_p(examples, 3, FIELDS, seed=0)
    assert 0.2 < (log_p_NC.argmax(axis=1) == [i % 3 for i in range(300)]).mean() < 0.47
    instructed = [Example(str(i), ("Classify this.", f"text {i}"), i % 3) for i in range(60)]
    assert set(Counter(folds_by_source(instructed, 5, seed=0).tolist()).values()) == {12}


def test_groups_are_counted_in_the_other_folds() -> None:
    examples = shortcut(90)
    fold_N = folds_of(examples, 3, seed=5)
    log_p_NC = make_bias_model({"name": "groups", "folds": 3, "smoothing": 2.0, "calibrated": False}).log_p(
        examples, 3, FIELDS, seed=5
    )
    for at in (0, 17, 88):
        others = [one for one, fold in zip(examples, fold_N, strict=True) if fold != fold_N[at]]
        mine = [one for one in others if one.group == examples[at].group]
        for label in range(3):
            prior = sum(one.label == label for one in others) / len(others)
            expected = (sum(one.label == label for one in mine) + 2.0 * prior) / (len(mine) + 2.0)
            assert math.exp(log_p_NC[at, label]) == pytest.approx(max(expected, FLOOR), rel=1e-3)


def test_a_group_that_the_other_folds_lack_has_the_labels_shares() -> None:
    examples = [Example(str(i), (f"t{i}",), int(i % 4 == 0), group="a" if i else "alone") for i in range(40)]
    fold_N = folds_of(examples, 5, seed=0)
    others = [one.label for one, fold in zip(examples, fold_N, strict=True) if fold != fold_N[0]]
    for smoothing in (0.0, 1.0):
        model = make_bias_model({"name": "groups", "smoothing": smoothing, "calibrated": False})
        assert math.exp(model.log_p(examples, 2, ("text",), seed=0)[0, 1]) == pytest.approx(sum(others) / len(others))


def test_a_product_is_naive_bayes() -> None:
    """Two cues, independent given the label: of their posteriors the product is the posterior of both."""
    share, likely = [0.5, 0.3, 0.2], [[0.7, 0.2, 0.4], [0.1, 0.6, 0.5]]
    examples = [Example(str(i), (f"t{i}",), label) for label, n in enumerate((50, 30, 20)) for i in range(n)]
    posteriors = []
    for cue in likely:
        joint = [p * q for p, q in zip(share, cue, strict=True)]
        posteriors.append(np.tile([one / math.fsum(joint) for one in joint], (100, 1)))
    model = make_bias_model({"name": "product", "of": ["groups", PARTIAL], "calibrated": False})
    joint = [p * q * r for p, q, r in zip(share, *likely, strict=True)]
    expected = [one / math.fsum(joint) for one in joint]
    found = np.exp(model.joined([np.log(one) for one in posteriors], examples))
    np.testing.assert_allclose(found[3], expected, rtol=1e-9)


def test_the_digest_is_of_what_a_model_reads_beside_the_texts() -> None:
    examples, groups = shortcut(20), make_bias_model("groups")
    moved = [replace(examples[0], group="elsewhere"), *examples[1:]]
    assert groups.digest(examples, 3, 0) == groups.digest(list(examples), 3, 0)
    for block in ("groups", {"name": "product", "of": ["groups", PARTIAL]}):
        model = make_bias_model(block)
        assert model.digest(examples, 3, 0) != model.digest(moved, 3, 0)
    assert make_bias_model("lexical").digest(examples, 3, 0) == make_bias_model("lexical").digest(moved, 3, 0)
    said = [replace(examples[0], bias_p=(0.2, 0.3, 0.5)), *examples[1:]]
    column = make_bias_model({"name": "column", **ROWS["column"]})
    assert column.digest(examples, 3, 0) != column.digest(said, 3, 0)


def test_labels_that_no_other_fold_has() -> None:
    examples = [*shortcut(60), *(Example(f"r{i}", ("p", "the one rare text"), 3) for i in range(4))]
    for block in ("lexical", {"name": "product", "of": ["groups", PARTIAL]}):
        assert make_bias_model(block).unseen(examples, 4, seed=0) == [3]
    assert make_bias_model({"name": "column", **ROWS["column"]}).unseen(examples, 4, seed=0) == []
    more = [*shortcut(60), *(Example(f"r{i}", (f"p{i}", f"rare text {i}"), 3) for i in range(20))]
    assert make_bias_model("groups").unseen(more, 4, seed=0) == []


# What it reads of texts.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man!! sleeps.", ["a", "man", "!!", "sleeps", "."]),
        ("don't", ["do", "n't"]),
        ("Isn’t it a man's", ["is", "n’t", "it", "a", "man", "'", "s"]),
        ("n't n'tx", ["n't", "n", "'", "tx"]),
        ("猫が好き ok", ["猫", "が", "好", "き", "ok"]),
        ("हिन्दी बोली।", ["हिन्दी", "बोली", "।"]),
        ("ไม่ดี 50%", ["ไ", "ม่", "ดี", "50", "%"]),
        ("שָׁלוֹם, مَرْحَبًا", ["שָׁלוֹם", ",", "مَرْحَبًا"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("Cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("q\u0308 isn't ❤️!", ["q\u0308", "is", "n't", "❤️!"]),
        ("  ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert list(sequences(words[:3], 2)) == [*words[:3], *(f"{a} {b}" for a, b in pairwise(words[:3]))]


def test_relations_of_two_fields() -> None:
    pairs = [("The cat sat.", "cat sat"), ("a b c d", "d a"), ("a b", "c isn't"), ("...", "x")]
    words_FN = [[words_of(pair[place]) for pair in pairs] for place in (0, 1)]
    values_NR, names = relations(words_FN, ("p", "h"))
    found = {name: values_NR[:, place].tolist() for place, name in enumerate(names)}
    assert found["share of h that is in p"] == [1.0, 1.0, 0.0, 0.0]
    assert found["share of p that is in h"] == [pytest.approx(2 / 3), 0.5, 0.0, 0.0]
    assert found["all words of h are in p"] == [1, 1, 0, 0]
    assert found["h stands in p as it is"] == [1, 0, 0, 0]
    assert found["negation in h"] == [0, 0, 1, 0]
    assert found["p longer than h"] == pytest.approx([math.log(5 / 3), math.log(5 / 3), math.log(3 / 4), 0.0])
    assert np.isfinite(values_NR).all()


# Calibration, and what cannot be learned with.


def loss_at(temperature: float, log_p: list[list[float]], labels: list[int]) -> float:
    """Mean negative log-likelihood, in plain loops."""
    total = 0.0
    for row, label in zip(log_p, labels, strict=True):
        total -= row[label] / temperature - math.log(math.fsum(math.exp(one / temperature) for one in row))
    return total / len(labels)


@pytest.mark.parametrize("too_sure", [0.4, 1.0, 3.0])
def test_the_temperature_has_the_least_loss(too_sure: float) -> None:
    draw = np.random.default_rng(7)
    logits_NC = draw.normal(size=(2000, 3))
    p_NC = np.exp(log_softmax(logits_NC))
    labels = [int(draw.choice(3, p=p)) for p in p_NC]
    log_p_NC = log_softmax(too_sure * logits_NC)
    found = temperature(log_p_NC, np.array(labels))
    assert found == pytest.approx(too_sure, rel=0.15)
    best = loss_at(found, log_p_NC.tolist(), labels)
    assert all(best <= loss_at(found * factor, log_p_NC.tolist(), labels) for factor in (0.8, 0.97, 1.03, 1.25))
    before, after = (
        calibration_error(np.exp(one).max(axis=1), one.argmax(axis=1) == labels)
        for one in (log_softmax(4 * log_p_NC), calibrate(4 * log_p_NC, np.array(labels)))
    )
    assert after < 0.02 < before


def test_a_temperature_is_bounded() -> None:
    sure, label_N = np.log(np.array([[0.9, 0.1]] * 20)), np.zeros(20, dtype=int)
    assert temperature(sure, label_N) == pytest.approx(0.05)
    assert temperature(sure, 1 - label_N) == pytest.approx(20)
    assert temperature(sure[:0], label_N[:0]) == 1.0


def said(own: list[float], label: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of two labels, `own` of the right one, which is `label` for half of the examples."""
    label_N = np.array([label if i % 2 else 1 - label for i in range(len(own))])
    p_NC = np.array([[p, 1 - p] if right == 0 else [1 - p, p] for p, right in zip(own, label_N, strict=True)])
    return np.log(p_NC), label_N


@pytest.mark.parametrize(
    ("own", "stops", "message"),
    [
        ([0.999] * 40, True, "right on all 40 examples with p of 0.99 or more: nothing is left"),
        ([0.5] * 40, True, r"says the same of every example, \[0.5, 0.5\]"),
        ([0.5, 0.503, 0.499, 0.501] * 10, True, "says the same of every example"),
        ([0.995] * 399 + [0.3], False, "is right with p > 0.99 on 99.8 % of the examples"),
        ([0.4, 0.3] * 20, False, "knows no more than the most frequent label"),
        ([0.9, 0.9, 0.1] * 200, False, "is not calibrated: confidence and accuracy are 2. points apart"),
    ],
)
def test_degenerate_bias_models(own: list[float], stops: bool, message: str) -> None:
    found = faults(*said(own))
    assert [fault.stops for fault in found if re.search(message, fault.text)] == [stops]


def test_a_good_bias_model_has_no_fault() -> None:
    draw = np.random.default_rng(0)
    p_N = draw.uniform(0.5, 0.97, size=600)
    assert faults(*said([float(p if draw.random() < p else 1 - p) for p in p_N])) == []


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


@pytest.mark.parametrize("name", ["lexical", "artifacts", "embedding", "partial_input", "groups"])
def test_near_copies_share_a_fold_and_answers_of_before_are_not_theirs(name: str) -> None:
    """Texts that differ in a space or a capital are one; data without such texts have the folds and the digest they
    had, so that kept answers are not asked anew.
    """
    own = [Example(str(at), (f"The text {at}", f"of {at}"), at % 2, group="a") for at in range(60)]
    near = [replace(one, texts=(f" {one.texts[0].upper()}", f"{one.texts[1]} ")) for one in own]
    fields = ("text", "other")
    model = BIAS_MODELS[name](**({"fields": ["other"]} if name == "partial_input" else {}))
    fold_N = model.fold_N([*own, *near], 3, fields)
    assert fold_N[:60].tolist() == fold_N[60:].tolist()
    before = even_folds([one.texts for one in own], model.folds, 3)
    assert model.fold_N(own, 3, fields).tolist() == before.tolist()
    told = model if name != "partial_input" else (model, "folds by what it sees")
    told = (model, ["a"] * 60) if name == "groups" else told
    assert model.digest(own, 2, 3) == digest_of(repr(told), own, 2, 3)
    both = (model, ["a"] * 120) if name == "groups" else told
    assert model.digest([*own, *near], 2, 3) != digest_of(repr(both), [*own, *near], 2, 3)
