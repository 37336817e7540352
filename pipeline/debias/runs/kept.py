"""Runs without their weights, a JSON object a line: what a run was, what it cost and what it was judged to be.

A run's folder is large and lies on one machine. Its settings, its summary and its results are small: they can be kept
under version control and read again wherever a folder of runs is read. A line holds no path of the machine it was made
on: the run's own folder is written as the run's name, and other files by their names.
"""

import json
import re
import shlex
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from debias.config.run import STAGES
from debias.errors import InputError
from debias.runs.names import CONFIG, EVAL, SUMMARY
from debias.runs.records import append_record, read_records
from debias.runs.whole import write_whole

EVENT = "run"
SUFFIX = ".jsonl"
# The pieces of a run's folder that are kept; of the runs before the run, their settings and summaries.
KEPT = (CONFIG, SUMMARY, f"{EVAL}/*.json", f"{STAGES}/*/{CONFIG}", f"{STAGES}/*/{SUMMARY}")
_NAME = re.compile(r"[\w.,=+-]+(/[\w.,=+-]+)*", re.ASCII)


def keep(path: Path, folder: Path, name: str, **facts: Any) -> None:
    """Add the run in `folder` to the file at `path`, with `facts` beside it."""
    append_record(path, {"event": EVENT, "run": name, **facts, "files": _pieces(folder, name)})


def _pieces(folder: Path, name: str) -> dict[str, str]:
    """The text of each piece by its place in the folder."""
    files = sorted(file for pattern in KEPT for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): _piece(file, str(folder.absolute()), name) for file in files}


def _piece(file: Path, folder: str, name: str) -> str:
    text = file.read_text(encoding="utf-8").replace(folder, name)
    try:
        if file.suffix == ".json":
            return json.dumps(placeless(json.loads(text)))
        return yaml.safe_dump(placeless(yaml.safe_load(text)), sort_keys=False, allow_unicode=True)
    except (ValueError, yaml.YAMLError):  # damaged: it is read by whoever wants it
        return ""


def placeless(value: Any, key: str = "") -> Any:
    """Settings or figures with each absolute path cut to its last name, also among the words of a command.

    A path is a text that is nothing else. Prompts stay as they are.
    """
    if isinstance(value, Mapping):
        return {name: one if name == "prompt" else placeless(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [placeless(one, key) for one in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return shlex.join(_word(word) for word in _words(value))
    return _word(value)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _word(word: str) -> str:
    before, equals, path = word.rpartition("=")
    return before + equals + Path(path).name if path.startswith("/") and path.strip("/") else word


def kept(path: Path) -> list[Mapping[str, Any]]:
    """The runs kept in a file, a later one in the place of an earlier of that name and seed; no file holds none.

    InputError for a line that is no kept run: what was measured must not be lost without a word.
    """
    records, broken = read_records(path)
    wrong = [record for record in records if not _whole(record)]
    if broken or wrong:
        raise InputError(f"{path}: {broken + len(wrong)} lines are no kept runs; take them out, or bring the file back")
    return list({record["run"]: record for record in records}.values())


def _whole(record: Mapping[str, Any]) -> bool:
    files = record.get("files")
    names = [record.get("run"), *(files if isinstance(files, Mapping) else [None])]
    if record["event"] != EVENT or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        return False
    parts = [part for name in names for part in str(name).split("/")]
    return ".." not in parts and all(isinstance(text, str) for text in files.values())  # type: ignore[union-attr]


def unpack(path: Path, into: Path, only: Container[str] | None = None) -> None:
    """Each kept run, or those of these names, as the folder that it had, below `into`, without its weights."""
    for record in kept(path):
        if only is not None and record["run"] not in only:
            continue
        for place, text in record["files"].items():
            write_whole(into / record["run"] / place, text)


def result_of(record: Mapping[str, Any], suite: str) -> Mapping[str, Any]:
    """What a kept run was judged to be on a suite; empty where it was not, or where that cannot be read."""
    return _read(record, f"{EVAL}/{suite}.json")


def told_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a kept run says of itself, its `run.json`; empty where that cannot be read."""
    return _read(record, SUMMARY)


def _read(record: Mapping[str, Any], piece: str) -> Mapping[str, Any]:
    try:
        found = json.loads(record["files"].get(piece, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
