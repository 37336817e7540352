"""The one type that leaves the data room, and what many of it can be asked at once. Shapes: N examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

NO_LABEL = -1  # of a row that is only to be answered
NO_GROUP = -1


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text or text pair.

    `texts` follows the order of `text_fields`; `label` is an index into `labels`, or `NO_LABEL`; `group` names a
    subpopulation (a planted-bias tag, a HANS subcase); `bias_weight` is the value of the data's weight column, if one
    was asked for;
    `bias_p` a probability of each label, from columns of the data, where these were asked for.
    Examples of one `cluster` (a counterfactual pair, a template) are not independent. `image` is a uint8 array
    [channels, height, width] where the input is a picture; `texts` is then empty.
    """

    id: str
    texts: tuple[str, ...]
    label: int
    group: str | None = None
    bias_weight: float | None = None
    cluster: str | None = None
    image: Any = None
    bias_p: tuple[float, ...] | None = None


@runtime_checkable
class InColumns(Protocol):
    """Examples of which a column can be had without making each; they are a sequence of examples, too.

    `groups`: names, in the order of the numbers in the column `group`; of some there may be no example.
    """

    groups: Sequence[str]

    def column(self, name: str) -> NDArray[Any]:
        """One value for each, [N]: `label` and `group` int32 (NO_GROUP where it has none), `weight` float64 (NaN where
        it has none), `digest` and `input` uint64 (what `digests_of` and `inputs_of` say).
        """


def labels_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """The label [N] of each example."""
    if isinstance(examples, InColumns):
        return examples.column("label").astype(np.int64)
    return np.array([example.label for example in examples], dtype=np.int64)
