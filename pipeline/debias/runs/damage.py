"""A checkpoint that cannot be gone on from, said in one line before training begins."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from debias.errors import InputError
from debias.runs.names import TRAINER_STATE, checkpoints

PICKLED = {"adapter_model.bin": "adapter_model.safetensors", "pytorch_model.bin": "model.safetensors"}
# What libraries raise for a file that is cut short, is something else, or does not fit.
UNFIT = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError)


def damaged(checkpoint: Path, told: str) -> InputError:
    """The error for a checkpoint, with what can be done."""
    before = [other for other in checkpoints(checkpoint.parent) if other != checkpoint]
    then = f"go on from {before[-1].name}" if before else "start anew"
    return InputError(f"{checkpoint}: {told}; restore it, or move this folder away to {then}")


@contextmanager
def reading(checkpoint: Path, file: str) -> Iterator[None]:
    """Inside, what a library raises while it reads a file of a checkpoint is an InputError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (*UNFIT, SafetensorError, UnpicklingError) as error:
        told = " ".join((str(error).strip().splitlines() or [type(error).__name__])[-1].split())
        raise damaged(checkpoint, f"{file} does not fit or cannot be read ({told[:160]})") from error


def check_files(checkpoint: Path, needed: Sequence[str] = ()) -> None:
    """InputError, naming the file, where one is missing, is cut short or is a pickled model; tensors are not read."""
    if not checkpoint.is_dir():
        raise InputError(f"Can't find a valid checkpoint at {checkpoint}: there is no such folder")
    _check_state(checkpoint)
    for name in needed:
        if not (checkpoint / name).is_file():
            raise damaged(checkpoint, f"there is no {name}, which training goes on from")
    for file, instead in PICKLED.items():
        if (checkpoint / file).is_file() and not any(checkpoint.glob(f"{Path(instead).stem}*.safetensors*")):
            raise damaged(checkpoint, f"{file} is a pickle, which is not read; save its tensors as {instead}")
    for path in sorted(checkpoint.glob("*.pt*")):  # torch.save's, whose table of contents comes last
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            raise damaged(checkpoint, f"{path.name} is cut short or is no file of torch.save")
    shapes_in(checkpoint)


def _check_state(checkpoint: Path) -> None:
    path = checkpoint / TRAINER_STATE
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise damaged(checkpoint, f"{TRAINER_STATE} cannot be read: {error.strerror}") from None
    except ValueError:
        raise damaged(checkpoint, f"{TRAINER_STATE} is cut short or is no JSON") from None
    if not isinstance(held, dict) or not isinstance(held.get("global_step"), int):
        raise damaged(checkpoint, f"{TRAINER_STATE} does not say at which step it was saved (global_step)")


def shapes_in(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a checkpoint's model or adapter files; InputError for a file that is cut short."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise damaged(checkpoint, f"{path.name} is cut short or damaged ({error})") from None
        if "model" in path.name:
            found |= shapes
    return found


def check_shapes(checkpoint: Path, wanted: Mapping[str, Sequence[int]], *, whole: bool = False) -> None:
    """InputError where a weight of a checkpoint has another shape than the model's; `whole`: or where some lack."""
    held = shapes_in(checkpoint)
    for name, shape in wanted.items():
        if name in held and held[name] != tuple(shape):
            raise damaged(checkpoint, f"{name} has shape {list(held[name])}, this run's model has {list(shape)}")
    # Only where nothing else is there instead: some kinds of layers are saved under other names.
    if whole and held and set(held) < set(wanted):
        lost = sorted(set(wanted) - set(held))
        raise damaged(checkpoint, f"the weights of {lost[0]} are not there ({len(lost)} such tensors)")
