"""What each suite reads from the hub, on made-up rows with the columns and label types that the hub's cards publish."""

from dataclasses import dataclass
from typing import Any

import pytest

from debias.data.tables import Examples
from debias_eval.reading.examples import all_examples
from debias_eval.reading.suite import available_suites, load_suite

NLI = ("entailment", "neutral", "contradiction")
LOCAL_GROUPS = {"biased_snli", "mnli", "snli"}  # not tried: their groups need the local training file
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
MISLED = [f"{name}_nh" for name in ("slur_homonym", "slur_reclaimed", "profanity", "negate_neg", "ident_neutral")]
MISLED += [f"{name}_nh" for name in ("ident_pos", "counter_quote", "counter_ref")]
MISLED += [f"target_{name}_nh" for name in ("obj", "indiv", "group")]
PLAIN = [f"{name}_h" for name in ("derog_neg_emote", "derog_neg_attrib", "derog_dehum", "threat_dir", "threat_norm")]
PLAIN += ["slur_h", "profanity_h"]
REPLACED = ["antonyms", "antonyms_wordnet", "cardinals", "colors", "countries", "drinks", "instruments", "materials"]
REPLACED += ["nationalities", "ordinals", "planets", "rooms", "vegetables"]


@dataclass(frozen=True)
class Published:
    """Columns by row, the names behind integer labels, and the suite's labels that must come out."""

    rows: list[dict[str, Any]]
    labels: list[int]
    names: tuple[str, ...] | None = None


def pairs(first: str, second: str, names: tuple[str, ...] | None, **more: Any) -> Published:
    """One pair of each label in the order of `names`; a column in `more` numbers the rows where it is None."""
    count = len(names or NLI)
    rows = [
        {first: "a premise", second: "a hypothesis", "label": label}
        | {column: label if value is None else value for column, value in more.items()}
        for label in range(count)
    ]
    return Published(rows, [*range(count)], names)


def recast() -> Published:
    text = {"context": "When asked, X said, 'Good.'", "hypothesis": "X liked it ."}
    return Published([text | {"label": 0}, text | {"label": 1}], [1, 0], ("not-entailed", "entailed"))


MULTI_NLI = pairs("premise", "hypothesis", NLI, pairID=None, promptID=4, genre="fiction")
HUB = {
    **dict.fromkeys(("stress_negation", "stress_word_overlap", "stress_length_mismatch"), MULTI_NLI),
    **dict.fromkeys(("anli_r1", "anli_r2", "anli_r3"), pairs("premise", "hypothesis", NLI, uid=None, reason="")),
    **dict.fromkeys(("dnc_sentiment", "dnc_megaveridicality"), recast()),
    "breaking_nli": Published(
        [
            {"sentence1": "p", "sentence2": "h", "category": category, "pairID": i, "label": 0 if i == 0 else 2}
            for i, category in enumerate(["synonyms", *REPLACED])
        ],
        [0, *[2] * len(REPLACED)],
        NLI,
    ),
    "glue_diagnostic": pairs("premise", "hypothesis", None, logic="Negation"),
    "sick": pairs("sentence_A", "sentence_B", None, id=None, relatedness_score=4.5),
    "rte": pairs("sentence1", "sentence2", ("entailment", "not_entailment"), idx=None),
    "wanli": Published(
        [
            {"id": i, "premise": "p", "hypothesis": "h", "gold": gold, "genre": "generated", "pairID": "9"}
            for i, gold in enumerate(NLI)
        ],
        [0, 1, 2],
    ),
    "qqp": pairs("question1", "question2", ("not_duplicate", "duplicate"), idx=None),
    "biased_sst2": Published(
        [{"idx": i, "sentence": "s", "label": i} for i in range(2)], [0, 1], ("negative", "positive")
    ),
    "sst2": Published([{"idx": i, "sentence": "s", "label": i} for i in range(2)], [0, 1], ("negative", "positive")),
    "hatecheck": Published(
        [
            {"functionality": name, "case_id": i, "test_case": "t", "templ_id": 1, "target_ident": None}
            | {"label_gold": "non-hateful" if name in MISLED else "hateful"}
            for i, name in enumerate([*PLAIN, *MISLED])
        ],
        [1] * len(PLAIN) + [0] * len(MISLED),
    ),
    "civil_comments": Published(
        [
            {"id": i, "comment_text": "t", "toxicity": i / 2, "split": "test", "article_id": 3}
            | dict.fromkeys(IDENTITIES, 0.0)
            for i in range(2)
        ],
        [0, 1],
    ),
}


@pytest.mark.parametrize("name", sorted(HUB))
def test_the_hubs_rows_become_the_suites_examples(name, monkeypatch, tmp_path):
    import datasets

    published, suite, asked = HUB[name], load_suite(name), []
    dataset = datasets.Dataset.from_list(published.rows)
    if published.names:
        dataset = dataset.cast_column("label", datasets.ClassLabel(names=list(published.names)))

    def load_dataset(*arguments: Any, **settings: Any) -> Any:
        asked.append((*arguments, settings))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))  # no local file
    examples = all_examples(suite)
    together = suite.group_rule.partial_input or not suite.text_fields  # asked of all rows at once: a list
    assert isinstance(examples, list if together else Examples)
    assert asked == [(suite.hub.source, suite.hub.name, {"split": suite.hub.split})]
    assert [one.label for one in examples] == published.labels
    assert len({one.id for one in examples}) == len(published.rows)
    assert all((one.cluster is None) == (suite.cluster is None) for one in examples)


def test_every_suite_with_a_hub_id_is_tried():
    assert {name for name in available_suites() if load_suite(name).hub} == set(HUB) | LOCAL_GROUPS
