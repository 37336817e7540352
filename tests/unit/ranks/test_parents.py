"""Children end with their parent, however it is ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A parent of each kind: it starts a child that writes down its number and then waits for a minute.
PARENTS = {
    "any": """
import subprocess, sys, time
from debias.ranks.parents import end_with_parent
subprocess.Popen([sys.argv[1], sys.argv[2]], preexec_fn=end_with_parent)
time.sleep(60)
""",
    "a study of bench quarter": """
import sys
from pathlib import Path
from debias.bench.quarter import testbeds
from debias.bench.quarter.session import Session
testbeds.sys.executable = sys.argv[1]
folder = Path(sys.argv[2]).parent
(folder / "study.yaml").write_text("arms: {erm: {}}")
testbeds.study(Session(out=str(folder / "out"), study=str(folder / "study.yaml")), lambda: 60)
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own signal at a parent's end")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("kind", PARENTS)
def test_a_child_ends_with_its_parent(tmp_path, kind, how):
    (tmp_path / "out").mkdir()
    child, number = tmp_path / "child", tmp_path / "number"
    child.write_text(f"#!/bin/sh\necho $$ > {number}.new; mv {number}.new {number}\nexec sleep 60\n")
    child.chmod(0o755)
    parent = subprocess.Popen([sys.executable, "-c", PARENTS[kind], child, child])
    try:
        wait_for(number.exists)
        alive = Path("/proc", number.read_text().strip())
        assert alive.exists()
        os.kill(parent.pid, how)
        parent.wait(20)
        wait_for(lambda: not alive.exists() or "Z" in (alive / "stat").read_text().split(")")[-1])
    finally:
        parent.kill()


def wait_for(there, seconds=20.0):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)
