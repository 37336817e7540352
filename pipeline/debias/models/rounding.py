"""How far two ways to the same scores may be apart."""

from typing import Any

import torch

# What float32 passes differ by is 1e-5; half precision differs by its rounding, and a wrong mask by far more.
AGREE, AGREE_HALF = 1e-3, 0.1


def tolerance(model: Any, half: float = AGREE_HALF) -> float:
    """What rounding explains of a difference of log-probabilities: `half` in half precision, also under autocast."""
    kept = next(p for p in model.parameters() if p.is_floating_point())
    exact = kept.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(kept.device.type)
    return AGREE if exact else half
