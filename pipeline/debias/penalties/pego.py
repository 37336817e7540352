"""PEGO: a group of LoRA adapters, orthogonal to the base and to one another (Hu et al., ECCV 2024, arXiv 2407.15085).

Shapes: O rows, I columns, R = N r the rank, r that of one of the N adapters, P rows that are handled together.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.penalties.base import Factors, Penalty

MOST = 1 << 22  # elements of a product [O, O] at once, 16 MB in float32


@dataclass(frozen=True)
class PEGO(Penalty):
    """LoRA in `adapters` parts, whose updates share no direction with the base's weights, nor with one another.

    The term of a layer is `sum_i |W D_i^T| + sum_(i<j) |D_i D_j^T|`, with |.| the sum of absolute values, W the base's
    weights and `D_i = s B_i A_i` what adapter i adds (s: LoRA's scaling). N parallel adapters of rank r are one LoRA of
    rank N r, exactly: `s B A` is the sum of `s B_i A_i` over blocks of r columns of B and r rows of A, and the rows of
    A are drawn alike whether they are one matrix or N. So nothing new is attached: `lora_r` is N r, and the run is
    saved, merged, planned and resumed as any other LoRA. With `lora_alpha` equal to `lora_r` the scaling is the
    authors' 1. Its slope is added to the update once a step, after the rule and before clipping.

    No product [O, I] is formed. With `M = W A^T` [O, R] and `K = A A^T` [R, R], `W D_i^T = s M_i B_i^T` and
    `D_i D_j^T = s^2 B_i K_ij B_j^T`. Of their signs S and T, some rows at a time: B_i has the slope `s S^T M_i` and A_i
    `s (S B_i)^T W`; B_i has `s^2 T B_j K_ij^T`, B_j `s^2 T^T B_i K_ij`, and with `G = s^2 B_i^T T B_j` A_i has `G A_j`,
    A_j `G^T A_i`. Signs of [O, O] have no low rank: such products are what a sum of absolute values asks for.

    Needs LoRA on linear layers (`lora`, `rslora`, `lora_fa`), its rank a multiple of `adapters`, and whole weights that
    can be read: refused by name in 4 and 8 bits, for DoRA, fused experts, embeddings, DeepSpeed and FSDP. Costs each
    step, whatever its samples, `2 N O I r + 3/2 N (N + 1) O^2 r` multiplications a layer (what some 80 tokens cost with
    four adapters of rank 4 where O is I), and for a moment a float32 copy of one layer's W where it has 16 bits. Fails
    where the task needs directions that W already has; it knows of directions, not of bias. A sum of O^2 values a layer
    grows with the model: `strength` is not the same for another one. While B is zero it has no slope.

    Source: Hu et al., Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for
    Domain Generalization, ECCV 2024, arXiv 2407.15085, and its authors' code, of which `ld` is `strength`.
    """

    name: ClassVar[str] = "pego"
    adapters: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapters < 1:
            raise ValueError(f"adapters is {self.adapters}, expected 1 or more")

    def check(self, rank: int) -> None:
        if rank % self.adapters:
            raise ValueError(f"adapters is {self.adapters}, expected a divisor of the rank {rank} (lora_r)")

    @torch.no_grad()
    def slopes(self, layer: Factors) -> tuple[Tensor, Tensor]:
        b_OR, a_RI, s = layer.b_OR, layer.a_RI, layer.scale
        base_OI = layer.base_OI.to(a_RI.dtype)
        m_OR, k_RR = base_OI @ a_RI.T, a_RI @ a_RI.T
        by_b_OR, by_m_OR, by_k_RR = torch.zeros_like(b_OR), torch.zeros_like(m_OR), torch.zeros_like(k_RR)
        blocks = [slice(at, at + len(k_RR) // self.adapters) for at in range(0, len(k_RR), len(k_RR) // self.adapters)]
        height = max(1, MOST // max(1, len(b_OR)))
        for start in range(0, len(b_OR), height):
            rows = slice(start, start + height)
            for i in blocks:
                sign_PO = (m_OR[rows, i] @ b_OR[:, i].T).sign_()
                by_b_OR[:, i] += s * (sign_PO.T @ m_OR[rows, i])
                by_m_OR[rows, i] = s * (sign_PO @ b_OR[:, i])
            for i, j in itertools.combinations(blocks, 2):
                left_Pr = b_OR[rows, i] @ k_RR[i, j]
                sign_PO = (left_Pr @ b_OR[:, j].T).sign_()
                right_Pr = sign_PO @ b_OR[:, j]
                by_b_OR[rows, i] += s * s * (right_Pr @ k_RR[i, j].T)
                by_b_OR[:, j] += s * s * (sign_PO.T @ left_Pr)
                by_k_RR[i, j] += s * s * (b_OR[rows, i].T @ right_Pr)
        by_a_RI = by_m_OR.T @ base_OI + (by_k_RR + by_k_RR.T) @ a_RI
        return by_b_OR.mul_(self.strength), by_a_RI.mul_(self.strength)
