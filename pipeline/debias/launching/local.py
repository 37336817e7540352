"""Several processes on this machine: torchrun with the ranks' own words in files."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def command(config: Path, overrides: Sequence[str], ranks: int, logs: Path | None) -> list[str]:
    """The `torchrun` command, an argument a word, with its first failure said first.

    Rank 0 is on the terminal; with `logs` every rank is in a file there.
    """
    words = [sys.executable, "-m", "debias.ranks.failures", "--standalone", "--nproc-per-node", str(ranks)]
    if logs is not None:
        words += ["--log-dir", str(logs), "--redirects", "3", "--tee", "0:3", "--local-ranks-filter", "0"]
    return [*words, "-m", "debias.cli", "train", str(config), *overrides]


def logs_of(output_dir: str) -> Path:
    """A folder beside the run's, which must be empty for a run to begin."""
    return Path(f"{os.path.abspath(output_dir)}.logs") / time.strftime("%Y%m%d-%H%M%S")
