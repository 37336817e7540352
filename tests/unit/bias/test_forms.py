"""How texts are written: each measure on texts that have it and texts that have not, and what is found of it."""

from dataclasses import replace

import numpy as np
import pytest

from debias.audit.audit import audit, block_as_yaml
from debias.audit.comparing import only_in_one
from debias.audit.reading import Dataset
from debias.bias import BIAS_MODELS
from debias.bias.artifacts import Artifacts
from debias.bias.forms import MEASURES, forms
from debias.data import Example

pytest.importorskip("sklearn")
WITH = {
    "{} begins with a capital": ("A film", "Émile", "(The end)", "Ωμέγα"),
    "a word in capitals in {}": ("so BAD it is", "NASA", "в СССР"),
    "{} ends with a sign": ("good.", "good !! ", "so 😀", "gut”"),
    "space before or after {}": (" good", "good\n", "good\u00a0"),
    "line breaks in {}": ("so\ngood", "a\n\nb"),
    "spaces in a row, or of another kind, in {}": ("so  good", "so\tgood", "so\u00a0good"),
    "digits in {}": ("7 days", "m2", "٣ أيام"),
    "typeset quotes, dashes or dots in {}": ("“good”", "it’s", "well…", "so—good"),
    "other characters than ASCII in {}": ("café", "好", "so 😀"),
    "links or markup in {}": (
        "see http://a.b",
        "www.a.b",
        "so<br />good",
        "a &amp; b",
        "&#39;so&#39;",
        "[a](/b)",
        "<a href=x>b</a>",
    ),
}
PLAIN = (
    "a film",
    "so good",
    "i am it",
    "",
    "I am < you > me",
    "a & b",
    "one [two] three",
    "U.S. I",
)
WITHOUT = {name: PLAIN for name in WITH} | {
    "{} begins with a capital": ("a Film", "7 Days", "", "好", "“ so"),
    "{} ends with a sign": ("good", "", "m2 ", "café"),
    "line breaks in {}": ("good\n", "so good", "\n"),
    "links or markup in {}": (*PLAIN, "AT&T; R&D; x", "if a<b: x>3", "f[0](x)"),
    "other characters than ASCII in {}": ("it’s “good” … so", "a", ""),
}


@pytest.mark.parametrize("name", WITH)
def test_what_has_it_and_what_has_not(name):
    assert [text for text in WITH[name] if not MEASURES[name](text)] == []
    assert [text for text in WITHOUT[name] if MEASURES[name](text)] == []


def test_capitals_are_a_share_of_the_letters_after_the_first():
    share = MEASURES["share of capitals in {}"]
    texts = {"A film": 0.0, "a FiLm": 0.5, "ABC": 1.0, "A": 0.0, "": 0.0, "7 A b": 0.5, "好": 0.0, "“Ab”": 0.0}
    assert {text: share(text) for text in texts} == texts
    assert set(MEASURES) == {"share of capitals in {}", *WITH}


def test_what_all_texts_have_alike_is_left_out():
    values_NR, names = forms([["a.", "b.", "C."], ["x", "y", "z"]], ["one", "other"])
    assert names == ["one begins with a capital"]
    assert values_NR.tolist() == [[0.0], [0.0], [1.0]]
    assert forms([["a", "b"]], ["one"])[0].shape == (2, 0)
    assert forms([["", ""]], ["one"])[1] == []


WRITE = {
    "text begins with a capital": str.capitalize,
    "a word in capitals in text": lambda text: text.replace(" w1", " W1 XY", 1) + " OK",
    "text ends with a sign": lambda text: text + ".",
    "space before or after text": lambda text: text + " ",
    "line breaks in text": lambda text: text.replace(" ", "\n", 1),
    "spaces in a row, or of another kind, in text": lambda text: text.replace(" ", "  ", 1),
    "links or markup in text": lambda text: f"<b>{text}</b>",
}


def rows(write=None, count=500, seed=0, share=0.4):
    """Texts by chance with labels by chance; of a share some are written so where the label is 1, nine times in ten."""
    draw, examples = np.random.default_rng(seed), []
    for index in range(count):
        label, text = int(draw.integers(2)), " ".join(f"w{n}" for n in draw.integers(40, size=8))
        if write is not None and draw.random() < share and (draw.random() < 0.9) == (label == 1):
            text = write(text)
        examples.append(Example(str(index), (text,), label))
    return Dataset("d", ("text",), "label", ("no", "yes"), examples)


@pytest.mark.parametrize("name", WRITE)
def test_each_is_found_and_its_correction_is_suggested(name):
    one, _ = audit(rows(WRITE[name]))
    assert name in [form.name for form in one.forms if form.found]
    measure = next(form for form in one.forms if form.name == name)
    assert measure.means["yes"] > 5 * measure.means["no"] > 0
    if name in ("text begins with a capital", "space before or after text", "line breaks in text"):
        assert [(strong.name, strong.kind) for strong in one.strong] == [(name, "form")]
        assert one.bias_model == {"name": "artifacts", "relations": ["form"]}
        assert block_as_yaml(one.bias_model).endswith("loss: {name: logit_correction, prior: labels}")
        assert "can be made alike in all texts before anything is trained" in one.verdict
        assert "may be the task itself" not in one.verdict
        told = one.as_dict()["forms"]
        assert [row["found"] for row in told] == [form.found for form in one.forms]


def test_nothing_is_found_where_labels_are_dealt_out():
    for seed in range(3):
        data = rows(str.capitalize, seed=seed)
        labels = np.random.default_rng(seed).permutation([example.label for example in data.examples])
        dealt = [replace(one, label=int(label)) for one, label in zip(data.examples, labels, strict=True)]
        one, _ = audit(replace(data, examples=dealt))
        assert [form.name for form in one.forms] == ["text begins with a capital"]
        assert not one.forms[0].found
        assert one.strong == ()
        assert one.verdict == "No shortcut was found: nothing is to be corrected."


def test_a_bias_model_that_is_asked_for_it_sees_it_and_one_that_is_not_does_not():
    data = rows(str.capitalize, count=1000)
    model = BIAS_MODELS["artifacts"]
    assert model is Artifacts
    large = np.array([example.texts[0][0].isupper() for example in data.examples])
    said = {}
    for relations in ((), ("form",)):
        p_NC = np.exp(Artifacts(relations=relations).log_p(data.examples, 2, ["text"], 0))
        said[relations] = p_NC[large, 1].mean(), p_NC[~large, 1].mean()
    assert said[()][0] == pytest.approx(said[()][1], abs=0.02)
    assert said["form",][0] > 0.8
    assert said["form",][1] < 0.5
    left = Artifacts(relations=("form",), allowed=("text begins with a capital",))
    p_NC = np.exp(left.log_p(data.examples, 2, ["text"], 0))
    assert np.ptp(p_NC[:, 1]) < 1e-9
    with pytest.raises(ValueError, match="expected some of overlap, length, negation, form"):
        Artifacts(relations=("forms",))


def test_of_two_data_sets_the_one_that_has_it_is_named():
    one, other = audit(rows(str.capitalize)), audit(replace(rows(seed=1), name="e"))
    assert [(found.what, found.found_in) for found in only_in_one([one, other])] == [
        ("text begins with a capital", "d")
    ]
