"""What a finished run says of training examples. Shapes: N examples, C labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from debias.data.examples import Example
from debias.inference.loading import load_run


def log_p_of(run: Path, examples: Sequence[Example]) -> np.ndarray:
    """Log-probabilities over the labels, [N, C] float64, of the model that the run trained; the same on all ranks."""
    if dist.is_initialized():
        dist.barrier()  # the first rank may still be saving it
    scores_NC = load_run(run).label_scores(examples)
    whole: np.ndarray = scores_NC - np.logaddexp.reduce(scores_NC, axis=1, keepdims=True)
    return whole
