"""Part 6: a study's missing runs, real weights and data, as many seeds as the time allows."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from debias.bench.quarter.session import Item, Session
from debias.ranks.parents import end_with_parent

ARMS = ("erm", "oracle", "logit_correction_50", "edge")
MARGIN = 8.0  # seconds that are left for what follows the study


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """The study that is given; its finished runs are kept beside its copy in the session's folder."""
    if session.study is None:
        yield "study", lambda: {"not_run": "no study was given (--study FILE; its weights and data must be here)"}
        return
    yield f"study {Path(session.study).stem}", functools.partial(study, session, left)


def study(session: Session, left: Callable[[], float]) -> dict[str, Any]:
    """Runs that were finished before the time was up; in a rehearsal those that there are to make."""
    file = Path(session.out) / Path(session.study or "").name
    shutil.copy(session.study or "", file)  # what it keeps lies beside it: of this machine alone
    arms = [part for name in _arms(file) for part in ("--arm", name)]
    command = [sys.executable, "-m", "debias.cli", "study", str(file), *arms]
    command += ["--dry-run"] if session.rehearse else ["-o", str(file.with_suffix("")), "--jobs", str(_jobs())]
    log = file.with_suffix(".log")
    with log.open("w", encoding="utf-8") as out:
        # Where this part is ended, at the end of its time or by a person, the study ends its runs, which are saved.
        process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=end_with_parent)  # noqa: PLW1509
        code: int | None = None
        try:
            code = process.wait(max(1.0, left() - MARGIN))
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.returncode is None:
                process.terminate()
                process.wait()
    if code:
        raise RuntimeError(f"the study ended with code {code}: {log.read_text(encoding='utf-8')[-1000:]}")
    if session.rehearse:
        return {"to_do": sum(line.startswith("to do") for line in log.read_text(encoding="utf-8").splitlines())}
    kept = file.with_suffix(".jsonl")
    runs = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    return {"finished_runs": len(runs), "in_time": code == 0, "kept": kept.name}


def _arms(file: Path) -> list[str]:
    """Those of ARMS that the study has; all of them where it has none."""
    import yaml

    there = yaml.safe_load(file.read_text(encoding="utf-8"))["arms"]
    return [name for name in ARMS if name in there]


def _jobs() -> int:
    """Small models leave most of a GPU idle: one run for each four cores, at most four."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))
