"""A bias model is asked before anything is written; what it said is kept by what it depends on; faults in one line."""

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias.building.examples import training_examples
from debias.building.facts import ask_bias_model, check_groups, facts_of_stage, guessed, seen_by_stages, told_of
from debias.building.method import build_bias_model
from debias.config.places import resolve_paths
from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.orders import make_order
from debias.errors import InputError
from debias.losses import make_loss
from debias.runs.folder import Folder, look

COLUMNS = {"name": "column", "columns": ["p_yes", "p_no"]}


def rows(count: int = 60, **changes: Any) -> list[dict[str, Any]]:
    """Sentences whose first word gives the label away four times in five, with probabilities that say so."""
    draw, made = np.random.default_rng(3), []
    for index in range(count):
        label = int(draw.integers(2))
        told = label if draw.random() < 0.8 else 1 - label
        p = 0.8 if told == 0 else 0.2
        made.append({"text": f"{['aye', 'nay'][told]} {index % 7} {index}", "label": ["yes", "no"][label]})
        made[-1] |= {"p_yes": p, "p_no": 1 - p, "kind": f"k{told}", **changes}
    return made


def config(place: Path, model: Any, written: list[dict[str, Any]], **data: Any) -> RunConfig:
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    block = {"train": str(file), "text_fields": ["text"], "labels": ["yes", "no"], **data}
    return RunConfig.model_validate(
        {"model": "m", "output_dir": str(place / "run"), "data": block, "bias_model": model, "loss": "logit_correction"}
    )


def ask(run: RunConfig, validation: Any = ()) -> Any:
    run = resolve_paths(run, None)
    model = build_bias_model(run)
    assert model is not None
    examples = training_examples(run, None)
    check_groups(make_loss(run.loss), make_order(run.order), examples, model)
    return ask_bias_model(run, model, examples, validation=validation)


@pytest.mark.parametrize(
    ("loss", "groups", "says"),
    [
        ("group_dro", "aa aa", "loss group_dro: all training examples are of group 'a', expected two or more"),
        ("coral", "aa aa", "loss coral: all training examples are of group 'a', expected two or more"),
        ("pgi", "aa bb", "loss pgi: each label has one group, and it compares the groups of a label"),
        ("pgi", "aa bc", None),
        ("coral", "aa bb", None),
        ("focal", "aa aa", None),
    ],
)
def test_a_loss_that_has_nothing_to_compare_is_refused(loss: str, groups: str, says: str | None) -> None:
    examples = [
        Example(f"{label}{at}", ("text",), label, group=group)
        for label, of_label in enumerate(groups.split())
        for at, group in enumerate(of_label)
    ]
    with pytest.raises(InputError, match=says) if says else nullcontext():
        check_groups(make_loss({"name": loss}), make_order("shuffled"), examples)
    check_groups(make_loss({"name": loss}), make_order("shuffled"), examples, inferred=True)


def test_probabilities_of_columns_are_said_as_they_are(tmp_path: Path) -> None:
    answers = ask(config(tmp_path, COLUMNS, rows()))
    np.testing.assert_allclose(answers.log_p.exp(), [[row["p_yes"], row["p_no"]] for row in rows()], rtol=1e-5)
    assert not (tmp_path / "run").exists()


def test_parts_are_kept_and_taken_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sklearn")
    caplog.set_level(logging.INFO, "debias")
    whole = {"name": "product", "of": ["lexical", COLUMNS]}
    first = ask(config(tmp_path, whole, rows()))
    first.write()
    kept = sorted(path.name.partition("-")[0] for path in (tmp_path / "run" / "bias").glob("*.npz"))
    assert kept == ["column", "lexical", "product.npz"]
    caplog.clear()
    again = ask(config(tmp_path, whole, rows()))
    assert again.fresh == {}
    np.testing.assert_array_equal(first.log_p, again.log_p)
    other = ask(config(tmp_path, {**whole, "calibrated": False}, rows()))
    assert [path.name for path in other.fresh] == ["product.npz"]
    assert "fitting" not in caplog.text
    changed = ask(config(tmp_path, whole, rows(61)))
    assert len(changed.fresh) == 3
    assert "bias model lexical: fitting on 61 examples" in caplog.text


def test_what_another_run_kept_is_of_these_rows_or_refused(tmp_path: Path) -> None:
    ask(config(tmp_path, COLUMNS, rows())).write()
    file = {"name": "column", "file": str(tmp_path / "run" / "bias" / "column.npz")}
    found = ask(config(tmp_path, file, rows()))
    np.testing.assert_allclose(found.log_p.exp(), ask(config(tmp_path, COLUMNS, rows())).log_p.exp(), rtol=1e-5)
    swapped = rows()
    swapped[0], swapped[1] = swapped[1], swapped[0]
    for written, message in ((rows(59), r"of shape \[60, 2\], .*59 rows and 2 labels"), (swapped, "of other rows")):
        with pytest.raises(InputError, match=message):
            ask(config(tmp_path, file, written))
    bad = np.log(np.full((60, 2), 0.4))
    with np.load(file["file"]) as held:
        np.savez(file["file"], log_p=bad, rows=held["rows"])
    with pytest.raises(InputError, match=r"row 1: the probabilities \[0.4, 0.4\] sum to 0.8, expected 1"):
        ask(config(tmp_path, file, rows()))
    Path(file["file"]).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"not what a run keeps in bias/NAME.npz"):
        ask(config(tmp_path, file, rows()))


@pytest.mark.parametrize(
    ("model", "written", "data", "message"),
    [
        ("groups", rows(), {}, "bias_model groups needs a group of each row; set data.group_field"),
        ({"name": "product", "of": ["groups", COLUMNS]}, rows(), {}, "bias_model product needs a group of each row"),
        ("groups", rows(kind=None), {"group_field": "kind"}, "has no group, and it needs one of each"),
        ({"name": "column", "columns": ["p_yes"]}, rows(), {}, r"\['p_yes'\] are 1, expected one for each of"),
        ({"name": "column", "columns": ["p_yes", "nope"]}, rows(), {}, "row 1: no column 'nope' .bias_model.columns."),
        (COLUMNS, rows(p_no=0.5), {}, "row 1: p_yes, p_no are .*, which sum to .*, expected 1"),
        (COLUMNS, rows(p_no=-0.2), {}, r"row 1: p_no is -0.2, expected a probability in \[0, 1\]"),
        (COLUMNS, rows(p_no="much"), {}, "row 1: p_no is 'much', expected a probability"),
        (COLUMNS, rows(p_no=float("nan")), {}, "row 1: p_no is nan, expected a probability"),
        ({"name": "column", "file": "no/such.npz"}, rows(), {}, "bias_model.file: .*no/such.npz: no such file"),
        (COLUMNS, rows(p_yes=0.7, p_no=0.3), {}, "bias_model column: says the same of every example"),
        ({"name": "lexical", "fields": ["txt"]}, rows(), {}, "'txt' is not one of data.text_fields"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, model: Any, written: list[dict[str, Any]], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ask(config(tmp_path, model, written, **data))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_who_knows_all_is_refused_and_one_too_sure_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knowing = [{**row, "p_yes": float(row["label"] == "yes"), "p_no": float(row["label"] == "no")} for row in rows()]
    with pytest.raises(InputError, match="bias_model column: is right on all 60 examples"):
        ask(config(tmp_path, COLUMNS, knowing))
    sure = [{**row, "p_yes": round(row["p_yes"]), "p_no": 1 - round(row["p_yes"])} for row in rows(400)]
    ask(config(tmp_path, COLUMNS, sure))
    assert "bias model column is not calibrated: confidence and accuracy are" in caplog.text


def test_weights_in_a_folder_are_part_of_what_a_run_before_the_run_says(tmp_path: Path) -> None:
    named = config(tmp_path, None, rows()).model_copy(update={"loss": {"name": "cross_entropy"}})
    assert told_of(named).endswith("}, 32)")  # of a hub's model nothing but its name, as older versions told it
    local = {"model": str(tmp_path / "base")}
    as_base = named.model_copy(update=local)
    below = RunConfig.model_validate(named.model_dump() | {"first_stage": {"settings": local}})
    (tmp_path / "base").mkdir()
    told = []
    for weights in (b"one", b"two", b"one"):
        (tmp_path / "base" / "model.safetensors").write_bytes(weights)
        told.append((told_of(as_base), told_of(below)))
    assert told[0] == told[2]
    assert all(before != after for before, after in zip(*told[:2], strict=True))


def test_how_often_a_run_looks_is_told_where_it_decides_when_the_run_ends(tmp_path: Path) -> None:
    plain = config(tmp_path, None, rows()).model_copy(update={"loss": {"name": "cross_entropy"}})
    often = {"logging_steps": 5}
    assert told_of(plain) == told_of(plain.model_copy(update=often))
    stopped = plain.model_copy(update={"stop_when_learned": 0.2})
    assert len({told_of(plain), told_of(stopped), told_of(stopped.model_copy(update=often))}) == 3
    assert "stop_when_learned" not in told_of(plain)  # which older versions did not have
    steps = {"name": "first_learned", "steps": 40}
    assert seen_by_stages(config(tmp_path, steps, rows())) == 2 * 40 * 32
    assert seen_by_stages(config(tmp_path, {**steps, "stop_at": 0.2}, rows())) is None
    experts = {"name": "bias_experts", "steps": 40, "auxiliary_steps": 30}  # each after a run of its own
    assert seen_by_stages(config(tmp_path, experts, rows())) == 2 * (40 + 30) * 32


def test_a_first_stage_that_knows_all_is_named(caplog: pytest.LogCaptureFixture) -> None:
    examples = [Example(str(i), (f"t{i}",), i % 2) for i in range(30)]
    sure_NC = np.log(np.array([[0.999, 0.001], [0.001, 0.999]] * 15))
    assert set(facts_of_stage(sure_NC, examples, "log_p")) == {"bias_log_p"}
    assert "first stage is right on all 30 examples" in caplog.text


class Base:
    """In the place of a run's base: after training it says these probabilities of `yes`, one for each label."""

    def __init__(self, of_yes: float, of_no: float) -> None:
        self.p, self.judged = np.array([of_yes, of_no]), 0

    def hidden(self, layer: float, examples: Any) -> np.ndarray:
        raise AssertionError("nobody asks for these")

    def after_stage(self, stage: int, examples: Any) -> np.ndarray:
        self.judged += len(examples)
        draw = np.random.default_rng(stage)
        sees = np.array([one.label if draw.random() < 0.8 else 1 - one.label for one in examples])
        return np.log(np.stack([self.p[sees], 1 - self.p[sees]], axis=1))


def ask_base(run: RunConfig, base: Base, validation: Any = ()) -> Any:
    model = build_bias_model(run)
    assert model is not None
    return ask_bias_model(run, model, training_examples(run, None), base, validation)


FIRST = {"name": "first_learned", "steps": 2}


def test_the_runs_base_is_asked_once_and_again_of_another_run(tmp_path: Path) -> None:
    base, run = Base(0.9, 0.2), config(tmp_path, FIRST, rows())
    ask_base(run, base).write()
    assert base.judged == 60
    again = ask_base(run, base)
    assert (base.judged, again.fresh) == (60, {})
    (kept,) = (tmp_path / "run" / "bias").glob("*.npz")
    kept.unlink()  # as a run does that starts anew
    again.write()
    assert ask_base(run, base).fresh == {}
    for number, change in enumerate(({"max_length": 64}, {"seed": 1}, {"model": "n"}), 2):
        assert len(ask_base(run.model_copy(update=change), base).fresh) == 1
        assert base.judged == 60 * number


# Validation examples, and their pseudo groups.


def beside(count: int = 30, **changes: Any) -> list[Example]:
    """As `rows`, read."""
    draw, made = np.random.default_rng(8), []
    for index in range(count):
        label = int(draw.integers(2))
        told = label if draw.random() < 0.6 else 1 - label
        made.append(Example(f"v{index}", (f"{['aye', 'nay'][told]} {index % 7} so {index}",), label, **changes))
    return made


def test_what_was_said_of_validation_is_kept_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sklearn")
    caplog.set_level(logging.INFO, "debias")
    whole = {"name": "product", "of": ["lexical", {"name": "lexical", "longest": 1}]}
    run = config(tmp_path, whole, rows())
    first = ask(run, beside())
    assert first.of_validation.shape == (30, 2)
    assert "bias model lexical: right on" in caplog.text
    assert "of the validation examples" in caplog.text
    first.write()
    kept = [path.name for path in (tmp_path / "run" / "bias").iterdir()]
    assert sum(name.endswith(".validation.npz") for name in kept) == 3
    caplog.clear()
    again = ask(run, beside())
    assert again.fresh == {}
    np.testing.assert_array_equal(again.of_validation, first.of_validation)
    np.testing.assert_array_equal(again.log_p, ask(run).log_p)
    assert "fitting" not in caplog.text
    other = ask(run, beside(29))
    assert all(path.name.endswith(".validation.npz") for path in other.fresh)
    np.testing.assert_array_equal(other.log_p, first.log_p)
    np.testing.assert_allclose(other.of_validation, first.of_validation[:29], rtol=1e-9)


def test_training_answers_of_before_stay_as_they_are(tmp_path: Path) -> None:
    """A base that answers a little otherwise the second time: what training read is not changed by validation."""
    run, base = config(tmp_path, FIRST, rows()), Base(0.9, 0.2)
    ask_base(run, base).write()
    later = Base(0.85, 0.25)
    both = ask_base(run, later, beside())
    np.testing.assert_array_equal(both.log_p, ask_base(run, Base(0.9, 0.2)).log_p)
    assert [path.name for path in both.fresh] == ["first_learned.validation.npz"]
    assert later.judged == 60 + 2 * 30  # each fold's model judges all of validation


def test_a_base_of_one_fold_is_asked_of_everything_once(tmp_path: Path) -> None:
    run, base = config(tmp_path, {**FIRST, "folds": 1}, rows()), Base(0.9, 0.2)
    answers = ask_base(run, base, beside())
    assert base.judged == 60 + 30
    assert answers.log_p.shape == (60, 2)


def test_what_another_run_kept_of_validation_is_read_too(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    first = ask(config(tmp_path, "lexical", rows()), beside())
    first.write()
    file = {"name": "column", "file": str(tmp_path / "run" / "bias" / "lexical.npz")}
    found = ask(config(tmp_path, file, rows()), beside())
    np.testing.assert_allclose(found.of_validation, first.of_validation, rtol=1e-5)
    with pytest.raises(InputError, match=r"shape \[30, 2\], and the validation data 29 rows"):
        ask(config(tmp_path, file, rows()), beside(29))
    (tmp_path / "run" / "bias" / "lexical.validation.npz").unlink()
    assert not len(ask(config(tmp_path, file, rows()), beside()).of_validation)
    selecting = config(tmp_path, file, rows()).model_copy(update={"selection": "pseudo_groups"})
    with pytest.raises(InputError, match=r"bias_model column: file: .*lexical.validation.npz is not there"):
        ask(selecting, beside())


def test_groups_of_validation_are_needed_by_the_selection_alone(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "debias")
    run = config(tmp_path, "groups", rows(), group_field="kind")
    assert not len(ask(run, beside()).of_validation)
    assert (
        "pseudo groups are not recorded: bias_model groups: example 'v0' of the validation data has no" in caplog.text
    )
    selecting = run.model_copy(update={"selection": "pseudo_groups"})
    with pytest.raises(InputError, match=r"bias_model groups: example 'v0' .* has no group: selection 'pseudo_groups'"):
        ask(selecting, beside())
    assert len(ask(selecting, beside(group="k1")).of_validation) == 30


def test_cells_that_are_too_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = config(tmp_path, COLUMNS, rows())
    validation, guess = beside(40), np.array([0.9] * 36 + [0.1] * 4)
    said = np.log(np.stack([guess, 1 - guess], axis=1))
    groups = guessed(said, validation, run)
    assert groups is not None
    assert "pseudo groups of fewer than 10 examples do not count: " in caplog.text
    assert "says the same of every validation example" not in caplog.text
    guessed(np.log(np.full((40, 2), 0.5)), validation, run)
    assert "says the same of every validation example: its pseudo groups are the labels" in caplog.text
    one_label = [replace(example, label=0) for example in validation]
    assert guessed(said, one_label, run) is None
    message = "the validation data has 0 examples of label 'no', in no pseudo group more than 0"
    assert f"pseudo groups are not recorded: {message}" in caplog.text
    with pytest.raises(InputError, match=f"selection 'pseudo_groups': {message}"):
        guessed(said, one_label, run.model_copy(update={"selection": "pseudo_groups"}))


@pytest.mark.parametrize(
    ("base", "block", "labels", "message"),
    [
        (Base(0.5, 0.5), FIRST, ["yes", "no"], "bias_model first_learned: says the same of every example"),
        (Base(0.9, 0.2), FIRST, ["yes", "no", "maybe"], "first_learned: label 'maybe' lies in one fold alone"),
        (None, FIRST, ["yes", "no"], "bias_model first_learned: asks the run's base, and the run kept no answers"),
    ],
)
def test_what_a_base_says_is_checked_as_well(
    tmp_path: Path, base: Any, block: Any, labels: list[str], message: str
) -> None:
    written = [*rows(), {"text": "perhaps", "label": "maybe"}] if len(labels) > 2 else rows()
    with pytest.raises(InputError, match=message):
        ask_base(config(tmp_path, block, written, labels=labels), base)


def test_a_label_in_one_fold_alone_is_named(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    written = [*rows(), {"text": "perhaps", "label": "maybe"}]
    with pytest.raises(InputError, match="bias_model lexical: label 'maybe' lies in one fold alone"):
        ask(config(tmp_path, "lexical", written, labels=["yes", "no", "maybe"]))


def test_without_scikit_learn_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"needs scikit-learn: pip install scikit-learn"):
        ask(config(tmp_path, "lexical", rows()))


def test_pictures_have_no_words(tmp_path: Path) -> None:
    block = {"train": "train-images-idx3-ubyte", "labels": ["0", "1"]}
    run = {"model": "vision:mlp", "head": "image_classification", "output_dir": str(tmp_path / "run"), "data": block}
    with pytest.raises(InputError, match="bias_model lexical reads words, and the data has no text field"):
        build_bias_model(RunConfig.model_validate({**run, "bias_model": "lexical"}))


def test_pictures_are_told_apart_by_folds_and_digests() -> None:
    from debias.bias import make_bias_model
    from debias.bias.base import folds_of

    pictures = [np.full((1, 2, 2), i % 25, dtype=np.uint8) for i in range(50)]
    examples = [Example(str(i), (), i % 2, group="g", image=pictures[i]) for i in range(50)]
    fold_N = folds_of(examples, 5, seed=0)
    assert sorted(np.bincount(fold_N)) == [10] * 5
    assert all(fold_N[i] == fold_N[i + 25] for i in range(25))
    changed = [replace(examples[0], image=pictures[1]), *examples[1:]]
    model = make_bias_model("groups")
    assert model.digest(examples, 2, 0) != model.digest(changed, 2, 0)


def test_a_file_that_is_read_is_never_deleted(tmp_path: Path) -> None:
    """What this run kept before and reads now lies in the folder that is to be replaced."""
    run = config(tmp_path, COLUMNS, rows())
    ask(run).write()
    Folder(Path(run.output_dir), run, held=False).open()
    file = {"name": "column", "file": str(tmp_path / "run" / "bias" / "column.npz")}
    anew = config(tmp_path, file, rows()).model_copy(update={"overwrite_output_dir": True})
    with pytest.raises(InputError, match=r"holds .*column.npz, which this run reads; choose another folder"):
        look(anew)


def test_a_product_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Else a run could not be gone on with, and parts would be asked again."""
    run = config(tmp_path, {"name": "product", "of": ["lexical", COLUMNS]}, rows())
    (tmp_path / "config.yaml").write_text(dump_config(run))
    again = load_config(tmp_path / "config.yaml")
    models = [build_bias_model(one) for one in (run, again)]
    assert repr(models[0]) == repr(models[1])
    assert again.bias_model == load_config(tmp_path / "config.yaml").bias_model


def test_a_relative_file_is_looked_up_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "said.npz").write_bytes(b"x")
    for block in (
        {"name": "column", "file": "said.npz"},
        {"name": "product", "of": ["groups", {"name": "column", "file": "said.npz"}]},
    ):
        resolved = resolve_paths(config(tmp_path, block, rows()), tmp_path).bias_model
        assert str(tmp_path.resolve() / "said.npz") in str(resolved)
