"""`selection: pseudo_groups` and what every run with a bias model records of validation, through whole runs."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, runs_of_sweeps_here
from test_selected_runs import adapter_of_checkpoint, evaluated, lines, summary
from tiny_digits import write_digits
from tiny_runs import PROMPT, adapter_of, largest_difference, save_bert, save_llama, settings_for
from train_many import on_ranks

from debias.building.examples import validation_examples
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.inference.held_out import HeldOutPseudoGroups
from debias.inference.loading import load_run
from debias.train import train
from debias_eval.results.selection import choices_in

CUE = {"cue": "!!", "prevalence": 0.4, "strength": 0.7}
DATA = {
    "train": {"source": "generated", "limit": 120},
    "validation": {"source": "generated", "limit": 240, "split": "validation"},
    "planted_bias": CUE,
}
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
FIGURE = "eval_pseudo_group_accuracy"
BY_GROUP = {"name": "groups", "folds": 2}
# The guesses of `groups` on three planted groups: a cell a guess of each label.
SELECTING = {"data": DATA, "bias_model": BY_GROUP, "selection": "pseudo_groups", "method": "erm"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pseudo_groups")
    save_bert(folder / "bert")
    save_llama(folder / "llama")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    shared = {"learning_rate": 0.1, "max_steps": 6, "per_device_train_batch_size": 12, **EACH_STEP, **SELECTING}
    return settings_for(place / "bert", place / name, **{**shared, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


def said_of_validation(run: Path, name: str) -> np.ndarray:
    with np.load(run / "bias" / f"{name}.validation.npz") as held:
        found: np.ndarray = held["log_p"]
    return found


def by_hand(run: Path, name: str) -> tuple[float, dict[tuple[str, str], tuple[int, float]]]:
    """The criterion of what a run kept, in plain loops over its own answers; every cell large enough."""
    config = load_config(run / "config.yaml")
    examples = validation_examples(config, None)
    guesses = said_of_validation(run, name).argmax(axis=1)
    answers = load_run(run).label_scores(examples).argmax(axis=1)
    cells = defaultdict(list)
    for example, guess, answer in zip(examples, guesses, answers, strict=True):
        cells[config.data.labels[example.label], config.data.labels[guess]].append(answer == example.label)
    reached = {cell: (len(right), sum(right) / len(right)) for cell, right in cells.items()}
    return sum(share for _, share in reached.values()) / len(reached), reached


@pytest.fixture(scope="module")
def chosen(place: Path) -> Path:
    return run(settings(place, "chosen"))


def test_the_kept_checkpoint_is_the_best_over_pseudo_groups(place: Path, chosen: Path) -> None:
    every = run(settings(place, "every", selection="last", save_total_limit=None))
    values = evaluated(chosen, FIGURE)
    assert sorted(values) == [1, 2, 3, 4, 5, 6]
    assert evaluated(every, FIGURE) == values  # recorded where it selects nothing, too
    best = min(step for step in values if values[step] == max(values.values()))
    assert best < 6, "this seed would not tell the best from the last"
    told = summary(chosen)
    assert (told["selection"], told["selected_step"], told[f"selected_{FIGURE}"]) == (
        "pseudo_groups",
        best,
        values[best],
    )
    assert largest_difference(adapter_of(chosen), adapter_of_checkpoint(every, best)) == 0.0
    assert summary(every)["pseudo_groups"]["step"] == 6
    assert told["pseudo_groups"]["step"] == best


def test_figures_are_those_of_the_kept_model_counted_by_hand(chosen: Path) -> None:
    criterion, cells = by_hand(chosen, "groups")
    told = summary(chosen)["pseudo_groups"]
    assert told[FIGURE] == pytest.approx(criterion, abs=1e-12)
    found = {(row["label"], *row["guesses"]): (row["n"], row["accuracy"]) for row in told["cells"]}
    assert found == {cell: (n, pytest.approx(share)) for cell, (n, share) in cells.items()}
    assert told["eval_worst_pseudo_group_accuracy"] == pytest.approx(min(share for _, share in cells.values()))
    line = next(line for line in lines(chosen) if line["step"] == told["step"] and FIGURE in line)
    assert told["eval_accuracy"] == line["eval_accuracy"]
    assert line["pseudo_groups"] == told["cells"]
    history = json.loads((chosen / f"checkpoint-{told['step']}" / "trainer_state.json").read_text())["log_history"]
    assert not any("pseudo_groups" in entry for entry in history)  # nested: other reporters could not take it


def test_a_resumed_run_chooses_as_an_undisturbed_one(place: Path, chosen: Path) -> None:
    cut = run(settings(place, "cut", max_steps=3, save_total_limit=None, lr_scheduler_type="constant"))
    kept = (cut / "bias" / "groups.validation.npz").stat().st_mtime_ns
    run(settings(place, "cut", save_total_limit=None, lr_scheduler_type="constant", resume=True))
    whole = run(settings(place, "whole", save_total_limit=None, lr_scheduler_type="constant"))
    assert summary(cut)["pseudo_groups"] == summary(whole)["pseudo_groups"]
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    assert (cut / "bias" / "groups.validation.npz").stat().st_mtime_ns == kept


def test_tau_0_is_plain_fine_tuning_to_the_bit(place: Path) -> None:
    end_of_a_sweep = run(settings(place, "tau0", loss={"name": "logit_correction", "tau": 0.0}, max_steps=3))
    plain = run(settings(place, "plain", loss="cross_entropy", max_steps=3))
    assert largest_difference(adapter_of(end_of_a_sweep), adapter_of(plain)) == 0.0
    assert summary(end_of_a_sweep)["pseudo_groups"] == summary(plain)["pseudo_groups"]


@pytest.mark.slow
def test_a_sweep_over_tau_is_chosen_from(place: Path, debias: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_of_sweeps_here(monkeypatch, debias)
    block = settings(place, "unused", loss="logit_correction", max_steps=2, selection="last")
    (place / "recipe.yaml").write_text(json.dumps(block))  # JSON is YAML
    out = place / "sweep"
    grid = ["--set", "loss.tau=0,0.5", "--seeds", "1"]
    swept = debias("sweep", place / "recipe.yaml", *grid, "-o", out)
    assert swept.code == 0, swept.err
    (choice,) = choices_in(out, "pseudo_groups")
    reached = {path.parent.name: summary(path)["pseudo_groups"][FIGURE] for path in out.glob("recipe/*/seed0")}
    assert sorted(reached) == ["loss.tau=0", "loss.tau=0.5"]
    assert reached[choice.name.rpartition("/")[2]] == max(reached.values())


@pytest.mark.slow
def test_a_base_that_learned_first_judges_validation(place: Path) -> None:
    first = {"name": "first_learned", "steps": 3, "learning_rate": 1e-2, "lora_r": 2}
    found = run(settings(place, "first", bias_model=first, loss="logit_correction", max_steps=2))
    examples = validation_examples(load_config(found / "config.yaml"), None)
    stages = [load_run(found / "stages" / f"bias_{fold}").label_scores(examples) for fold in (1, 2)]
    guesses = (stages[0] + stages[1]).argmax(axis=1)
    assert (said_of_validation(found, "first_learned").argmax(axis=1) == guesses).all()
    assert len(evaluated(found, FIGURE)) == 2
    reached = summary(found)["pseudo_groups"][FIGURE]
    assert HeldOutPseudoGroups(found)(found / "adapter") == pytest.approx(reached, abs=1e-12)
    idle = run(settings(place, "idle", bias_model=first, selection="last", max_steps=1))
    assert not (idle / "stages").exists()  # asked by nobody, and not trained for a figure that nobody asked for


@pytest.mark.slow
def test_what_two_ranks_kept_is_found_in_one_process(place: Path) -> None:
    """As many samples a step as there were, though each rank had half of them."""
    first = {"name": "first_learned", "steps": 3, "learning_rate": 1e-2, "lora_r": 2}
    changes = {"bias_model": first, "loss": "logit_correction", "max_steps": 2, "per_device_train_batch_size": 6}
    on_ranks(2, [settings(place, "on_two", **changes)])
    run = place / "on_two"
    reached = summary(run)["pseudo_groups"][FIGURE]
    assert HeldOutPseudoGroups(run)(run / "adapter") == pytest.approx(reached, abs=1e-12)


@pytest.mark.slow
def test_a_first_stage_makes_groups_too(place: Path) -> None:
    stage = {"keep": "log_p", "settings": {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}}
    found = run(settings(place, "staged", bias_model=None, first_stage=stage, max_steps=2))
    examples = validation_examples(load_config(found / "config.yaml"), None)
    guesses = load_run(found / "stages" / "1").label_scores(examples).argmax(axis=1)
    cells = summary(found)["pseudo_groups"]["cells"]
    labels = load_config(found / "config.yaml").data.labels
    for row in cells:
        mine = [
            labels[e.label] == row["label"] and labels[g] in row["guesses"]
            for e, g in zip(examples, guesses, strict=True)
        ]
        assert sum(mine) == row["n"]


@pytest.mark.slow
def test_causal_models_and_pictures(place: Path) -> None:
    causal = settings(place, "causal", head="causal_lm", prompt=PROMPT, max_steps=2, loss="logit_correction")
    found = run({**causal, "model": str(place / "llama")})
    assert by_hand(found, "groups")[0] == pytest.approx(summary(found)["pseudo_groups"][FIGURE], abs=1e-12)
    digits = write_digits(place / "digits", 200), write_digits(place / "digits", 400, "t10k", seed=1)
    data = {"train": str(digits[0]), "validation": str(digits[1]), "labels": list(range(10))}
    pictures = settings(place, "pictures", head="image_classification", adapter="full", max_steps=2)
    pictures |= {"model": "vision:mlp", "data": {**data, "planted_color": {"strength": 0.7}}}
    pictures |= {"bias_model": {"name": "first_learned", "steps": 8, "learning_rate": 0.01}}
    pictures.pop("max_length", None)
    found = run(pictures)
    cells = summary(found)["pseudo_groups"]["cells"]
    assert said_of_validation(found, "first_learned").shape == (400, 10)
    for label in range(10):
        assert sum(row["n"] for row in cells if row["label"] == str(label)) == 40
    assert any(len(row["guesses"]) > 1 and row["counts"] for row in cells)  # wrong guesses of few, together


@pytest.mark.slow
def test_two_ranks_choose_as_one(place: Path) -> None:
    pytest.importorskip("sklearn")
    lexical = {"bias_model": "lexical", "max_steps": 3, "per_device_train_batch_size": 6}
    names = {"ddp": {}, "zero2": {"deepspeed": "zero2"}}
    on_ranks(2, [settings(place, name, **lexical, **engine) for name, engine in names.items()])
    one = run(settings(place, "one", **{**lexical, "per_device_train_batch_size": 12}))
    for name in names:
        assert (place / name / "bias" / "lexical.validation.npz").is_file()
        found, expected = evaluated(place / name, FIGURE), evaluated(one, FIGURE)
        assert {step: pytest.approx(value, abs=0.02) for step, value in expected.items()} == found
        table = [
            {key: row[key] for key in ("label", "guesses", "n")}
            for row in summary(place / name)["pseudo_groups"]["cells"]
        ]
        assert table == [
            {key: row[key] for key in ("label", "guesses", "n")} for row in summary(one)["pseudo_groups"]["cells"]
        ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bias_model": None}, "selection 'pseudo_groups' needs a bias model, whose guesses make the groups"),
        ({"data": {"train": "generated"}}, "selection 'pseudo_groups' needs data.validation"),
        ({"eval_strategy": "no"}, "set eval_strategy and save_strategy both to steps or both to epoch"),
    ],
)
def test_settings_that_do_not_allow_it(place: Path, changes: dict[str, Any], says: str) -> None:
    if "data" in changes:
        changes = {**changes, "eval_strategy": "no"}
    with pytest.raises(ValueError, match=says):
        RunConfig.model_validate(settings(place, "no", **changes))


def test_too_few_validation_examples_are_found_before_the_folder_is_made(place: Path) -> None:
    few = {**DATA, "validation": {"source": "generated", "limit": 24, "split": "validation"}}
    with pytest.raises(InputError, match=r"selection 'pseudo_groups': the validation data has \d examples of label"):
        run(settings(place, "few", data=few))
    assert not (place / "few").exists()
    found = run(settings(place, "few", data=few, selection="last", max_steps=1))
    assert evaluated(found, FIGURE) == {}
    assert len(evaluated(found, "eval_accuracy")) == 1
    assert "pseudo_groups" not in summary(found)
