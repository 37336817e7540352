"""The cards say what is in the data: examples of each group and label, clusters, pairs. The data must say the same."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import pytest

from debias.data import Example
from debias_eval.reading.collection import collection_names, members
from debias_eval.reading.examples import all_examples
from debias_eval.reading.places import where_from
from debias_eval.reading.suite import BUILT_IN, GroupRule, available_suites, load_suite

HEADINGS = ("Source", "Licence", "Shortcut tested", "Groups", "Gap", "Known defects")
NOT_HERE = {
    "anli_r1",
    "anli_r2",
    "anli_r3",
    "civil_comments",
    "hatecheck",
    "wanli",
}  # on the hub, not in the data folder
GENERATED = {"generated", "generated_ood"}
SLOW = {"bias_madlibs", "mnli", "snli"}  # 76,564 rows, and a classifier to fit
LOCAL = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in available_suites()
    if name not in NOT_HERE | GENERATED
]

# Clusters whose members differ in their label by construction (counterfactuals), and those that must not (invariance).
TURNED_AROUND = (
    "monli",
    "cad_imdb",
    "contrast_imdb",
    "dnc_sentiment",
    "dnc_megaveridicality",
    "fever_symmetric",
    "winogender",
)
UNCHANGED = ("eec", "wiki_toxicity_fuzz", pytest.param("bias_madlibs", marks=pytest.mark.slow))


def card(name: str) -> str:
    return (BUILT_IN / name / "CARD.md").read_text(encoding="utf-8")


def bullet(name: str, heading: str) -> str:
    found = re.search(rf"^- \*\*{heading}\*\*(.*?)(?=^- \*\*|^## |\Z)", card(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name}: no bullet {heading}"
    return " ".join(found[1].split())


def card_counts(name: str) -> tuple[list[str], dict[str, list[int]]]:
    table = card(name).split("## Counts")[1]
    lines = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return lines[0][1:-1], {row[0]: [int(cell) for cell in row[1:]] for row in lines[2:]}


@cache
def examples_of(name: str) -> Sequence[Example]:
    """Read once for all tests of a suite."""
    return tuple(all_examples(load_suite(name)))


@cache
def ungrouped(name: str) -> dict[str, Example]:
    """A suite's examples by id, without the groups that cost a classifier."""
    suite = load_suite(name).model_copy(update={"group_rule": GroupRule(), "gap": None})
    return {one.id: one for one in all_examples(suite)}


def by_cluster(name: str) -> dict[str, list[Example]]:
    found = defaultdict(list)
    for one in examples_of(name):
        assert one.cluster is not None
        found[one.cluster].append(one)
    return found


def check_against_card(name: str) -> None:
    suite, examples = load_suite(name), examples_of(name)
    labels, expected = card_counts(name)
    assert tuple(labels) == suite.labels
    counts = Counter((one.group, one.label) for one in examples)
    groups = sorted({one.group for one in examples if one.group is not None})
    found = {group: [counts[group, i] for i in range(len(labels))] for group in groups}
    found["all"] = [sum(1 for one in examples if one.label == i) for i in range(len(labels))]
    assert {group: [*row, sum(row)] for group, row in found.items()} == expected
    assert min(found["all"]) > 0, f"a label of {suite.labels} never occurs"
    assert len({one.id for one in examples}) == len(examples)
    assert all(text.strip() for one in examples for text in one.texts)


@pytest.mark.parametrize("name", LOCAL)
def test_local_data_is_what_the_card_says(name, data_folder):
    check_against_card(name)


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_generated_data_is_what_the_card_says(name):
    check_against_card(name)


def test_what_is_not_here_is_not_here(data_folder):
    assert {name for name in available_suites() if where_from(load_suite(name)) in ("hub", "missing")} == NOT_HERE


@pytest.mark.parametrize("name", available_suites())
def test_a_card_has_its_headings(name):
    text = card(name)
    assert text.startswith(f"# {name}\n")
    for heading in HEADINGS:
        assert len(bullet(name, heading)) > 3, f"{name}: {heading} says nothing"
    assert text.count("## Counts") == 1
    assert load_suite(name).licence.split()[0].lower() in bullet(name, "Licence").lower()


@pytest.mark.parametrize("name", sorted(NOT_HERE))
def test_a_card_without_counts_says_why(name):
    assert re.search(r"Published size: [\d,]+", card(name))
    assert "Not read here" in bullet(name, "Known defects")


@pytest.mark.parametrize("name", available_suites())
def test_a_card_names_where_the_data_is_from(name):
    suite, source = load_suite(name), bullet(name, "Source")
    if suite.hub:
        assert f"`{suite.hub.source}`" in source
    if suite.source and suite.source.source != "generated":
        assert f"`{suite.source.source}`" in source


def test_every_suite_is_in_a_collection():
    named = {suite for collection in collection_names() if collection != "all" for suite in members(collection)}
    assert set(available_suites()) - named <= GENERATED
    assert named - set(available_suites()) == set()


@pytest.mark.parametrize("name", LOCAL)
def test_the_card_knows_how_many_clusters(name, data_folder):
    suite = load_suite(name)
    if suite.cluster is None:
        assert all(one.cluster is None for one in examples_of(name))
        return
    sizes = Counter(len(cluster) for cluster in by_cluster(name).values())
    assert max(sizes) > 1, "no two examples are related"
    numbers = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d|\d", bullet(name, "Clusters"))}
    assert sum(sizes.values()) in numbers or (len(sizes) < 3 and set(sizes.values()) <= numbers)


@pytest.mark.parametrize("name", TURNED_AROUND)
def test_counterfactual_clusters_hold_more_than_one_label(name, data_folder):
    assert load_suite(name).consistency
    assert all(len({one.label for one in cluster}) > 1 for cluster in by_cluster(name).values())


@pytest.mark.parametrize("name", UNCHANGED)
def test_invariance_clusters_hold_one_label(name, data_folder):
    assert load_suite(name).consistency
    assert load_suite(name).invariant
    assert all(len({one.label for one in cluster}) == 1 for cluster in by_cluster(name).values())


@pytest.mark.parametrize("name", ["monli", "glue_diagnostic"])
def test_pairs_stand_with_their_reverse(name, data_folder):
    for cluster in by_cluster(name).values():
        assert {one.texts for one in cluster} == {one.texts[::-1] for one in cluster}
        assert len({one.texts for one in cluster}) == 2


def test_hans_groups_are_heuristic_and_label(data_folder):
    for one in examples_of("hans"):
        assert one.group is not None
        assert one.group.endswith("/entailment") == (one.label == 0)


def test_biased_snli_differs_from_snli_by_the_cue_alone(data_folder):
    plain = ungrouped("snli")
    for one in examples_of("biased_snli"):
        cue = "" if one.group == "bias-independent" else " !!"
        assert one.texts == (plain[one.id].texts[0] + cue, plain[one.id].texts[1])
        assert one.label == plain[one.id].label


@pytest.mark.parametrize(
    ("name", "premise", "hypothesis"),
    [
        ("stress_negation", "", " and false is not true"),
        ("stress_word_overlap", "", " and true is true"),
        ("stress_length_mismatch", " and true is true" * 5, ""),
    ],
)
def test_stress_tests_differ_from_mnli_by_the_tautology_alone(name, premise, hypothesis, data_folder):
    plain = ungrouped("mnli")
    for one in examples_of(name):
        before = plain[one.id]
        assert one.texts[0] == (before.texts[0].rstrip() + premise if premise else before.texts[0])
        assert one.texts[1] == (before.texts[1].rstrip() + hypothesis if hypothesis else before.texts[1])
        assert (one.label, one.cluster) == (before.label, before.cluster)


def test_breaking_nli_changes_little(data_folder):
    shared = [
        sum(word in one.texts[0].lower().split() for word in words) / len(words)
        for one in examples_of("breaking_nli")
        if (words := one.texts[1].lower().split())
    ]
    assert sum(shared) / len(shared) > 0.8


@pytest.mark.parametrize("name", ["eec", "winogender"])
def test_groups_hold_the_same_sentences(name, data_folder):
    groups = defaultdict(Counter)
    for one in examples_of(name):
        groups[one.group][one.cluster, one.label] += 1
    first, *others = groups.values()
    assert others
    assert all(other == first for other in others)


def test_symmetric_claims_and_evidence_have_both_labels(data_folder):
    for position in (0, 1):
        labels = defaultdict(Counter)
        for one in examples_of("fever_symmetric"):
            labels[one.texts[position]][one.label] += 1
        assert all(count[0] == count[1] for count in labels.values())


def test_swapped_comments_are_half_of_them_the_same_text(data_folder):
    pairs = by_cluster("wiki_toxicity_fuzz").values()
    assert all(sorted(str(one.group) for one in pair) == ["fuzzed", "nonfuzzed"] for pair in pairs)
    same = sum(pair[0].texts == pair[1].texts for pair in pairs)
    assert f"{same} of the {len(pairs):,}" in bullet("wiki_toxicity_fuzz", "Known defects")
    assert 0 < same < len(pairs)


def test_one_pair_of_counterfactual_reviews_is_the_same_text_twice(data_folder):
    same = [pair for pair in by_cluster("cad_imdb").values() if pair[0].texts == pair[1].texts]
    assert [pair[0].id for pair in same] == ["test-8893"]
    assert "test-8893" in bullet("cad_imdb", "Known defects")


def test_diagnostic_pairs_without_a_category_are_in_no_group(data_folder):
    assert [one.id for one in examples_of("glue_diagnostic") if one.group is None] == ["diag-430", "diag-431"]


def test_neutral_sentences_about_people_are_left_out(data_folder):
    assert not any("goes to the school" in one.texts[0] for one in examples_of("eec"))
