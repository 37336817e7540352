import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from debias.errors import InputError
from debias_eval.scores import scoring as sc

LABELS = ("entailment", "not_entailment")


def judged(gold, prediction, probabilities=None, groups=None, labels=LABELS):
    gold, prediction = np.array(gold), np.array(prediction)
    if probabilities is None:
        probabilities = np.eye(len(labels))[prediction]
    groups = tuple(groups) if groups else (None,) * len(gold)
    return sc.Judged(labels, gold, prediction, np.array(probabilities, dtype=float), groups)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe, Stat. Med. 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_literature(correct, n, low, high):
    assert sc.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_and_holds_the_share(pair):
    correct, n = pair
    low, high = sc.wilson(correct, n)
    theirs = binomtest(correct, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= correct / n <= high <= 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_what_is_no_share(correct, n):
    with pytest.raises(ValueError, match="expected 0 <= correct <= n"):
        sc.wilson(correct, n)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe, Stat. Med. 17 (1998) 873, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_agrees_with_the_literature(first, second, low, high):
    interval = sc.newcombe(sc.Accuracy(first[1], first[0]), sc.Accuracy(second[1], second[0]))
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_softmax_of_huge_and_minus_infinite_scores():
    out = sc.softmax(np.array([[1e4, 1e4, -np.inf], [-1e4, -1e4 + np.log(3), -np.inf]]))
    np.testing.assert_allclose(out, [[0.5, 0.5, 0], [0.25, 0.75, 0]])


@pytest.mark.parametrize("row", [[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]])
def test_scores_that_are_not_finite_are_named(row):
    with pytest.raises(InputError, match=r"not finite for 1 of 2 examples \(first: number 1\)"):
        sc.softmax(np.array([[0, 1.0], row]))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_scores_without_examples_or_labels_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        sc.softmax(np.zeros(shape))


def test_merging_takes_the_models_own_best_label_first():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]])
    to_suite = np.array([0, 1, 1])
    assert sc.merged_prediction(probabilities, to_suite).tolist() == [0, 1]
    np.testing.assert_allclose(sc.merge_probabilities(probabilities, to_suite, 2), [[0.4, 0.6], [0.1, 0.9]])


def test_calibration_error_by_hand():
    # Two of 15 bins: (14/15, 1] holds three at 0.95 with two right, (8/15, 9/15] holds one at 0.6, right.
    confidence, correct = np.array([0.95, 0.95, 0.95, 0.6]), np.array([True, True, False, True])
    expected = 3 / 4 * abs(0.95 - 2 / 3) + 1 / 4 * abs(0.6 - 1)
    assert sc.expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_calibration_bins_are_closed_above():
    # 0.5 lies on the edge of two bins of two: with 0.4 below it the errors cancel, as they would not in the upper bin.
    confidence, correct = np.array([0.5, 0.4]), np.array([False, True])
    assert sc.expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("confidence", "right", "error"), [(1.0, True, 0), (1.0, False, 1), (0.0, True, 1), (0.0, False, 0)]
)
def test_calibration_at_probabilities_of_exactly_0_and_1(confidence, right, error):
    assert sc.expected_calibration_error(np.array([confidence]), np.array([right])) == error


def test_brier_by_hand():
    assert sc.brier(np.array([[1.0, 0], [0, 1.0]]), np.array([0, 0])) == pytest.approx(1.0)
    assert sc.brier(np.array([[0.5, 0.3, 0.2]]), np.array([0])) == pytest.approx(0.25 + 0.09 + 0.04)


def test_score_by_hand():
    one = judged(
        gold=[0, 0, 1, 1, 1],
        prediction=[0, 0, 0, 1, 0],
        probabilities=[[1, 0], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]],
        groups=["a", "a", "c", "c", None],
    )
    numbers = sc.score(one, ["a"], ["c"])
    assert (numbers["n"], numbers["accuracy"], numbers["majority_accuracy"]) == (5, 0.6, 0.6)
    assert {name: part["accuracy"] for name, part in numbers["groups"].items()} == {"a": 1.0, "c": 0.5}
    assert numbers["worst_group"] == {"name": "c", "accuracy": 0.5}
    assert numbers["gap"] == 0.5
    assert numbers["labels"] == {"entailment": {"n": 2, "predicted": 4}, "not_entailment": {"n": 3, "predicted": 1}}


def test_gap_pools_groups_of_unequal_size():
    groups = {"a": sc.Accuracy(1, 1), "b": sc.Accuracy(3, 0)}
    assert sc.pooled(groups, ["a", "b", "absent"]) == sc.Accuracy(4, 1)
    assert sc.pooled(groups, ["absent"]) is None


@pytest.mark.parametrize("prediction", [[0], [1]])
def test_one_example_is_enough(prediction):
    numbers = sc.score(judged([0], prediction))
    assert numbers["accuracy"] in (0, 1)
    assert (numbers["groups"], numbers["worst_group"], numbers["gap"]) == ({}, None, None)


def test_a_group_that_is_absent_leaves_no_gap():
    assert sc.score(judged([0, 1], [0, 1], groups=["a", "a"]), ["a"], ["c"])["gap"] is None


def test_worst_group_on_a_tie_is_the_first_by_name():
    assert sc.worst_group({"b": sc.Accuracy(2, 1), "a": sc.Accuracy(4, 2)}) == "a"


@pytest.mark.parametrize(
    "broken",
    [
        judged([0, 1], [0, 1], [[0.5, 0.6], [0.5, 0.5]]),
        judged([0, 1], [0, 1], [[np.nan, 0.6], [0.5, 0.5]]),
        judged([0, 1], [0, 1], [[1.2, -0.2], [0.5, 0.5]]),
        judged([0, 1], [0, 1], [[1.0], [1.0]]),
        judged([0, 2], [0, 1]),
        judged([0, 1], [0, 1], groups=["a"]),
        sc.Judged(LABELS, np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), ()),
    ],
)
def test_arrays_that_do_not_fit_are_refused(broken):
    with pytest.raises(ValueError):
        sc.score(broken)


@st.composite
def any_judged(draw):
    classes = draw(st.integers(1, 4))
    n = draw(st.integers(1, 30))
    index = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    rows = st.lists(st.floats(-800, 800), min_size=classes, max_size=classes)
    scores = np.array(draw(st.lists(rows, min_size=n, max_size=n)))
    groups = draw(st.lists(st.sampled_from(["a", "b", "", None]), min_size=n, max_size=n))
    labels = tuple(f"l{i}" for i in range(classes))
    return judged(draw(index), draw(index), sc.softmax(scores), groups, labels)


@given(any_judged())
def test_any_predictions_give_numbers_in_range(one):
    numbers = sc.score(one, ["a"], ["b"])
    assert 0 <= numbers["ece"] <= 1
    assert 0 <= numbers["brier"] <= 2 + 1e-9
    assert numbers["ci95"][0] <= numbers["accuracy"] <= numbers["ci95"][1]
    assert numbers["majority_accuracy"] >= 1 / len(one.labels) - 1e-9
    assert sum(part["n"] for part in numbers["groups"].values()) == sum(name is not None for name in one.groups)
    if numbers["gap"] is not None:
        assert -1 <= numbers["gap_ci95"][0] <= numbers["gap"] <= numbers["gap_ci95"][1] <= 1
    if numbers["groups"]:
        assert numbers["worst_group"]["accuracy"] == min(part["accuracy"] for part in numbers["groups"].values())


@given(any_judged(), st.randoms(use_true_random=False))
def test_order_of_examples_does_not_matter(one, random):
    order = list(range(len(one.gold_N)))
    random.shuffle(order)
    groups = tuple(one.groups[i] for i in order)
    shuffled = sc.Judged(one.labels, one.gold_N[order], one.prediction_N[order], one.probabilities_NC[order], groups)
    first, second = sc.score(one), sc.score(shuffled)
    assert first.pop("ece") == pytest.approx(second.pop("ece"))
    bars = zip(first.pop("reliability"), second.pop("reliability"), strict=True)
    assert all(one == pytest.approx(other) for one, other in bars)
    assert first.pop("brier") == pytest.approx(second.pop("brier"))
    assert first == second


@settings(deadline=None)  # the first call imports scikit-learn
@given(any_judged())
def test_macro_f1_is_scikit_learns(one):
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    theirs = f1_score(one.gold_N, one.prediction_N, average="macro", zero_division=0)
    assert sc.macro_f1(one.prediction_N, one.gold_N, len(one.labels)) == pytest.approx(theirs)


def test_reliability_by_hand():
    confidence, correct = np.array([0.95, 0.95, 0.95, 0.6, 0.0]), np.array([True, True, False, True, False])
    bars = sc.reliability(confidence, correct)
    assert [(bar["n"], bar["accuracy"]) for bar in bars if bar["n"]] == [(1, 0), (1, 1), (3, pytest.approx(2 / 3))]
    assert bars[14]["confidence"] == pytest.approx(0.95)
    assert bars[5] == {
        "low": pytest.approx(1 / 3),
        "high": pytest.approx(0.4),
        "n": 0,
        "confidence": None,
        "accuracy": None,
    }


@given(any_judged())
def test_the_bars_make_the_calibration_error(one):
    numbers = sc.score(one)
    bars = [bar for bar in numbers["reliability"] if bar["n"]]
    assert sum(bar["n"] for bar in bars) == numbers["n"]
    total = sum(bar["n"] * abs(bar["confidence"] - bar["accuracy"]) for bar in bars)
    assert numbers["ece"] == pytest.approx(total / numbers["n"])


def paired(right, clusters, groups=None):
    """One label, "yes", always right to answer."""
    prediction = [0 if flag else 1 for flag in right]
    one = judged([0] * len(right), prediction, groups=groups)
    return sc.Judged(one.labels, one.gold_N, one.prediction_N, one.probabilities_NC, one.groups, tuple(clusters))


def test_consistency_counts_clusters_of_several():
    numbers = sc.score(paired([1, 1, 1, 0, 0, 0, 1], "aabbccd"), with_consistency=True)
    assert numbers["clusters"] == 4
    assert (numbers["consistency"]["n"], numbers["consistency"]["accuracy"]) == (3, pytest.approx(1 / 3))
    assert numbers["consistency"]["ci95"] == list(sc.wilson(1, 3))
    assert sc.score(paired([1, 1, 1, 0, 0, 0, 1], "aabbccd"))["consistency"] is None


def test_without_real_clusters_nothing_changes():
    plain = sc.score(paired([1, 0, 1], "", ["a", "a", "c"]), ["a"], ["c"])
    assert sc.score(paired([1, 0, 1], "xyz", ["a", "a", "c"]), ["a"], ["c"], with_consistency=True) == plain
    assert (plain["clusters"], plain["consistency"]) == (None, None)


def test_clusters_widen_every_interval_that_they_touch():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(200) < 0.7, 5)
    right[4::5] ^= rng.random(200) < 0.05
    groups = ["a" if i % 5 < 4 else "c" for i in range(1000)]  # group c holds one example of each cluster
    blind = sc.score(paired(right, "", groups), ["a"], ["c"])
    aware = sc.score(paired(right, np.repeat(np.arange(200), 5).astype(str), groups), ["a"], ["c"])
    width = [np.ptp(one["ci95"]) for one in (blind, aware)]
    assert width[1] == pytest.approx(np.sqrt(5) * width[0], rel=0.1)
    assert np.ptp(aware["groups"]["a"]["ci95"]) > 1.8 * np.ptp(blind["groups"]["a"]["ci95"])
    assert aware["groups"]["c"]["ci95"] == blind["groups"]["c"]["ci95"]
    assert aware["aligned"] == aware["groups"]["a"]
    assert np.ptp(aware["gap_ci95"]) < 0.5 * np.ptp(blind["gap_ci95"])  # both sides rise and fall together


def test_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 clusters for 3 examples"):
        sc.score(paired([1, 0, 1], "xy"))
