"""The one type that leaves the data room."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text or text pair.

    `texts` follows the order of `text_fields`; `label` is an index into `labels`; `group` names a subpopulation
    (a planted-bias tag, a HANS subcase); `bias_weight` is the value of the data's weight column, if one was asked for.
    """

    id: str
    texts: tuple[str, ...]
    label: int
    group: str | None = None
    bias_weight: float | None = None
