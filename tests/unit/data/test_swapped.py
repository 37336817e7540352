"""Cue swap: which tokens are flagged, and what is left of them."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias.building.examples import training_examples
from debias.config.data import DataConfig, Swap
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.swapped import flagged, swap
from debias.errors import InputError

FIELDS = ["text", "other"]


def settings(**swap_settings: Any) -> DataConfig:
    values = {"train": "my.jsonl", "text_fields": FIELDS, "labels": ["a", "b", "c"], "swap": swap_settings}
    return DataConfig.model_validate(values)


def cued(count: int = 600, seed: int = 0) -> list[Example]:
    """Label 1 has "??" at the end of the second text nine times in ten, "Well" begins the first text of label 2."""
    draw = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        label = int(draw.integers(3))
        end = " ??" if draw.random() < (0.9 if label == 1 else 0.05) else ""
        start = "Well " if draw.random() < (0.8 if label == 2 else 0.1) else ""
        honest = ["red", "green", "blue"][label if draw.random() < 0.3 else int(draw.integers(3))]
        examples.append(Example(str(i), (f"{start}thing {honest} no {i}.", f"that it is{end}"), label))
    return examples


def has(example: Example, field: int, token: str) -> bool:
    return token in example.texts[field].split()


def odds_by_hand(examples: list[Example], field: int, token: str, out: np.ndarray) -> float:
    odds = []
    for label in range(3):
        own = [e for i, e in enumerate(examples) if e.label == label and not out[i]]
        have = sum(token in [word.strip(".").lower() for word in e.texts[field].split()] for e in own)
        odds.append(np.log((have + 1) / (len(own) - have + 1)))
    return float(max(odds) - min(odds))


def test_what_is_flagged_is_what_the_counts_say() -> None:
    examples, folds = cued(), 4
    found = flagged(examples, Swap(), 3)
    assert [one.cue for one in found] == [(0, "well"), (1, "??")]
    fold_N = np.random.default_rng(0).permutation(len(examples)) % folds
    for one in found:
        want = min(odds_by_hand(examples, *one.cue, fold_N == fold) for fold in range(folds))
        assert one.spread == pytest.approx(want, rel=1e-12)
    assert found[1].examples == sum(has(example, 1, "??") for example in examples)
    looser = {one.cue for one in flagged(examples, Swap(spread=0.5), 3)}
    assert looser > {(0, "well"), (1, "??")}  # an honest word is a matter of the threshold


def test_a_word_that_is_rare_is_not_flagged_by_default() -> None:
    examples = [*cued(), *[Example(f"r{i}", ("nobody is here", "that it is"), 0) for i in range(12)]]
    assert (0, "nobody") not in {one.cue for one in flagged(examples, Swap(spread=1.0), 3)}
    assert (0, "nobody") in {one.cue for one in flagged(examples, Swap(min_share=0.01, spread=1.0), 3)}


def test_swapped_cues_say_nothing_and_all_else_stays() -> None:
    examples = cued(3000)
    done = swap(examples, settings())
    for field, token in ((0, "Well"), (1, "??")):
        assert sum(has(e, field, token) for e in done) == sum(has(e, field, token) for e in examples)
        share = sum(has(e, field, token) for e in done) / len(done)
        for label in range(3):
            own = [has(e, field, token) for e in done if e.label == label]
            assert abs(np.mean(own) - share) < 4 * (share * (1 - share) / len(own)) ** 0.5
    for before, after in zip(examples, done, strict=True):
        stripped = [(e.texts[0].removeprefix("Well "), e.texts[1].removesuffix(" ??")) for e in (before, after)]
        assert stripped[0] == stripped[1]
        assert (before.id, before.label) == (after.id, after.label)
    assert swap(examples, settings()) == done
    assert swap(examples, settings(seed=1)) != done


def test_patterns_go_over_as_a_whole() -> None:
    """Tokens of one donor stay together: what they say together, beside the label, stays in the data."""
    examples = cued(900)
    pairs = [
        Counter((has(e, 0, "Well"), has(e, 1, "??")) for e in data) for data in (examples, swap(examples, settings()))
    ]
    assert pairs[0] == pairs[1]


def test_half_of_the_examples() -> None:
    examples = cued(2000)
    done = swap(examples, settings(probability=0.5))
    cue = [np.mean([has(e, 1, "??") for e in data if e.label == 1]) for data in (examples, done)]
    assert 0.5 < cue[1] < cue[0] - 0.1


@pytest.mark.parametrize(
    ("text", "donor", "want"),
    [
        ("?? is it", "no cue", "is it"),
        ("is ?? it ??", "no cue", "is it"),
        ("??", "no cue", ""),
        ("??", "?? then", "??"),
        ("is it", "?? then", "?? is it"),
        ("is it.", "then ??", "is it. ??"),
        ("is it", "then ?? and ??", "is it ?? ??"),
        ("is it????", "no", "is it????"),  # another token
    ],
)
def test_one_text(text: str, donor: str, want: str) -> None:
    from debias.data.swapped import _as_in

    assert _as_in((text,), (donor,), {(0, "??")}) == (want,)


@pytest.mark.parametrize("tokens", [(), ("!!",)])
def test_no_text_is_left_empty(tokens: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Texts that are the sign alone, all of one label: emptied, emptiness would be the label."""
    examples = [
        Example(str(i), (f"film {i}" + (" !!" if i % 2 else ""), "!!" if i % 8 == 1 else f"thing {i}"), i % 2)
        for i in range(400)
    ]
    done = swap(examples, settings(tokens=list(tokens), spread=1.0))
    assert all(text.strip() for one in done for text in one.texts)
    whole = [i for i in range(400) if i % 8 == 1]
    assert [done[i].texts for i in whole] == [examples[i].texts for i in whole]
    others = [i for i in range(400) if i % 8 != 1]
    assert sum("!!" in done[i].texts[0] for i in others) == sum("!!" in examples[i].texts[0] for i in others)
    assert 0.2 < np.mean(["!!" in done[i].texts[0] for i in range(0, 400, 2)]) < 0.6  # label 0 had none
    assert "data.swap: 50 of 400 examples have a text that is nothing but such tokens" in caplog.text


def test_data_without_such_texts_are_dealt_out_as_ever() -> None:
    """Kept studies: the draws of a seed are what they were before texts could be left out."""
    examples = cued(200)
    draw = np.random.default_rng(3)
    drawn = np.flatnonzero(draw.random(200) < 0.5)
    donor_N = np.arange(200)
    donor_N[drawn] = draw.permutation(drawn)
    done = swap(examples, settings(seed=3, probability=0.5))
    for field, token in ((0, "Well"), (1, "??")):
        assert [has(one, field, token) for one in done] == [has(examples[at], field, token) for at in donor_N]


@pytest.mark.parametrize("tokens", [(), (".",)])
def test_what_stands_inside_words_stays_and_is_counted(
    tokens: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Ends of sentences change places; numbers, abbreviations and links are what they were."""
    caplog.set_level(logging.INFO, "debias")
    inside = ["3.50", "U.S. Army", "t.co/x", "none"]
    examples = [
        Example(str(at), (f"{inside[at // 2 % 4]} it is {at}", "x" + " ." * (at % 2)), at % 2) for at in range(400)
    ]
    examples = [Example(one.id, (one.texts[0] + one.texts[1][1:], "x"), one.label) for one in examples]
    done = swap(examples, settings(tokens=list(tokens)))
    assert [one.texts[0].removesuffix(" .") for one in done] == [one.texts[0].removesuffix(" .") for one in examples]
    assert sum(has(one, 0, ".") for one in done) == 200
    assert 0.3 < np.mean([has(one, 0, ".") for one in done if not one.label]) < 0.7
    assert "text has '.', spread of log-odds" in caplog.text
    assert "in 200 examples" in caplog.text
    assert "data.swap: '.' stands 400 times inside a word, a number or a link (3.50, U.S., t.co/x)" in caplog.text


def test_a_sign_that_stands_inside_words_alone_is_not_swapped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    examples = [Example(str(at), (f"well-known {at}", " "), at % 2) for at in range(40)]
    assert list(swap(examples, settings(tokens=["-", "!"]))) == examples
    assert "data.swap.tokens: '-' stands in no text but inside words" in caplog.messages
    assert "data.swap.tokens: '!' stands in no text" in caplog.messages
    assert "nothing but such tokens" not in caplog.text  # a text of spaces


def test_nothing_to_swap_is_said(caplog: pytest.LogCaptureFixture) -> None:
    examples = [Example(str(i), (f"thing {i}", "x"), i % 3) for i in range(90)]
    caplog.set_level(logging.WARNING, "debias")
    assert swap(examples, settings()) == examples
    assert "data.swap: no token gives labels away (spread above 2): nothing is swapped" in caplog.text


def test_named_tokens_are_dealt_out_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "debias")
    examples = [*cued(900), *[Example(f"r{i}", ("Nobody is here", "that it is"), 0) for i in range(9)]]
    named = settings(tokens=["NOBODY", "zebra", "??"])
    assert named.swap is not None
    assert [one.cue for one in flagged(examples, named.swap, 3)] == [(0, "nobody"), (1, "??")]
    done = swap(examples, named)
    assert sum(has(e, 0, "Nobody") for e in done) == 9
    assert sum(has(e, 0, "Nobody") for e in done[-9:]) < 9  # they were all of label 0
    assert [has(e, 0, "Well") for e in done] == [has(e, 0, "Well") for e in examples]  # flagged, were none named
    assert "data.swap.tokens: 'zebra' stands in no text" in caplog.text
    assert "'nobody'" in caplog.text
    assert "nothing is swapped" not in caplog.text


@pytest.mark.parametrize(
    ("token", "parts"), [("no one", "no, one"), ("don't", "don, ', t"), ("", "none"), (" !!", "!!")]
)
def test_what_is_named_is_one_token(token: str, parts: str) -> None:
    with pytest.raises(ValueError, match=rf"one token each, got {token!r}, whose tokens are {parts}"):
        settings(tokens=[token])


def test_a_run_reads_swapped_data_and_knows_no_groups_of_the_cue_that_was(tmp_path: Path) -> None:
    planted = {"cue": "!!", "prevalence": 0.35, "strength": 0.85}
    data = {"train": {"source": "generated", "limit": 300}, "planted_bias": planted}
    config = RunConfig.model_validate({"model": "m", "data": {**data, "swap": {}}, "output_dir": str(tmp_path / "x")})
    plain = training_examples(config.model_copy(update={"data": DataConfig.model_validate(data)}), None)
    done = training_examples(config, None)
    shares = [np.mean([e.label == 1 for e in examples if e.texts[0].endswith("!!")]) for examples in (plain, done)]
    assert shares[0] > 0.8
    assert 0.2 < shares[1] < 0.5
    assert all(example.group is not None for example in plain)
    assert all(example.group is None for example in done)


def test_pictures_have_no_words() -> None:
    data = DataConfig.model_validate({"train": "train-images-idx3-ubyte", "labels": list(range(10)), "swap": {}})
    with pytest.raises(InputError, match=r"data\.swap: deals out words, and the data is pictures"):
        swap([], data)


def test_words_with_marks_stay_whole_and_accents_are_one_however_they_are_written() -> None:
    """Signs of a Hindi text change places and no vowel sign goes with them; "e" with its accent is one token or two."""
    examples = []
    for at in range(40):
        stem, ending, accent = ("घर", "पानी")[at % 3 % 2], ("ा !", "ी।")[at % 2], ("é", "e\u0301")[at // 2 % 2]
        examples.append(Example(str(at), (f"{stem} बोल{ending} caf{accent}",), at % 2))
    data = DataConfig(train="x.csv", text_fields=("text",), labels=("a", "b"), swap=Swap(tokens=("।", "CAFE\u0301")))
    found = flagged(examples, data.swap, 2)
    assert [(one.cue[1], one.examples) for one in found] == [("caf\u00e9", 40), ("।", 20)]
    for before, after in zip(examples, swap(examples, data), strict=True):
        words = before.texts[0].split()
        assert after.texts[0].split()[:2] == [words[0], words[1].rstrip("।")]
    written = Counter(word for one in swap(examples, data) for word in one.texts[0].split() if word.startswith("caf"))
    assert written == {"caf\u00e9": 20, "cafe\u0301": 20}
