"""Rows that do not fill the last step of several ranks."""

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class RepeatsSaid(TrainerCallback):
    """Warns, once, how many samples of a pass ranks see twice.

    Ranks have equally many batches, so accelerate fills an epoch's last ones with its first samples.
    """

    def __init__(self, rows: Callable[[], int]) -> None:
        self.rows = rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer, when all that an order reads is known."""
        if args.world_size == 1 or args.process_index > 0:
            return
        rows = self.rows()
        if missing := -rows % (args.per_device_train_batch_size * args.world_size):
            logger.warning(
                "WARNING: %d samples a pass do not fill batches of %d on %d ranks: the last step of each pass sees %d"
                " of them a second time, where one process would take a smaller step",
                *(rows, args.per_device_train_batch_size, args.world_size, missing),
            )
