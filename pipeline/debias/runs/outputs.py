"""Where a verb may write what it was asked for: a regular file or a folder, and never among a run's own records."""

import os
from collections.abc import Mapping
from pathlib import Path

from debias.config.regular import irregular
from debias.config.run import STAGES
from debias.errors import InputError
from debias.runs.names import ADAPTER, BIAS, CHECKPOINT, CONFIG, EVAL, METRICS, MODEL, SEEN, SUMMARY

RECORDS = frozenset({CONFIG, METRICS, SUMMARY, SEEN, ADAPTER, MODEL, BIAS, EVAL, STAGES})


def check_files(given: Mapping[str, Path | None]) -> None:
    """InputError unless each option's file may be written, before any is: regular or new, no record, given once."""
    seen: dict[str, str] = {}
    for option, path in given.items():
        if path is None:
            continue
        check_output(path, option)
        if path.is_dir():
            raise InputError(f"{option}: {path} is a folder, expected a file")
        real = os.path.realpath(path)
        if real in seen:
            raise InputError(f"{option}: {path} is given twice, {seen[real]} writes it too; give another file")
        seen[real] = option


def check_output(path: Path, option: str = "-o") -> None:
    """InputError for a pipe, a device, and for what lies among a run's own records or is one."""
    if (kind := irregular(path)) is not None:
        raise InputError(f"{option}: {path} is {kind}, expected a regular file or a new one")
    real = Path(os.path.realpath(path))
    for folder in real.parents:
        own = real.relative_to(folder).parts[0]
        if (own in RECORDS or own.startswith(CHECKPOINT)) and is_run(folder):
            raise InputError(
                f"{option}: {path} would change {own}, a run's own record in {folder}; choose another place"
            )


def check_outside(given: Mapping[str, Path | None]) -> None:
    """InputError for a file that would lie in a run's folder, which is what its training and judging left there."""
    for option, path in given.items():
        folders = Path(os.path.realpath(path)).parents if path else ()
        if inside := next((folder for folder in folders if is_run(folder)), None):
            raise InputError(f"{option}: {path} would lie inside the run {inside}; choose a place outside of it")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: other projects have a `config.yaml` too, one that was begun has more."""
    return any((folder / name).exists() for name in (SUMMARY, METRICS)) or (
        (folder / CONFIG).is_file() and (folder / ADAPTER).exists()
    )
