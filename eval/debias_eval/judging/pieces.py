"""Scores of many examples, asked for piece by piece and kept as they come: judging that is cut off goes on.

Shapes: N examples, M labels of the model, K examples whose scores are kept.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from debias.errors import InputError
from debias.ranks.world import is_first
from debias_eval.results.files import result_path
from debias_eval.scores.scoring import Floats

logger = logging.getLogger(__name__)
PIECE = 8192  # examples that the model is asked about at a time; the same wherever judging goes on
PROVED = 8  # kept scores that are asked for again
AGREED = 0.02  # of the largest, by which these may differ: other batches, in 16 bits


class KeptScores:
    """The scores of a suite's first examples, in a file beside its results until these are written.

    `told`: all that scores depend on and that can be named. One rank writes; `from_first(array or None)` gives what the
    first rank has to all of them, `forget()` is called after each piece.
    """

    def __init__(
        self,
        run: Path,
        suite: str,
        told: Any,
        from_first: Callable[[Floats | None], Floats | None] = lambda scores: scores,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        of_result = result_path(run, suite)
        self.path = of_result.with_name(f".{of_result.stem}.scores")
        self.key = hashlib.sha256(json.dumps([told, PIECE], sort_keys=True, default=str).encode()).hexdigest()
        self.from_first = from_first
        self.forget = forget

    def read(self) -> Floats:
        """Whole pieces [K, M], the same on all ranks; none where there are none of this key."""
        found = self.from_first(self._read() if is_first() else None)
        assert found is not None
        return found

    def _read(self) -> Floats:
        try:
            with self.path.open("rb") as file:
                told = json.loads(file.readline())
                labels = int(told["labels"])
                found = np.frombuffer(file.read(), dtype="u1")
            if told["key"] != self.key or labels < 1:
                return np.empty((0, 0))
            size = PIECE * labels * 8
            return found[: len(found) // size * size].view("<f8").reshape(-1, labels).astype(np.float64)
        except (OSError, ValueError, LookupError, TypeError):
            return np.empty((0, 0))

    def begin(self, labels: int) -> None:
        """Whatever lies there belongs to something else."""
        if is_first():
            self._write("wb", (json.dumps({"key": self.key, "labels": labels}) + "\n").encode())

    def go_on(self, scores_KM: Floats) -> None:
        """Behind these, which lie there, comes the next piece; what was cut off behind them goes."""
        self.begin(scores_KM.shape[1])
        self.add(scores_KM)

    def add(self, scores_KM: Floats) -> None:
        """One more piece."""
        if is_first():
            self._write("ab", scores_KM.astype("<f8").tobytes())

    def _write(self, mode: str, content: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def remove(self) -> None:
        """The results are written."""
        if is_first():
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def in_pieces(asked: Callable[[slice], Floats], size: int, kept: KeptScores | None = None) -> Floats:
    """`asked` about all of `size` examples, [N, M] float64: about all at once, or of many about `PIECE` at a time.

    With `kept` each piece is kept when it has come, and those that an earlier call kept are not asked for again, unless
    a few of them, asked for once more, are others than they were: then it begins anew.
    """
    if size <= PIECE:
        return asked(slice(0, size))
    done_KM = np.empty((0, 0)) if kept is None else kept.read()
    if kept is not None and len(done_KM):
        if _agree(asked(slice(0, PROVED)), done_KM[:PROVED]):
            logger.info("  %s of %s examples were judged before", f"{len(done_KM):,}", f"{size:,}")
            kept.go_on(done_KM)
        else:
            logger.info("  what was judged before came from another model; it is judged anew")
            done_KM = np.empty((0, 0))
    scores_NM: Floats | None = None
    for start in range(0, size, PIECE):
        stop = min(size, start + PIECE)
        if start < len(done_KM):
            piece_KM = done_KM[start:stop]
        else:
            piece_KM = asked(slice(start, stop))
            if kept is not None:
                kept.begin(piece_KM.shape[1]) if start == 0 else None
                kept.add(piece_KM)
                kept.forget()
        if scores_NM is None:
            scores_NM = np.empty((size, piece_KM.shape[1]))
        scores_NM[start:stop] = piece_KM
    assert scores_NM is not None
    return scores_NM


def _agree(now_KM: Floats, then_KM: Floats) -> bool:
    if now_KM.shape != then_KM.shape:
        return False
    largest = max(1.0, float(np.abs(then_KM).max()))
    return bool(np.allclose(now_KM, then_KM, rtol=0, atol=AGREED * largest))
