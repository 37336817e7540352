"""A bias model that is a table: how often each label occurs in a group. Shapes: N examples, C labels, G groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from debias.bias.base import BiasModel, Floats, Ints, check_folds, cross_fitted, folds_of, labels_of
from debias.bias.calibration import out_of_fold
from debias.data.examples import Example


@dataclass(frozen=True)
class Groups(BiasModel):
    """The share of each label in an example's group, counted in the other `folds`.

    `(n(label, group) + smoothing p(label)) / (n(group) + smoothing)`; a group that the other folds lack has `p(label)`.
    Where the shortcut is known and every row says which side of it the row is on. Needs a group of each training
    example, which must be known apart from the label (a background, not "right or wrong"). Costs nothing. Fails where
    the group is made of the label, or has one label alone: such rows then teach nothing. `calibrated`: one temperature
    for what it said out of fold.

    Source: the bias-only model of a known attribute in Liu et al., ICLR 2023, arXiv 2212.01433; cross-fitted by us.
    """

    name: ClassVar[str] = "groups"
    reads: ClassVar[frozenset[str]] = frozenset({"group"})
    smoothing: float = 1.0
    folds: int = 5
    calibrated: bool = True

    def __post_init__(self) -> None:
        check_folds(self.folds)
        if self.smoothing < 0:
            raise ValueError(f"smoothing is {self.smoothing}, expected 0 or more examples")

    def log_p(
        self,
        examples: Sequence[Example],
        labels: int,
        text_fields: Sequence[str],
        seed: int,
        others: Sequence[Example] = (),
    ) -> Floats:
        number: dict[str | None, int] = {}
        everyone = [*examples, *others]
        group_N = np.array([number.setdefault(example.group, len(number)) for example in everyone], dtype=np.int64)
        label_N = labels_of(examples)

        def judge(fitted_on: Ints, judged: Ints) -> Floats:
            table_GC = np.zeros((len(number), labels))
            np.add.at(table_GC, (group_N[fitted_on], label_N[fitted_on]), 1.0)
            return _smoothed(table_GC, self.smoothing)[group_N[judged]]

        p_NC = cross_fitted(folds_of(examples, self.folds, seed), labels, judge, len(others))
        return out_of_fold(p_NC, label_N, calibrated=self.calibrated)

    def missing(self, others: Sequence[Example]) -> str | None:
        without = next((example.id for example in others if example.group is None), None)
        return None if without is None else f"example {without!r} of the validation data has no group"


def _smoothed(table_GC: Floats, smoothing: float) -> Floats:
    """Counts as probabilities, [G, C]; of a group without any, those of all groups together."""
    prior_C = table_GC.sum(axis=0) / max(table_GC.sum(), 1.0)
    size_G = table_GC.sum(axis=1, keepdims=True)
    weight_G = np.where(size_G + smoothing > 0, smoothing, 1.0)
    p_GC: Floats = (table_GC + weight_G * prior_C) / (size_G + weight_G)
    return p_GC
