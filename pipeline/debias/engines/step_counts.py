"""What became of a run's steps, kept in each of its checkpoints: a run that goes on has to know what it skipped."""

import json
from dataclasses import dataclass
from pathlib import Path

from debias.runs.damage import reading

STEP_COUNTS = "step_counts.json"  # of a checkpoint


@dataclass
class StepCounts:
    """`skipped`: steps since the run began whose gradients were not finite. `known`: whether its checkpoint says so.

    `taken`: the other steps, `losses`: the sum of their losses on this rank, and `summed`: over all ranks when it was
    last asked for; each since training began or was gone on with. `taken_before`, `summed_before`: before that.
    """

    skipped: int = 0
    known: bool = True
    taken_before: int = 0
    summed_before: float = 0.0
    taken: int = 0
    losses: float = 0.0
    summed: float = 0.0

    @classmethod
    def of(cls, checkpoint: Path | None) -> "StepCounts":
        """Where a run begins that goes on from this checkpoint, or from none. InputError for a file that is damaged.

        Of what earlier versions saved nothing is known, and it is gone on from as if nothing had been skipped.
        """
        if checkpoint is None:
            return cls()
        path = checkpoint / STEP_COUNTS
        if not path.exists():
            return cls(known=False)
        with reading(checkpoint, STEP_COUNTS):
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(held["skipped"]), bool(held["known"]), int(held["taken"]), float(held["losses"]))

    def write(self, checkpoint: Path) -> None:
        """Beside what else a checkpoint holds."""
        counts = {"skipped": self.skipped, "known": self.known, "taken": self.taken_before + self.taken}
        told = {**counts, "losses": self.summed_before + self.summed}
        (checkpoint / STEP_COUNTS).write_text(json.dumps(told) + "\n", encoding="utf-8")

    @property
    def mean_loss(self) -> float:
        """Over the steps taken since training began or was gone on with; NaN where none was."""
        return self.summed / self.taken if self.taken else float("nan")

    @property
    def mean_of_all(self) -> float | None:
        """Over the steps taken since the run began; None where that is not known."""
        taken = self.taken_before + self.taken
        return (self.summed_before + self.summed) / taken if self.known and taken else None
