"""The generator: right labels, few artefacts, disjoint splits, the same rows everywhere."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debias.data.generator import MAX_SIZE, SPLITS, generate
from debias.data.grammar import LABELS, NUMERALS, PHENOMENA, PLAIN, SQUARE
from debias.data.lexicon import AWAY, HOME, Lexicon
from debias.errors import InputError

PIPELINE = Path(__file__).resolve().parents[3] / "pipeline"


@pytest.fixture(scope="module")
def train():
    return generate("train", 6000, seed=0)


@pytest.fixture(scope="module")
def test_rows():
    return generate("test", 1800, seed=0)


def pair(row):
    return row["premise"], row["hypothesis"]


def tokens(text):
    return re.findall(r"\w+", text.lower())


def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# --- the contract of generate -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(split=st.sampled_from(SPLITS), size=st.integers(1, 90), seed=st.integers(0, 2**40))
def test_any_size_is_balanced_distinct_and_a_prefix_of_a_larger_one(split, size, seed):
    rows = generate(split, size, seed)
    assert len(rows) == size
    counts = Counter(row["label"] for row in rows)
    assert max(counts.values()) - min(counts[label] for label in LABELS) <= 1
    assert len({pair(row) for row in rows}) == size
    assert len({row["id"] for row in rows}) == size
    assert rows == generate(split, size + 7, seed)[:size]


def test_rows_are_sentences_with_the_promised_keys(train):
    for row in train:
        assert set(row) == {"id", "premise", "hypothesis", "label", "group"}
        for text in pair(row):
            assert re.fullmatch(r"[A-Z][a-z' ,;]*[a-z]\.", text), text
            assert "  " not in text
        assert row["premise"] != row["hypothesis"]


def test_every_phenomenon_has_every_label_equally_often(train):
    counts = Counter((row["group"], row["label"]) for row in train)
    assert set(counts) == set(itertools.product(PHENOMENA, LABELS))
    assert set(counts.values()) == {6000 // 30}


def test_splits_are_disjoint_whatever_the_seeds(train):
    seen = {pair(row) for row in train}
    for split, seed in (("validation", 0), ("test", 3), ("ood", 0)):
        other = {pair(row) for row in generate(split, 1500, seed)}
        assert not seen & other
        seen |= other


def test_seeds_give_different_rows():
    first, second = ({pair(row) for row in generate("train", 300, seed)} for seed in (0, 1))
    assert len(first & second) < 30


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_at_least_twenty_thousand_distinct_pairs(split):
    assert len({pair(row) for row in generate(split, 20_000, seed=1)}) == 20_000


def test_same_rows_in_another_process_with_another_hash_seed():
    code = (
        "import hashlib, json; from debias.data.generator import generate;"
        "rows = generate('train', 200, 5) + generate('ood', 200, 5);"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(PIPELINE)}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == digest(generate("train", 200, 5) + generate("ood", 200, 5))


@pytest.mark.parametrize(
    ("split", "size", "says"),
    [
        ("dev", 10, "train, validation, test, ood"),
        ("train", 0, f"1 to {MAX_SIZE}"),
        ("ood", MAX_SIZE + 1, f"1 to {MAX_SIZE}"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(split, size, says):
    with pytest.raises(InputError, match=says):
        generate(split, size, seed=0)


# --- out of distribution ----------------------------------------------------------------------------------------------


def content_words(lexicon: Lexicon):
    flat = [*lexicon.people, *lexicon.activities, *lexicon.places, *lexicon.groups, *lexicon.belongings]
    flat += [*lexicon.colours, *lexicon.gifts, *lexicon.goods, *lexicon.hours, *lexicon.companions]
    flat += [word for adjectives in lexicon.scales for word in adjectives] + [act[0] for act in lexicon.acts]
    flat += [word for nouns, poles in lexicon.states.items() for word in (*nouns, *poles)]
    flat += [deed[0].split()[0] for deed in lexicon.deeds]
    for top, classes in lexicon.taxonomy.items():
        flat += [top, *classes, *itertools.chain.from_iterable(classes.values())]
    return set(flat)


def test_ood_has_other_words_and_other_frames():
    assert not content_words(HOME) & content_words(AWAY)
    assert set(HOME.frames) == set(AWAY.frames)
    assert not {frame for frames in HOME.frames.values() for frame in frames} & {
        frame for frames in AWAY.frames.values() for frame in frames
    }


# --- labels are right: oracles that read the sentences and know nothing of the grammar --------------------------------


def rows_of(rows, group):
    return [row for row in rows if row["group"] == group]


def label_over_worlds(verdicts):
    """The label of a hypothesis from its truth in each world in which the premise holds."""
    verdicts = set(verdicts)
    assert verdicts
    return {frozenset({True}): "entailment", frozenset({False}): "contradiction"}.get(frozenset(verdicts), "neutral")


def test_number_labels_agree_with_counting(train):
    holds = {"more than": int.__gt__, "fewer than": int.__lt__, "exactly": int.__eq__}
    for row in rows_of(train, "number"):
        who, word, bound, noun = re.fullmatch(r"The (\w+) bought ([a-z ]+) (\w+) (\w+)\.", row["hypothesis"]).groups()
        buyer = re.match(r"The (\w+)", row["premise"])[1]
        stated = dict((n, c) for c, n in re.findall(r"(?:exactly (\w+)|some) (\w+)", row["premise"]))
        worlds = range(14)
        if buyer == who and noun in stated:
            worlds = [NUMERALS.index(stated[noun])] if stated[noun] else range(2, 14)
        assert label_over_worlds(holds[word](n, NUMERALS.index(bound)) for n in worlds) == row["label"], row


def test_comparison_labels_agree_with_orderings(train):
    converse = dict(HOME.scales)
    patterns = (
        r"compared with the (?P<b>\w+), the (?P<a>\w+) is (?P<more>\w+)",
        r"the (?P<a>\w+) is much (?P<more>\w+) than the (?P<b>\w+)",
    )

    def ordered(a, more, b):
        return (a, more, b) if more in converse else (b, next(k for k, v in converse.items() if v == more), a)

    for row in rows_of(train, "comparison"):
        found = next(m for p in patterns if (m := re.search(p, row["premise"].lower())))
        stated = ordered(found["a"], found["more"], found["b"])
        a, no, more, b = re.fullmatch(r"The (\w+) is (not )?(\w+) than the (\w+)\.", row["hypothesis"]).groups()
        asked = ordered(a, more, b)
        truth = {stated: True, stated[::-1]: False}.get(asked)
        expected = "neutral" if truth is None else label_over_worlds([truth != bool(no)])
        assert expected == row["label"], row


def test_location_labels_agree_with_one_place_at_a_time(train):
    for row in rows_of(train, "location"):
        premise = row["premise"].lower()
        there = dict(re.findall(r"the (\w+) is \w+ in the (\w+)", premise))
        away = dict(re.findall(r"the (\w+) is \w+, but not in the (\w+)", premise))
        found = re.fullmatch(r"The (\w+) is (not )?(?:where the (\w+) is|in the (\w+))\.", row["hypothesis"])
        if found is None:
            place, no, who = re.fullmatch(r"The (\w+) is (not )?where the (\w+) is\.", row["hypothesis"]).groups()
        else:
            first, no, person, place = found.groups()
            who, place = (person, first) if person else (first, place)
        worlds = [there[who]] if who in there else [p for p in HOME.places if p != away.get(who)]
        assert label_over_worlds((p == place) != bool(no) for p in worlds) == row["label"], row


def leaves_below(name):
    """The most specific classes that `name` covers."""
    return {
        leaf
        for top, classes in HOME.taxonomy.items()
        for middle, leaves in classes.items()
        for leaf in leaves
        if name in (top, middle, leaf)
    }


VALUE = r"is (?P<no>not )?(?:an? )?(?P<v>[a-z]+(?: (?:car|tree))?)"
CLAIMS = (
    r"the (?P<noun>\w+) (?:of|for) the (?P<owner>\w+) " + VALUE,
    r"the (?P<owner>\w+) (?:has only|gets) one (?P<noun>\w+), which " + VALUE,
)


@pytest.mark.parametrize("group", ["colour", "state", "taxonomy"])
def test_labels_of_one_valued_things_agree_with_every_value(train, group):
    for row in rows_of(train, group):
        found = re.fullmatch(r"The (\w+)'s (\w+) is (not )?(?:an? )?([a-z ]+)\.", row["hypothesis"])
        owner, noun, no, value = found.groups()
        if group == "taxonomy":
            extension, worlds = leaves_below, leaves_below("animal") | leaves_below("plant") | leaves_below("vehicle")
        else:
            poles = next((poles for nouns, poles in HOME.states.items() if noun in nouns), ())
            worlds = set(HOME.colours if group == "colour" else poles)
            extension = lambda name: {name}  # noqa: E731
        claims = [m for pattern in CLAIMS for m in re.finditer(pattern, row["premise"].lower())]
        assert claims, row
        for claim in claims:
            if (claim["owner"], claim["noun"]) == (owner, noun):
                stated = extension(claim["v"])
                worlds = worlds - stated if claim["no"] else worlds & stated
        assert label_over_worlds((world in extension(value)) != bool(no) for world in worlds) == row["label"], row


def test_voice_labels_agree_with_who_did_what(train):
    past = {form: form for _, form in HOME.acts} | dict(HOME.acts)
    patterns = (
        r"the (?P<a>\w+) (?P<no>did not )?(?P<verb>%s) the (?P<b>\w+)",
        r"the (?P<b>\w+) was (?P<no>not )?(?P<verb>%s) by the (?P<a>\w+)",
    )

    def act(text):
        found = next(m for p in patterns if (m := re.search(p % "|".join(past), text.lower())))
        return (found["a"], past[found["verb"]], found["b"]), not found["no"]

    for row in rows_of(train, "voice"):
        (stated, is_so), (asked, is_asked) = act(row["premise"]), act(row["hypothesis"])
        decided = "entailment" if is_so == is_asked else "contradiction"
        assert (decided if stated == asked else "neutral") == row["label"], row


def test_attitude_labels_agree_with_what_happened(train):
    base = {past: base for base, past in HOME.deeds}
    happened = {"managed": True, "remembered": True, "failed": False, "refused": False, "was": None, "planned": None}
    frame = rf"the (\w+) ({'|'.join(happened)}|hoped)(?: asked)? to ([a-z ]+)"
    for row in rows_of(train, "attitude"):
        clause = re.search(frame, row["premise"].lower())
        who, verb, deed = clause.groups()
        outcome = True if " did so" in deed else False if " but never did" in deed else happened.get(verb)
        deed = re.split(r" and did so| but never did| one day", deed)[0]
        asked, no, done = re.fullmatch(r"The (\w+) (did not )?([a-z ]+)\.", row["hypothesis"]).groups()
        about = (who, deed) == (asked, base.get(done, done))
        truth = outcome if about else None
        expected = "neutral" if truth is None else label_over_worlds([truth != bool(no)])
        assert expected == row["label"], row


def test_square_of_opposition_agrees_with_every_group_of_one_to_three():
    meaning = {"all": all, "some": any, "none": lambda g: not any(g), "notall": lambda g: not all(g)}
    groups = [g for size in (1, 2, 3) for g in itertools.product((True, False), repeat=size)]
    for stated, asked in itertools.product(meaning, repeat=2):
        worlds = [meaning[asked](group) for group in groups if meaning[stated](group)]
        assert SQUARE[stated].get(asked, "neutral") == label_over_worlds(worlds), (stated, asked)


@pytest.mark.parametrize("lexicon", [HOME, AWAY], ids=["home", "away"])
def test_taxonomy_is_a_tree(lexicon):
    names = [n for top, c in lexicon.taxonomy.items() for mid, leaves in c.items() for n in (mid, *leaves)]
    assert len(names) == len(set(names))
    assert not set(names) & set(lexicon.taxonomy)


# --- no unintended artefact -------------------------------------------------------------------------------------------


def bag_of_words_accuracy(field, train, held_out, **settings):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    words = text.CountVectorizer(token_pattern=r"\w+", **settings)
    features = words.fit_transform([row[field] for row in train])
    model = linear.LogisticRegression(max_iter=200, C=0.1).fit(features, [row["label"] for row in train])
    return model.score(words.transform([row[field] for row in held_out]), [row["label"] for row in held_out])


def test_the_hypothesis_alone_says_nothing(train, test_rows):
    assert bag_of_words_accuracy("hypothesis", train, test_rows, ngram_range=(1, 2)) < 0.38


def test_the_hypothesis_alone_says_nothing_out_of_distribution():
    rows = generate("ood", 6000, seed=0)
    assert bag_of_words_accuracy("hypothesis", rows[:4500], rows[4500:], ngram_range=(1, 2)) < 0.39


def test_the_premise_alone_says_little(train, test_rows):
    assert bag_of_words_accuracy("premise", train, test_rows) < 0.45


def overlap(row):
    premise, hypothesis = set(tokens(row["premise"])), set(tokens(row["hypothesis"]))
    return len(premise & hypothesis) / len(hypothesis)


def test_length_and_overlap_say_little(train, test_rows):
    linear = pytest.importorskip("sklearn.linear_model")

    def features(row):
        premise, hypothesis = len(tokens(row["premise"])), len(tokens(row["hypothesis"]))
        return [premise / 10, hypothesis / 10, (premise - hypothesis) / 10, overlap(row)]

    def accuracy(columns):
        model = linear.LogisticRegression(max_iter=300)
        model.fit([[features(row)[c] for c in columns] for row in train], [row["label"] for row in train])
        inputs = [[features(row)[c] for c in columns] for row in test_rows]
        return model.score(inputs, [row["label"] for row in test_rows])

    assert accuracy([0, 1, 2]) < 0.40
    assert accuracy([3]) < 0.50


def test_every_label_occurs_with_high_and_low_overlap(train):
    ranked = sorted(train, key=overlap)
    for part in (ranked[: len(ranked) // 3], ranked[-len(ranked) // 3 :]):
        shares = Counter(row["label"] for row in part)
        assert min(shares[label] for label in LABELS) > 0.15 * len(part), shares


@pytest.mark.parametrize("field", ["premise", "hypothesis"])
def test_negation_is_equally_frequent_under_each_label(train, field):
    negated = Counter(row["label"] for row in train if {"not", "none", "no", "never"} & set(tokens(row[field])))
    shares = [negated[label] / (len(train) / 3) for label in LABELS]
    assert min(shares) > 0.15
    assert max(shares) - min(shares) < 0.05


def test_plain_phenomena_have_no_negation_and_balanced_labels():
    rows = generate("train", 1200, 0, tuple(PLAIN))
    assert {row["group"] for row in rows} == set(PLAIN)
    assert set(Counter(row["label"] for row in rows).values()) == {400}
    assert not any(
        {"not", "none", "no", "never"} & {*tokens(row["premise"]), *tokens(row["hypothesis"])} for row in rows
    )
    assert bag_of_words_accuracy("hypothesis", rows, generate("test", 600, 1, tuple(PLAIN))) < 0.45


def test_plain_location_is_right_by_its_own_words():
    people, places = set(HOME.people), set(HOME.places)
    for row in generate("train", 300, 0, ("plain_location",)):
        (who, where), (asked, place) = (
            (set(tokens(row[side])) & people, set(tokens(row[side])) & places) for side in ("premise", "hypothesis")
        )
        expected = "neutral" if who != asked else "entailment" if where == place else "contradiction"
        assert row["label"] == expected, row


def test_an_unknown_phenomenon_is_named():
    with pytest.raises(InputError, match="no phenomenon 'weather'; there are location"):
        generate("train", 10, 0, ("weather",))
