"""How far two ways to the same scores may be apart."""

from typing import Any

import torch

# What float32 passes differ by is 1e-5. Half precision differs by its rounding: of a bf16 number 0.4 % of its size, and
# a little of that in each layer. A wrong mask or place differs by far more.
EXACT, EXACT_SHARE = 1e-3, 1e-4
HALF, HALF_SHARE = 0.1, 0.02


def tolerance(model: Any, largest: float) -> float:
    """What rounding explains of a difference of log-probabilities, the largest of which is of size `largest`."""
    kept = next(p for p in model.parameters() if p.is_floating_point())
    exact = kept.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(kept.device.type)
    return max(EXACT, EXACT_SHARE * largest) if exact else HALF + HALF_SHARE * largest
