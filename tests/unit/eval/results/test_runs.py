import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from debias.config.run import RunConfig
from debias.errors import InputError
from debias_eval.reporting.charts import MAX_POINTS, bucket_means, curve_chart, ticks
from debias_eval.results.files import Part
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import Method, Run, read_runs, run_folders
from debias_eval.results.summary import Estimate, of_parts, points, row, suites_of, table


def names(runs):
    return [method.name for method in group_runs(runs)]


def test_plain_fine_tuning_comes_first_and_seeds_join(make_run):
    runs = [make_run("e0"), make_run("e1", seed=1), make_run("p", "erm"), make_run("e2", seed=2)]
    methods = group_runs(read_runs(runs))
    assert [(method.name, method.seeds, method.style) for method in methods] == [("erm", 1, 0), ("edge", 3, 1)]


def test_the_same_seed_twice_is_no_second_seed(make_run):
    methods = group_runs(read_runs([make_run("a"), make_run("b")]))
    assert [(method.name, method.seeds) for method in methods] == [("edge (a)", 1), ("edge (b)", 1)]


def test_one_method_with_two_settings_is_told_apart_by_them():
    runs = [Run(str(r), None, {"method": {"name": "edge"}, "lora_r": r, "seed": r}) for r in (8, 16)]
    assert names(runs) == ["edge (lora_r 8)", "edge (lora_r 16)"]


@pytest.mark.parametrize("key", ["data", "base"])
def test_files_of_one_name_with_other_content_are_no_seeds_of_one_method(key):
    """Kept runs have the last name of a path alone: data and weights are told apart by their digests."""

    def run(seed, content):
        files = {"data": {"data_files": {"train": {"t.csv": content}}}, "base": {"base_sha256": content}}
        info = files[key] if content else {}
        return Run(
            f"{content}{seed}", None, {"method": {"name": "erm"}, "data": {"train": "t.csv"}, "seed": seed}, info
        )

    def grouped(*runs):
        return [[one.name for one in method.runs] for method in group_runs(runs)]

    biased, clean, unsaid = [run(0, "biased"), run(1, "biased")], [run(1, "clean"), run(2, "clean")], run(3, None)
    assert grouped(*biased, *clean, unsaid) == [["biased0", "biased1"], ["clean1", "clean2"], ["None3"]]
    assert grouped(*biased, unsaid) == [["biased0", "biased1", "None3"]]  # kept by a version that did not say


def test_many_differing_settings_fall_back_to_the_folder():
    runs = [Run(f"f{r}", None, {"method": {"name": "edge"}, "a": r, "b": r, "c": r}) for r in (8, 16)]
    assert names(runs) == ["edge (f8)", "edge (f16)"]


@pytest.mark.parametrize(
    ("config", "called"),
    [
        ({"method": "main_only"}, "erm"),
        ({"method": {"name": "erm"}, "loss": {"name": "cross_entropy"}, "order": {"name": "shuffled"}}, "erm"),
        ({"method": "erm", "loss": "focal"}, "focal"),
        (
            {"method": "erm", "loss": {"name": "logit_correction"}, "bias_model": {"name": "first_learned"}},
            "logit_correction + first_learned",
        ),
        ({"method": "erm", "bias_model": {"name": "lexical"}}, "erm"),
        ({"method": "edge", "bias_model": "lexical"}, "edge + lexical"),
        ({"method": "erm", "sharpness": "sam", "smoothness": {"name": "smart"}}, "sam + smart"),
        ({"method": "erm", "weight_penalty": "pego"}, "pego"),
        ({"method": "erm", "weight_projection": "spd"}, "spd"),
        ({"method": "erm", "gradient_mask": {"name": "saft", "share": 0.1}}, "saft"),
        ({"method": "erm", "order": "upsampled", "first_stage": {"keep": "errors"}}, "upsampled + first_stage"),
        ({"method": "erm", "data": {"swap": {}}}, "swap"),
        ({"method": "erm", "head_dropout": 0.9}, "head_dropout"),
        ({"method": "erm", "head_dropout": 0.0, "prompt": {"template": "t", "more_templates": []}}, "erm"),
        ({"method": "erm", "prompt": {"template": "t", "more_templates": ["u"]}}, "more_templates"),
        ({"method": "erm", "loss": {"name": "cross_entropy", "class_weights": "balanced"}}, "class_weights"),
        ({"method": "erm", "loss": {"name": "cross_entropy", "class_weights": None}}, "erm"),
        ({}, ""),
    ],
)
def test_a_method_is_more_than_its_rule(config, called):
    """`erm` with another loss is no baseline: reports took it for plain fine-tuning."""
    run = Run("a", None, config)
    assert run.called == called
    assert Method("a", (run,)).is_baseline is (called == "erm")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "focal"},
        {"sharpness": "sam"},
        {"smoothness": "smart"},
        {"weight_penalty": "pego"},
        {"weight_projection": "spd"},
        {"gradient_mask": "gmt"},
        {"head_dropout": 0.9},
        {"data": {"train": "generated", "swap": {}}},
    ],
)
def test_what_run_json_says_of_a_method_is_what_the_config_says(changes):
    """A run whose config.yaml was lost is no baseline because of that."""
    base = {"model": "m", "data": {"train": "generated"}, "output_dir": "o", "method": "erm"}
    config = RunConfig.model_validate({**base, **changes})
    told = {"method": config.method, **config.method_parts()}
    told = json.loads(json.dumps(told))
    assert Run("a", None, info=told).called == Run("a", None, config.model_dump(mode="json")).called


def test_what_was_only_judged_is_no_baseline():
    run = Run("a", None, info={"method": {"name": "erm"}, "judged": {"model": "erm"}})
    assert not Method("a", (run,)).is_baseline


def test_runs_without_a_config_stand_alone():
    runs = [Run("a", None, info={"method": {"name": "edge"}}), Run("b", None), Run("c", None, info={"method": "erm"})]
    assert names(runs) == ["erm", "edge", "b"]


def test_folders_of_the_same_name_keep_a_parent(make_run):
    runs = [make_run("x/run"), make_run("y/run", "erm")]
    assert [run.name for run in read_runs([*runs, runs[0]])] == ["x/run", "y/run"]


def test_a_run_given_as_a_dot_has_a_name(make_run, monkeypatch):
    monkeypatch.chdir(make_run("here"))
    assert read_runs(["."])[0].name == "here"


def test_suites_with_a_planted_cue_come_first(make_run, put):
    run = make_run("a", suites={"z": {"bias-aligned": 9, "bias-conflicting": 3}, "a": {"x": 3}})
    put(run, "b", {"x": 5, "y": 6}, conflicting={"n": 9, "accuracy": 0.5, "ci95": [0, 1]})
    assert suites_of(group_runs(read_runs([run]))) == ["z", "b", "a"]


def test_seeds_become_a_mean_with_an_interval_over_seeds(make_run):
    groups = [{"bias-aligned": 90, "bias-conflicting": right} for right in (10, 20, 40)]
    runs = [make_run(f"r{seed}", seed=seed, suites={"s": one}) for seed, one in enumerate(groups)]
    (one,) = table(group_runs(read_runs(runs)))
    # Student's t of three values (4.3027) over their standard error, and the mean Wilson half-widths, in quadrature.
    over_seeds = 4.302653 * (((0.1 - 0.7 / 3) ** 2 + (0.2 - 0.7 / 3) ** 2 + (0.4 - 0.7 / 3) ** 2) / 2 / 3) ** 0.5
    wilson = [(0.055229, 0.174366), (0.133367, 0.288829), (0.309401, 0.497998)]
    above = sum(high - value for (_, high), value in zip(wilson, (0.1, 0.2, 0.4), strict=True)) / 3
    high = 0.7 / 3 + (over_seeds**2 + above**2) ** 0.5
    assert one.conflicting == Estimate(pytest.approx(0.7 / 3), 0.0, pytest.approx(high, abs=1e-4), 3)
    assert one.gap.value == pytest.approx(0.9 - 0.7 / 3)
    assert one.gap.high == 1.0 or one.gap.low < 0.5 < 0.8 < one.gap.high
    assert (one.worst.high, one.worst_name, one.examples) == (one.conflicting.high, "bias-conflicting", "200")


def test_seeds_judged_on_different_numbers_say_both(make_run, put):
    runs = [make_run("a", suites={"s": {"x": 1}}), make_run("b", seed=1)]
    put(runs[1], "s", {"x": 1}, available=500)
    assert row(group_runs(read_runs(runs))[0], "s").examples == "100 / 100 of 500"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_a_mean_lies_in_its_interval(values):
    one = of_parts([Part(n=10, accuracy=value, ci95=(value, value)) for value in values])
    assert 0 <= one.low <= one.value <= one.high <= 1


@pytest.mark.parametrize(("share", "text"), [(0.12345, "12.3"), (-0.0001, "0.0"), (-0.5, "−50.0"), (1, "100.0")])
def test_points(share, text):
    assert points(share) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_enclose_and_ascend(low, width):
    high = low + width
    axis = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert axis[0] <= low + slack
    assert axis[-1] >= high - slack
    assert 2 <= len(axis) <= 8
    assert axis == sorted(set(axis))


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(1, 600) == [0, 200, 400, 600]
    assert ticks(-0.1, 0.1) == [-0.1, -0.05, 0, 0.05, 0.1]


def test_buckets_average_all_points():
    assert bucket_means([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1.5, 2.0), (3.0, 5.0)]


def chart_of(metrics):
    return curve_chart([Method("m", (Run("r", None, metrics=tuple(metrics)),))], "loss", "Loss", "note")


@pytest.mark.parametrize(
    "metrics", [[], [{"step": 1}], [{"step": 1, "loss": float("nan")}], [{"step": True, "loss": 1}]]
)
def test_nothing_logged_is_no_chart(metrics):
    assert chart_of(metrics) is None


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=300))
def test_any_curve_stays_inside_the_plot(values):
    chart = chart_of({"step": i, "loss": value} for i, value in enumerate(values))
    if chart is None:
        return
    (line,) = chart.lines
    places = [tuple(map(float, pair.split(","))) for pair in line.path.split()]
    assert len(places) <= MAX_POINTS
    assert all(-0.01 <= x <= 100.01 and -0.01 <= y <= 100.01 for x, y in places)
    json.dumps([tick.text for tick in chart.y_ticks])


def test_every_run_below_a_folder_is_found_however_far_down(make_run, tmp_path):
    """What lies inside a run, or is a stage of one that has not begun, is no run of its own."""
    names = [
        "a",
        "stages/first/default/seed0",
        "sweeps/s1/recipe/default/seed0",
        "sweeps/s1/recipe/default/seed1",
        "x/y/sweeps/s2/r/default/seed0",
    ]
    runs = [make_run(f"all/{name}") for name in names]
    make_run("all/a/checkpoint-10/inside")
    make_run("all/begun/stages/1")
    make_run("all/.hidden/run")
    (tmp_path / "all" / "sweeps" / "round").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "x" / "again").symlink_to(tmp_path / "all" / "sweeps")
    assert run_folders(tmp_path / "all") == runs
    found = read_runs([tmp_path / "all"])
    assert [run.path for run in found] == runs
    assert len({run.name for run in found}) == len(runs)


@pytest.mark.parametrize("text", ["defaults: [a]\nmodel: m\n", "- a list\n", "a: [\n", ""])
def test_a_config_of_another_program_is_no_run(make_run, tmp_path, text):
    for place in ("all", "all/outputs", "all/outputs/deep"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "config.yaml").write_text(text)
    begun = make_run("all/outputs/begun")
    for file in ("run.json", "metrics.jsonl"):
        (begun / file).unlink()
    assert run_folders(tmp_path / "all") == [begun]
    assert run_folders(tmp_path / "all" / "outputs" / "deep") == [tmp_path / "all" / "outputs" / "deep"]


@pytest.mark.parametrize("beside", ["metrics.jsonl", "adapter", "checkpoint-4"])
@pytest.mark.parametrize("text", ["", "model: [cut"])
def test_a_run_whose_config_is_damaged_is_no_run_of_others(make_run, tmp_path, text, beside):
    run = make_run("all/run")
    for file in ("run.json", "metrics.jsonl"):
        (run / file).unlink()
    (run / "config.yaml").write_text(text)
    (run / beside).mkdir() if beside != "metrics.jsonl" else (run / beside).write_text("")
    assert run_folders(tmp_path / "all") == [run]


def test_runs_of_one_name_are_told_apart_far_up(make_run, tmp_path):
    for above in ("one", "two"):
        make_run(f"all/{above}/a/b/c/d/e/f/g")
    assert [run.name for run in read_runs([tmp_path / "all"])] == ["one/a/b/c/d/e/f/g", "two/a/b/c/d/e/f/g"]


def test_a_folder_that_cannot_be_read_is_said(make_run, tmp_path, monkeypatch):
    make_run("all/a")
    closed, iterdir = tmp_path / "all" / "closed", Path.iterdir
    closed.mkdir()

    def refused(path):
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(InputError, match=r"all/closed: cannot be read: Permission denied; give the folders of runs"):
        read_runs([tmp_path / "all"])
