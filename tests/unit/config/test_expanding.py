"""`~` and `$NAME` mean the same in every path, in a file and on the command line, and are never a folder's name."""

from pathlib import Path
from typing import Any

import pytest

from debias.config.expanding import expanded, expanded_words
from debias.config.reading import load_config, parse
from debias.config.run import RunConfig
from debias.errors import InputError

VALUES: dict[str, Any] = {"model": "m", "data": {"train": "generated"}, "output_dir": "o"}


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ("~/runs", "/home/me/runs"),
        ("~", "/home/me"),
        ("$SCRATCH/runs", "/scratch/runs"),
        ("${SCRATCH}/$SCRATCH", "/scratch//scratch"),
        ("a~b", "a~b"),
        ("a/~", "a/~"),
        ("$(id)", "$(id)"),
        ("a$", "a$"),
        ("price$5", "price$5"),
        ("plain", "plain"),
    ],
)
def test_a_path_is_written_out(path: str, whole: str) -> None:
    assert expanded(path) == whole


@pytest.mark.parametrize("path", ["$NOWHERE/x", "a/${NOWHERE}", "~nobody_here/x"])
def test_what_is_not_known_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"is not set|no such user"):
        expanded(path)


def test_a_name_that_is_there_is_that_name(tmp_path: Path) -> None:
    (tmp_path / "$NOWHERE").mkdir()
    assert expanded("$NOWHERE") == "$NOWHERE"


KEYS = ["model", "output_dir", "deepspeed", "data.train", "data.validation", "data.train.source"]


@pytest.mark.parametrize("key", KEYS)
def test_every_path_of_a_run(key: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\noutput_dir: o\ndata: {train: generated, validation: generated}\n")
    config: Any = load_config(tmp_path / "run.yaml", [f"{key}=$SCRATCH/x.jsonl"])
    for part in key.split("."):
        config = getattr(config, part)
    assert getattr(config, "source", config) == "/scratch/x.jsonl"
    with pytest.raises(InputError, match=rf"{key.split('.', maxsplit=1)[0]}.*the variable NOWHERE is not set"):
        load_config(tmp_path / "run.yaml", [f"{key}=$NOWHERE/x.jsonl"])


def test_the_file_that_a_run_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "of"))
    (tmp_path / "of").mkdir()
    (tmp_path / "of" / "base.yaml").write_text("model: m\noutput_dir: o\ndata: {train: generated}\n")
    (tmp_path / "run.yaml").write_text("extends: $SCRATCH/base.yaml\n")
    assert load_config(tmp_path / "run.yaml") == parse(RunConfig, VALUES, "x")


def test_the_words_of_a_command() -> None:
    words = ["eval", "~/run", "--model=$SCRATCH/m", "-o", "$SCRATCH/o", "output_dir=$NOWHERE", "--env=A=$NOWHERE"]
    whole = [
        "eval",
        "/home/me/run",
        "--model=/scratch/m",
        "-o",
        "/scratch/o",
        "output_dir=$NOWHERE",
        "--env=A=$NOWHERE",
    ]
    assert expanded_words(words) == whole
    with pytest.raises(InputError, match="NOWHERE"):
        expanded_words(["--suite=$NOWHERE/s.yaml"])
