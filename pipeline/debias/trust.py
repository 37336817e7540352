"""Whose own code may run. A model's folder can bring code; it runs with all rights of who loads it."""

import os
from pathlib import Path

VARIABLE = "DEBIAS_TRUST_REMOTE_CODE"


def trusted(name: str) -> bool:
    """Whether the code that comes with this model may run: where the variable holds its name (several: with commas).

    In the environment and not in a run's settings, which travel: a config or a run's folder from somebody else must not
    be able to ask for it. A local folder counts by its place, however it is written.
    """
    named = [one.strip() for one in os.environ.get(VARIABLE, "").split(",")]
    return any(one and (one == name or _same_folder(one, name)) for one in named)


def _same_folder(one: str, other: str) -> bool:
    first, second = (Path(name).expanduser() for name in (one, other))
    return first.is_dir() and second.is_dir() and first.resolve() == second.resolve()
