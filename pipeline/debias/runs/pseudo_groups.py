"""Pseudo groups of validation data: cells of label and bias model's guess, which no group label is needed for.

The criterion is that of uLA (Tsirigotis et al., Group Robust Classification Without Any Group Information, NeurIPS
2023, arXiv 2310.18555): the mean of the accuracies in the cells that occur. The worst is recorded beside it.
Shapes: M examples, C labels, K cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Examples of a cell: the accuracy of nine that are right half of the time is off by 17 points (one standard error).
SMALLEST = 10

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """Examples of one label of which the bias model guesses one of these labels; `counts`: in the criterion."""

    label: str
    guesses: tuple[str, ...]
    where: Ints
    counts: bool = True

    @property
    def name(self) -> str:
        return f"{self.label} guessed as {' or '.join(self.guesses)}"


@dataclass(frozen=True)
class PseudoGroups:
    """The cells of validation examples whose labels are `label_M`.

    A cell of fewer than SMALLEST examples says nothing by itself. Those of one label which the bias model guesses
    wrongly are one cell together; what is too small even so does not count, and is named.
    """

    label_M: Ints
    cells: tuple[Cell, ...]

    def figures(self, right_M: Bools) -> dict[str, float]:
        """The criterion and the worst cell, of which examples were answered rightly."""
        reached = [float(right_M[cell.where].mean()) for cell in self.cells if cell.counts]
        return {"pseudo_group_accuracy": float(np.mean(reached)), "worst_pseudo_group_accuracy": min(reached)}

    def table(self, right_M: Bools) -> list[dict[str, Any]]:
        """Each cell's label, guesses, number of examples and accuracy, for files; `counts` is false where too small."""
        return [
            {
                "label": cell.label,
                "guesses": list(cell.guesses),
                "n": len(cell.where),
                "accuracy": float(right_M[cell.where].mean()),
                "counts": cell.counts,
            }
            for cell in self.cells
        ]

    def left_out(self) -> list[str]:
        """What does not count, in words."""
        return [f"{cell.name} ({len(cell.where)})" for cell in self.cells if not cell.counts]


def pseudo_groups(label_M: Ints, guess_M: Ints, labels: Sequence[str]) -> PseudoGroups:
    """The cells of examples by label and guess. ValueError where a label has no cell of SMALLEST examples or more."""
    cells = [cell for label in range(len(labels)) for cell in _of_label(label, label_M, guess_M, labels)]
    for name in labels:
        sizes = [len(cell.where) for cell in cells if cell.label == name]
        if max(sizes, default=0) < SMALLEST:
            held = f"{sum(sizes)} examples of label {name!r}"
            raise ValueError(
                f"the validation data has {held}, in no pseudo group more than {max(sizes, default=0)}; a group needs "
                f"{SMALLEST}: give more of them"
            )
    return PseudoGroups(label_M, tuple(cells))


def _of_label(label: int, label_M: Ints, guess_M: Ints, labels: Sequence[str]) -> list[Cell]:
    """The cells of one label: the right guess, each wrong one that is large enough, and the other wrong ones."""
    own = label_M == label
    where = {guess: np.flatnonzero(own & (guess_M == guess)) for guess in range(len(labels))}
    small = [g for g in where if g != label and 0 < len(where[g]) < SMALLEST]
    merged = small if len(small) > 1 else []
    found = [Cell(labels[label], (labels[g],), where[g]) for g in where if len(where[g]) and g not in merged]
    if merged:
        together = np.sort(np.concatenate([where[guess] for guess in merged]))
        found.append(Cell(labels[label], tuple(labels[guess] for guess in merged), together))
    return [Cell(one.label, one.guesses, one.where, len(one.where) >= SMALLEST) for one in found]
