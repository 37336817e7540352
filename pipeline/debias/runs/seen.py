"""What a run has read, kept in its folder: it is not gone on with on other data without a word. Shapes: N examples."""

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from debias.errors import InputError
from debias.runs.folder import Folder
from debias.runs.names import SEEN
from debias.runs.whole import write_whole

logger = logging.getLogger(__name__)
Digests = NDArray[np.uint64]
SAID = ("bias_model", "first_stage")  # what is checked that is no row of anybody's data


class Seen:
    """Digests [N] of what a run reads, by name, and those that were kept when it was begun.

    A run that has no step behind it has none to keep to. `writes` on one rank alone.
    """

    def __init__(self, folder: Folder, *, writes: bool) -> None:
        self.folder = folder.path
        self.writes = writes
        self.now: dict[str, Digests] = {}
        begun = folder.checkpoint is not None or bool(folder.ended)
        self.before = read_seen(folder.path) if begun else {}
        if begun and not self.before and writes:
            logger.warning("resume: %s keeps no digests of its data, so that no change of it can be seen", folder.path)

    def check(self, name: str, digests: Digests, ids: Sequence[str]) -> None:
        """InputError, with the counts and the first example that differs, unless this is what the run began with."""
        self.now[name] = digests
        before = self.before.get(name)
        if before is None or np.array_equal(before, digests):
            return
        both = min(len(before), len(digests))
        differing = np.flatnonzero(before[:both] != digests[:both])
        first = int(differing[0]) if len(differing) else both
        which = f"example {first + 1}" + (f" ({ids[first]!r})" if first < len(ids) else ", which is gone")
        cure = (
            "if the data is the same, finish with the version that began it"
            if name in SAID
            else "bring the old data back"
        )
        raise InputError(
            f"resume: {name} has changed: {len(digests)} examples now, {len(before)} when the run in {self.folder} was"
            f" begun, and the first that differs is {which}; {cure}, or start anew in another folder"
        )

    def write(self) -> None:
        """Keep what has been checked so far."""
        if self.writes:
            buffer = BytesIO()
            np.savez_compressed(buffer, **self.now)  # type: ignore[arg-type]
            write_whole(self.folder / SEEN, buffer.getvalue())


def read_seen(folder: Path) -> dict[str, Digests]:
    """The digests that a run's folder keeps, none where there is no such file; InputError for a damaged one."""
    path = folder / SEEN
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: damaged: {' '.join(str(error).split())}; start anew in another folder") from None
