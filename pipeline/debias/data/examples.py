"""The one type that leaves the data room."""

from dataclasses import dataclass
from typing import Any

NO_LABEL = -1  # of a row that is only to be answered


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
