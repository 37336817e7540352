"""Whose own code may run. A model's folder can bring code; it runs with all rights of who loads it."""

import os
import shlex
from pathlib import Path

VARIABLE = "DEBIAS_TRUST_REMOTE_CODE"


def trusted(name: str) -> bool:
    """Whether the code that comes with this model may run: where the variable holds its name (several: with commas).

    In the environment and not in a run's settings, which travel: a config or a run's folder from somebody else must not
    be able to ask for it. A local folder must be named as a path (/..., ./..., ~/...) and counts by its place: where
    `org/model` is a folder of the working directory, it is not what the hub has under that name.
    """
    named = [one.strip() for one in os.environ.get(VARIABLE, "").split(",")]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return bool(name) and name in named
    paths = [Path(one).expanduser() for one in named if one.startswith(("/", ".", "~"))]
    return any(path.resolve() == folder.resolve() for path in paths)


def words_to_trust(name: str) -> str:
    """What to write in the environment to trust this model."""
    folder = Path(name).expanduser()
    return f"{VARIABLE}={shlex.quote(str(folder.resolve()) if folder.is_dir() else name)}"
