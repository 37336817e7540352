"""Two methods compared: the differences, what is said about them, and what is not."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from debias.config.reading import read_yaml
from debias.data.examples import Example
from debias.errors import InputError
from debias_eval.comparing.answers import Answers, read_answers
from debias_eval.comparing.compare import Comparison, compare, compare_folders, comparison_table
from debias_eval.comparing.differences import differences_of
from debias_eval.results.files import write_results
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import read_runs
from debias_eval.scores.counterfactual import told_once
from debias_eval.scores.intervals import mcnemar, paired_bootstrap
from debias_eval.scores.robustness import effective_robustness
from debias_eval.scores.scoring import Judged, score

SIDES = (("bias-aligned",), ("bias-conflicting",))
SIDE_BY_SIDE = ("erm", "edge")


@pytest.fixture
def judged_run(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """A run whose answers are given: `right` by suite, the first half of the examples aligned."""
    return partial(judged, make_run)


def judged(
    make: Callable[..., Path],
    name: str,
    method: str,
    seed: int,
    right: dict[str, Sequence[bool]],
    clusters: Sequence[str] = (),
    change: dict | None = None,
    info: dict | None = None,
) -> Path:
    run = make(name, method, seed)
    for suite, flags in right.items():
        put_answers(run, suite, np.asarray(flags), clusters, change or {})
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(known | {"selection": "last"} | (info or {})))
    return run


def put_answers(run, suite, right, clusters=(), change=None):
    n = len(right)
    scores, numbers = scored(tuple(map(bool, right)), tuple(clusters))
    named = clusters or [None] * n
    examples = [Example(str(i), ("a", f"b {i}"), 0, scores.groups[i], cluster=named[i]) for i in range(n)]
    known = {"suite": suite, "version": 1, "available": n, "examples_sha256": "same"}
    write_results(run, known | deepcopy(numbers) | (change or {}), examples, scores)


@cache
def scored(right, clusters):
    """Answers and their scores: intervals take longest, and many tests want the same."""
    n = len(right)
    groups = tuple("bias-aligned" if i < n // 2 else "bias-conflicting" for i in range(n))
    gold, prediction = np.zeros(n, dtype=np.int64), (~np.asarray(right)).astype(np.int64)
    judged = Judged(("yes", "no"), gold, prediction, np.eye(2)[prediction] * 0.8 + 0.1, groups, clusters)
    return judged, score(judged, *SIDES, with_consistency=bool(clusters))


def noise(seed, level, n=600):
    shared = np.random.default_rng(0).random(n)
    return shared * 0.7 + np.random.default_rng(seed + 1).random(n) * 0.3 < level


@pytest.fixture(scope="module")
def plain_runs(make_run_in, tmp_path_factory):
    """erm and edge, five seeds each: edge is far better on `big`, and no other on `same`."""
    make = partial(make_run_in, tmp_path_factory.mktemp("plain"))
    return {method: seeds_of(make, method) for method in SIDE_BY_SIDE}


def seeds_of(make, method, **changes):
    rank = SIDE_BY_SIDE.index(method)
    levels = {"big": 0.5 + 0.2 * rank, "same": 0.6}
    right = [{suite: noise(seed + 10 * rank, level) for suite, level in levels.items()} for seed in range(5)]
    return [judged(make, f"{method}{seed}", method, seed, right[seed], **changes) for seed in range(5)]


@pytest.fixture
def five_seeds(plain_runs, make_run, tmp_path):
    """The plain runs, or one side made with changes; folders of this test alone."""

    def make(**changes):
        kept = [run for method in SIDE_BY_SIDE if method not in changes for run in plain_runs[method]]
        here = {run.name: Path(copytree(run, tmp_path / run.name)) for run in kept}
        here |= {run.name: run for method, one in changes.items() for run in seeds_of(make_run, method, **one)}
        return [here[f"{method}{seed}"] for method in SIDE_BY_SIDE for seed in range(5)]

    return make


def compared(runs: Sequence[Path]) -> Comparison:
    first, second = group_runs(read_runs(runs))
    return compare(first, second)


def found(comparison, suite, measure):
    return next(one for one in comparison.differences if (one.suite, one.measure) == (suite, measure))


def test_five_seeds_make_a_claim(five_seeds):
    comparison = compared(five_seeds())
    assert (comparison.first, comparison.second, comparison.seeds, comparison.objections) == ("erm", "edge", (5, 5), ())
    one = found(comparison, "big", "conflicting")
    assert one.primary
    assert one.clear
    assert 0 < one.low < one.difference < one.high
    words = comparison.verdict
    assert words.startswith(
        "edge is better than erm on 1 of 2 suites. On big, where the shortcut gives a wrong answer,"
    )
    assert (
        f"better by {100 * one.difference:.1f} points [{100 * one.low:.1f}, {100 * one.high:.1f}], p < 0.001" in words
    )
    assert "No clear difference on same. (5 seeds each;" in words


def test_the_order_of_the_methods_only_turns_signs(five_seeds):
    runs = five_seeds()
    forth, back = compare_folders(runs[:5], runs[5:]), compare_folders(runs[5:], runs[:5])
    for one, other in zip(forth.differences, back.differences, strict=True):
        assert (one.difference, one.low, one.high, one.p) == pytest.approx(
            (-other.difference, -other.high, -other.low, other.p), abs=1e-9
        )
    assert back.verdict.startswith("edge is better than erm on 1 of 2 suites.")


def test_the_same_command_gives_the_same_numbers(five_seeds):
    runs = five_seeds()
    assert compared(runs) == compared(runs)


def test_p_is_adjusted_over_the_suites_of_a_measure(five_seeds):
    comparison = compared(five_seeds())
    for measure in ("accuracy", "conflicting", "gap", "worst_group"):
        smaller, larger = sorted(
            (found(comparison, suite, measure) for suite in ("big", "same")), key=lambda one: one.p
        )
        assert smaller.p_holm == pytest.approx(min(1, 2 * smaller.p))
        assert larger.p_holm == pytest.approx(max(larger.p, smaller.p_holm))


def test_other_labels_are_other_examples(five_seeds):
    sides = {"erm": {"change": {"gold_sha256": "one"}}, "edge": {"change": {"gold_sha256": "other"}}}
    objection = "suite big: the same texts with other labels, groups or clusters; judge all runs again"
    assert objection in compared(five_seeds(**sides)).objections


def test_results_of_a_version_without_a_digest_of_labels_are_compared(five_seeds):
    assert compared(five_seeds(edge={"change": {"gold_sha256": "other"}})).objections == ()


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"info": {"steps": 80}}, "unequal compute: erm saw 1,280 examples in training, edge 2,560"),
        ({"info": {"steps": None}}, "unknown compute: no steps and batch size are recorded for edge0"),
        ({"info": {"selection": "validation"}}, "different selection: erm by last, edge by validation"),
        ({"info": {"status": "interrupted"}}, "edge0 has the status 'interrupted'"),
        ({"change": {"examples_sha256": "other"}}, "suite big: not the same examples (600 of them)"),
        ({"change": {"examples_sha256": None}}, "suite big: a result does not say which examples"),
        (
            {"change": {"overlap": {"rows": 0, "chosen_on": 40}}},
            "suite big: 40 of its rows are validation rows by which edge was chosen: selection saw the test",
        ),
        ({"change": {"version": 2}}, "suite big: judged under its versions 1 and 2"),
        ({"change": {"judge": {"normalize": "tokens"}}}, "suite big: judged in different ways: normalize"),
    ],
)
def test_what_keeps_a_difference_from_being_a_claim(five_seeds, change, objection):
    comparison = compared(five_seeds(edge=change))
    assert any(objection in one for one in comparison.objections)
    assert "is better than" not in comparison.verdict
    assert objection in comparison.verdict


def test_a_method_whose_seeds_were_scored_in_two_ways_is_laid_aside_on_that_suite(five_seeds):
    """The table shows the mean of those that are alike; a difference of all five would contradict it."""
    runs = five_seeds(edge={})
    (path,) = [run / "eval" / "big.json" for run in runs if run.name == "edge2"]
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "judge": {**(result.get("judge") or {}), "normalize": "tokens"}}))
    comparison = compared(runs)
    (told,) = [one for one in comparison.objections if "some runs of edge" in one]
    assert told.startswith("suite big: some runs of edge were scored in another way (normalize")
    assert {one.suite for one in comparison.differences} == {"same"}


def test_runs_before_the_run_are_compute_too(five_seeds):
    """A first stage as long as the run: only who is not charged for it would call that equal."""
    runs = five_seeds()
    for run in runs[5:]:
        for name in ("1", "2"):
            stage = run / "stages" / name
            stage.mkdir(parents=True)
            for file in ("config.yaml", "run.json"):
                (stage / file).write_bytes((run / file).read_bytes())
    said = "unequal compute: edge saw 2,560 examples more in runs before the run"
    assert compared(runs).objections == (said,)
    assert "is better than" not in compared(runs).verdict
    for run in runs[:5]:  # plain training for as long as all three runs of the other side together
        put_info(run, steps=120)
    assert compared(runs).objections == ()
    put_info(runs[5] / "stages" / "1", steps=None)
    said = "unknown compute: what runs before the run saw is not recorded for edge0"
    assert compared(runs).objections == (said,)


def put_info(run, **info):
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(known | info))


def test_oracle_selection_is_never_a_claim(five_seeds):
    comparison = compared(five_seeds(erm={"info": {"selection": "oracle"}}, edge={"info": {"selection": "oracle"}}))
    assert any("oracle selection" in one for one in comparison.objections)
    assert comparison.verdict.startswith("No claim that")


def test_how_the_work_was_spread_is_no_objection(five_seeds):
    judge = {"normalize": "none", "batch": 64, "ranks": 2, "max_change": 0.5, "adapter_changes_logits": True}
    other = {"normalize": "none", "batch": "by tokens", "ranks": 1, "max_change": 0.7}
    comparison = compared(five_seeds(erm={"change": {"judge": judge}}, edge={"change": {"judge": other}}))
    assert comparison.objections == ()


@pytest.mark.parametrize(
    ("first", "second", "objects"),
    [
        ({"max_length": 14, "cut": 90}, {"max_length": 60, "cut": 0}, True),
        ({"max_length": 14, "cut": 90}, {"max_length": 14, "cut": 70}, False),
        ({"max_length": 128, "cut": 0}, {"max_length": 60, "cut": 0}, False),  # all were read whole
        ({"max_length": 14, "cut": 90}, {"cut": 90}, False),  # of a version that did not say it
    ],
)
def test_texts_that_were_cut_at_other_lengths_are_no_claim(five_seeds, first, second, objects):
    sides = {"erm": {"change": {"judge": first}}, "edge": {"change": {"judge": second}}}
    told = ("suite big: judged in different ways: max_length 14 / 60",) if objects else ()
    assert tuple(one for one in compared(five_seeds(**sides)).objections if "big" in one) == told


def test_the_same_seeds_on_both_sides_are_pairs(judged_run):
    """Luck of a seed that both methods share cancels; it does not where the seeds are others."""
    luck = np.random.default_rng(7).normal(0, 0.1, 5)
    sides = [
        [judged_run(f"{method}{seed}", method, seed, {"s": noise(seed, 0.5 + luck[seed % 7] + lead)}) for seed in seeds]
        for method, seeds, lead in (("erm", range(5), 0), ("edge", (4, 2, 0, 1, 3), 0.05))
    ]
    paired = found(compare_folders(*sides), "s", "accuracy")
    assert paired.test == "paired bootstrap over pairs of seeds and examples"
    assert paired.clear
    for folder in sides[1]:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: ", "seed: 1"))  # 14, 12, ...
    loose = found(compare_folders(*sides), "s", "accuracy")
    assert loose.test == "paired bootstrap over seeds and examples"
    assert loose.difference == pytest.approx(paired.difference)
    assert loose.high - loose.low > 2 * (paired.high - paired.low)


@pytest.mark.parametrize("change", [{"data": {"planted_bias": {"seed": 9}}}, {"seed": None}])
def test_other_data_or_no_seed_is_no_pair(judged_run, change):
    sides = [
        [judged_run(f"{method}{seed}", method, seed, {"s": noise(seed, level)}) for seed in range(2)]
        for method, level in (("erm", 0.5), ("edge", 0.6))
    ]
    assert read_answers(*(read_runs(side) for side in sides), "s").same_seeds
    config = sides[1][0] / "config.yaml"
    config.write_text(yaml.safe_dump(read_yaml(config) | change))
    answers = read_answers(*(read_runs(side) for side in sides), "s")
    assert not answers.same_seeds


@pytest.mark.parametrize("cue", [{"seed": 5}, None])
def test_an_arm_without_a_cue_is_paired_by_the_seeds_that_both_have(judged_run, cue):
    """Its data has no cue, so no seed of one: `--floor` and `--ceiling` paired these runs, `compare` did not."""
    sides = []
    for method, planted in (("erm", cue), ("edge", None)):
        side = [judged_run(f"{method}{seed}", method, seed, {"s": noise(seed, 0.5)}) for seed in range(3)]
        for folder in side:
            data = {"train": {"source": "rows.jsonl", "seed": 1}} | (
                {} if planted is None else {"planted_bias": planted}
            )
            config = folder / "config.yaml"
            config.write_text(yaml.safe_dump(read_yaml(config) | {"data": data}))
        sides.append(side)
    assert read_answers(*map(read_runs, sides), "s").same_seeds


def test_a_whole_sweep_is_two_methods(five_seeds, tmp_path):
    """Runs are RECIPE/SETTINGS/seedN there, with their logs beside them."""
    for folder in five_seeds():
        method, seed = folder.name[:-1], folder.name[-1]
        place = tmp_path / "sweep" / f"recipe_{method}" / "default"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"seed{seed}.log").write_text("text\n")
        folder.rename(place / f"seed{seed}")
    comparison = compare_folders([tmp_path / "sweep"], [])
    assert (comparison.first, comparison.second, comparison.seeds) == ("erm", "edge", (5, 5))
    with pytest.raises(InputError, match=r"seed0\.log: a file, expected a run folder"):
        read_runs([tmp_path / "sweep" / "recipe_erm" / "default" / "seed0.log"])


def test_one_seed_each_is_mcnemar_and_no_claim(judged_run):
    first, second = noise(1, 0.5), noise(2, 0.7)
    runs = [judged_run("a", "erm", 0, {"s": first}), judged_run("b", "edge", 0, {"s": second})]
    comparison = compared(runs)
    one = found(comparison, "s", "accuracy")
    assert (one.test, one.p) == ("exact McNemar", mcnemar(first, second))
    assert one.difference == pytest.approx(second.mean() - first.mean())
    half = found(comparison, "s", "conflicting")
    assert (half.n, half.p) == (300, mcnemar(first[300:], second[300:]))
    assert "one seed each" in one.note
    assert comparison.objections == ("erm has 1 seed, fewer than 5", "edge has 1 seed, fewer than 5")
    assert comparison.verdict.startswith("No claim that edge or erm is better: erm has 1 seed")


def test_one_seed_against_five(judged_run):
    runs = [judged_run(f"b{seed}", "edge", seed, {"s": noise(seed, 0.7)}) for seed in range(5)]
    comparison = compared([judged_run("a", "erm", 0, {"s": noise(9, 0.5)}), *runs])
    assert comparison.seeds == (1, 5)
    assert comparison.objections == ("erm has 1 seed, fewer than 5",)
    assert "lone seed" in comparison.differences[0].note
    assert "1 and 5 seeds" in comparison.verdict


def test_identical_runs_do_not_differ(judged_run):
    right = {"s": noise(1, 0.7)}
    comparison = compared([judged_run("a", "erm", 0, right), judged_run("b", "edge", 0, right)])
    assert all((one.difference, one.p, one.p_holm) == (0, 1, 1) for one in comparison.differences)
    assert all(one.low <= 0 <= one.high for one in comparison.differences)


@pytest.mark.parametrize("right", [[True], [False], [True, False]])
def test_one_or_two_examples_are_enough(judged_run, right):
    other = {"s": np.logical_not(right)}
    runs = [judged_run("a", "erm", 0, {"s": np.array(right)}), judged_run("b", "edge", 0, other)]
    assert all(0.4 < one.p <= 1 for one in compared(runs).differences)


def test_clusters_are_counted_and_widen_the_interval(judged_run):
    copies = [np.repeat(noise(seed, level, 100), 6) for seed, level in ((1, 0.5), (2, 0.6))]
    names = [f"c{i // 6}" for i in range(600)]
    plain = compared([judged_run(f"{m}-plain", m, 0, {"s": c}) for m, c in zip(("erm", "edge"), copies, strict=True)])
    aware = compared([judged_run(m, m, 0, {"s": c}, names) for m, c in zip(("erm", "edge"), copies, strict=True)])
    blind, seeing = (found(one, "s", "accuracy") for one in (plain, aware))
    assert (blind.clusters, seeing.clusters, seeing.test) == (None, 100, "paired bootstrap over clusters")
    assert seeing.high - seeing.low > 2 * (blind.high - blind.low)
    held = found(aware, "s", "consistency")
    assert (held.n, held.test) == (100, "exact McNemar over clusters")
    assert held.difference == pytest.approx(seeing.difference)


def loop_measures(right_RN, groups, labels):
    """Accuracy, conflicting, gap, worst group of each run, groups alike, labels alike, by plain loops."""
    rows = []
    for right_N in right_RN:
        by = {g: [r for r, one in zip(right_N, groups, strict=True) if one == g] for g in dict.fromkeys(groups)}
        share = {g: sum(rs) / len(rs) for g, rs in by.items()}
        named = [share[g] for g in share if g is not None]
        of_label = [[r for r, one in zip(right_N, labels, strict=True) if one == name] for name in set(labels)]
        alike = (sum(named) / len(named), sum(sum(rs) / len(rs) for rs in of_label) / len(of_label))
        rows.append((sum(right_N) / len(right_N), share["c"], share["a"] - share["c"], min(named), *alike))
    return rows


def test_measures_agree_with_loops_and_the_bootstrap_of_one_measure():
    rng = np.random.default_rng(0)
    groups = tuple(rng.choice(["a", "c", "x", None], 400))
    groups = tuple(None if one is None or one == "None" else str(one) for one in groups)
    right = rng.random((5, 400)) < 0.6
    clusters = rng.integers(0, 90, 400)
    labels = tuple("yes" if draw < 0.3 else "no" for draw in rng.random(400))
    cluster_N = np.unique(clusters, return_inverse=True)[1]
    answers = Answers(right, 2, groups, cluster_N, labels, aligned=("a",), conflicting=("c",))
    ours = {one.measure: one for one in differences_of(answers, True)}
    loops = np.array(loop_measures(right, groups, labels))
    for column, measure in enumerate(("accuracy", "conflicting", "gap", "worst_group", "adjusted", "balanced")):
        first, second = loops[:2, column].mean(), loops[2:, column].mean()
        assert (ours[measure].first, ours[measure].second) == pytest.approx((first, second))
        assert ours[measure].difference == pytest.approx(second - first)
    alone = paired_bootstrap(right[:2], right[2:], clusters)
    assert ours["accuracy"].high == pytest.approx(alone.high, abs=0.01)
    whole = [[all(r[clusters == k]) for k in np.unique(clusters) if (clusters == k).sum() > 1] for r in right]
    assert ours["consistency"].first == pytest.approx(np.mean(whole[:2]))
    assert ours["consistency"].n == len(whole[0])


def test_how_far_scores_move_within_clusters_is_compared(judged_run):
    """Two answers of a cluster that differ have scores that are 0.8 apart; by loops, of each run and the difference."""
    names = [f"c{i // 3}" for i in range(90)]
    told = {"counterfactual_gap": {"n": 30, "value": 0.4, "ci95": [0.3, 0.5]}}
    flags = [noise(seed, 0.6, 90) for seed in range(2)]
    runs = [judged_run(m, m, 0, {"s": one}, names, told) for m, one in zip(SIDE_BY_SIDE, flags, strict=True)]
    wanted = []
    for one in flags:
        clusters = [one[i : i + 3] for i in range(0, 90, 3)]
        apart = [[0.8 * (a != b) for a, b in ((c[0], c[1]), (c[0], c[2]), (c[1], c[2]))] for c in clusters]
        wanted.append(sum(sum(pairs) / 3 for pairs in apart) / 30)
    moved = found(compared(runs), "s", "counterfactual_gap")
    assert (moved.first, moved.second) == pytest.approx(tuple(wanted))
    assert moved.difference == pytest.approx(wanted[1] - wanted[0])
    assert moved.low < moved.difference < moved.high
    assert (moved.clusters, moved.test, moved.primary) == (30, "paired bootstrap over clusters", False)
    older = [judged_run(f"old-{m}", m, 0, {"s": one}, names) for m, one in zip(SIDE_BY_SIDE, flags, strict=True)]
    assert "counterfactual_gap" not in {one.measure for one in compared([runs[0], older[1]]).differences}


def test_copies_of_a_text_are_left_out_of_how_far_scores_move():
    clusters, texts = ["a", "a", "b", "b", "b", None], [("x",), ("x",), ("x",), ("y",), ("x",), ("x",)]
    assert told_once(clusters, texts).tolist() == [True, False, True, True, False, True]


def test_labels_and_groups_of_one_size_are_no_measures_of_their_own(judged_run):
    runs = [judged_run(name, name, 0, {"s": noise(seed, 0.6)}) for seed, name in enumerate(SIDE_BY_SIDE)]
    assert {one.measure for one in compared(runs).differences}.isdisjoint({"adjusted", "balanced"})


def test_a_suite_that_only_one_method_has_is_left_out(judged_run):
    runs = [
        judged_run("a", "erm", 0, {"s": [True] * 9, "t": [True] * 9}),
        judged_run("b", "edge", 0, {"s": [True] * 9}),
    ]
    assert {one.suite for one in compared(runs).differences} == {"s"}


def test_nothing_in_common_is_said(judged_run):
    runs = [judged_run("a", "erm", 0, {"s": [True] * 9}), judged_run("b", "edge", 0, {"t": [True] * 9})]
    with pytest.raises(InputError, match="nothing to compare: erm was judged on s, edge on t"):
        compared(runs)


def test_predictions_of_another_model_are_refused(judged_run):
    runs = [judged_run("a", "erm", 0, {"s": noise(1, 0.5)}), judged_run("b", "edge", 0, {"s": noise(2, 0.5)})]
    name = "eval/s.predictions.jsonl.gz"
    (runs[0] / name).write_bytes((runs[1] / name).read_bytes())
    with pytest.raises(InputError, match=r"s\.predictions\.jsonl\.gz: .*\(s version 1\); run `debias eval` again"):
        compared(runs)


def test_other_examples_under_the_same_digest_are_found(judged_run):
    runs = [
        judged_run("a", "erm", 0, {"s": [True] * 9}),
        judged_run("b", "edge", 0, {"s": [True] * 9}, ["c", "d", "e"] * 3),
    ]
    with pytest.raises(InputError, match="line 1: example '0' is not the one that another run has there"):
        compared(runs)


def test_lost_predictions_are_one_line(judged_run):
    runs = [judged_run("a", "erm", 0, {"s": [True] * 9}), judged_run("b", "edge", 0, {"s": [True] * 9})]
    (runs[0] / "eval/s.predictions.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"predictions\.jsonl\.gz: no such file; run `debias eval` again"):
        compared(runs)


def test_a_side_of_two_methods_is_refused(judged_run):
    runs = [judged_run(name, name, 0, {"s": [True] * 9}) for name in ("erm", "edge", "pcgrad")]
    with pytest.raises(InputError, match="one side holds 2 methods"):
        compare_folders(runs[:2], runs[2:])
    with pytest.raises(InputError, match="found 3"):
        compare_folders(runs, [])
    with pytest.raises(InputError, match="given on both sides"):
        compare_folders(runs[:1], runs[:1])


def run_verb(*words):
    from debias.cli.app import app

    return CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)


@pytest.mark.slow
def test_the_verb_takes_runs_in_every_form(five_seeds, tmp_path):
    runs = five_seeds()
    answers = [
        run_verb(tmp_path, "--json"),
        run_verb(*runs[5:], "--against", *runs[:5], "--json"),
        run_verb("--json", *runs[5:], "--against", *runs[:5]),
    ]
    assert [one.exit_code for one in answers] == [0, 0, 0]
    read = [json.loads(one.stdout) for one in answers]
    assert read[0] == read[1] == read[2]
    assert (read[0]["first"], read[0]["second"], read[0]["seeds"]) == ("erm", "edge", [5, 5])
    table = run_verb(tmp_path)
    assert table.exit_code == 0
    assert "conflicting *" in table.stdout
    assert "edge is better than erm on 1 of 2 suites" in table.stdout


@pytest.mark.parametrize("words", [["--against"], ["a", "--against"], ["--against", "a"]])
def test_a_side_without_runs_is_said(words):
    with pytest.raises(InputError, match="--against"):
        run_verb(*words)


def test_hostile_names_are_text(judged_run):
    from rich.console import Console

    name = "x[bold]\x1b[31m"
    runs = [judged_run("a", "erm", 0, {"s": [True] * 9}), judged_run(name, "erm", 0, {"s": [True] * 9})]
    console = Console(width=200, record=True, force_terminal=False)
    console.print(comparison_table(compare_folders(runs[:1], runs[1:])))
    text = console.export_text()
    assert "x[bold]?[31m" in text
    assert "\x1b" not in text


def test_effective_robustness_is_what_is_above_the_line():
    """Baselines on the line logit(y) = logit(x) - 1, by hand."""

    def on_line(x, above=0.0):
        return 1 / (1 + np.exp(-(np.log(x / (1 - x)) - 1))) + above

    baselines = [(x, on_line(x)) for x in (0.6, 0.7, 0.85)]
    assert effective_robustness(0.8, on_line(0.8, 0.07), baselines) == pytest.approx(0.07)
    assert effective_robustness(0.9, on_line(0.9), baselines) == pytest.approx(0)


@pytest.mark.parametrize(
    "baselines", [[], [(0.5, 0.4)], [(0.5, 0.4), (0.6, 0.5)], [(0.7, 0.3), (0.7, 0.4), (0.7, 0.5)]]
)
def test_too_few_baselines_give_no_line(baselines):
    assert effective_robustness(0.8, 0.6, baselines) is None


def test_perfect_baselines_do_not_break_the_line():
    assert np.isfinite(effective_robustness(1.0, 1.0, [(0.0, 0.0), (0.5, 0.4), (1.0, 1.0)]))
    with pytest.raises(ValueError, match="an accuracy is 80"):
        effective_robustness(80, 0.5, [(0.5, 0.4), (0.6, 0.5), (0.7, 0.6)])
