"""An adapter whose base lies where it lay, with other weights in it: whoever loads the two is told."""

import json
import logging
from pathlib import Path

import pytest
from tiny_runs import PROMPT, save_llama, settings_for

from debias.config.run import RunConfig
from debias.inference.loading import load_run
from debias.merging.fold import merge_run
from debias.runs.names import SUMMARY
from debias.train import train
from debias_eval.harness.asked import asked_of

SAID = "have changed since it was trained"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("changed")
    settings = settings_for(save_llama(place / "base"), place / "run", head="causal_lm", prompt=PROMPT, max_steps=2)
    return train(RunConfig.model_validate(settings))


def said_by(caplog: pytest.LogCaptureFixture, run: Path, out: Path) -> list[bool]:
    """Whether each way of loading the run says that its base has changed."""
    found = []
    for load in (lambda: load_run(run), lambda: merge_run(run, out), lambda: asked_of(run)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load()
        found.append(SAID in caplog.text)
    return found


def test_a_base_that_was_replaced_is_said_by_whoever_lays_the_adapter_on_it(run, tmp_path, caplog):
    assert said_by(caplog, run, tmp_path / "merged") == [False] * 3
    save_llama(run.parent / "base", initializer_range=0.3)
    assert said_by(caplog, run, tmp_path / "of_another") == [True] * 3


def test_where_nobody_can_say_nothing_is_said(run, tmp_path, caplog):
    """Of a run of an earlier version, or one whose run.json is damaged."""
    told = json.loads((run / SUMMARY).read_text())
    del told["base_sha256"]
    save_llama(run.parent / "base", initializer_range=0.4)
    for text in (json.dumps(told), "{"):
        (run / SUMMARY).write_text(text)
        caplog.clear()
        load_run(run)
        assert SAID not in caplog.text
