"""What a loss tells about a batch. Shapes: B samples."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SampleLosses:
    """`loss_B` (float32, differentiable): each sample's summed cross-entropy; `log_p_B` (detached): log-probability of
    its right answer, from which a bias weight is made; `count`: the batch's share of the one denominator of both
    gradients (samples or tokens).
    """

    loss_B: Tensor
    log_p_B: Tensor
    count: int
