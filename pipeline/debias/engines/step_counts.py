"""What became of a run's steps, kept in each of its checkpoints: a run that goes on has to know what it skipped."""

import json
from dataclasses import dataclass
from pathlib import Path

from debias.runs.damage import reading

STEP_COUNTS = "step_counts.json"  # of a checkpoint


@dataclass
class StepCounts:
    """`skipped`: steps since the run began whose gradients were not finite. `known`: whether its checkpoint says so."""

    skipped: int = 0
    known: bool = True

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
            return cls(int(json.loads(path.read_text(encoding="utf-8"))["skipped"]))

    def write(self, checkpoint: Path) -> None:
        """Beside what else a checkpoint holds."""
        (checkpoint / STEP_COUNTS).write_text(json.dumps({"skipped": self.skipped}) + "\n", encoding="utf-8")
