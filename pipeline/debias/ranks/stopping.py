"""SIGTERM, as a scheduler sends it before it takes the machine away: save at the next step boundary, then leave."""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from debias.errors import EXIT_REQUEUE

logger = logging.getLogger(__name__)


class StopRequest:
    """As a context: SIGTERM sets `asked`; whoever trains looks at it at each step boundary.

    If the process is still there `grace_seconds` after the signal it exits at once with `EXIT_REQUEUE`; the last
    checkpoint that was saved whole is what remains.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.asked = False
        self._before: Any = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there alone
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._timer is not None:
            self._timer.cancel()
        around = getattr(self._before, "__self__", None)
        if kind is None and self.asked and isinstance(around, StopRequest):
            around._ask(signal.SIGTERM, None)  # this run came to its end, that around it shall stop still

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = True
        logger.warning("SIGTERM: saving at the next step boundary, within %g s", self.grace_seconds)
        self._timer = threading.Timer(self.grace_seconds, os._exit, [EXIT_REQUEUE])
        self._timer.daemon = True
        self._timer.start()
