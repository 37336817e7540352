"""What every bias model is: who says, without group labels, which label the shortcut alone suggests.

Shapes: N examples, C labels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from debias.data.digests import digests_of
from debias.data.examples import Example

Floats = NDArray[np.float64]
FLOOR = 1e-4  # no label is impossible: a bias model that is sure of the wrong one must not outvote every other evidence


@dataclass(frozen=True)
class BiasModel:
    """Says `p(label | what it sees)` of every training example, out of fold: of none that it was fitted on.

    Subclasses are frozen dataclasses whose fields are the settings of the `bias_model:` block.
    """

    name: ClassVar[str]

    def check(self, text_fields: Sequence[str]) -> None:
        """ValueError for settings that do not fit the data, or a package that is not here; before anything is read."""

    def log_p(self, examples: Sequence[Example], labels: int, text_fields: Sequence[str], seed: int) -> Floats:
        """Log-probabilities [N, C] float64, each at least log(FLOOR / 2); the same for the same arguments."""
        raise NotImplementedError


def floored(p_NC: Floats) -> Floats:
    """Probabilities of at least about FLOOR whose rows sum to 1, as logarithms."""
    lifted_NC = np.maximum(p_NC, FLOOR)
    logs: Floats = np.log(lifted_NC / lifted_NC.sum(axis=1, keepdims=True))
    return logs


def folds_of(examples: Sequence[Example], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold [N] of each example: equal texts share one, or a model would judge what it was fitted on."""
    texts: dict[Any, int] = {}
    group_N = np.array([texts.setdefault(example.texts, len(texts)) for example in examples])
    order = np.random.default_rng(seed).permutation(len(texts))
    fold_of_group = np.empty(len(texts), dtype=np.int64)
    fold_of_group[order] = np.arange(len(texts)) % folds
    found: NDArray[np.int64] = fold_of_group[group_N]
    return found


def digest_of(block: str, examples: Sequence[Example], labels: int, seed: int) -> str:
    """What a bias model's answers depend on, so that kept answers are known to be of this data and these settings."""
    told = hashlib.sha256(f"{block} {labels} {seed}".encode())
    told.update(digests_of(examples).tobytes())
    return told.hexdigest()
