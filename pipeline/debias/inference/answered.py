"""Files of answered rows: JSON lines, CSV, TSV or Parquet, written as the rows come, there whole or not at all."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias.runs.whole import filling

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
PREFIX = "p_"  # of the columns of probabilities


@dataclass(frozen=True)
class Answer:
    """What a model says of one row: its number, its id, the label, and the probability of every label."""

    row: int
    id: str
    label: str
    probabilities: Mapping[str, float]

    @property
    def flat(self) -> dict[str, Any]:
        """As columns: `row`, `id`, `label`, and `p_LABEL` of each label."""
        of_labels = {f"{PREFIX}{name}": value for name, value in self.probabilities.items()}
        return {"row": self.row, "id": self.id, "label": self.label, **of_labels}


Write = Callable[[Sequence[Answer]], None]


def check_suffix(out: Path) -> None:
    """InputError for a name that does not say which kind of file it is to be."""
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"-o: {out} has none of the endings {', '.join(SUFFIXES)}, which say how it is written")


@contextmanager
def writing(out: Path | None, labels: Sequence[str]) -> Iterator[Write]:
    """A function that takes the next answers; `out` appears when all were taken. None: JSON lines to stdout.

    InputError where it cannot be written.
    """
    if out is None:
        yield _to_stdout
        return
    opened = {".jsonl": _json_lines, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}[out.suffix.lower()]
    try:
        with filling(out) as part, opened(part, labels) as write:
            yield write
    except OSError as error:
        raise InputError(f"-o: {out} cannot be written: {error.strerror or error}") from None


def _line(answer: Answer) -> str:
    told = {"row": answer.row, "id": answer.id, "label": answer.label, "probabilities": dict(answer.probabilities)}
    return json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n"


def _to_stdout(answers: Sequence[Answer]) -> None:
    try:
        sys.stdout.write("".join(map(_line, answers)))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        raise SystemExit(1) from None


@contextmanager
def _json_lines(part: Path, labels: Sequence[str]) -> Iterator[Write]:
    with part.open("w", encoding="utf-8") as file:
        yield lambda answers: file.writelines(map(_line, answers))


@contextmanager
def _csv(part: Path, labels: Sequence[str], delimiter: str = ",") -> Iterator[Write]:
    columns = list(Answer(0, "", "", dict.fromkeys(labels, 0.0)).flat)
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        yield lambda answers: writer.writerows(answer.flat for answer in answers)


@contextmanager
def _tsv(part: Path, labels: Sequence[str]) -> Iterator[Write]:
    with _csv(part, labels, "\t") as write:
        yield write


@contextmanager
def _parquet(part: Path, labels: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_labels = [(f"{PREFIX}{name}", pa.float64()) for name in labels]
    schema = pa.schema([("row", pa.int64()), ("id", pa.string()), ("label", pa.string()), *of_labels])
    with pq.ParquetWriter(str(part), schema) as writer:
        yield lambda answers: writer.write_table(pa.Table.from_pylist([one.flat for one in answers], schema=schema))
