"""Jobs of runs that have runs before them: each model is told, with an absolute path."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import yaml

from debias.cli.launch import _settings
from debias.config.places import runs_of
from debias.doctor import run_checks
from debias.errors import InputError
from debias.launching import Job, kubernetes, make_job
from debias.launching.containers import container_flags
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


def job_of(recipe: Path, folder: Path, **settings: Any) -> Job:
    config, _ = _settings(recipe, None)
    config = config.model_copy(update={"output_dir": str(folder / "run"), **settings})
    return make_job(config, name="mine", folder=folder / "job", nodes=1, gpus_per_node=0, python="python3")


@pytest.mark.parametrize("own", [None, "zero2", "run.json"])
def test_a_first_stages_own_deepspeed_file_goes_with_a_job(recipe: Path, tmp_path: Path, own: str | None) -> None:
    """Into the pods' ConfigMap, and into the mounts of a container."""
    (tmp_path / "of_run").mkdir()
    (tmp_path / "of_run" / "run.json").write_text('{"zero_optimization": {"stage": 2}}')
    own = str(tmp_path / "of_run" / own) if own == "run.json" else own
    job = job_of(recipe, tmp_path, deepspeed=own)
    stage = {**job.config.first_stage.settings, "model": "m/small"}
    first = job.config.first_stage.model_copy(update={"settings": stage})
    config = job.config.model_copy(update={"model": "m/large", "first_stage": first, "output_dir": "/data/run"})
    there = dataclasses.replace(job, config=config)
    config_map, _ = kubernetes.manifest(there, "image", [("claim", "/data")])
    files = config_map["data"]
    written = yaml.safe_load(files["config.yaml"])
    stages = written["first_stage"]["settings"]["deepspeed"]
    assert files[stages.removeprefix("/etc/debias/")] == (recipe.parent / "zero.json").read_text()
    if own == "zero2" or own is None:
        assert (written["deepspeed"], len(files)) == (own, 2)
    else:
        assert files[written["deepspeed"].removeprefix("/etc/debias/")] == Path(own).read_text()
    (mounts,) = [flag for flag in container_flags(job, "image", [], {}) if "mounts" in flag]
    assert f"{recipe.parent.resolve()}:" in mounts


def test_a_first_stages_deepspeed_file_with_another_batch_is_refused(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "zero.json").write_text('{"train_batch_size": 24, "zero_optimization": {"stage": 1}}')
    with pytest.raises(InputError, match="train_batch_size"):
        job_of(recipe, tmp_path)
