"""Ten phenomena, each a function from a hypothesis that is drawn first to a premise that gives it the wanted label.

The hypothesis is drawn before the label is looked at, so it says nothing about the label; premises of the three labels
share their frames, so length, negation and word overlap say little. A neutral premise states the same kind of fact
about another person or thing, or leaves the value open. Each function is
`(rng, lexicon, label) -> (premise, hypothesis)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from debias.data.lexicon import Lexicon

Label = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[Label, ...] = ("entailment", "neutral", "contradiction")
Phenomenon = Callable[[Random, Lexicon, Label], tuple[str, str]]

# With these three, a premise is negated equally often (0.21) under each label: 0.35 * 0.6 = 0.65 * 0.323 = 0.21.
NEGATED_HYPOTHESIS = 0.35
NEGATED_SUPPORT = 0.6
NEGATED_DENIAL = 0.323
NEGATED_NEUTRAL = 0.21
ASIDE = 0.33  # share of premises with a second clause


@dataclass(frozen=True)
class Thing:
    """What a sentence is about: a person, or somebody's belonging."""

    owner: str
    noun: str = ""


@dataclass(frozen=True)
class Claim:
    """That a thing has a value, or has not."""

    thing: Thing
    positive: bool
    value: str


@dataclass(frozen=True)
class Question:
    """A value that a thing may have, and how other claims bear on it; `others` are things about which all stays open.

    `supporting` values entail it, `excluding` values rule it out, denying one of `deniable` rules it out; a claim in
    `open` (positive?, value) about the same thing decides nothing.
    """

    kind: str
    thing: Thing
    others: Sequence[Thing]
    value: str
    supporting: Sequence[str]
    excluding: Sequence[str]
    deniable: Sequence[str]
    open: Sequence[tuple[bool, str]] = field(default=())


def say(rng: Random, lexicon: Lexicon, frame: str, **words: str) -> str:
    """One of the frames of that name, filled in; `a_v` is `v` with its article."""
    if "v" in words:
        words["a_v"] = ("an " if words["v"][0] in "aeiou" else "a ") + words["v"]
    return rng.choice(lexicon.frames[frame]).format(**words)


def sentence(clause: str) -> str:
    """`clause` with a capital and a full stop."""
    return clause[0].upper() + clause[1:] + "."


def with_aside(rng: Random, lexicon: Lexicon, main: str, person: str, chance: float = ASIDE) -> str:
    """`main`, with the given chance beside an unrelated clause about `person`."""
    if rng.random() >= chance:
        return main
    aside = say(rng, lexicon, "aside", owner=person, doing=rng.choice(lexicon.activities))
    return say(rng, lexicon, "join", main=main, aside=aside)


def _state(rng: Random, lexicon: Lexicon, kind: str, claim: Claim) -> str:
    words = {"owner": claim.thing.owner, "noun": claim.thing.noun, "v": claim.value}
    doing = rng.choice(lexicon.activities)
    return say(rng, lexicon, f"{kind}.p{'+' if claim.positive else '-'}", doing=doing, **words)


def _claim(rng: Random, question: Question, label: Label, asked_positive: bool, plain: bool) -> Claim:
    """A claim that gives the hypothesis its label."""
    if label == "neutral":
        return _neutral_claim(rng, question, plain)
    if (label == "entailment") == asked_positive:
        return Claim(question.thing, True, rng.choice(question.supporting))
    if not plain and rng.random() < (NEGATED_DENIAL if asked_positive else NEGATED_SUPPORT):
        return Claim(question.thing, False, rng.choice(question.deniable))
    return Claim(question.thing, True, rng.choice(question.excluding))


def _neutral_claim(rng: Random, question: Question, plain: bool) -> Claim:
    positive = plain or rng.random() >= NEGATED_NEUTRAL
    undecided = [value for sign, value in question.open if sign == positive]
    if undecided and rng.random() < 0.6:
        return Claim(question.thing, positive, rng.choice(undecided))
    # Mostly the asked value itself: another thing already costs overlap, and neutral pairs must not stand out by it.
    near = rng.random() < 0.8
    return Claim(question.others[0], positive, question.value if near else rng.choice(question.excluding))


def _pair(rng: Random, lexicon: Lexicon, question: Question, label: Label) -> tuple[str, str]:
    positive = lexicon.plain or rng.random() >= NEGATED_HYPOTHESIS
    words = {"owner": question.thing.owner, "noun": question.thing.noun, "v": question.value}
    hypothesis = say(rng, lexicon, f"{question.kind}.h{'+' if positive else '-'}", **words)
    claim = _claim(rng, question, label, positive, lexicon.plain)
    return sentence(_premise(rng, lexicon, question, claim)), sentence(hypothesis)


def _premise(rng: Random, lexicon: Lexicon, question: Question, claim: Claim) -> str:
    """The claim, alone or beside a clause that decides nothing but may repeat words of the hypothesis."""
    main = _state(rng, lexicon, question.kind, claim)
    if lexicon.plain:
        return main
    kind = rng.choice(("none", "none", "same", "unrelated"))
    if kind == "none":
        return main
    if kind == "unrelated":
        person = question.others[1].owner if claim.thing == question.thing else question.thing.owner
        return with_aside(rng, lexicon, main, person, chance=1.0)
    other_value = question.value if claim.value != question.value else rng.choice(question.excluding)
    aside = _state(rng, lexicon, question.kind, Claim(question.others[1], True, other_value))
    return say(rng, lexicon, "join", main=main, aside=aside)


def location(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Where a person is; nobody is in two places."""
    who, other, third = rng.sample(lexicon.people, 3)
    return _pair(
        rng, lexicon, _exclusive(rng, "location", Thing(who), (Thing(other), Thing(third)), lexicon.places), label
    )


def colour(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """The one colour of a belonging."""
    thing, others = _things(rng, lexicon, lexicon.belongings)
    return _pair(rng, lexicon, _exclusive(rng, "colour", thing, others, lexicon.colours), label)


def state(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Opposites: open and closed, hot and cold."""
    nouns, poles = rng.choice(list(lexicon.states.items()))
    value, opposite = rng.sample(poles, 2)
    thing, others = _things(rng, lexicon, nouns)
    return _pair(rng, lexicon, Question("state", thing, others, value, (value,), (opposite,), (value,)), label)


def taxonomy(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """What a definite thing is, in classes of classes: a rose is a flower is a plant and no animal."""
    thing, others = _things(rng, lexicon, lexicon.gifts)
    top, middle = rng.choice([(top, middle) for top, classes in lexicon.taxonomy.items() for middle in classes])
    members = lexicon.taxonomy[top][middle]
    leaf = rng.choice(members)
    above: tuple[str, ...]
    value, above, below = rng.choice(
        ((leaf, (middle, top), ()), (middle, (top,), members), (middle, (top,), members), (top, (), (middle, *members)))
    )
    excluding = [name for name in _all_names(lexicon) if name not in _branch(lexicon, top, middle, value)]
    open_claims = [(True, name) for name in above] + [(False, name) for name in below[:1]]
    question = Question("taxonomy", thing, others, value, (value, *below), excluding, (value, *above), open_claims)
    return _pair(rng, lexicon, question, label)


def number(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Counts against bounds; the two nouns of the premise have counts of their own."""
    who, other = rng.sample(lexicon.people, 2)
    noun, second, third = rng.sample(lexicon.goods, 3)
    bound = rng.randint(5, 9)
    word = rng.choice(("more than", "fewer than", "exactly"))
    hypothesis = say(rng, lexicon, "number.h", owner=who, v=f"{word} {NUMERALS[bound]}", noun=noun)
    counts = [n for n in range(2, 13) if _holds(word, n, bound) == (label == "entailment")]
    count, second_count = rng.choice(counts), rng.choice([bound, rng.randint(2, 12)])
    if label == "neutral":
        frame, who, noun = rng.choice(
            (
                ("number.p", other, noun),
                ("number.p", who, third),
                ("number.open", who, noun),
                ("number.open", who, noun),
            )
        )
        count = bound if rng.random() < 0.8 else rng.randint(2, 12)
    else:
        frame = "number.p"
    words = {"owner": who, "noun": noun, "noun2": second, "v": NUMERALS[count], "v2": NUMERALS[second_count]}
    return sentence(say(rng, lexicon, frame, **words)), sentence(hypothesis)


def quantifier(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """The square of opposition over a group that exists."""
    noun, other = rng.sample(lexicon.groups, 2)
    words = {"doing": rng.choice(lexicon.activities), "place": rng.choice(lexicon.places)}
    asked = rng.choice(("all", "some", "none", "notall"))
    stated, about = rng.choice([name for name in SQUARE if SQUARE[name].get(asked, "neutral") == label]), noun
    if label == "neutral" and rng.random() < 0.6:
        stated, about = rng.choice(list(SQUARE)), other
    hypothesis = say(rng, lexicon, f"{asked}.h", noun=noun, **words)
    premise = say(rng, lexicon, f"{stated}.p", noun=about, **words)
    return sentence(with_aside(rng, lexicon, premise, rng.choice(lexicon.people))), sentence(hypothesis)


def comparison(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Comparatives and their converses: taller than, shorter than."""
    a, b, third = rng.sample(lexicon.people, 3)
    scale, other_scale = rng.sample(lexicon.scales, 2)
    positive, way = rng.random() >= NEGATED_HYPOTHESIS, rng.randrange(2)
    sign = "+" if positive else "-"
    hypothesis = say(rng, lexicon, f"comparison.h{sign}", a=a, b=b, more=scale[way], less=scale[1 - way])
    high, low = (a, b) if (label == "entailment") == positive else (b, a)
    if label == "neutral":
        high, low = rng.sample((a, b), 2)
        if rng.random() < 0.5:
            scale = other_scale
        else:
            high, low = (high, third) if high == a else (third, low)
    side = rng.randrange(2)
    first, second = (high, low) if side == way else (low, high)
    premise = say(rng, lexicon, "comparison.p", a=first, b=second, more=scale[side], less=scale[1 - side])
    person = rng.choice([name for name in lexicon.people if name not in (a, b)])
    return sentence(with_aside(rng, lexicon, premise, person)), sentence(hypothesis)


def voice(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Active and passive; the converse of an act stays open."""
    a, b, person = rng.sample(lexicon.people, 3)
    (base, past), (base2, past2) = rng.sample(lexicon.acts, 2)
    positive = rng.random() < 0.5
    hypothesis = say(rng, lexicon, f"voice.h{'+' if positive else '-'}", a=a, b=b, base=base, past=past)
    stated = positive == (label == "entailment")
    if label == "neutral":
        stated = rng.random() < 0.5
        (a, b), base, past = rng.choice((((b, a), base, past), ((a, b), base2, past2)))
    premise = say(rng, lexicon, f"voice.p{'+' if stated else '-'}", a=a, b=b, base=base, past=past)
    return sentence(with_aside(rng, lexicon, premise, person)), sentence(hypothesis)


def detail(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Place, hour or company of one activity: dropped, changed, or added without support."""
    who, other = rng.sample(lexicon.people, 2)
    doing, other_doing = rng.sample(lexicon.activities, 2)
    places = tuple(f"{lexicon.at} the {place}" for place in lexicon.places)
    asked, *rest = rng.sample([places, lexicon.hours, ("alone", rng.choice(lexicon.companions))], 3)
    value, changed = rng.sample(asked, 2)
    hypothesis = say(rng, lexicon, "detail.h", owner=who, doing=doing, v=value)
    kept = {"entailment": value, "contradiction": changed, "neutral": rng.choice(rest[1])}[label]
    v, v2 = rng.sample((kept, rng.choice(rest[0])), 2)
    premise = say(rng, lexicon, "detail.p", owner=who, doing=doing, v=v, v2=v2)
    if rng.random() < ASIDE:
        # Words of the hypothesis, said of somebody else, so that full overlap does not mean entailment.
        elsewhere = changed if label == "entailment" else value
        aside = say(rng, lexicon, "aside", owner=other, doing=f"{other_doing} {elsewhere}")
        premise = say(rng, lexicon, "join", main=premise, aside=aside)
    return sentence(premise), sentence(hypothesis)


def attitude(rng: Random, lexicon: Lexicon, label: Label) -> tuple[str, str]:
    """Managed to (it happened), failed to (it did not), hoped to (open)."""
    who, other, person = rng.sample(lexicon.people, 3)
    (base, past), (base2, _) = rng.sample(lexicon.deeds, 2)
    positive = rng.random() < 0.5
    hypothesis = say(rng, lexicon, f"attitude.h{'+' if positive else '-'}", owner=who, base=base, past=past)
    frame = "yes" if positive == (label == "entailment") else "no"
    if label == "neutral":
        decided = rng.choice(("yes", "no"))
        frame, who, base = rng.choice(
            (("open", who, base), ("open", who, base), (decided, other, base), (decided, who, base2))
        )
    premise = say(rng, lexicon, f"attitude.{frame}", owner=who, base=base)
    return sentence(with_aside(rng, lexicon, premise, person)), sentence(hypothesis)


NUMERALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

# What a stated quantifier makes of an asked one; absent means undecided.
SQUARE: dict[str, dict[str, Label]] = {
    "all": {"all": "entailment", "some": "entailment", "none": "contradiction", "notall": "contradiction"},
    "some": {"some": "entailment", "none": "contradiction"},
    "none": {"all": "contradiction", "some": "contradiction", "none": "entailment", "notall": "entailment"},
    "notall": {"all": "contradiction", "notall": "entailment"},
}

PHENOMENA: dict[str, Phenomenon] = {
    function.__name__: function
    for function in (location, colour, state, taxonomy, number, quantifier, comparison, voice, detail, attitude)
}


def _plain(function: Phenomenon) -> Phenomenon:
    return lambda rng, lexicon, label: function(rng, replace(lexicon, plain=True), label)


# The same relations without negation and second clauses: short, and learnable in minutes by a small encoder. Drawn only
# where they are asked for by name.
PLAIN: dict[str, Phenomenon] = {f"plain_{f.__name__}": _plain(f) for f in (location, colour, state, taxonomy)}


def _exclusive(rng: Random, kind: str, thing: Thing, others: Sequence[Thing], values: Sequence[str]) -> Question:
    value = rng.choice(values)
    rest = [v for v in values if v != value]
    # Not being in one place leaves all the others open.
    return Question(kind, thing, others, value, (value,), rest, (value,), [(False, v) for v in rest])


def _things(rng: Random, lexicon: Lexicon, nouns: Sequence[str]) -> tuple[Thing, tuple[Thing, Thing]]:
    """A thing, and two that share its owner or its noun."""
    owner, owner2, owner3 = rng.sample(lexicon.people, 3)
    noun, noun2, noun3 = rng.sample(nouns, 3)
    other = rng.choice((Thing(owner2, noun), Thing(owner, noun2)))
    return Thing(owner, noun), (other, rng.choice((Thing(owner3, noun), Thing(owner2, noun3))))


def _all_names(lexicon: Lexicon) -> list[str]:
    trees = lexicon.taxonomy.items()
    return [name for top, classes in trees for mid, members in classes.items() for name in (top, mid, *members)]


def _branch(lexicon: Lexicon, top: str, middle: str, value: str) -> set[str]:
    """The names that do not rule `value` out: itself, what is above it and what is below it."""
    if value == top:
        return {top, *lexicon.taxonomy[top]} | {leaf for leaves in lexicon.taxonomy[top].values() for leaf in leaves}
    return {top, middle, *lexicon.taxonomy[top][middle]} if value == middle else {top, middle, value}


def _holds(word: str, count: int, bound: int) -> bool:
    return {"more than": count > bound, "fewer than": count < bound, "exactly": count == bound}[word]
