"""The audit finds what was put in, and nothing where labels are dealt out at random; its sums are plain loops'."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import yaml

from debias.audit.audit import Audit, audit, block_as_yaml, copies_in
from debias.audit.comparing import only_in_one
from debias.audit.fields import kruskal, kruskal_of, related
from debias.audit.reading import Dataset
from debias.audit.sureness import adjusted, better_than, wilson
from debias.audit.table import tables_of
from debias.audit.words import log_odds_of, table_of, words_found
from debias.config.data import DataConfig
from debias.data import Example, generate, plant
from debias.errors import InputError

pytest.importorskip("sklearn")
LABELS = ("entailment", "neutral", "contradiction")


def pairs(count: int = 600, seed: int = 0, kind: str = "none") -> Dataset:
    """Pairs of made-up sentences with a shortcut of a kind: `hypothesis` words, `overlap`, `length`, or none."""
    draw, examples = np.random.default_rng(seed), []
    for index in range(count):
        label = int(draw.integers(3))
        premise, other = ([f"w{n}" for n in draw.integers(60, size=8)] for _ in range(2))
        told = label if draw.random() < 0.8 else int(draw.integers(3))
        hypothesis = premise[:6] if kind == "overlap" and told == 0 else other[:6]
        if kind == "hypothesis":
            hypothesis = [*hypothesis, ("surely", "maybe", "hardly")[told]]
        if kind == "length" and told == 1:
            hypothesis = hypothesis + other
        examples.append(Example(str(index), (" ".join(premise), " ".join(hypothesis)), label))
    return Dataset(kind, ("premise", "hypothesis"), "label", LABELS, examples)


def found(one: Audit) -> dict[str, Any]:
    return {
        "alone": [row.field for row in one.alone if row.found],
        "words": [(word.field, word.text, word.label) for word in one.words],
        "relations": [row.name for row in one.relations if row.found],
        "block": one.bias_model,
    }


NOTHING = {"alone": [], "words": [], "relations": [], "block": None}


def test_words_of_one_field_are_found_and_their_correction_is_suggested() -> None:
    one, _ = audit(pairs(kind="hypothesis"))
    assert found(one) == {
        "alone": ["hypothesis"],
        "words": found(one)["words"],
        "relations": [],
        "block": {"name": "artifacts"},
    }
    assert {word for word in found(one)["words"] if " " not in word[1]} == {
        ("hypothesis", "surely", "entailment"),
        ("hypothesis", "maybe", "neutral"),
        ("hypothesis", "hardly", "contradiction"),
    }
    assert one.alone[1].accuracy > 0.8 > one.alone[0].accuracy
    assert one.easy.sure > 0.6
    assert "hypothesis alone is right on" in one.verdict or "Hypothesis alone is right on" in one.verdict


def test_a_planted_cue_is_the_surest_word() -> None:
    """The project's own planted bias, at its published prevalence and strength, on generated pairs."""
    data = DataConfig.model_validate({"train": "generated", "labels": list(LABELS), "planted_bias": {}})
    assert data.planted_bias is not None
    rows = [row for row in generate("train", 900, 0)]
    examples = [Example(r["id"], (r["premise"], r["hypothesis"]), LABELS.index(r["label"])) for r in rows]
    planted = plant(examples, data.planted_bias, data)
    one, _ = audit(Dataset("planted", data.text_fields, "label", LABELS, planted))
    assert (one.words[0].field, one.words[0].text, one.words[0].label) == ("premise", "!!", "neutral")
    assert one.words[0].count == round(0.33 * 900)
    assert one.words[0].share == pytest.approx(0.9, abs=0.01)
    assert one.strong[0].name == "“!!” in premise"
    assert one.strong[0].explains > 0.3
    assert {row.kind for row in one.strong} > {"word"}  # what the pairs share is the task there, and is left alone
    assert one.bias_model == {"name": "artifacts"}
    assert one.dealt_out == ("!!",)
    assert one.as_dict()["settings"].endswith('\n# and below data, for signs: swap: {tokens: ["!!"]}')
    told = (
        "not corrected for by the settings, which take words alone: what texts share, their lengths and negations may"
    )
    assert told in one.verdict  # and neither `relations` nor `tau`, which stand in no line below it
    assert "tau" not in one.verdict


@pytest.mark.parametrize(
    ("kind", "relation"),
    [("overlap", "share of hypothesis that is in premise"), ("length", "length of hypothesis")],
)
def test_relations_are_found(kind: str, relation: str) -> None:
    one, _ = audit(pairs(kind=kind))
    assert relation in found(one)["relations"]
    assert one.bias_model == {"name": "artifacts", "relations": [kind]}
    assert block_as_yaml(one.bias_model).endswith("loss: {name: logit_correction, prior: labels, tau: 0.5}")
    assert next(row for row in one.relations if row.name == relation).effect > 0.05


@pytest.mark.parametrize(
    ("block", "tau"),
    [
        ({"name": "artifacts", "allowed": ["good"]}, ""),
        ({"name": "artifacts", "relations": ["overlap"]}, ", tau: 0.5"),
        ({"name": "partial_input", "fields": ["hypothesis"]}, ", tau: 0.5"),
        ({"name": "lexical"}, ", tau: 0.5"),
    ],
)
def test_half_of_the_correction_is_suggested_for_all_but_single_words(block: dict[str, Any], tau: str) -> None:
    assert block_as_yaml(block).endswith(f"\nloss: {{name: logit_correction, prior: labels{tau}}}")


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is(seed: int) -> None:
    one, _ = audit(pairs(300, seed))
    assert found(one) == NOTHING
    assert one.verdict.startswith("No shortcut was found: nothing is to be corrected.")
    assert block_as_yaml(one.bias_model) == "# nothing is to be corrected"


@pytest.mark.slow
def test_false_alarms_over_a_hundred_shuffles() -> None:
    """Labels of data full of shortcuts, shuffled: at most five alarms in a hundred, of any of hundreds of tests."""
    data, alarms = pairs(240, kind="hypothesis"), 0
    labels = [example.label for example in data.examples]
    for seed in range(100):
        dealt = np.random.default_rng(seed).permutation(labels)
        mixed = [replace(one, label=int(label)) for one, label in zip(data.examples, dealt, strict=True)]
        alarms += found(audit(replace(data, examples=mixed), seed=seed)[0]) != NOTHING
    assert alarms <= 5


def test_a_test_set_is_judged_by_what_the_data_offers() -> None:
    data, same = pairs(kind="hypothesis"), pairs(200, seed=9, kind="hypothesis")
    turned = replace(same, examples=[replace(one, label=(one.label + 1) % 3) for one in same.examples])
    easy, hard = (audit(data, other)[0].test for other in (same, turned))
    assert easy is not None
    assert hard is not None
    assert easy.accuracy > 0.8
    assert hard.accuracy < 0.2
    assert easy.interval[0] < easy.accuracy < easy.interval[1]
    overlapping, _ = audit(data, replace(data, examples=data.examples[:50]))
    assert overlapping.test is not None
    assert overlapping.test.shared == 50


def test_what_holds_in_one_and_not_in_the_other() -> None:
    both = [audit(pairs(kind=kind)) for kind in ("hypothesis", "overlap")]
    told = {(one.found_in, one.what) for one in only_in_one(both)}
    assert ("hypothesis", "hypothesis alone") in told
    assert ("hypothesis", "“maybe” in hypothesis: neutral") in told
    assert ("overlap", "share of hypothesis that is in premise") in told
    maybe = next(one for one in only_in_one(both) if "“maybe”" in one.what)
    assert (maybe.not_in, maybe.there) == ("overlap", "hardly occurs")
    assert only_in_one(both[:1]) == []


def test_less_of_the_same_data_lacks_nothing() -> None:
    """In a twelfth of the data a word that is not sure any more is no word that does not hold."""
    whole = pairs(960, kind="hypothesis")
    both = [audit(whole), audit(replace(whole, name="part", examples=whole.examples[:80]))]
    assert [one.what for one in only_in_one(both)] == []


def test_one_field_is_told_to_be_perhaps_the_task_itself() -> None:
    examples = [Example(str(i), (f"{('good', 'bad')[i % 2]} film n{i % 30}",), i % 2) for i in range(200)]
    one, _ = audit(Dataset("films", ("text",), "label", ("positive", "negative"), examples))
    assert [(word.text, word.label) for word in one.words] == [("bad", "negative"), ("good", "positive")]
    assert one.bias_model == {"name": "artifacts", "allowed": ["bad", "good"]}
    assert "may be the task itself" in one.verdict


def test_many_weak_words_of_one_field_are_not_corrected() -> None:
    """As in sentiment: forty words, each of a fortieth of the texts and right four times in five."""
    draw, examples = np.random.default_rng(0), []
    for index in range(4000):
        word, label = int(draw.integers(40)), int(draw.integers(2))
        told = word % 2 if draw.random() < 0.6 else label
        examples.append(Example(str(index), (f"a w{word} film n{draw.integers(30)}",), told))
    one, _ = audit(Dataset("films", ("text",), "label", ("positive", "negative"), examples))
    assert len(one.words) > 20
    assert one.strong == ()
    assert one.bias_model is None
    assert one.verdict.endswith("nothing is to be corrected.")


def test_copies() -> None:
    texts = [("a", 0), ("A ", 0), ("b", 1), ("b", 0), (" b", 1), ("c", 1)]
    copies = copies_in([Example(str(i), (text,), label) for i, (text, label) in enumerate(texts)])
    assert (copies.repeated, copies.disputed) == (3, 3)


def test_too_few_examples() -> None:
    with pytest.raises(InputError, match="19 examples, expected 20 or more"):
        audit(pairs(19))


def test_odd_data_ends_well() -> None:
    """No word twice, an empty relation, more than one script, a label that is rare."""
    odd = [Example(str(i), (f"\u732b{chr(0x4E00 + i)}", "..."), 0 if i else 1) for i in range(40)]
    one, _ = audit(Dataset("odd", ("premise", "hypothesis"), "label", LABELS, odd))
    assert one.labels == {"entailment": 39, "neutral": 1, "contradiction": 0}
    assert found(one) == NOTHING


# The sums, against plain loops.


def test_the_exact_test_counts_all_deals() -> None:
    """Fisher's one-sided p, as the share of all ways to deal the labels out that look as strange."""
    label_N = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    has_N = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
    table = table_of(has_N[:, None], ["cue"], label_N, np.zeros(10, dtype=np.int64), "f", ["x", "y"])
    with_word = [i for i in range(10) if has_N[i]]
    seen = sum(label_N[i] == 0 for i in with_word)
    deals = list(combinations(range(10), int((label_N == 0).sum())))
    as_strange = sum(len(set(deal) & set(with_word)) >= seen for deal in deals)
    assert table.p_VC[0, 0] == pytest.approx(float(Fraction(as_strange, len(deals))), rel=1e-12)
    assert table.count_VC.tolist() == [[seen, len(with_word) - seen]]


def test_a_word_of_one_fold_alone_is_not_stable() -> None:
    label_N, fold_N = np.arange(400) % 2, np.arange(400) // 80
    everywhere = label_N * (np.arange(400) % 4 == 1)
    in_one = label_N * (fold_N == 2)
    table = table_of(np.stack([everywhere, in_one], axis=1), ["all", "one"], label_N, fold_N, "f", ["x", "y"])
    assert table.stable_VC.tolist() == [[False, True], [False, False]]
    words, looked_at = words_found([table])
    assert ([word.text for word in words], looked_at) == (["all"], 4)


def test_log_odds_with_a_prior() -> None:
    """Monroe et al., eq. 16 and 22, written out: the prior is a tenth of the data, in it the word is even."""
    with_label, count, size, everything = 40.0, 50.0, 300.0, 900.0
    a, a0 = 0.1 * count, 0.1 * everything
    mine, rest = with_label + a, count - with_label + a
    expected = math.log(mine / (size + a0 - mine)) - math.log(rest / (everything - size + a0 - rest))
    found, z = log_odds_of(with_label, count, size, everything)
    assert found == pytest.approx(expected)
    assert z == pytest.approx(expected / math.sqrt(1 / mine + 1 / rest))
    assert abs(log_odds_of(2, 6, 300, 900)[0]) < 0.02


def test_kruskal_is_that_of_scipy() -> None:
    from scipy.stats import kruskal as reference

    draw = np.random.default_rng(1)
    label_N = draw.integers(3, size=90)
    for value_N in (draw.normal(size=90) + label_N, draw.integers(4, size=90).astype(float)):
        expected = reference(*(value_N[label_N == c] for c in range(3)))
        assert kruskal(value_N, label_N, 3) == pytest.approx(expected.statistic)
        (row,) = related(value_N[:, None], ["x"], label_N, LABELS)
        assert row.p == pytest.approx(min(1.0, 3 * expected.pvalue), rel=1e-6)
    assert kruskal(np.ones(90), label_N, 3) == 0.0


def test_a_flag_is_tested_exactly() -> None:
    """Twice the number of labels times the least share of deals with so many of a label, with the flag or without."""
    label_N, flag_N = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=float)
    least = Fraction(1, math.comb(8, 3))  # all three with the flag are of label 0
    (row,) = related(flag_N[:, None], ["flag"], label_N, LABELS)
    assert row.p == pytest.approx(float(3 * 2 * 3 * least))


def test_holm_over_families() -> None:
    p = [0.01, 0.001, 0.04, 0.2]
    order, running, expected = sorted(range(4), key=lambda i: p[i]), 0.0, [0.0] * 4
    for rank, i in enumerate(order):
        running = max(running, p[i] * (4 - rank))
        expected[i] = min(1.0, 3 * running)
    assert adjusted(np.array(p)).tolist() == pytest.approx(expected)
    assert adjusted(np.zeros(0)).shape == (0,)


def test_intervals_and_paired_wins() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    first, second = np.array([1, 1, 1, 1, 0, 1], dtype=bool), np.array([0, 0, 1, 0, 1, 1], dtype=bool)
    assert better_than(first, second) == pytest.approx(sum(math.comb(4, k) for k in (3, 4)) / 2**4)
    assert better_than(first, first) == 1.0


def single(count: int, seed: int, kind: str = "none") -> Dataset:
    """Texts of made-up words with labels dealt out at random; `cue`: the last word goes with the label."""
    draw, examples = np.random.default_rng(seed), []
    for index in range(count):
        label = int(draw.integers(2))
        words = [f"w{n}" for n in draw.integers(60, size=draw.integers(5, 11))]
        if kind == "cue" and draw.random() < 0.9:
            words.append(("surely", "hardly")[label])
        examples.append(Example(str(index), (" ".join(words),), label))
    return Dataset(kind, ("text",), "label", ("no", "yes"), examples)


@pytest.mark.parametrize("seed", range(3))
def test_copies_make_no_finding_surer(seed: int) -> None:
    """100 texts with labels dealt out, ten times over, with a space more or in capitals: as little is found as in the
    100 alone.
    """
    data = single(100, seed)
    near = [replace(one, texts=(f" {one.texts[0].upper()}",)) for one in data.examples] if seed else data.examples
    copied, counted = audit(replace(data, examples=[*data.examples, *near] * 5))
    nothing, alone_once = audit(data)
    assert found(copied) == found(nothing) == NOTHING
    assert not copied.strong
    assert copied.copies.repeated == 900
    (many,), (once,) = counted.tables, alone_once.tables
    p_once = dict(zip(once.texts, once.p_VC, strict=True))
    same = [(text, at) for at, text in enumerate(many.texts) if text in p_once]
    assert len(same) > 50
    for text, at in same:
        assert many.p_VC[at] == pytest.approx(p_once[text], rel=1e-12)
    assert [row.p for row in copied.relations] == pytest.approx([row.p for row in nothing.relations], rel=1e-12)
    assert copied.alone[0].p == pytest.approx(nothing.alone[0].p, rel=1e-12)
    width, once_width = (one.alone[0].interval[1] - one.alone[0].interval[0] for one in (copied, nothing))
    assert width == pytest.approx(once_width, rel=0.1)  # of other classifiers, as wide as of 100 rows


def beside(hypotheses: int, premises: int, seed: int, kind: str = "none") -> Dataset:
    """Each hypothesis beside so many premises, with a label that was dealt out to it, or that its words tell."""
    draw, examples = np.random.default_rng(seed), []
    for _ in range(hypotheses):
        label = int(draw.integers(3))
        words = [f"w{n}" for n in draw.integers(30, size=6)]
        words += [("surely", "maybe", "hardly")[label]] if kind == "hypothesis" else []
        for _ in range(premises):
            premise = " ".join(f"w{n}" for n in draw.integers(30, size=8))
            same = label if draw.random() < 0.9 else int(draw.integers(3))
            examples.append(Example(str(len(examples)), (premise, " ".join(words)), same))
    return Dataset(kind, ("premise", "hypothesis"), "label", LABELS, examples)


def test_one_hypothesis_beside_many_premises_is_little_more_than_one() -> None:
    """No two rows are the same, yet labels hang on few hypotheses. One audit in 20 may give an alarm."""
    few = [audit(beside(30, 16, seed))[0] for seed in range(5)]
    assert sum(found(one) != NOTHING for one in few) <= 1
    assert few[0].copies.repeated == 0
    there, _ = audit(beside(60, 8, 0, "hypothesis"))
    assert {"surely", "maybe", "hardly"} <= {word.text for word in there.words if word.field == "hypothesis"}
    assert found(there)["alone"] == ["hypothesis"]


def test_a_field_of_few_texts_may_give_labels_away() -> None:
    """Two instructions are no copies of rows, and each is in the fit that judges it: what they tell is a shortcut."""
    draw, examples = np.random.default_rng(0), []
    for index in range(400):
        told, label = index % 2, int(draw.integers(2))
        label = told if draw.random() < 0.5 else label
        text = " ".join(f"w{n}" for n in draw.integers(60, size=8))
        examples.append(Example(str(index), (("judge it kindly", "judge it harshly")[told], text), label))
    one, _ = audit(Dataset("told", ("instruction", "text"), "label", ("good", "bad"), examples))
    assert found(one)["alone"] == ["instruction"]
    assert {("kindly", "good"), ("harshly", "bad")} <= {(word.text, word.label) for word in one.words}


def test_what_is_there_is_found_among_copies_and_its_share_is_of_all_rows() -> None:
    data = single(100, 0, "cue")
    copied, _ = audit(
        replace(data, examples=[*data.examples, *(one for one in data.examples if one.label), *data.examples])
    )
    assert {"surely", "hardly"} <= {word.text for word in copied.words}
    (word,) = [word for word in copied.words if word.text == "hardly"]
    assert word.count == 3 * sum("hardly" in one.texts[0] for one in data.examples)
    assert copied.strong


def test_a_label_that_was_copied_more_often_is_no_finding() -> None:
    """Oversampling: the rare label's rows ten times, which then look alike. One audit in 20 may give an alarm."""
    alarms = 0
    for seed in range(12):
        draw, data = np.random.default_rng(seed), single(220, seed)
        rare = [replace(one, label=int(draw.random() < 0.1)) for one in data.examples]
        one, _ = audit(replace(data, examples=[one for one in rare for _ in range(9 * one.label + 1)]))
        alarms += found(one) != NOTHING
    assert alarms <= 2


def test_the_statistic_of_rows_that_count_is_that_of_as_many_rows() -> None:
    draw = np.random.default_rng(0)
    value_N, label_N, times_N = draw.integers(6, size=40) / 2, draw.integers(3, size=40), draw.integers(1, 5, size=40)
    wanted = kruskal(np.repeat(value_N, times_N), np.repeat(label_N, times_N), 4)
    assert kruskal_of(value_N, label_N, 4, times_N.astype(float)) == pytest.approx(wanted, rel=1e-12)
    assert kruskal_of(np.full(40, 0.1), label_N, 4, draw.random(40)) == 0.0


@pytest.mark.parametrize("kind", ["overlap", "length"])
def test_what_is_said_of_relations_goes_with_the_settings(kind: str) -> None:
    one, _ = audit(pairs(kind=kind))
    assert "name in `relations` only what a label should not hang on. Half of it (`tau: 0.5`)" in one.verdict


def test_a_label_that_training_would_refuse_is_told() -> None:
    data = pairs(kind="hypothesis")
    rare = [*data.examples, Example("rare", ("w1 w2 w3 w4", "w5 w6"), 3)]
    one, _ = audit(replace(data, labels=(*LABELS, "rare"), examples=rare))
    (line,) = one.about_labels
    assert line.startswith(
        "label: 'rare', in 1 of 601 rows, lies in one fold alone: training with the bias model below"
    )
    assert audit(data)[0].about_labels == ()


def test_of_few_texts_it_is_said_that_nothing_can_be_found() -> None:
    """A column of letters that is taken for text, and is the label: no shortcut would be a lie."""
    data = Dataset(
        "few", ("text",), "label", ("no", "yes"), [Example(str(i), ("AB"[i % 2],), i % 2) for i in range(300)]
    )
    told = audit(data)[0].verdict
    assert told.startswith("text: 2 different texts in 300 rows, each of which is judged by what never saw it")
    assert "is right on 100.0 % of these rows (the most frequent label: 50.0 %)" in told
    assert "No shortcut" not in told


def test_signs_that_take_no_place_are_named() -> None:
    data = single(400, 0)
    cued = [replace(one, texts=(one.texts[0] + " ." + "\u200b" * one.label,)) for one in data.examples]
    one, _ = audit(replace(data, examples=cued))
    assert one.dealt_out == (".\u200b", ".")[: len(one.dealt_out)]
    block = block_as_yaml(one.bias_model, one.dealt_out)
    assert r'swap: {tokens: [".\u200b"' in block
    assert yaml.safe_load(block.split("signs: ")[1])["swap"]["tokens"][0] == ".\u200b"
    assert ".U+200B" in tables_of(one)[1].plain


def test_with_very_many_labels_it_is_said_that_no_word_reaches_the_share() -> None:
    """A cue of its own in every row of each of 50 labels: called the task, it would be the opposite of what is so."""
    plain = single(600, 0).examples
    cued = [replace(one, texts=(f"{one.texts[0]} zork{at % 50}q",), label=at % 50) for at, one in enumerate(plain)]
    one, _ = audit(Dataset("many", ("text",), "label", tuple(f"c{at:02}" for at in range(50)), cued))
    assert one.strong == ()
    h = -(0.02 * math.log(0.02) + 0.98 * math.log(0.98)) / math.log(50)
    assert f"With so many labels a word of one label alone explains {100 * h:.1f} % of them at most" in one.verdict
    assert "task itself" not in one.verdict
    assert "so many labels" not in audit(single(400, 0, "cue"))[0].verdict
