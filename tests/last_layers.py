"""Last layers for tests of edits that retrain them."""

import torch

from debias.merging.edits import LastLayer


def with_a_cue(rows: int) -> LastLayer:
    """A cue in column 0 that is right nine times in ten and loud, and in column 1 what is honest and noisy."""
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(rows) % 2
    sign_N = 2.0 * label_N.double() - 1
    group_N = (torch.arange(rows) >= rows * 9 // 10).long()
    cue_N = torch.where(group_N == 0, sign_N, -sign_N) * 3
    honest_N = sign_N + torch.randn(rows, generator=generator, dtype=torch.float64)
    weight_CD = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    return LastLayer(torch.stack([cue_N, honest_N], dim=1), label_N, weight_CD, torch.zeros(2).double(), group_N)
