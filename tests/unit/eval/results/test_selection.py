"""Selection rules on candidates made by hand: what is chosen and refused, and that only the oracle sees a suite."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
from rich.console import Console

from debias.config.reading import dump_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.records import append_record, read_records
from debias_eval.results.chosen import oracle_choice
from debias_eval.results.files import Result
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import Run, read_runs
from debias_eval.results.selection import RULES, choice_table, choices_in, remember, select


@dataclass(frozen=True)
class Named:
    name: str
    runs: tuple


def lines(*pairs):
    """(accuracy, worst-class accuracy) of validations at the steps 10, 20, ..."""
    return tuple(
        {"step": 10 * (i + 1), "eval_accuracy": a, "eval_worst_class_accuracy": w} for i, (a, w) in enumerate(pairs)
    )


class Unseen(dict):
    """Results that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"a suite's results were read ({name})")


def run_of(name, seed, metrics, info=None, config=None, results=None):
    return Run(
        name, None, {"seed": seed, **(config or {})}, info or {}, metrics, Unseen() if results is None else results
    )


def candidate(name, *of_seeds, **more):
    return Named(name, tuple(run_of(f"{name}{seed}", seed, metrics, **more) for seed, metrics in enumerate(of_seeds)))


def result(accuracy, worst=None, suite="s"):
    values = {"suite": suite, "version": 1, "n": 10, "accuracy": accuracy, "ci95": [0, 1], "ece": 0}
    if worst is not None:
        values |= {
            "groups": {
                "g": {"n": 5, "accuracy": worst, "ci95": [0, 1]},
                "h": {"n": 5, "accuracy": 2 * accuracy - worst, "ci95": [0, 1]},
            }
        }
        values["worst_group"] = {"name": "g", "accuracy": worst}
    return Result.model_validate(values)


def judged(name, *results):
    runs = (run_of(f"{name}{i}", i, (), results={one.suite: one for one in every}) for i, every in enumerate(results))
    return Named(name, tuple(runs))


def test_the_rules_by_name():
    assert list(RULES) == ["last", "validation", "worst_class", "pseudo_groups", "oracle"]
    assert [rule.name for rule in RULES.values() if rule.sees_test] == ["oracle"]
    with pytest.raises(
        InputError, match="rule is 'best', not one of last, validation, worst_class, pseudo_groups, oracle"
    ):
        select([candidate("a", lines((1, 1)))], "best")


def test_the_mean_over_seeds_decides_and_not_the_best_seed():
    steady = candidate("steady", lines((0.7, 0.5)), lines((0.7, 0.5)))
    lucky = candidate("lucky", lines((0.9, 0.1)), lines((0.4, 0.1)))
    assert select([lucky, steady], "validation") is steady


def test_rules_differ():
    even = candidate("even", lines((0.6, 0.6)))
    skewed = candidate("skewed", lines((0.8, 0.1)))
    assert select([even, skewed], "validation") is skewed
    assert select([even, skewed], "worst_class") is even


def test_the_kept_checkpoint_counts_and_not_a_better_one_that_is_gone():
    fallen = candidate("fallen", lines((0.9, 0.9), (0.5, 0.5)))
    risen = candidate("risen", lines((0.3, 0.3), (0.6, 0.6)))
    assert select([fallen, risen], "validation") is risen
    kept = candidate("kept", lines((0.9, 0.9), (0.5, 0.5)), info={"selected_step": 10})
    assert select([kept, risen], "validation") is kept


def test_ties_go_to_the_first():
    one, two = candidate("one", lines((0.5, 0.5))), candidate("two", lines((0.5, 0.5)))
    assert select([one, two], "validation") is one
    assert select([two, one], "validation") is two


def test_last_does_not_choose():
    one, two = candidate("one", lines((0.5, 0.5))), candidate("two", lines((0.6, 0.5)))
    assert select([one], "last") is one
    with pytest.raises(InputError, match="rule last cannot choose among 2 configurations"):
        select([one, two], "last")


def test_what_fails_on_a_seed_does_not_win_by_it():
    whole = candidate("whole", lines((0.5, 0.5)), lines((0.5, 0.5)))
    part = candidate("part", lines((0.9, 0.9)))
    assert select([part, whole], "validation") is whole
    other = Named("other", (run_of("other2", 2, lines((0.9, 0.9))),))
    with pytest.raises(InputError, match="no configuration has all seeds: part, other"):
        select([part, other], "validation")


def test_a_run_without_validation_is_named():
    blind = candidate("blind", ({"step": 1, "loss": 2.0},))
    nan = candidate("nan", ({"step": 1, "eval_accuracy": float("nan")},))
    seen = candidate("seen", lines((0.5, 0.5)))
    for bad in (blind, nan):
        with pytest.raises(InputError, match=f"{bad.name}0 has no eval_accuracy in metrics.jsonl"):
            select([seen, bad], "validation")
    with pytest.raises(InputError, match="nothing to select from"):
        select([], "validation")


def test_files_of_one_name_that_are_others_cannot_be_ranked():
    """Kept runs have the last name of a path: `a/dev.csv` and `b/dev.csv` are told by what run.json says of them."""
    one, two, old = (
        Named(name, (dataclasses.replace(run_of(f"{name}0", 0, lines((0.5, 0.5))), info=info),))
        for name, info in [
            *((name, {"data_files": {"train": {"t.csv": name}, "validation": {"dev.csv": name}}}) for name in "ab"),
            ("old", {}),
        ]
    )
    assert select([one, old], "validation") is one
    with pytest.raises(InputError, match="a and b were validated on other data: files of one name"):
        select([one, two], "validation")


def test_other_validation_data_cannot_be_ranked():
    one = candidate("one", lines((0.5, 0.5)), config={"data": {"planted_bias": {"strength": 0.9, "seed": 1}}})
    two = candidate("two", lines((0.6, 0.5)), config={"data": {"planted_bias": {"strength": 0.5, "seed": 2}}})
    with pytest.raises(InputError, match=r"validated on other data: data\.planted_bias\.strength is 0.9 and 0.5"):
        select([one, two], "validation")
    same = candidate("same", lines((0.6, 0.5)), config={"data": {"planted_bias": {"strength": 0.9, "seed": 3}}})
    assert select([one, same], "validation") is same


def test_the_oracle_takes_the_worst_group_of_the_suite_itself():
    fair = judged("fair", [result(0.6, 0.5)], [result(0.6, 0.5)])
    skewed = judged("skewed", [result(0.7, 0.4)], [result(0.7, 0.4)])
    assert select([skewed, fair], "oracle") is fair
    assert select([judged("a", [result(0.5)]), judged("b", [result(0.6)])], "oracle").name == "b"


def test_the_oracle_must_know_the_suite():
    two = [judged(name, [result(0.5, suite="s"), result(0.5, suite="t")]) for name in "ab"]
    with pytest.raises(InputError, match="a0 was judged on s, t: say on which the oracle looks"):
        select(two, "oracle")
    assert select(two, "oracle", "t") is two[0]
    with pytest.raises(InputError, match="a0 has no result on u"):
        select(two, "oracle", "u")


# --- in a folder


@pytest.fixture
def sweep(tmp_path, make_run, put):
    """Two recipes, two learning rates, two seeds; the larger rate is better by validation, the smaller on the suite."""
    folder = tmp_path / "sweep"
    append_record(folder / "records.jsonl", {"event": "planned"})
    for recipe in ("edge", "erm"):
        for rate, accuracy, right in ((0.1, 0.8, 20), (0.2, 0.9, 10)):
            for seed in (0, 1):
                run = make_run(f"sweep/{recipe}/learning_rate={rate}/seed{seed}", recipe, seed)
                config = {"model": "m", "data": {"train": "t"}, "output_dir": "x", "method": recipe, "seed": seed}
                (run / "config.yaml").write_text(
                    dump_config(RunConfig.model_validate({**config, "learning_rate": rate}))
                )
                with (run / "metrics.jsonl").open("a") as file:
                    line = {"step": 40, "eval_accuracy": accuracy + 0.01 * seed, "eval_worst_class_accuracy": 0.1}
                    file.write(json.dumps(line) + "\n")
                put(run, "hans", {"x": right, "y": 90})
    return folder


def test_a_choice_for_each_recipe(sweep):
    choices = choices_in(sweep, "validation")
    assert [(one.method, one.name, one.candidates) for one in choices] == [
        ("edge", "edge/learning_rate=0.2", 2),
        ("erm", "erm/learning_rate=0.2", 2),
    ]
    assert choices[0].score == pytest.approx(0.905)
    assert [run.seed for run in choices[0].runs] == [0, 1]
    assert not any(run.is_oracle for one in choices for run in one.runs)


def test_a_grid_over_rules_is_one_of_methods(sweep):
    """Of each rule one configuration is chosen, and not the better rule of the two."""
    (sweep / "erm").rename(sweep / "edge" / "erm")
    for path in list((sweep / "edge" / "erm").iterdir()):
        path.rename(sweep / "edge" / f"method=erm,{path.name}")
    (sweep / "edge" / "erm").rmdir()
    choices = choices_in(sweep, "validation")
    assert [(one.method, one.name, one.candidates) for one in choices] == [
        ("edge: edge + cross_entropy", "edge/learning_rate=0.2", 2),
        ("edge: erm + cross_entropy", "edge/method=erm,learning_rate=0.2", 2),
    ]


def test_an_oracle_is_flagged_in_every_table_from_then_on(sweep):
    choices = choices_in(sweep, "oracle")
    assert {one.name for one in choices} == {"edge/learning_rate=0.1", "erm/learning_rate=0.1"}
    assert all(run.is_oracle for one in choices for run in one.runs)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(choice_table(choices))
    text = console.export_text()
    assert text.count("ORACLE on hans") == 2
    assert "no fair result" in text
    chosen, other = (sweep / "edge" / f"learning_rate={rate}" / "seed0" for rate in (0.1, 0.2))
    assert oracle_choice(chosen) is None
    remember(choices)
    assert oracle_choice(chosen) == "oracle (hans)"
    assert oracle_choice(other) is None
    runs = read_runs([chosen, other])
    assert [run.is_oracle for run in runs] == [True, False]
    assert "oracle selection" in group_runs(runs)[0].name + group_runs(runs)[1].name
    moved = sweep.rename(sweep.with_name("moved"))
    assert oracle_choice(moved / "edge" / "learning_rate=0.1" / "seed0") == "oracle (hans)"
    remember(choices_in(moved, "validation"))
    assert oracle_choice(moved / "edge" / "learning_rate=0.1" / "seed0") == "oracle (hans)", "it was not chosen again"
    assert len(read_records(moved / "records.jsonl")[0]) == 5


@pytest.mark.parametrize("asked", ["edge", "edge/learning_rate=0.1", "edge/learning_rate=0.1/seed0", ".."])
def test_an_oracle_in_a_part_of_a_sweep_is_flagged_too(sweep, asked):
    """A recipe, a setting or one run of it, or a folder that the sweep lies in."""
    chosen, other = (sweep / "edge" / f"learning_rate={rate}" / "seed0" for rate in (0.1, 0.2))
    remember(choices_in(sweep / asked, "oracle"))
    assert [run.selection for run in read_runs([chosen, other])] == ["oracle (hans)", "last"]
    assert not list((sweep / "edge").rglob("records.jsonl"))
    remember(choices_in(sweep / "edge", "validation") if asked == "edge" else [])
    assert oracle_choice(chosen) == "oracle (hans)"


def test_runs_that_have_not_finished_are_passed_over(sweep):
    run = sweep / "edge" / "learning_rate=0.2" / "seed1"
    (run / "run.json").write_text('{"status": "failed"}')
    edge, erm = choices_in(sweep, "validation")
    assert (edge.name, edge.passed_over) == ("edge/learning_rate=0.1", ("edge/learning_rate=0.2",))
    assert erm.name == "erm/learning_rate=0.2"


def test_what_was_not_chosen_is_said(sweep):
    edge, erm = choices_in(sweep, "validation")
    only = dataclasses.replace(edge, score=None, candidates=1)
    assert "nothing was chosen" in str(choice_table([only, erm]).caption)
    assert "nothing was chosen" not in str(choice_table([edge, erm]).caption)


def test_a_folder_that_is_no_sweep_goes_by_the_method(sweep):
    (sweep / "records.jsonl").unlink()
    choices = choices_in(sweep, "validation")
    assert [one.method for one in choices] == ["edge", "erm"]
    remember(choices)
    assert not (sweep / "records.jsonl").exists()


def test_data_drawn_with_the_seed_is_no_other_configuration(sweep):
    for path in sweep.rglob("config.yaml"):
        seed = path.parent.name[-1]
        path.write_text(path.read_text().replace("  planted_bias: null", f"  planted_bias: {{seed: {seed}}}"))
    assert [len(one.runs) for one in choices_in(sweep, "validation")] == [2, 2]


def test_folders_and_options_that_make_no_sense(sweep, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, says in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "holds no finished run")):
        with pytest.raises(InputError, match=says):
            choices_in(folder, "validation")
    with pytest.raises(InputError, match="--suite goes with rule oracle"):
        choices_in(sweep, "validation", "hans")
