import os
import time

import pytest

from debias.doctor import builds
from debias.engines.zero.launch import build_problems

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
    assert [check.ok for check in builds.build_locks()] == [True]
    os.utime(lock, (time.time() - 7200, time.time() - 7200))
    (problem,) = build_problems()
    assert str(lock) in problem
    assert "2.0 h old" in problem
    (check,) = builds.build_locks()
    assert check.line.startswith("BAD  build lock")
    assert check.line.endswith(f"cure: {ADVICE}")
    assert check.stops


def test_a_run_with_deepspeed_does_not_start_behind_a_stale_lock(extensions, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    from debias.building.arguments import training_arguments
    from debias.config.run import RunConfig
    from debias.errors import InputError

    lock = extensions / "lock"
    lock.touch()
    os.utime(lock, (0, 0))
    monkeypatch.setattr("debias.engines.zero.launch.open_group", lambda timeout: None)
    config = {"model": "x", "data": {"train": "generated"}, "output_dir": str(tmp_path / "run"), "deepspeed": "zero1"}
    with pytest.raises(InputError, match=ADVICE):
        training_arguments(RunConfig.model_validate(config))


def test_missing_ninja_is_named_with_its_cure(extensions, monkeypatch):
    monkeypatch.setenv("PATH", str(extensions))
    assert build_problems(["fused_adam"]) == [
        "ninja is not on PATH, and fused_adam would be compiled; pip install ninja"
    ]
    assert build_problems() == []
    monkeypatch.setattr(builds.metadata, "version", lambda name: "0.19.8")
    assert builds.ninja().cure == "pip install ninja"


def test_ninja_is_nobodys_business_without_deepspeed(monkeypatch, tmp_path):
    def absent(name):
        raise builds.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(builds.metadata, "version", absent)
    assert builds.ninja().ok
