"""What a run leaves behind to be read: metrics.jsonl while it trains, run.json when it ends."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from debias.runs.time_left import TimeLeft
from debias.runs.whole import write_whole

PROGRESS_SECONDS = 10.0
SAID = {
    "loss": "loss",
    "eval_loss": "validation loss",
    "eval_accuracy": "validation accuracy",
    "eval_pseudo_group_accuracy": "over pseudo groups",
}


class EachLog(TrainerCallback):
    """What is done with the figures that the Trainer logs, on the first process."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            self.logged(state, logs)

    def logged(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        """The figures of one log."""
        raise NotImplementedError


class MetricsFile(EachLog):
    """Appends every log of the Trainer to `metrics.jsonl`, one JSON object a line, `step` and `epoch` first.

    After a resume the lines past the checkpoint's step are dropped first: they are about to be trained again. `more`
    gives what else belongs to a line of logs, in a form that other reporters could not take.
    """

    def __init__(self, path: Path, more: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda logs: {}) -> None:
        self.path = path
        self.more = more

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if 0 < line["step"] <= state.global_step]
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def logged(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        """Append a line."""
        figures = {key: value for key, value in logs.items() if key != "epoch"}
        line = {"step": state.global_step, "epoch": state.epoch, **figures, **self.more(logs)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class PlainProgress(EachLog):
    """Where there is no terminal for a progress bar: the first log as a line, the last, and one every ten seconds.

    Each says how long training has gone on, and about how long it will, by the pace of the last steps.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.say = say
        self.clock = clock
        self._next = 0.0
        self._left = TimeLeft(clock)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._left.begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._left.mark(state.global_step)

    def logged(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        """Say the losses, unless something was said a moment ago."""
        figures = [f"{words} {logs[key]:.4g}" for key, words in SAID.items() if key in logs]
        last = state.global_step >= state.max_steps
        if figures and (last or self.clock() >= self._next):
            told = [*figures, time_left] if (time_left := self._left.said(state.max_steps)) else figures
            self.say(f"step {state.global_step} of {state.max_steps}: {', '.join(told)}")
            self._next = self.clock() + PROGRESS_SECONDS


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, none if there is no file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            break
    return lines
