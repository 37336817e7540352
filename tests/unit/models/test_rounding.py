"""debias.models.rounding: what differs by rounding, in float32 and in half precision."""

import torch
from torch import nn

from debias.models.rounding import tolerance


def test_half_precision_is_allowed_more_also_under_autocast() -> None:
    whole, half = nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()
    assert tolerance(whole, 5.0) == 1e-3 < tolerance(whole, 1000.0)
    assert tolerance(half, 5.0) == tolerance(nn.Linear(2, 2).half(), 5.0) > 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert tolerance(whole, 5.0) == tolerance(half, 5.0)


def test_rounding_of_bf16_is_within_it_and_a_wrong_place_is_not() -> None:
    """Log-probabilities of bf16 logits against float64, and against those of the row before."""
    torch.manual_seed(0)
    logits = 8 * torch.randn(200, 50, dtype=torch.float64)
    exact, rounded = torch.log_softmax(logits, -1), torch.log_softmax(logits.bfloat16().float(), -1)
    allowed = tolerance(nn.Linear(2, 2).bfloat16(), float(exact.abs().max()))
    assert float((exact - rounded).abs().max()) < allowed
    assert float((exact - exact.roll(1, 0)).abs().amax(-1).min()) > allowed
