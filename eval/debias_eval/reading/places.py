"""Where a suite's data lies: beside its YAML, in DEBIAS_DATA, or on the hub."""

import glob
import os
from pathlib import Path

from debias.config.data import DataConfig, DataSource
from debias.data.shards import is_pattern, matches
from debias.errors import InputError
from debias_eval.reading.suite import Hub, Suite


def local_file(suite: Suite, name: str) -> Path | None:
    """The file or folder `name` (or pattern of files) beside the suite's YAML or in DEBIAS_DATA; None if there is none.

    InputError for a link that leads out of the folder in which it lies.
    """
    for folder in (suite.folder, os.environ.get("DEBIAS_DATA") or None):
        if folder is None:
            continue
        root = Path(folder).expanduser().resolve()
        pattern = Path(glob.escape(str(root))) / name
        if os.path.exists(root / name):  # for which a name that is too long is no error
            return _inside(suite, root, root / name)
        if is_pattern(name) and [_inside(suite, root, file) for file in matches(pattern)]:
            return pattern
    return None


def _inside(suite: Suite, root: Path, place: Path) -> Path:
    if not place.resolve().is_relative_to(root):
        raise InputError(f"suite {suite.name}: {place} is a link that leads out of {root}; put the file there")
    return place


def where_from(suite: Suite) -> str:
    """`local`, `generated`, `hub` (nothing is asked of the hub), or `missing`: where the examples would come from."""
    if suite.source is not None and suite.source.source == "generated":
        return "generated"
    names = [*([suite.source.source] if suite.source else ()), *([suite.hub.source] if suite.hub else ())]
    if any(local_file(suite, name) for name in names):
        return "local"
    return "hub" if suite.hub else "missing"


def local_config(suite: Suite, source: DataSource, path: Path | None = None) -> DataConfig:
    """How a file of this suite's schema is read; `path` is where it lies."""
    found = source if path is None else source.model_copy(update={"source": str(path)})
    return DataConfig.model_validate({**suite.data_config, "train": found})


def hub_config(suite: Suite, hub: Hub, limit: int | None = None, seed: int = 0) -> DataConfig:
    """How the rows of a hub id are read; a folder of that name in DEBIAS_DATA stands in for it.

    `limit` keeps a random sample of the rows, the same every time for one `seed`.
    """
    config = DataConfig.model_validate(suite.hub_config(hub))
    folder = local_file(suite, hub.source)
    found = {"limit": limit, "seed": seed, "source": hub.source if folder is None else str(folder)}
    return config.model_copy(update={"train": config.train.model_copy(update=found)})


def not_found(suite: Suite, name: str) -> str:
    """What to say of a local file that is not there."""
    folder = os.environ.get("DEBIAS_DATA")
    looked = f"and {folder} lacks it" if folder else "and is not set"
    return f"suite {suite.name}: no {name}; DEBIAS_DATA names the folder of local data, {looked}"
