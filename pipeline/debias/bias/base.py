"""What every bias model is: who says, without group labels, which label the shortcut alone suggests.

Shapes: N examples, C labels.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from debias.data.examples import Example

Floats = NDArray[np.float64]
FLOOR = 1e-4  # no label is impossible: a bias model that is sure of the wrong one must not outvote every other evidence


@dataclass(frozen=True)
class BiasModel:
    """Says `p(label | what it sees)` of every training example, out of fold: of none that it was fitted on.

    Subclasses are frozen dataclasses whose fields are the settings of the `bias_model:` block.
    """

    name: ClassVar[str]
    costs: ClassVar[str] = "is fitted on the CPU before the first step, and takes nothing of a GPU"  # a plan says it

    def stages(self, run: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """What runs that have to be trained before it can be asked do otherwise than `run`; ValueError if they cannot.

        `run`: the settings of the run that the bias model is for. Most need none.
        """
        return ()

    def check(self, text_fields: Sequence[str]) -> None:
        """ValueError for settings that do not fit the data, or a package that is not here; before anything is read."""

    def log_p(self, examples: Sequence[Example], labels: int, text_fields: Sequence[str], seed: int) -> Floats:
        """Log-probabilities [N, C] float64, each at least log(FLOOR / 2); the same for the same arguments."""
        raise NotImplementedError


class AskedBase(Protocol):
    """What the run's own base model says of the training examples, before the run. Shapes: D hidden units."""

    def hidden(self, layer: float) -> Floats:
        """Hidden states of a layer, averaged over each example's tokens, [N, D]; ValueError for none of its layers."""

    def after_stage(self, stage: int, examples: Sequence[Example]) -> Floats:
        """Log-probabilities [M, C] of these examples by the model of that run of `stages`, which is trained first."""


@dataclass(frozen=True)
class BaseBiasModel(BiasModel):
    """A bias model that asks the run's own base, as it is or trained for a while."""

    costs: ClassVar[str] = "asks the run's own base before the first step: one forward pass over the training set"

    def log_p(self, examples: Sequence[Example], labels: int, text_fields: Sequence[str], seed: int) -> Floats:
        raise ValueError(f"bias_model {self.name} asks the base model of a run, and here is none")

    def asked(self, examples: Sequence[Example], labels: int, seed: int, base: AskedBase) -> Floats:
        """As `log_p`."""
        raise NotImplementedError


def check_two_folds(folds: int) -> None:
    """ValueError for fewer."""
    if folds < 2:
        raise ValueError(f"folds is {folds}, expected 2 or more: an example is judged by another fold's model")


def labels_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """The right labels [N]."""
    return np.array([example.label for example in examples], dtype=np.int64)


def floored(p_NC: Floats) -> Floats:
    """Probabilities of at least about FLOOR whose rows sum to 1, as logarithms."""
    lifted_NC = np.maximum(p_NC, FLOOR)
    logs: Floats = np.log(lifted_NC / lifted_NC.sum(axis=1, keepdims=True))
    return logs


def folds_of(examples: Sequence[Example], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold [N] of each example: equal texts share one, or a model would judge what it was fitted on."""
    texts: dict[Hashable, int] = {}
    group_N = np.array([texts.setdefault(_seen(example), len(texts)) for example in examples], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(texts))
    fold_of_group = np.empty(len(texts), dtype=np.int64)
    fold_of_group[order] = np.arange(len(texts)) % folds
    found: NDArray[np.int64] = fold_of_group[group_N]
    return found


def _seen(example: Example) -> Hashable:
    """What a model sees of an example: its texts, or its picture."""
    return example.texts if example.image is None else hashlib.sha256(example.image.tobytes()).hexdigest()


def digest_of(block: str, examples: Sequence[Example], labels: int, seed: int) -> str:
    """What a bias model's answers depend on, so that kept answers are known to be of this data and these settings."""
    told = hashlib.sha256(f"{block} {labels} {seed}".encode())
    for example in examples:
        told.update(repr((_seen(example), example.label)).encode("utf-8", "surrogateescape"))
    return told.hexdigest()
