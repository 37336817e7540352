"""What every form of adapter is: what trains of a model, and which of its parameters that are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from debias.adapters.families import HEADS

PEFT_HEADS = ("classifier", "score")  # PEFT itself saves these with an adapter
SAVED_WHOLE = ".modules_to_save."  # in the path of PEFT's copy of a module that trains whole


@dataclass(frozen=True)
class RunFacts:
    """What an adapter is told of its run. `fresh`: modules that were drawn at random, not loaded; None for those that
    `load_model` found (`fresh_of`).

    The rest are settings of the run, under their names there; an adapter says in `reads` which it takes.
    """

    classification: bool
    fresh: Sequence[str] | None = None
    lora_r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


@dataclass(frozen=True)
class Adapter:
    """What trains of a model. Subclasses are frozen dataclasses whose fields are their settings in `adapter:`.

    `frozen_base`: no tensor of the base trains, so it may be in 4 bits or bfloat16, and what trains is saved apart
    from it. `folds`: `merging/fold.py` can fold it into the base's weights. `reads`: settings of the run that it takes.
    """

    name: ClassVar[str]
    frozen_base: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()  # in the paths of tensors beside the base; the first is there once a layer
    held: ClassVar[tuple[str, ...]] = ()  # the same of tensors beside the base that do not train, and are saved

    def attach(self, model: Any, run: RunFacts) -> Any:
        """`model` with this adapter on it; nothing else trains but its head and what was drawn at random.

        Works on the meta device. Raises InputError, naming the setting, where the model has nothing that takes it.
        """
        raise NotImplementedError

    @classmethod
    def owns(cls, parameter: str) -> bool:
        """Whether the parameter of this path trains in this form (a module drawn at random trains in any)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Beside(Adapter):
    """A form whose tensors PEFT puts beside those of a frozen base, with copies of heads that train whole."""

    frozen_base: ClassVar[bool] = True
    folds: ClassVar[bool] = True

    @classmethod
    def owns(cls, parameter: str) -> bool:
        """Whether PEFT added it; see `Adapter.owns`."""
        return SAVED_WHOLE in parameter or any(mark in parameter for mark in cls.marks)


def is_head(path: str) -> bool:
    """Whether a parameter's path leads into a task head."""
    return any(part in HEADS for part in path.split("."))


def fresh_of(model: nn.Module, given: Sequence[str] | None) -> Sequence[str]:
    """Modules of a model that were drawn at random: those given, or the `fresh_modules` that `load_model` set."""
    return getattr(model, "fresh_modules", ()) if given is None else given


def saved_whole(model: nn.Module, fresh: Sequence[str] | None = None) -> list[str] | None:
    """What PEFT must be told to train whole and to save; of texts it knows the heads itself."""
    fresh = fresh_of(model, fresh)
    if not reads_pictures(model):
        return [name for name in fresh if name.partition(".")[0] not in PEFT_HEADS] or None
    heads = [name for name, _ in model.named_children() if name in HEADS]
    return [*heads, *(name for name in fresh if name not in heads)] or None


def task_type(model: nn.Module, *, classification: bool) -> str | None:
    """PEFT's name of the task, by which it knows the head; of pictures it has none."""
    if reads_pictures(model):
        return None
    return "SEQ_CLS" if classification else "CAUSAL_LM"


def reads_pictures(model: nn.Module) -> bool:
    """Whether a model's inputs are pictures."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def is_skeleton(model: nn.Module) -> bool:
    """Whether a model has no values: a plan looks at it, of which nothing need be said that training will say."""
    return any(parameter.is_meta for parameter in model.parameters())


def train_in_float32(model: nn.Module) -> None:
    """PEFT sees to its own tensors, not to a head that trains whole, nor to what it measures on a base in bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
