"""Examples and batches as one mapping each, which is how tests write them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def rows(features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each feature as a data set gives it: lists are its tokens, all else is known of it."""
    return [
        {
            "tokens": {key: value for key, value in feature.items() if isinstance(value, list)},
            "facts": {key: torch.tensor(value) for key, value in feature.items() if not isinstance(value, list)},
        }
        for feature in features
    ]


def flat(batch: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Inputs and facts of a batch side by side."""
    return {**batch["inputs"], **batch["facts"]}
