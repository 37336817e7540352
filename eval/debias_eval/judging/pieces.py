"""Scores of many examples, asked for piece by piece and kept as they come: judging that is cut off goes on.

Shapes: N examples, M labels of the model, K examples whose scores are kept, P of them asked for again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from debias.ranks.world import is_first
from debias_eval.results.files import result_path
from debias_eval.scores.scoring import Floats

logger = logging.getLogger(__name__)
PIECE = 8192  # examples that the model is asked about at a time; the same wherever judging goes on
PROVED = 16  # kept scores that are asked for again, spread over all that are kept
# By which these may differ, of an example's largest score or of 1: other batches round otherwise.
EXACT, ROUNDED = 1e-3, 2e-2  # in float32; in 16 or 4 bits

Asked = Callable[[Sequence[int]], Floats]  # about the examples at these places: their scores [., M]


@dataclass
class KeptScores:
    """The scores of a suite's first examples, in a file beside its results until these are written.

    `told`: all that scores depend on and that can be named; the file's name has its digest. One process writes, which
    has the file locked: another that judges the same keeps nothing. Scores that cannot be kept are no failure, for they
    are asked for again. `from_first(array or None)` gives what the first rank has to all of them, `forget()` is called
    after each piece, `tolerance` is how far scores asked for again may be off.
    """

    run: Path
    suite: str
    told: Any
    from_first: Callable[[Floats | None], Floats | None] = lambda scores: scores
    forget: Callable[[], None] = lambda: None
    tolerance: float = EXACT
    _file: BinaryIO | None = field(default=None, init=False)

    @property
    def path(self) -> Path:
        """Where they lie."""
        told = json.dumps([self.told, PIECE], sort_keys=True, default=str)
        key = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        of_result = result_path(self.run, self.suite)
        return of_result.with_name(f".{of_result.stem}.{key}.scores")

    def read(self) -> Floats:
        """Whole pieces [K, M], the same on all ranks; none where there are none."""
        found = self.from_first(self._read() if is_first() else None)
        assert found is not None
        return found

    def _read(self) -> Floats:
        """The file is this process's from here on."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            _lock(self._file)
            self._file.seek(0)
            labels = int(json.loads(self._file.readline() or b"{}").get("labels", 0))
            found = np.frombuffer(self._file.read(), dtype="u1")
        except BlockingIOError:
            self._stop("another process is judging the same")
        except OSError as error:
            self._stop(error.strerror or str(error))
        except (ValueError, AttributeError, TypeError):
            labels, found = 0, np.empty(0, dtype="u1")
        if self._file is None or labels < 1:
            return np.empty((0, 0))
        size = PIECE * labels * 8
        return found[: len(found) // size * size].view("<f8").reshape(-1, labels).astype(np.float64)

    def begin(self, scores_KM: Floats) -> None:
        """The file has these scores and no others; pieces are added behind them."""
        head = (json.dumps({"labels": scores_KM.shape[1]}) + "\n").encode()
        self._write(head + scores_KM.astype("<f8").tobytes(), anew=True)

    def add(self, scores_KM: Floats) -> None:
        """One more piece."""
        self._write(scores_KM.astype("<f8").tobytes())

    def _write(self, content: bytes, *, anew: bool = False) -> None:
        if self._file is None:  # another rank, or nothing can be kept
            return
        try:
            if anew:
                self._file.truncate(0)
            self._file.write(content)  # at the end, as the file was opened
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.remove()
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        logger.warning("%s: scores are not kept as they come, and a kill would lose them: %s", self.path, why)
        self.close()

    def close(self) -> None:
        """Let another process have the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def remove(self) -> None:
        """The results are written."""
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.close()


def _lock(file: BinaryIO) -> None:
    """BlockingIOError where another process has it; where files cannot be locked nobody has."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return


def in_pieces(asked: Asked, size: int, kept: KeptScores | None = None) -> Floats:
    """`asked` about all of `size` examples, [N, M] float64: about all at once, or of many about `PIECE` at a time.

    With `kept` each piece is kept when it has come, and those that an earlier call kept are not asked for again, unless
    some of them, asked for once more, are others than they were: then it begins anew.
    """
    if size <= PIECE:
        return asked(range(size))
    try:
        return _in_pieces(asked, size, kept)
    except BaseException:
        if kept is not None:
            kept.close()
        raise


def _in_pieces(asked: Asked, size: int, kept: KeptScores | None) -> Floats:
    done_KM = np.empty((0, 0)) if kept is None else _proved(asked, size, kept)
    scores_NM: Floats | None = None
    for start in range(0, size, PIECE):
        stop = min(size, start + PIECE)
        if start < len(done_KM):
            piece_KM = done_KM[start:stop]
        else:
            piece_KM = asked(range(start, stop))
            if kept is not None:
                kept.begin(piece_KM) if start == 0 else kept.add(piece_KM)
                kept.forget()
        if scores_NM is None:
            scores_NM = np.empty((size, piece_KM.shape[1]))
        scores_NM[start:stop] = piece_KM
    assert scores_NM is not None
    return scores_NM


def _proved(asked: Asked, size: int, kept: KeptScores) -> Floats:
    """The kept scores [K, M] as far as they can be gone on with."""
    done_KM = kept.read()
    if not 0 < len(done_KM) <= size:
        return np.empty((0, 0))
    places = np.unique(np.linspace(0, len(done_KM) - 1, PROVED).astype(np.int64)).tolist()
    if not _agree(asked(places), done_KM[places], kept.tolerance):
        logger.info("  what was judged before came from another model; it is judged anew")
        return np.empty((0, 0))
    logger.info("  %s of %s examples were judged before", f"{len(done_KM):,}", f"{size:,}")
    kept.begin(done_KM)  # what was cut off behind them goes
    return done_KM


def _agree(now_PM: Floats, then_PM: Floats, tolerance: float) -> bool:
    if now_PM.shape != then_PM.shape:
        return False
    allowed_P1 = tolerance * np.maximum(1.0, np.abs(then_PM).max(axis=1, keepdims=True))
    return bool((np.abs(now_PM - then_PM) <= allowed_P1).all())
