"""The cards say how many examples each group and label has: the data must say the same."""

from collections import Counter

import pytest

from debias_eval.suite import BUILT_IN, Suite, available_suites, load_suite, suite_examples


def card_counts(name: str) -> tuple[list[str], dict[str, list[int]]]:
    text = (BUILT_IN / name / "CARD.md").read_text(encoding="utf-8").split("## Counts")[1]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return lines[0][1:-1], {row[0]: [int(cell) for cell in row[1:]] for row in lines[2:]}


def check_against_card(suite: Suite) -> None:
    examples = suite_examples(suite)
    labels, expected = card_counts(suite.name)
    assert tuple(labels) == suite.labels
    counts = Counter((one.group, one.label) for one in examples)
    groups = sorted({one.group for one in examples if one.group is not None})
    found = {name: [counts[name, i] for i in range(len(labels))] for name in groups}
    found["all"] = [sum(1 for one in examples if one.label == i) for i in range(len(labels))]
    assert {name: [*row, sum(row)] for name, row in found.items()} == expected
    assert len({one.id for one in examples}) == len(examples)


@pytest.mark.parametrize("name", [one for one in available_suites() if load_suite(one).source.source != "generated"])
def test_local_data_is_what_the_card_says(name, data_folder):
    check_against_card(load_suite(name))


@pytest.mark.parametrize("name", ["generated", "generated_ood"])
def test_generated_data_is_what_the_card_says(name):
    check_against_card(load_suite(name))


def test_hans_groups_are_heuristic_and_label(data_folder):
    for one in suite_examples(load_suite("hans")):
        assert one.group is not None
        assert one.group.endswith("/entailment") == (one.label == 0)


def test_biased_snli_differs_from_snli_by_the_cue_alone(data_folder):
    plain = {one.id: one for one in suite_examples(load_suite("snli"))}
    for one in suite_examples(load_suite("biased_snli")):
        cue = "" if one.group == "bias-independent" else " !!"
        assert one.texts == (plain[one.id].texts[0] + cue, plain[one.id].texts[1])
        assert one.label == plain[one.id].label
