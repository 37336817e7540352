"""A bias model that is believed less and less while a model trains. Shapes: B samples, C labels."""

from collections.abc import Mapping

import torch
from torch import Tensor

from debias.readouts.said import DONE


def check_anneal_to(anneal_to: float | None) -> None:
    """ValueError unless it is None or lies in [0, 1]."""
    if anneal_to is not None and not 0 <= anneal_to <= 1:
        raise ValueError(f"anneal_to is {anneal_to}, expected 0 to 1, or none")


def bias_log_p(facts: Mapping[str, Tensor], anneal_to: float | None, like: Tensor) -> Tensor:
    """`p_b^alpha` over its sum, as logarithms [B, C] of the kind of `like`; as it is without `anneal_to`.

    `alpha` goes in a straight line from 1 at the first step to `anneal_to` where the end of training would have it; at
    0 every label is as likely. Utama et al., EMNLP 2020, arXiv 2009.12303. ValueError where the batch does not say how
    much of training is done.
    """
    log_p_BC = facts["bias_log_p"].to(like.dtype)
    if anneal_to is None:
        return log_p_BC
    if DONE not in facts:
        raise ValueError("loss.anneal_to: this batch does not say how much of training is done, the fact 'done'")
    return torch.log_softmax((1 + (anneal_to - 1) * facts[DONE].to(like.dtype)) * log_p_BC, dim=-1)


def doubt(log_p_BC: Tensor, labels_B: Tensor) -> Tensor:
    """`1 - p_b(y)` [B], without cancellation: what the bias model leaves open of the right label."""
    own_B = log_p_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
    return (-own_B.expm1()).clamp(min=0)
