"""Inferred groups: each way against what it says it is, by plain loops; the same from the same seed."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from debias.grouping import GROUPINGS, Inferred, make_grouping
from debias.grouping.clusters import k_means, silhouette

# Settings of each row.
ROWS: dict[str, dict[str, Any]] = {"guessed": {}, "eiil": {}, "spare": {"clusters": 2}}
LABELS = ("a", "b", "c")


def said(count: int = 60, seed: int = 0, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    logit_NC = 2 * draw.normal(size=(count, labels))
    return logit_NC - np.logaddexp.reduce(logit_NC, axis=1, keepdims=True), draw.integers(labels, size=count)


def infer(block: str | dict[str, Any], log_p_NC: np.ndarray, label_N: np.ndarray, seed: int = 0) -> Inferred:
    return make_grouping(block).infer(log_p_NC, label_N, LABELS, seed)


def named(found: Inferred) -> list[str]:
    return [found.names[group] for group in found.group_N]


def test_every_way_has_a_row() -> None:
    assert set(ROWS) == set(GROUPINGS)


@pytest.mark.parametrize("name", GROUPINGS)
def test_groups_are_numbered_named_and_the_same_again(name: str) -> None:
    """Each number occurs, and has a name of its own; no group is of two labels."""
    log_p_NC, label_N = said()
    found, again = (infer({"name": name, **ROWS[name]}, log_p_NC, label_N) for _ in range(2))
    assert sorted(set(found.group_N.tolist())) == list(range(len(found.names)))
    assert len(set(found.names)) == len(found.names) > 3
    assert np.array_equal(found.group_N, again.group_N)
    assert len(set(zip(found.group_N.tolist(), label_N.tolist(), strict=True))) == len(found.names)
    assert ("draw_weight" in GROUPINGS[name].gives) == (found.draw_weight_N is not None)


def test_guessed_is_the_label_and_the_guess() -> None:
    log_p_NC, label_N = said()
    wanted = [
        f"{LABELS[y]} guessed as {LABELS[max(range(3), key=lambda c: row[c])]}"
        for row, y in zip(log_p_NC.tolist(), label_N.tolist(), strict=True)
    ]
    assert named(infer("guessed", log_p_NC, label_N)) == wanted
    errors = named(infer({"name": "guessed", "by": "error"}, log_p_NC, label_N))
    assert [one.endswith("wrongly") for one in errors] == [one.split()[0] != one.split()[-1] for one in wanted]
    assert [one.split()[0] for one in errors] == [LABELS[y] for y in label_N]


def slope(log_p: list[float], label: int) -> float:
    """Of the cross-entropy by a scale of the logits, at 1, by central differences."""

    def loss(scale: float) -> float:
        return math.log(math.fsum(math.exp(scale * one) for one in log_p)) - scale * log_p[label]

    return (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eiil_is_the_best_of_all_environments(seed: int) -> None:
    """Of the 2^9 ways to deal nine examples into two environments, by the objective as its authors wrote it."""
    log_p_NC, label_N = said(9, seed)
    slopes = [slope(row, y) for row, y in zip(log_p_NC.tolist(), label_N.tolist(), strict=True)]

    def objective(q: tuple[float, ...]) -> float:
        one = math.fsum(weight * g for weight, g in zip(q, slopes, strict=True)) / 9
        other = math.fsum((1 - weight) * g for weight, g in zip(q, slopes, strict=True)) / 9
        return (one**2 + other**2) / 2

    best = max(itertools.product((0.0, 1.0), repeat=9), key=objective)
    soft = np.random.default_rng(seed).random((200, 9)).tolist()
    assert objective(best) > max(objective(tuple(q)) for q in soft)  # no weights between are better
    found = infer({"name": "eiil", "with_labels": False}, log_p_NC, label_N).group_N.tolist()
    assert found in ([int(q) for q in best], [1 - int(q) for q in best])
    assert 0 < sum(found) < 9


def test_eiil_of_two_labels_is_the_error_set() -> None:
    log_p_NC, label_N = said(labels=2)
    eiil, errors = (infer(block, log_p_NC, label_N) for block in ("eiil", {"name": "guessed", "by": "error"}))
    assert eiil.group_N.tolist() == errors.group_N.tolist()
    three = said()
    differs = infer("eiil", *three).group_N != infer({"name": "guessed", "by": "error"}, *three).group_N
    assert differs.any()


# Two labels: of one 40 examples lie together and 5 far off, of the other 30 and 9 and, farther off, 6.
SIZES = ((40, 5), (30, 9, 6))
PLACES = (((2.0, 0.0), (-2.0, 4.0)), ((0.0, 2.0), (5.0, -2.0), (-6.0, -6.0)))


def clustered(spread: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    rows = [
        (*(one + spread * draw.normal() for one in place), label)
        for label, (sizes, places) in enumerate(zip(SIZES, PLACES, strict=True))
        for size, place in zip(sizes, places, strict=True)
        for _ in range(size)
    ]
    logit_NC, label_N = np.array([[a, b, 0.0] for a, b, _ in rows]), np.array([label for *_, label in rows])
    return logit_NC - np.logaddexp.reduce(logit_NC, axis=1, keepdims=True), label_N


def test_spare_finds_clusters_and_how_many() -> None:
    """And draws by 1 / size where they are far apart, labels alike."""
    log_p_NC, label_N = clustered(0.1)
    found = infer("spare", log_p_NC, label_N)
    assert found.names == ("a, cluster 1", "a, cluster 2", "b, cluster 1", "b, cluster 2", "b, cluster 3")
    assert found.group_N.tolist() == [0] * 40 + [1] * 5 + [2] * 30 + [3] * 9 + [4] * 6
    assert found.draw_weight_N is not None
    wanted = [share for sizes in SIZES for size in sizes for share in [1 / size / len(sizes)] * size]
    assert found.draw_weight_N.tolist() == pytest.approx(wanted)


def test_spare_draws_the_small_more_often_where_clusters_run_into_each_other() -> None:
    """By 1 / size^2 within the label, of a silhouette that is below the threshold."""
    log_p_NC, label_N = clustered(0.1)
    found = infer({"name": "spare", "threshold": 1.0}, log_p_NC, label_N)
    assert found.draw_weight_N is not None
    for label, sizes in enumerate(SIZES):
        raw = [1 / size**2 for size in sizes for _ in range(size)]
        wanted = [one / math.fsum(raw) for one in raw]
        assert found.draw_weight_N[label_N == label].tolist() == pytest.approx(wanted)


def test_spare_of_examples_of_which_the_same_is_said() -> None:
    """One cluster of such a label; of two different things no more than two."""
    log_p_NC = np.log(np.array([[0.5, 0.3, 0.2]] * 6 + [[0.2, 0.6, 0.2]] * 3 + [[0.1, 0.8, 0.1]] * 2))
    found = infer("spare", log_p_NC, np.array([0] * 6 + [1] * 5))
    assert named(found) == ["a, cluster 1"] * 6 + ["b, cluster 1"] * 3 + ["b, cluster 2"] * 2


def test_the_silhouette_is_that_of_plain_loops() -> None:
    point_MC, _ = said(30)
    cluster_M = np.array([0] * 17 + [1] * 12 + [2])
    scores = []
    for i, point in enumerate(point_MC.tolist()):
        means = {}
        for cluster in range(3):
            others = [point_MC[j].tolist() for j in range(30) if cluster_M[j] == cluster and j != i]
            if others:
                means[cluster] = math.fsum(math.dist(point, other) for other in others) / len(others)
        own = int(cluster_M[i])
        if own not in means:  # alone
            scores.append(0.0)
            continue
        a, b = means[own], min(value for cluster, value in means.items() if cluster != own)
        scores.append((b - a) / max(a, b))
    assert silhouette(point_MC, cluster_M, np.random.default_rng(0)) == pytest.approx(math.fsum(scores) / 30)
    assert silhouette(point_MC, np.zeros(30, dtype=np.int64), np.random.default_rng(0)) == 0.0


def test_k_means_is_the_best_way_to_cut_a_few_points() -> None:
    """Of all ways to deal eight points into three clusters."""
    point_MC, _ = said(8, seed=3)

    def inertia(clusters: tuple[int, ...]) -> float:
        whole = 0.0
        for cluster in set(clusters):
            own = [point for point, one in zip(point_MC.tolist(), clusters, strict=True) if one == cluster]
            centre = [math.fsum(column) / len(own) for column in zip(*own, strict=True)]
            whole += math.fsum(math.dist(point, centre) ** 2 for point in own)
        return whole

    found = k_means(point_MC, 3, np.random.default_rng(0))
    assert sorted(set(found.tolist())) == [0, 1, 2]
    best = min(inertia(clusters) for clusters in itertools.product(range(3), repeat=8) if len(set(clusters)) == 3)
    assert inertia(tuple(found.tolist())) == pytest.approx(best)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "spare", "clusters": 1}, "groups.clusters is 1, expected 2 or more"),
        ({"name": "spare", "most": 1}, "groups.most is 1, expected 2 or more"),
        ({"name": "spare", "threshold": 2}, "groups.threshold is 2.0, expected a silhouette from -1 to 1"),
        ({"name": "spare", "high_power": 0}, "groups.high_power is 0.0, expected a number from 1 to 10"),
        ({"name": "guessed", "by": "colour"}, "groups.by is 'colour', not one of guess, error"),
        ("eil", "groups.name is 'eil', not one of guessed, eiil, spare; did you mean eiil?"),
    ],
)
def test_wrong_settings(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        make_grouping(block)
