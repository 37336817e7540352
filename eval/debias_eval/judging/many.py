"""What judging many rows costs beyond the model: memory, when the rows are judged first and again.

Each measurement is `judge_given` in a process of its own, beside the same on a few rows: the difference is the rows'.
The model is one small layer, so that the rows are most of the work and their number can be large.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from debias.ranks.garbage import loading
from debias_eval.results.files import predictions_path

FEW = 64
BASE, OUT = "base", "out"
LABELS = ("entailment", "neutral", "contradiction")


class ManySetting(BaseModel):
    """Made-up pairs of sentences, `rows` of them; the tokenizer is that of `model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = "package:minilm"
    rows: int = Field(100_000, ge=FEW)


def bench_many(
    setting: ManySetting,
    made: Callable[[int], Iterable[Mapping[str, str]]],
    write_model: Callable[[str, Path, Sequence[str]], None],
) -> dict[str, Any]:
    """Of a first judging and a second one: MB and CPU seconds beyond judging 64 rows; bytes of rows and of predictions.

    `made` gives so many rows, `write_model(model, folder, labels)` the classifier. RuntimeError with its last words
    where a process fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(setting.model, folder / BASE, LABELS)
        for suite, rows in (("few", FEW), ("many", setting.rows)):
            _write_suite(folder / suite, suite, made(rows))
        _measured(folder, "few")  # the libraries' files are read from disk once
        few, first, second = (_measured(folder, suite) for suite in ("few", "many", "many"))
        predictions = predictions_path(folder / OUT, "many")
        sizes = {
            "rows_mb": (folder / "many" / "rows.jsonl").stat().st_size / 1e6,
            "predictions_mb": predictions.stat().st_size / 1e6,
        }
    beyond = [{key: round(one[key] - few[key], 1) for key in few} for one in (first, second)]
    told = {key: round(value, 2) for key, value in sizes.items()}
    return {"setting": setting.model_dump(), **told, "few": few, "first": beyond[0], "second": beyond[1]}


def _write_suite(folder: Path, name: str, rows: Iterable[Mapping[str, str]]) -> None:
    folder.mkdir()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"r-{place}", **row}) + "\n" for place, row in enumerate(rows))
    suite = {"name": name, "version": 1, "description": "Made up.", "licence": "CC0", "task": "nli"}
    told = json.dumps({**suite, "source": "rows.jsonl", "labels": LABELS, "input_ablation": ["hypothesis"]})
    (folder / "suite.yaml").write_text(told, encoding="utf-8")  # JSON is YAML


def _measured(folder: Path, suite: str) -> dict[str, float]:
    command = [sys.executable, "-m", "debias_eval.judging.many", str(folder), suite]
    environment = {**os.environ, "DEBIAS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"bench eval: a process failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table_of(result: Mapping[str, Any]) -> Any:
    """A `rich` table of what `bench_many` returned."""
    from rich.table import Table

    table = Table(
        title=f"{result['setting']['rows']:,} rows ({result['rows_mb']:,} MB): beyond judging {FEW} rows;"
        f" {result['predictions_mb']:,} MB of predictions"
    )
    for heading in ("judged", "peak MB", "seconds", "CPU s"):
        table.add_column(heading, justify="left" if heading == "judged" else "right")
    for name in ("first", "second"):
        table.add_row(name, *(f"{result[name][key]:,}" for key in ("peak_mb", "seconds", "cpu_seconds")))
    return table


def main(folder: Path, suite: str) -> None:
    """Judge the model of a folder on one of its suites, and print what that took."""
    with loading():
        from debias_eval.judging.models import judge_given

    started, cpu = time.perf_counter(), time.process_time()
    judge_given(folder / OUT, [str(folder / suite / "suite.yaml")], {"model": str(folder / BASE)})
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    sys.stdout.write(
        json.dumps({"peak_mb": round(_peak(), 1), **{key: round(value, 1) for key, value in took.items()}}) + "\n"
    )


def _peak() -> float:
    """MiB of this process at most; what `getrusage` says counts the process that started it as well."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
