"""Jobs of runs that have runs before them: each model is told, with an absolute path."""

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml

from debias.cli.launch import _settings
from debias.config.places import runs_of
from debias.doctor import run_checks
from debias.launching.job import names_of


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("large", "small"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 1}}')
    stage = {"model": "models/small", "deepspeed": "zero.json", "max_steps": 3}
    settings: dict[str, Any] = tiny_runs.settings_for(Path("models/large"), tmp_path / "run")
    settings |= {"order": "upsampled", "first_stage": {"keep": "errors", "settings": stage}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.yaml"


def test_a_job_names_the_first_stages_files_by_absolute_paths(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = _settings(recipe, None)
    here = recipe.parent.resolve()
    assert config.first_stage is not None
    given = config.first_stage.settings
    assert given == {"model": str(here / "models/small"), "deepspeed": str(here / "zero.json"), "max_steps": 3}
    monkeypatch.chdir(os.sep)
    assert config.stage_before().model == str(here / "models/small")
    names = names_of(config)
    assert names["model"] == str(here / "models/large")
    assert names["first_stage.settings.model"] == str(here / "models/small")
    assert [one.model for one in runs_of(config)] == [names["model"], names["first_stage.settings.model"]]


def test_doctor_looks_at_the_model_of_each_run(recipe: Path) -> None:
    found = run_checks.models(run_checks.read(recipe, [], None, None))
    assert [check.found.partition(" lacks")[0].rpartition("/")[2] for check in found] == ["large", "small"]
