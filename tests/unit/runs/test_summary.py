"""How long a run took, whatever happened to it on its way."""

import json

import pytest

from debias.runs.summary import Spent, Summary, read_summary, spent_before


def told(folder, **said):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(said))


def test_a_new_run_has_taken_no_time(tmp_path):
    assert spent_before(tmp_path / "none") == Spent(0, 0)
    assert spent_before(tmp_path) == Spent(0, 0)


def test_runs_before_the_run_count_once(tmp_path):
    """They count by themselves until the run has a run.json, which holds them."""
    told(tmp_path / "stages" / "1", seconds=20.5, cpu_seconds=12)
    told(tmp_path / "stages" / "bias_1", seconds=4, cpu_seconds=3.5)
    (tmp_path / "stages" / "said.npz").write_bytes(b"")
    (tmp_path / "stages" / "bias_2").mkdir()
    assert spent_before(tmp_path) == Spent(24.5, 15.5)
    told(tmp_path, status="interrupted", seconds=31.0, cpu_seconds=30)
    assert spent_before(tmp_path) == Spent(31.0, 30.0)


@pytest.mark.parametrize("text", ["{", "[1]", '{"seconds": "long"}', '{"seconds": -3}', '{"seconds": null}', "{}"])
def test_what_is_no_time_is_none(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert spent_before(tmp_path) == Spent(0, 0)


@pytest.mark.parametrize("end", ["killed", "failed", "finished"])
def test_earlier_attempts_are_in_every_word(tmp_path, end, monkeypatch):
    monkeypatch.setattr("debias.runs.summary.environment", dict)
    summary = Summary(tmp_path, {"seed": 1}, writes=True, started=Spent.now() - Spent(50, 7))
    summary.begin()
    if end == "failed":
        with pytest.raises(ZeroDivisionError), summary.failures(()):
            raise ZeroDivisionError
    elif end == "finished":
        summary.end({"status": end})
    held = read_summary(tmp_path)
    assert held["status"] == {"killed": "running"}.get(end, end)
    assert 50 <= spent_before(tmp_path).seconds == held["seconds"] < 60
    assert 7 <= spent_before(tmp_path).cpu_seconds == held["cpu_seconds"] < 17
