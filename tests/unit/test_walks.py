"""How straight the two longest calls walk through the rooms, on a tiny model: a bound that may only be lowered."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import config_for, save_bert
from walks import EVENTS, Walk, climbs, walk

from debias.config import RunConfig
from debias.runs.folder import look
from debias.train import train
from debias_eval.judging.judge import Judging
from debias_eval.judging.models import judge_run
from debias_eval.reading.collection import pairings

# Returns to a room that was left, in the first 400 calls between modules. Steps and rows are among these calls: what
# a loop calls in two rooms by turns counts each time. Judging looks at the adapter's own tokenizer first (5 returns).
MOST_OF_TRAINING, MOST_OF_JUDGING = 30, 43


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that an earlier test kept would not be read again, and the first 400 calls would reach further."""
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    pairings()  # what a process reads once and keeps, so that a test alone walks as one among others


def a_run(folder: Path) -> Any:
    data = {"train": {"source": "generated", "limit": 64}}
    return config_for(folder / "bert", folder / "run", data=data, max_steps=2, save_strategy="steps")


def said(found: Walk) -> str:
    return "\n".join(climbs(found))


@pytest.mark.slow
def test_training_and_judging(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    config = a_run(tmp_path)
    training = walk(lambda: train(config))
    judging = walk(lambda: judge_run(tmp_path / "run", ["generated"], judging=Judging(limit=40)))
    assert len(training.calls) > EVENTS
    assert len(judging.calls) > EVENTS
    assert len(climbs(training)) <= MOST_OF_TRAINING, said(training)
    assert len(climbs(judging)) <= MOST_OF_JUDGING, said(judging)


@pytest.mark.slow
def test_one_parameter_is_handed_down(tmp_path: Path) -> None:
    """`config` through `train`, and `run` through `judge_run`: how often they come back to a room that they left."""
    save_bert(tmp_path / "bert")
    config = a_run(tmp_path)
    run = tmp_path / "run"
    training = walk(lambda: train(config), lambda value: isinstance(value, RunConfig))
    judging = walk(
        lambda: judge_run(run, ["generated"], judging=Judging(limit=40)),
        lambda value: isinstance(value, Path) and value == run,
    )
    assert len(training.calls) > 20
    assert len(judging.calls) > 5
    assert len(climbs(training)) <= 15, said(training)
    assert len(climbs(judging)) <= 15, said(judging)


def test_what_a_climb_is() -> None:
    def calls(*modules: str) -> Walk:
        return Walk([(before, after, "f") for before, after in pairwise(modules)])

    straight = calls("debias.train", "debias.runs.folder", "debias.runs.names", "debias.data", "debias.engines.hook")
    assert climbs(straight) == []
    back = calls("debias.train", "debias.runs.folder", "debias.data", "debias.runs.names")
    assert climbs(back) == ["debias.data -> debias.runs.names.f"]
    assert climbs(back, events=2) == []
    assert climbs(calls("debias.train", "debias.data", "debias.train")) == ["debias.data -> debias.train.f"]
    assert climbs(calls("debias_eval.scores.a", "debias.data", "debias_eval.reading.b")) == []


def test_what_a_walk_sees(tmp_path: Path) -> None:
    """Calls between modules of ours alone: not those of a test, nor within a module."""
    folder = look(a_run(tmp_path))
    opened = walk(folder.open)
    assert opened.calls == [
        ("debias.runs.folder", "debias.config.reading", "dump_config"),
        ("debias.runs.folder", "debias.runs.whole", "write_whole"),
        ("debias.runs.whole", "debias.config.regular", "check_regular"),
    ]
    written = [
        "debias.runs.folder -> debias.runs.whole.write_whole",
        "debias.runs.whole -> debias.config.regular.check_regular",
    ]
    assert climbs(opened) == written
