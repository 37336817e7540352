"""Bad inputs to every verb (`bad_inputs.py`): exit code 2, one line, no traceback, and nothing left behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_inputs import CASES, EVERY_VERB, FOLDER, GOOD, LOOP, PIPE, Bad
from command_line import Command


def lay(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is FOLDER:
        path.mkdir()
    elif content is PIPE:
        os.mkfifo(path)
    elif content is LOOP:
        path.symlink_to(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def state(folder: Path) -> dict[str, object]:
    """Every path below, and what is in the regular files."""
    return {str(path): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_there_are_enough_and_none_twice() -> None:
    assert len(CASES) >= 250
    assert {case.words[0] for case in CASES} == {verb[0] for verb in EVERY_VERB} | {"trian"}
    told = [(case.words, tuple(case.files.items())) for case in CASES]
    assert len(set(told)) == len(told)


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """What waits, for a pipe or for a network, fails."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("waited for 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.words)[:60])
def test_bad_input(case: Bad, debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {**GOOD, **case.files}.items():
        lay(tmp_path, name, content)
    before = state(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    said = debias(*case.words)
    assert said.code == 2, said
    assert len(said.err.splitlines()) == 1, said.err
    assert said.error == said.err.rstrip("\n")
    assert case.says in said.error
    assert len(said.error) < 5000
    assert said.out == ""
    assert state(tmp_path) == before


def test_a_folder_that_may_not_be_read(debias: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system says of a file is one line."""
    (tmp_path / "runs").mkdir()

    def refused(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    for words in (("report", "-o", tmp_path / "page.html"), ("card",), ("eval", "--suite", "snli")):
        said = debias(words[0], tmp_path / "runs", *words[1:])
        cure = "give the folders of runs in it"
        assert said.error == f"error: {tmp_path / 'runs'}: cannot be read: Permission denied; {cure}"


@pytest.mark.parametrize("verb", [(), *EVERY_VERB], ids="-".join)
def test_every_verb_has_its_help(verb: tuple[str, ...], debias: Command) -> None:
    said = debias(*verb, "-h")
    assert (said.code, said.err) == (0, "")
    assert "Usage: " in said.out


def test_the_version(debias: Command) -> None:
    said = debias("--version")
    assert (said.code, said.err) == (0, "")
    assert said.out.split()[0] == "debias"
