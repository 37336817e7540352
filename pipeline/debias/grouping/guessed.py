"""Groups of label and guess: what uLA selects on, and JTT's error set. Shapes: N examples, C labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from debias.grouping.base import Floats, Grouping, Inferred, Ints, numbered


@dataclass(frozen=True)
class Guessed(Grouping):
    """Examples of one label of which the bias model guesses the same are a group: `(y, argmax p_b)`.

    `by: guess` makes up to C^2 groups, whose names say both; `by: error` two of each label, those that it guesses
    rightly and those that it does not (the error set of Just Train Twice). Needs a bias model, or a first stage that
    keeps `log_p`; no groups. Costs nothing beside. Fails where the guess is not the shortcut: rare groups are then the
    hard and the mislabelled examples, and a loss that serves the worst group learns these. With many labels
    `by: guess` makes groups of a handful.

    Source: the cells of Tsirigotis et al., Group Robust Classification Without Any Group Information, NeurIPS 2023,
    arXiv 2310.18555; the error set of Liu et al., Just Train Twice, ICML 2021, arXiv 2107.09044.
    """

    name: ClassVar[str] = "guessed"
    by: Literal["guess", "error"] = "guess"

    def infer(self, log_p_NC: Floats, label_N: Ints, labels: Sequence[str], seed: int) -> Inferred:
        guess_N = log_p_NC.argmax(axis=1)
        every = range(len(labels))
        if self.by == "guess":
            keys = list(zip(label_N.tolist(), guess_N.tolist(), strict=True))
            return numbered(keys, {(y, g): f"{labels[y]} guessed as {labels[g]}" for y in every for g in every})
        keys = list(zip(label_N.tolist(), (guess_N != label_N).astype(int).tolist(), strict=True))
        words = ("guessed rightly", "guessed wrongly")
        return numbered(keys, {(y, wrong): f"{labels[y]} {words[wrong]}" for y in every for wrong in (0, 1)})
