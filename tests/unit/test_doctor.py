import os
import time

import pytest
from typer.testing import CliRunner

from debias import doctor
from debias.cli import app
from debias.engines.zero_launch import build_problems

ADVICE = "delete it"


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / "py311" / "fused_adam"
    folder.mkdir(parents=True)
    return folder


def test_a_lock_that_a_killed_build_left_is_named_with_its_cure(extensions):
    lock = extensions / "lock"
    lock.touch()
    assert build_problems() == []  # somebody may be building this minute
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    (problem,) = build_problems()
    assert str(lock) in problem
    assert "2.0 h old" in problem
    assert ADVICE in problem
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert any(
        line.startswith("BAD  build lock") and line.endswith(f"cure: {ADVICE}") for line in done.output.splitlines()
    )


def test_a_run_with_deepspeed_does_not_start_behind_a_stale_lock(extensions, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    from debias.config import RunConfig
    from debias.errors import InputError
    from debias.setup_run import training_arguments

    lock = extensions / "lock"
    lock.touch()
    os.utime(lock, (0, 0))
    monkeypatch.setattr("debias.engines.zero_launch.open_group", lambda timeout: None)
    config = {"model": "x", "data": {"train": "generated"}, "output_dir": str(tmp_path / "run"), "deepspeed": "zero1"}
    with pytest.raises(InputError, match=ADVICE):
        training_arguments(RunConfig.model_validate(config))


def test_missing_ninja_is_named_with_its_cure(extensions, monkeypatch):
    monkeypatch.setenv("PATH", str(extensions))
    assert build_problems(["fused_adam"]) == [
        "ninja is not on PATH, and fused_adam would be compiled; pip install ninja"
    ]
    assert build_problems() == []
    assert [check.cure for check in doctor.examine() if check.name == "ninja"] == ["pip install ninja"]


@pytest.mark.parametrize(("version", "ok"), [("0.19.8", True), ("0.19.9", True), ("0.19.7", False), ("0.20.0", False)])
def test_an_unknown_deepspeed_is_named(version, ok, extensions, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version)
    (check,) = [check for check in doctor.examine() if check.name == "deepspeed"]
    assert check.ok == ok
    assert (check.cure == "") == ok


def test_healthy_is_exit_code_0(extensions, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0
