"""What brackets are said to be, where not all numbers of a table have as many seeds."""

import pytest

from debias_eval.reporting.tables import interval_note
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import read_runs
from debias_eval.results.summary import table

SEEDS = "mean over training seeds (Student's t), with the test examples' own added in."
ALONE = "Of one training seed, whose interval is of the test examples alone: "
# Suites by method: how many of its seeds were judged on each.
CASES = {
    "all of several": ({"erm": {"s": 2}, "edge": {"s": 3}}, SEEDS, ""),
    "all of one": ({"erm": {"s": 1}, "edge": {"s": 1}}, "of the test examples (one training seed).", ""),
    "one beside several": ({"erm": {"s": 2}, "edge": {"s": 1}}, SEEDS, "edge."),
    "two beside several": ({"erm": {"s": 2}, "edge": {"s": 1}, "cagrad": {"s": 1}}, SEEDS, "edge, cagrad."),
    "of one on one suite": ({"erm": {"s": 2, "t": 1}, "edge": {"s": 2, "t": 2}}, SEEDS, "erm on t."),
}


@pytest.mark.parametrize(("judged", "over", "alone"), CASES.values(), ids=CASES)
def test_methods_of_one_seed_are_named_beside_those_of_several(make_run, judged, over, alone):
    runs = [
        make_run(f"{method}{i}", method, i, {suite: {"x": 70} for suite, seeds in suites.items() if i < seeds})
        for method, suites in judged.items()
        for i in range(max(suites.values()))
    ]
    note = interval_note(table(group_runs(read_runs(runs))))
    brackets, _, named = note.partition(ALONE)
    assert (brackets.strip().endswith(over), named) == (True, alone)
