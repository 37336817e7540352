"""What is said of a run's training examples before anything is trained."""

import json
import logging
from pathlib import Path

import pytest

from debias.building.examples import training_examples
from debias.config.reading import parse
from debias.config.run import RunConfig


def said(folder: Path, labels: list[str], written: list[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of reading rows with these labels."""
    rows = [json.dumps({"text": f"text {at}", "label": label}) for at, label in enumerate(written)]
    (folder / "x.jsonl").write_text("\n".join(rows))
    data = {"train": "x.jsonl", "text_fields": ["text"], "labels": labels}
    caplog.clear()
    training_examples(parse(RunConfig, {"model": "m", "output_dir": "o", "data": data}, "x.yaml"), folder)
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_many_rows_without_a_label_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, "debias")
    scale = ["-1", "0", "1"] * 20
    for _ in range(2):  # read, and kept
        (line,) = said(tmp_path, ["0", "1"], scale, caplog)
        assert "dropped 20 of 60 rows without a gold label (33.3 %)" in line
        assert "name it in labels" in line
    assert said(tmp_path, ["-1", "0", "1"], scale, caplog) == []
    few = ["0", "1"] * 49 + ["-1"]
    assert said(tmp_path, ["0", "1"], few, caplog) == []
    assert "dropped 1 of 99 rows without a gold label (1.0 %)" in caplog.text


def test_labels_that_are_one_but_for_how_they_are_written_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    (line,) = said(tmp_path, ["pos", "neg", "pos "], ["pos", "neg", "pos "] * 5, caplog)
    assert "'pos', 'pos '" in line
    assert "data.label_map" in line
    assert said(tmp_path, ["pos", "neg"], ["pos", "neg"] * 5, caplog) == []


@pytest.mark.parametrize(("groups", "alike"), [(["plain", "Plain ", "other"], "'Plain ', 'plain'"), ([1, 2, 3], None)])
def test_groups_that_are_one_but_for_how_they_are_written_are_a_warning(
    groups: list[object],
    alike: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"text {at}", "label": "ab"[at % 2], "g": groups[at % 3]} for at in range(12)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"train": "x.jsonl", "text_fields": ["text"], "labels": ["a", "b"], "group_field": "g"}
    training_examples(parse(RunConfig, {"model": "m", "output_dir": "o", "data": data}, "x.yaml"), tmp_path)
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert [f"the groups {alike} differ" in line for line in told] == ([True] if alike else [])
