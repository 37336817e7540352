"""Which files a run read its rows from, and on which weights it was trained: by their digests other data and another
base than a finished run had are known.
"""

import glob
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.digests import local_weights, sha256_of
from debias.runs.summary import read_summary

logger = logging.getLogger(__name__)

BASE = "base_sha256"  # of run.json: of the weights of a base that is a folder
DATA_FILES = "data_files"  # of run.json: by role (train, validation) each file's name and SHA-256
ROLES = ("train", "validation")
Told = dict[str, dict[str, str]]


def data_files(config: RunConfig) -> Told:
    """Name and SHA-256 of each local file of training data, and of validation data that is read.

    A file of a pattern, or of a folder, has its place below that as its name. Nothing of what is generated or a hub's.
    """
    roles = ("train",) if config.eval_strategy == "no" else ROLES
    found = {role: _digests(source) for role, source in _sources(config.data.model_dump()) if role in roles}
    return {role: files for role, files in found.items() if files}


def changed_data(told: Any, data: Mapping[str, Any]) -> str | None:
    """Which of the files that `told` names (in run.json) is another now, by the settings of `data:`.

    None where none is, where they are gone, or where nobody said what they were.
    """
    if not isinstance(told, Mapping):
        return None
    for role, source in _sources(data):
        before, now = told.get(role), _digests(source)
        if not isinstance(before, Mapping) or not now:
            continue
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                what = "is new" if name not in before else "is gone" if name not in now else "has changed"
                return f"data.{role}: {name} {what} since"
    return None


def changed_base(told: Any, settings: Mapping[str, Any]) -> str | None:
    """That a base has other weights than `told`, in run.json, says; None where not, or where that is not known."""
    model = settings.get("model")
    now = local_weights(model).get(model) if isinstance(model, str) else None
    return f"model: the weights of {model} have changed since" if told and now and told != now else None


def say_changed_base(run: Path, config: RunConfig) -> None:
    """A warning where the adapter of a finished run would be laid on other weights than it was trained on.

    It is no error: weights that were only saved anew, in other files, have another digest as well.
    """
    try:
        told = read_summary(run).get(BASE)
    except InputError:  # a damaged run.json hinders nobody who only asks the model
        return
    if (changed := changed_base(told, {"model": config.model})) is not None:
        logger.warning("%s: %s it was trained; its adapter was fitted to others", run, changed)


def _sources(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    blocks = ((role, data.get(role)) for role in ROLES)
    told = ((role, block.get("source") if isinstance(block, Mapping) else block) for role, block in blocks)
    return [(role, source) for role, source in told if isinstance(source, str) and source != "generated"]


def _digests(source: str) -> dict[str, str]:
    for place in (source, str(Path(os.environ.get("DEBIAS_DATA") or ".") / source)):
        pattern = f"{glob.escape(place)}/**" if os.path.isdir(place) else place
        files = [place] if os.path.isfile(place) else glob.glob(pattern, recursive=True)
        if files := [file for file in files if os.path.isfile(file)]:
            fixed = os.path.dirname(files[0]) if files == [place] else _fixed(pattern)
            return {Path(os.path.relpath(file, fixed)).as_posix(): _digest_of(file) for file in sorted(files)}
    return {}


def _fixed(pattern: str) -> str:
    """The folder above the first part of a pattern that stands for several."""
    parts = Path(pattern).parts
    return str(Path(*parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))]))


def _digest_of(file: str) -> str:
    state = os.stat(file)
    return _digest(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(file: str, size: int, written: int) -> str:
    """Once for a file as it is: the runs of a sweep read the same ones."""
    return sha256_of(file)
