"""The command line run in this process, and what it said."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from debias.cli import app as cli


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; exactly one, the last."""
        lines = self.err.splitlines()
        assert self.code == 2, self.err
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        return lines[-1]


Command = Callable[..., Said]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs `debias` with its arguments."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["debias", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        caught = capsys.readouterr()
        return Said(code, caught.out, caught.err)

    return run


def runs_of_sweeps_here(monkeypatch: pytest.MonkeyPatch, debias: Command) -> None:
    """The commands of a sweep in this process: imports are most of a tiny run, and are there already."""

    class Here:
        def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
            assert command[:3] == [sys.executable, "-m", "debias.cli"]
            said = debias(*command[3:])
            stdout.write(f"{said.out}{said.err}".encode())
            stdout.flush()
            self.code = said.code

        def poll(self) -> int:
            return self.code

    monkeypatch.setattr("debias.sweep.runner.subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Here}))
