"""What a run leaves behind to be read: metrics.jsonl while it trains, run.json when it ends."""

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from debias.hub.remote_code import VARIABLE

PROGRESS_SECONDS = 10.0
SAID = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}
PACKAGES = ("debias", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "deepspeed", "numpy")


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
    """Where there is no terminal for a progress bar: the first log as a line, the last, and one every ten seconds."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.say = say
        self.clock = clock
        self._next = 0.0

    def logged(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        """Say the losses, unless something was said a moment ago."""
        figures = [f"{words} {logs[key]:.4g}" for key, words in SAID.items() if key in logs]
        last = state.global_step >= state.max_steps
        if figures and (last or self.clock() >= self._next):
            self.say(f"step {state.global_step} of {state.max_steps}: {', '.join(figures)}")
            self._next = self.clock() + PROGRESS_SECONDS


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, none if there is no file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def saving() -> Iterator[None]:
    """Inside, the libraries' own errors for a file that could not be written are the OSError that they stand for."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not isinstance(error, SafetensorError) and "inline_container" not in str(error):
            raise  # not torch.save's
        raise OSError(" ".join(str(error).split())) from error


def check_tensors(folder: Path, shapes: Iterable[Sequence[int]] = ()) -> None:
    """RuntimeError unless the safetensors files of a folder hold tensors with elements, one of them not all zero.

    `shapes`: of what was trained; each must be there, and as many elements (stacks of experts are written as one
    matrix for each expert). An adapter that was saved empty, or as one rank's slice, looks like one that learned
    nothing: refused here, where it can be seen.
    """
    from safetensors import safe_open

    trained = [tuple(shape) for shape in shapes]
    elements, alive, missing = 0, False, Counter(shape for shape in trained if len(shape) < 3)
    for path in sorted(folder.glob("*model*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(name)
                if tensor.numel() == 0:
                    raise RuntimeError(
                        f"saved adapter: tensor {name} in {path.name} is empty, shape {list(tensor.shape)}"
                    )
                elements += tensor.numel()
                missing[tuple(tensor.shape)] -= 1
                alive = alive or bool(tensor.any())
    if not elements:
        raise RuntimeError(f"saved adapter: {folder.name} holds no tensor at all")
    if not alive:
        raise RuntimeError(f"saved adapter: {folder.name} holds nothing but zeros")
    if lost := [f"{n} of shape {list(shape)}" for shape, n in missing.items() if n > 0]:
        raise RuntimeError(f"saved adapter: {folder.name} lacks what was trained: {', '.join(lost)}")
    if elements < (wanted := sum(map(math.prod, trained))):
        raise RuntimeError(f"saved adapter: {folder.name} has {elements:,} elements of {wanted:,} that were trained")


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what somebody else needs to run the same thing."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        },
        "commit": _commit(),
        **({VARIABLE: named} if (named := os.environ.get(VARIABLE)) else {}),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout this code runs from, `-dirty` if it was changed; None for an installed wheel."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a checkout on a machine without git
        return None
    return done.stdout.strip() or None


def peak_memory_mb() -> float:
    """Peak memory so far: of the GPU where there is one, else the process's resident size. MiB."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1024 if sys.platform == "linux" else 1
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
