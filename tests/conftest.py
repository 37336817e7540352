"""Settings of the whole suite. This file also puts tests/ on the import path, for tiny_models.py."""

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Models here are tiny: more threads only make the cores wait for each other. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is downloaded in tests; a hub that cannot be reached is tried again for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _own_cache() -> None:
    """What tests read is kept in a folder that goes with them; the models of the user's cache are there, too."""
    models = Path(os.environ.get("DEBIAS_CACHE") or Path.home() / ".cache" / "debias").expanduser() / "models"
    folder = tempfile.mkdtemp(prefix="debias-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if models.is_dir():
        (Path(folder) / "models").symlink_to(models.absolute())
    os.environ["DEBIAS_CACHE"] = folder


_own_cache()


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Verbs set the levels of loggers for their process, which here is the next test's too."""
    root, levels = logging.root.level, {name: logger.level for name, logger in _ours().items()}
    yield
    logging.root.setLevel(root)
    for name, logger in _ours().items():
        logger.setLevel(levels.get(name, logging.NOTSET))


def _ours() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict.items()
    return {name: logger for name, logger in known if name.startswith("debias") and isinstance(logger, logging.Logger)}
