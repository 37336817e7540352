"""How long a run took, whatever happened to it on its way."""

import json
import time

import pytest

from debias.runs.summary import Summary, read_summary, seconds_before


def told(folder, **said):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(said))


def test_a_new_run_has_taken_no_time(tmp_path):
    assert seconds_before(tmp_path / "none") == 0
    assert seconds_before(tmp_path) == 0


def test_runs_before_the_run_count_once(tmp_path):
    """They count by themselves until the run has a run.json, which holds them."""
    told(tmp_path / "stages" / "1", seconds=20.5)
    told(tmp_path / "stages" / "bias_1", seconds=4)
    (tmp_path / "stages" / "said.npz").write_bytes(b"")
    (tmp_path / "stages" / "bias_2").mkdir()
    assert seconds_before(tmp_path) == 24.5
    told(tmp_path, status="interrupted", seconds=31.0)
    assert seconds_before(tmp_path) == 31.0


@pytest.mark.parametrize("text", ["{", "[1]", '{"seconds": "long"}', '{"seconds": -3}', '{"seconds": null}', "{}"])
def test_what_is_no_time_is_none(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert seconds_before(tmp_path) == 0


@pytest.mark.parametrize("end", ["killed", "failed", "finished"])
def test_earlier_attempts_are_in_every_word(tmp_path, end, monkeypatch):
    monkeypatch.setattr("debias.runs.summary.environment", dict)
    summary = Summary(tmp_path, {"seed": 1}, writes=True, started=time.time() - 50)
    summary.begin()
    if end == "failed":
        with pytest.raises(ZeroDivisionError), summary.failures(()):
            raise ZeroDivisionError
    elif end == "finished":
        summary.end({"status": end})
    held = read_summary(tmp_path)
    assert held["status"] == {"killed": "running"}.get(end, end)
    assert 50 <= seconds_before(tmp_path) == held["seconds"] < 60
