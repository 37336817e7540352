"""What every way of inferring groups is: log-probabilities and labels in, a group of each example out.

Shapes: N examples, C labels, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Inferred:
    """`group_N`, numbers from 0 of which each occurs; `names` of these [G]; `draw_weight_N`, where a way says how often
    each example should be seen.
    """

    group_N: Ints
    names: tuple[str, ...]
    draw_weight_N: Floats | None = None


@dataclass(frozen=True)
class Grouping:
    """A way of inferring groups. Subclasses are frozen dataclasses whose fields are the settings of `groups:`.

    `gives`: facts beside `group` that it gives of the examples.
    """

    name: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()

    def infer(self, log_p_NC: Floats, label_N: Ints, labels: Sequence[str], seed: int) -> Inferred:
        """Groups of the examples by what was said of them; the same for the same arguments."""
        raise NotImplementedError


def numbered(keys: Sequence[tuple[int, ...]], names: Mapping[Any, str]) -> Inferred:
    """Groups by key, in the order of the keys; of every key a name."""
    there = sorted(set(keys))
    number = {key: place for place, key in enumerate(there)}
    return Inferred(np.array([number[key] for key in keys], dtype=np.int64), tuple(names[key] for key in there))
