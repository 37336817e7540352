"""A run that ends once it has learned so much: the early stop of a model that is to know what is easy, and no more."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOGS = 2  # the loss of one batch says little: the mean of so many logs, each of `logging_steps` steps


def label_entropy(labels: Sequence[int] | np.ndarray, seen: np.ndarray | None = None) -> float:
    """In nats, of the labels' shares: the loss of a model that knows these alone. 0 for one label or none.

    `seen`: how often an epoch sees each example, once by default.
    """
    places = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.bincount(places, weights=seen)
    share_C = counts[counts > 0] / max(1, counts.sum())
    return float(-(share_C * np.log(share_C)).sum())


class StopWhenLearned(TrainerCallback):
    """Ends training at the first log after which the mean of the last two logged losses is `(1 - share) * entropy`.

    The logged loss is that of all ranks, the same on each: they stop together. It is taken from the Trainer's history,
    which a checkpoint holds, so that a run that is gone on with stops where it would have, if it was saved at a log
    (what was lost since the last log is in no checkpoint). A non-finite loss is no sign of learning. Where steps
    say when to validate and to save, both are done at the end as well. `at` is the step, once it has stopped.
    """

    def __init__(self, share: float, entropy: float | Callable[[], float]) -> None:
        """`entropy`: of the labels; a function where what an epoch sees of them is known once training begins."""
        self._share, self._entropy = share, entropy
        self.at: int | None = None

    @functools.cached_property
    def bar(self) -> float:
        """The loss at which enough is learned."""
        return (1 - self._share) * (self._entropy() if callable(self._entropy) else self._entropy)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at what was logged so far."""
        if self.at is None and self.had_learned(state):
            control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy == "steps"
            control.should_save |= args.save_strategy == "steps"

    def had_learned(self, state: TrainerState) -> bool:
        """Whether a run in this state, perhaps a checkpoint's, has learned enough; `at` is its step then."""
        losses = [log["loss"] for log in state.log_history if "loss" in log][-LOGS:]
        enough = len(losses) == LOGS and float(np.mean(losses)) <= self.bar
        if enough:
            self.at = state.global_step
        return enough


def learned_at(callbacks: Iterable[TrainerCallback]) -> int | None:
    """The step at which a run with these callbacks had learned enough; None where it had not, or was not asked."""
    return next((one.at for one in callbacks if isinstance(one, StopWhenLearned)), None)
