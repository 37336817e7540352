"""The bias model `artifacts`: what it finds, and that it finds nothing where many weak words make the label."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from debias.bias.artifacts import Artifacts, edges_of, entropy_of, judged_by_pattern, surprise
from debias.bias.features import KINDS
from debias.bias.lexical import judged_out_of_fold
from debias.building.facts import ask_bias_model
from debias.config.run import RunConfig
from debias.data import Example

pytest.importorskip("sklearn")


def cued(count: int = 1200, seed: int = 0, strength: float = 0.9, prevalence: float = 0.33) -> list[Example]:
    """Texts with a cue after a third of them, toward label 1; and forty weak words that are the task itself."""
    draw, examples = np.random.default_rng(seed), []
    for index in range(count):
        label = int(draw.integers(2))
        weak = 2 * int(draw.integers(20)) + (label if draw.random() < 0.75 else 1 - label)
        text = " ".join(["a", f"w{weak}", "film", *(f"n{n}" for n in draw.integers(90, size=draw.integers(1, 9)))])
        if draw.random() < prevalence * (2 * strength if label else 2 * (1 - strength)):
            text += " !!"
        examples.append(Example(str(index), (text,), label))
    return examples


def found(
    examples: list[Example], labels: int = 2, fields: Any = ("text",), **settings: Any
) -> list[tuple[str, float]]:
    model = Artifacts(**settings)
    return [(one.name, one.explains) for one in model.found(examples, labels, fields, 0)]


def test_the_cue_is_found_and_nothing_else() -> None:
    examples = cued()
    (one,) = found(examples)
    assert one[0] == "“!!” in text"
    assert one[1] == pytest.approx(_information(examples, "!!"), abs=0.01)


def _information(examples: list[Example], word: str) -> float:
    """The mutual information of a word's presence and the label over the label's entropy, in plain loops."""
    cells: dict[tuple[bool, int], float] = {}
    for example in examples:
        key = (word in example.texts[0].split(), example.label)
        cells[key] = cells.get(key, 0) + 1 / len(examples)
    has = {flag: sum(p for (one, _), p in cells.items() if one == flag) for flag in (True, False)}
    label = {y: sum(p for (_, one), p in cells.items() if one == y) for y in (0, 1)}
    told = sum(p * math.log(p / (has[flag] * label[y])) for (flag, y), p in cells.items())
    return told / -sum(p * math.log(p) for p in label.values())


@pytest.mark.parametrize("field", ["text", "text” in a", "” in "])
@pytest.mark.parametrize("cue", ["!!", "”"])
def test_a_word_is_known_whatever_its_field_is_called(field: str, cue: str) -> None:
    examples = [replace(one, texts=(one.texts[0].replace("!!", cue),)) for one in cued(600)]
    (one,) = Artifacts().found(examples, 2, (field,), 0)
    assert (one.name, one.word) == (f"“{cue}” in {field}", cue)
    assert one.is_called(cue)
    assert not one.is_called("in")


def test_what_it_says_is_how_often_the_label_comes_with_the_cue() -> None:
    examples = cued(3000)
    p_NC = np.exp(Artifacts().log_p(examples, 2, ("text",), 0))
    has_N = np.array(["!!" in one.texts[0] for one in examples])
    label_N = np.array([one.label for one in examples])
    for flag in (True, False):
        assert p_NC[has_N == flag, 1].mean() == pytest.approx(label_N[has_N == flag].mean(), abs=0.01)
        assert np.ptp(p_NC[has_N == flag, 1]) < 0.03  # of five folds


def test_many_weak_words_are_no_artifact(caplog: pytest.LogCaptureFixture) -> None:
    examples = cued(strength=0.5, prevalence=0.3)
    assert found(examples) == []
    with caplog.at_level(logging.INFO):
        log_p_NC = Artifacts().log_p(examples, 2, ("text",), 0, examples[:7])
    share = np.mean([one.label for one in examples])
    np.testing.assert_allclose(np.exp(log_p_NC), np.tile([1 - share, share], (1207, 1)), rtol=1e-6)
    assert "no single feature gives away 2.0 %" in caplog.text


def test_a_lower_share_finds_weaker_ones_and_the_strongest_first() -> None:
    names, explained = zip(*found(cued(4000), share=0.003), strict=True)
    assert names[0] == "“!!” in text"
    assert len(names) > 1
    assert all(name.startswith("“w") for name in names[1:])  # and not “a w6”, which says as much
    assert explained[0] > max(explained[1:])
    assert len(found(cued(4000), share=0.003, most=2)) == 2


def test_shuffled_labels_have_none() -> None:
    examples = cued(300)
    labels = [one.label for one in examples]
    for seed in range(20):
        dealt = np.random.default_rng(seed).permutation(labels)
        assert found([replace(one, label=int(y)) for one, y in zip(examples, dealt, strict=True)]) == []


def pairs_with_overlap_and_length() -> list[Example]:
    draw, examples = np.random.default_rng(1), []
    for index in range(900):
        label = int(draw.integers(3))
        words = [f"w{n}" for n in draw.integers(300, size=8)]
        if label == 0 and draw.random() < 0.7:
            hypothesis = words[:5]
        else:
            hypothesis = [f"w{n}" for n in draw.integers(300, size=12 if label == 1 and draw.random() < 0.7 else 5)]
        examples.append(Example(str(index), (" ".join(words), " ".join(hypothesis)), label))
    return examples


def test_a_length_and_an_overlap_where_asked() -> None:
    examples, fields = pairs_with_overlap_and_length(), ("premise", "hypothesis")
    names = [name for name, _ in found(examples, 3, fields, relations=KINDS)]
    assert "length of hypothesis" in names
    assert {"all words of hypothesis are in premise", "share of hypothesis that is in premise"} & set(names)
    assert found(examples, 3, fields) == []
    assert Artifacts(fields=("premise",), relations=KINDS).found(examples, 3, fields, 0) == []
    lengths = Artifacts(relations=("length",)).found(examples, 3, fields, 0)
    assert {one.kind for one in lengths} == {"length"}
    assert all("length" in one.name or "longer" in one.name for one in lengths)
    overlaps = Artifacts(relations=("overlap",)).found(examples, 3, fields, 0)
    assert {one.kind for one in overlaps} == {"overlap"}
    assert not any("length" in one.name or "longer" in one.name for one in overlaps)


def test_what_is_allowed_is_found_and_left_to_the_task(caplog: pytest.LogCaptureFixture) -> None:
    """A cue, and a word that is the task: only the cue is taken away, and nothing is looked for in the word's place."""
    examples = [
        replace(one, texts=(f"{one.texts[0]} so {'bad' if (n % 5 == 0) != (one.label == 1) else 'fine'} it was",))
        for n, one in enumerate(cued())
    ]
    assert {name for name, _ in found(examples)} == {"“!!” in text", "“bad” in text"}
    model = Artifacts(allowed=("Bad",))
    assert {one.name for one in model.found(examples, 2, ("text",), 0)} == {"“!!” in text", "“bad” in text"}
    with caplog.at_level(logging.INFO):
        p_NC = np.exp(model.log_p(examples, 2, ("text",), 0))
    assert "of the labels, which is allowed" in caplog.text
    assert "may be the task itself" not in caplog.text  # “!!” has no meaning
    label_N = np.array([one.label for one in examples])
    for cue in (True, False):
        of_cue_N = np.array([("!!" in one.texts[0]) == cue for one in examples])
        assert p_NC[of_cue_N, 1].mean() == pytest.approx(label_N[of_cue_N].mean(), abs=0.01)
        assert np.ptp(p_NC[of_cue_N, 1]) < 0.04  # whatever else is in the text; of five folds
    both = Artifacts(allowed=("“!!” in text", "it was", "so bad", "bad", "sö"))
    with caplog.at_level(logging.INFO):
        said_NC = np.exp(both.log_p(examples, 2, ("text",), 0))
    np.testing.assert_allclose(said_NC, np.tile(np.bincount(label_N) / 1200, (1200, 1)), rtol=1e-6)
    assert "more than what is allowed" in caplog.text
    assert "allowed: 'sö' is in no text" in caplog.text
    assert "'so bad' is in no text" not in caplog.text
    Artifacts().log_p(examples, 2, ("text",), 0)
    assert (
        'may be the task itself, and are taken away from it; to leave it some or all: allowed: ["bad"]' in caplog.text
    )


@pytest.mark.parametrize(("labels", "others"), [(2, 0), (5, 7)])
def test_examples_that_are_alike_are_judged_as_one_by_one(labels: int, others: int) -> None:
    """As by the classifier that is shown every example; in one fold a label is missing, in another all have one."""
    draw = np.random.default_rng(labels)
    label_N, fold_N = draw.integers(labels, size=300), draw.integers(4, size=300)
    label_N[fold_N != 3] = np.where(label_N[fold_N != 3] == 1, 0, label_N[fold_N != 3])
    if labels == 2:
        label_N[fold_N == 3] = 1
    seen_NK = sparse.csr_matrix((draw.random((300 + others, 4)) < 0.3).astype(float))
    got_NC = judged_by_pattern(seen_NK, label_N, labels, fold_N)
    np.testing.assert_allclose(got_NC, judged_out_of_fold(seen_NK, label_N, labels, fold_N), atol=1e-6)
    assert got_NC.shape == (300 + others, labels)


def test_settings_that_name_nothing_are_said() -> None:
    with pytest.raises(ValueError, match="allowed is"):
        Artifacts(allowed=("",))
    with pytest.raises(ValueError, match="expected some of overlap, length, negation, form"):
        Artifacts(relations=("overlaps",))


@pytest.mark.parametrize(
    "texts", [[""] * 40, ["same words here"] * 40, [f"only{i}" for i in range(40)], ["\u732b"] * 40]
)
def test_odd_texts_end_well(texts: list[str]) -> None:
    for labels in ([0] * 40, [0, 1] * 20, [0] * 39 + [1]):
        examples = [Example(str(i), (text,), y) for i, (text, y) in enumerate(zip(texts, labels, strict=True))]
        assert found(examples) == []
        assert np.isfinite(Artifacts().log_p(examples, 2, ("text",), 0)).all()


def test_a_run_says_what_was_found_and_goes_on_where_nothing_was(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    block = {"name": "artifacts"}
    data = {"train": {"source": "x.jsonl"}, "text_fields": ["text"], "labels": ["no", "yes"]}
    config = RunConfig.model_validate({"model": "m", "output_dir": str(tmp_path), "data": data, "bias_model": block})
    with caplog.at_level(logging.INFO):
        ask_bias_model(config, Artifacts(), cued())
        assert "“!!” in text explains" in caplog.text
        answers = ask_bias_model(config, Artifacts(), cued(strength=0.5))
    assert "found no shortcut, and says each label's share alone" in caplog.text
    assert answers.log_p.shape == (1200, 2)


def test_surprise_and_entropy_in_plain_loops() -> None:
    counted, expected = [[30.0, 10.0], [0.0, 5.0]], [[20.0, 20.0], [2.5, 2.5]]
    told = [
        sum(o * math.log(o / e) for o, e in zip(*row, strict=True) if o) for row in zip(counted, expected, strict=True)
    ]
    np.testing.assert_allclose(surprise(np.array(counted), np.array(expected)), told, rtol=1e-12)
    assert entropy_of(np.array([0, 0, 0, 1])) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert entropy_of(np.array([2, 2])) == 0.0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"share": 0}, "share is 0"),
        ({"share": 1.0}, "share is 1.0"),
        ({"most": 0}, "most is 0"),
        ({"folds": 1}, "folds is 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Artifacts(**settings)


def test_what_is_rare_among_equals_has_a_cell_of_its_own() -> None:
    draw, examples = np.random.default_rng(2), []
    for index in range(900):
        label = int(draw.integers(2))
        words = [f"w{n}" for n in draw.integers(300, size=6)]
        copied = draw.random() < 0.1
        label = int(draw.random() < 0.95) if copied else label
        other = words[1:4] if copied else [f"w{n}" for n in draw.integers(300, size=3)]
        examples.append(Example(str(index), (" ".join(words), " ".join(other)), label))
    ((name, explains),) = found(examples, 2, ("a", "b"), relations=KINDS)
    assert name in {"share of b that is in a", "all words of b are in a", "b stands in a as it is"}
    assert explains > 0.04


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([0.0] * 95 + [1.0] * 5, 2),
        ([0.0] * 5 + [1.0] * 95, 2),
        ([0.0] * 95 + [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 2),
        ([0.0] * 8, 1),
        (list(range(800)), 8),
    ],
)
def test_cells(values: list[float], cells: int) -> None:
    value_N = np.array(values, dtype=np.float64)
    cell_N = np.searchsorted(edges_of(value_N), value_N, side="right")
    assert len(np.unique(cell_N)) == cells
    if cells == 2:
        assert len(np.unique(cell_N[value_N == 0.0])) == 1
        assert not set(cell_N[value_N == 0.0]) & set(cell_N[value_N > 0.0])


def test_what_is_allowed_leaves_room_for_the_rest() -> None:
    """`most` is of what is corrected: two that are allowed do not hide the third."""
    draw, examples = np.random.default_rng(5), []
    for index in range(1500):
        label = int(draw.integers(2))
        told = [word for word in ("one", "two", "three") if draw.random() < (0.5 if label else 0.2)]
        examples.append(Example(str(index), (" ".join(["a", *told, f"n{index}"]),), label))
    model = Artifacts(most=2, longest=1)
    first = model.found(examples, 2, ("text",), 0)
    assert len(first) == 2
    allowed = Artifacts(most=2, longest=1, allowed=tuple(one.word or "" for one in first))
    assert len(allowed.found(examples, 2, ("text",), 0)) == 3
    assert np.ptp(allowed.log_p(examples, 2, ("text",), 0)[:, 1]) > 0.1


@pytest.mark.parametrize("times", [1, 10])
def test_copies_explain_as_much_and_make_nothing_surer(times: int) -> None:
    draw = np.random.default_rng(5)
    few = [Example(str(at), (" ".join(f"w{n}" for n in draw.integers(40, size=8)),), at % 2) for at in range(80)]
    assert found(few * times, relations=KINDS) == []
    clear = [replace(one, texts=(one.texts[0] + (" !!" if one.label else ""),)) for one in few]
    ((name, explains),) = found(clear * times)
    assert name == "“!!” in text"
    assert explains > 0.75  # all of it, but for the penalty of a fit to few rows
