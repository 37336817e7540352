"""Settings of the whole suite. This file also puts tests/ on the import path, for tiny_models.py."""

import atexit
import contextlib
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from templates import compile_once

from debias.ranks.garbage import end_unsearched

# Models here are tiny: more threads only make the cores wait for each other. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where nothing is compiled PyTorch's compiler need not be loaded, which importing bitsandbytes does: a quarter of the
# start of each process. Tests that compile ask for the fixture `compiles`.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# Nothing is downloaded in tests; a hub that cannot be reached is tried again for half a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What Python and pytest compiled is kept for the next run and the processes that tests start: a third of finding tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Of properties that do not say how many examples they want; how long one takes depends on who else uses the machine.
settings.register_profile("suite", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_sessionstart() -> None:
    """While tests are found, hundreds of modules are loaded, and none of it is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    end_unsearched()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs of a real Slurm wait for one another most of their time: first, for at the end all else would be done."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> None:
    """A Trainer collects garbage when it begins: a third of a tiny run, where all libraries are loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` compiles, in this process and in those that it starts."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)


def _own_cache() -> None:
    """What tests read is kept in a folder that goes with them; the models of the user's cache are there, too."""
    models = Path(os.environ.get("DEBIAS_CACHE") or Path.home() / ".cache" / "debias").expanduser() / "models"
    folder = tempfile.mkdtemp(prefix="debias-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # what one process unpacks and converts is there for the others
        models.mkdir(parents=True, exist_ok=True)
    if models.is_dir():
        (Path(folder) / "models").symlink_to(models.absolute())
    os.environ["DEBIAS_CACHE"] = folder


_own_cache()
compile_once()


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Verbs set the levels of loggers for their process, which here is the next test's too."""
    before = {logger: logger.level for logger in _ours()}
    yield
    for logger in _ours():
        level = before.get(logger, logging.NOTSET)
        if logger.level != level:  # setting one clears what two thousand others remember
            logger.setLevel(level)


def _ours() -> list[logging.Logger]:
    return _ours_of(len(logging.root.manager.loggerDict))


@cache
def _ours_of(known: int) -> list[logging.Logger]:
    """The root and ours among so many loggers: there are only ever more."""
    loggers = logging.root.manager.loggerDict
    return [logging.root, *(logging.getLogger(name) for name in list(loggers) if name.startswith("debias"))]
