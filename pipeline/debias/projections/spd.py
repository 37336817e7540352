"""SPD: selective projection decay (Tian et al., NeurIPS 2024, arXiv 2411.01713)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.projections.base import Projection


@dataclass(frozen=True)
class SPD(Projection):
    """Take back what a step has led away from the start, where the gradient itself would lead back.

    Tensor by tensor, with `p` before the step, `p~` after it, `p0` the start and `g` the gradient that the optimizer is
    given (after the rule, the sum over ranks and clipping):

        if sum(g (p - p0)) > 0:   r = clip((|p~ - p0| - |p - p0|) / |p~ - p0|, 0, 1)
                                  p~ <- p~ - strength r (p~ - p0)

    The paper writes the condition `c = -sum(g (p - p0)) < 0`, as its code has it: there a longer way from p0 raises the
    loss, and more decay would lower it. The gradient alone then leads back; momentum, Adam's scales, or a step that is
    too long may lead on, and `strength` 1 puts the tensor back on the sphere around p0 that it was on. Tensors whose
    loss goes on falling along their way are free. The authors have it inside Adam; here it follows the step of any
    optimizer, which is a generalisation. It is no weight decay of its own: one that is set (`weight_decay`) is part of
    the step. A tensor without a gradient stays as it is. Held at the start, p is p0 in the first step: the sum is 0,
    and nothing is taken back.

    On LoRA A and B are such tensors, each by itself. `towards: start` holds B at 0 and A at its drawn values. `towards:
    zero` holds both at 0: so the authors' code has it for LoRA, and keeps no copy. Weights that train whole are held at
    the start there. A head that is trained too is held like the rest. What begins at 1 (the vectors of `ia3`) wants
    `start`.

    Needs a starting point worth staying near (pretrained weights), and an optimizer of PyTorch's form that steps by the
    gradients it finds: refused by name with L-BFGS and schedule-free optimizers (which train at other weights than
    those they are judged by). Where ranks have pieces of a tensor (DeepSpeed, FSDP2) its sums are over all of them, one
    message of three numbers a tensor for each step of the optimizer inside. Costs one copy of what trains in its own
    type, in memory and in each checkpoint, and no pass: on a CPU about the time of AdamW's own step, of LoRA's small
    tensors twice that, which is a small part of a step of training. Fails where the start itself has the shortcut, and
    does next to nothing under SGD without momentum: it knows of distance, not of bias. `l2_sp` and `digrap` hold
    weights near their start through the gradient; they may stand beside it.

    Source: Tian, Huang and Kira, Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models, NeurIPS 2024,
    arXiv 2411.01713, and its authors' code, of which `weight_decay` is `strength`.
    """

    name: ClassVar[str] = "spd"

    def taken_back(self, along: Tensor, before: Tensor, after: Tensor) -> Tensor:
        grown = torch.where(after > 0, (after - before) / after, 0.0).clamp(0.0, 1.0)
        return self.strength * (along > 0).to(after.dtype) * grown
