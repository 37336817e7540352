"""Validation rows that a run trains on: counted from the rows as they stand, refused where they are to be fitted."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_digits import DIGITS, write_digits

from debias.building.examples import DUPLICATES, run_examples, trained_on
from debias.config.reading import dump_config, parse
from debias.config.run import RunConfig
from debias.data.digests import are_among
from debias.errors import InputError
from debias.inference.held_out import HeldOutAccuracy
from debias.inference.last_layer import LastLayerInputs

CUE = {"cue": "!!", "field": "text", "label": "b", "prevalence": 0.5, "strength": 0.8}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))


def write(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text, "label": "ab"[at % 2]}) for at, text in enumerate(texts)))
    return path.name


def config(head: str = "classification", **data: Any) -> RunConfig:
    data = {"labels": ["a", "b"], **data} | ({"text_fields": ["text"]} if head == "classification" else {})
    when = "epoch" if "validation" in data else "no"
    return parse(
        RunConfig, {"model": "m", "output_dir": "o", "head": head, "eval_strategy": when, "data": data}, "x.yaml"
    )


def told(run: RunConfig, folder: Path, caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and text of what is said of rows in both."""
    caplog.set_level(logging.INFO, "debias")
    caplog.clear()
    run_examples(run, folder)
    return [(one.levelno, one.getMessage()) for one in caplog.records if "training rows, too" in one.getMessage()]


@pytest.mark.parametrize("more", [{}, {"planted_bias": CUE}, {"planted_bias": CUE, "swap": {"tokens": ["!!"]}}])
def test_limits_of_one_file_are_not_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture, more: Any) -> None:
    """Whatever is planted or dealt out: the rows are those of the file."""
    file = write(tmp_path / "x.jsonl", [f"text {at}" for at in range(400)])
    data = {"train": {"source": file, "limit": 200}, "validation": {"source": file, "limit": 100, "seed": 3}, **more}
    run = config(**data)
    rows, held_out = run_examples(run, tmp_path)
    both = {example.id for example in rows} & {example.id for example in held_out}
    assert 30 < len(both) < 70
    ((level, line),) = told(run, tmp_path, caplog)
    assert level == logging.WARNING
    assert f"data.validation: {len(both)} of 100 rows ({len(both)}.0 %) are training rows, too" in line
    assert "give data.validation a file of its own" in line


def test_few_duplicates_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [f"text {at}" for at in range(200)]
    for few, level in ((2, logging.INFO), (5, logging.WARNING)):
        dev = [f"  TEXT {at} " for at in range(few)] + [f"other {at}" for at in range(100 - few)]
        data = {"train": write(tmp_path / "x.jsonl", train), "validation": write(tmp_path / f"{few}.jsonl", dev)}
        ((seen, line),) = told(config(**data), tmp_path, caplog)
        assert (seen, few / 100 > DUPLICATES) == (level, level == logging.WARNING)
        assert f"{few} of 100 rows ({few}.0 %)" in line
        assert ("give data.validation" in line) == (level == logging.WARNING)


def test_nothing_is_said_of_other_rows_and_of_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write(tmp_path / "x.jsonl", [f"text {at}" for at in range(20)])
    dev = write(tmp_path / "y.jsonl", [f"other {at}" for at in range(20)])
    assert told(config(train=train, validation=dev), tmp_path, caplog) == []
    assert told(config(train=train), tmp_path, caplog) == []
    unread = config(train=train, validation=train).model_copy(update={"eval_strategy": "no"})
    assert told(unread, tmp_path, caplog) == []


def test_rows_of_the_fold_that_is_left_out_are_not_trained_on(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [f"text {at}" for at in range(60)])
    run = config(train=file, validation=file, leave_out={"fold": 0, "folds": 3})
    rows, held_out = run_examples(run, tmp_path)
    names = {example.id for example in rows}
    assert 0 < len(names) < 60
    assert trained_on(run, tmp_path).tolist() == [example.id in names for example in held_out]


def test_pictures_are_compared_too(tmp_path: Path) -> None:
    images = write_digits(tmp_path, 40)
    source = {"train": {"source": str(images), "limit": 30}, "validation": {"source": str(images), "limit": 20}}
    run = config(**source, labels=DIGITS, head="image_classification")
    rows, held_out = run_examples(run, tmp_path)
    names = {example.id for example in rows}
    assert trained_on(run, tmp_path).tolist() == [example.id in names for example in held_out]


def test_which_are_among_others() -> None:
    draw = np.random.default_rng(0)
    for size, others in ((0, 5), (5, 0), (40, 30), (1, 1), (30, 400)):
        asked, known = draw.integers(0, 60, size).astype(np.uint64), draw.integers(0, 60, others).astype(np.uint64)
        want = [value in set(known.tolist()) for value in asked.tolist()]
        assert are_among(asked, known).tolist() == want


def test_a_last_layer_is_not_fitted_to_rows_that_were_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused before a model is loaded; where few are, or the training data are gone, nothing is in the way."""
    texts = [f"text {at}" for at in range(100)]
    for name, dev in (("all", texts[:50]), ("few", [*texts[:9], *(f"other {at}" for at in range(51))])):
        (tmp_path / name).mkdir()
        files = {"train": texts, "validation": dev}
        for role, rows in files.items():
            write(tmp_path / name / f"{role}.jsonl", rows)
        run = config(**{role: str(tmp_path / name / f"{role}.jsonl") for role in files})
        (tmp_path / name / "config.yaml").write_text(dump_config(run))
    held_out = HeldOutAccuracy((tmp_path / "all",))
    with pytest.raises(InputError, match="50 of 50 rows are training rows, of which the adapter knows the answers"):
        LastLayerInputs(held_out)(tmp_path / "all", "classifier")
    assert len(held_out.rows) == 50  # a soup is only warned of it
    assert f"data.validation of {tmp_path / 'all'}: 50 of 50 rows (100.0 %) are training rows, too" in caplog.text
    assert len(HeldOutAccuracy((tmp_path / "few",)).rows_to_fit()) == 60
    (tmp_path / "all" / "train.jsonl").unlink()
    assert len(HeldOutAccuracy((tmp_path / "all",)).rows_to_fit()) == 50
