"""Maximum mean discrepancy between groups (Li et al., CVPR 2018), with random features of the kernels.

Shapes: B samples, G groups, H hidden columns, D random features, S numbers that are learned: those of `group_sums` with
D features, and the mean squared distance of two samples, 0 before it is known.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import HIDDEN, Loss
from debias.readouts.said import Said

GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each kernel, over the mean squared distance


@dataclass(frozen=True)
class MMD(Loss):
    """Cross-entropy and `strength` times how far groups lie apart: the squared distance of their mean features.

    The maximum mean discrepancy, over pairs of groups, of the last hidden states h (a sample's mean over its tokens, of
    a causal model over the prompt; of a perceptron what its head is given), with a sum of five Gaussian kernels
    `exp(-gamma |x - y|^2 / d)`, gamma 1/4 to 4, d the mean squared distance of two samples in the first step. Each
    kernel is taken by `features` random Fourier features, drawn alike in every run, so that a distance of distributions
    is one of means: right on average, off by about `sqrt(2 / features)` of a kernel's values. The means are those of
    the steps before (sums over samples that fade by `memory` each step), and a sample's penalty is the tangent there,
    linear in its features, over its group's share of the training data: it is the sample's own in any micro-batch and
    on any rank. Cross-entropy is as it was.

    Needs a group of each training example, of the data or inferred (`groups`), and a model whose hidden states can be
    heard. Costs a product of h with `5 features` columns. Fails where groups tell the label: then the task has to go,
    too; and where hidden states outgrow the widths of the first step by far. SubpopBench's widths are fixed, from 0.03
    to 30, whatever the distances are.

    Source: Li et al., Domain Generalization with Adversarial Feature Learning, CVPR 2018; over pairs of groups as in
    Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023, arXiv 2302.12254; several widths as in
    Long et al., ICML 2015, arXiv 1502.02791; features of Rahimi & Recht, Random Features for Large-Scale Kernel
    Machines, NIPS 2007.
    """

    name: ClassVar[str] = "mmd"
    reads: ClassVar[frozenset[str]] = frozenset({"group", HIDDEN})
    learns: ClassVar[bool] = True
    strength: float = 1.0
    features: int = 128
    memory: float = 0.9

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}, expected 0 or more")
        if self.features < 1:
            raise ValueError(f"features is {self.features}, expected 1 or more")
        group_sums.check_memory(self.memory)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if not memory_S[-1]:
            return -said.log_p_B
        features_BD, group_B = self._features(said, memory_S), facts["group"]
        mean_GD, seen_G = group_sums.means(memory_S[:-1])
        distance, slope_GD = group_sums.apart(mean_GD, seen_G)
        level_G = (slope_GD * mean_GD).sum(dim=1).to(features_BD.dtype)
        pull_B = (slope_GD.to(features_BD.dtype)[group_B] * features_BD).sum(dim=1) - level_G[group_B]
        even_B = group_sums.evened(memory_S[:-1])[group_B].to(features_BD.dtype)
        tangent_B = distance.to(features_BD.dtype) + even_B * pull_B
        return self.strength * tangent_B.to(said.log_p_B.dtype) - said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The groups' shares; nothing seen of any: how many samples, the sums of their features; no distance."""
        begun = group_sums.begun(facts)
        return torch.cat([begun, begun.new_zeros(int(begun[0]) * (1 + len(GAMMAS) * self.features) + 1)])

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """The same of a micro-batch; in the first step projections in the place of features, and their squares' sum."""
        if memory_S[-1]:
            values_BD, squares = self._features(said, memory_S), memory_S.new_zeros(1)
        else:
            values_BD = self._projections(said)
            squares = values_BD.detach().double().square().mean(dim=1).sum().reshape(1)
        return torch.cat([group_sums.summed(values_BD, facts, memory_S[:-1]), squares])

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; of the first step the mean squared distance is kept alone."""
        of_groups_S, apart = memory_S[:-1], memory_S[-1:]
        if apart:
            return torch.cat([group_sums.faded(sums[:-1], of_groups_S, self.memory), apart])
        return torch.cat([of_groups_S, _distance(sums[:-1], sums[-1:], groups=int(memory_S[0]))])

    def _projections(self, said: Said) -> Tensor:
        """Of hidden states on random directions of unit variance, [B, D], differentiable."""
        if said.hidden_BH is None:
            raise ValueError("loss mmd reads hidden states; ask for them: said(..., hidden=True)")
        hidden_BH = said.hidden_BH
        return hidden_BH @ directions(hidden_BH.shape[1], self.features, hidden_BH.device, hidden_BH.dtype)

    def _features(self, said: Said, memory_S: Tensor) -> Tensor:
        """[B, D], whose products are on average the sum of the kernels."""
        projected_BD = self._projections(said)
        gamma_D = projected_BD.new_tensor(GAMMAS).repeat_interleave(self.features)
        width_D = (2 * gamma_D / memory_S[-1].to(gamma_D.dtype)).sqrt()
        phase_D = phases(self.features, projected_BD.device, projected_BD.dtype)
        return (2 / self.features) ** 0.5 * torch.cos(projected_BD * width_D + phase_D)


def _distance(sums: Tensor, squares: Tensor, *, groups: int) -> Tensor:
    """[1], the mean squared distance of two samples by what a step says of their projections; 0 of less than two.

    A projection's variance is, on average over directions, that of the hidden states, all columns together.
    """
    both_W = sums[1 + groups :].view(groups, -1).sum(dim=0)
    count, sums_D = both_W[:1], both_W[1:]
    square = squares / count.clamp(min=1)
    variance = square - (sums_D / count.clamp(min=1)).square().mean()
    return torch.where(variance > 1e-12 * square, 2 * variance, torch.zeros_like(variance))


@functools.lru_cache(maxsize=4)
def directions(columns: int, features: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[H, D], normal: the same in every process and run, drawn on the CPU in float64 from a seed of their own."""
    generator, size = torch.Generator().manual_seed(0), len(GAMMAS) * features
    return torch.randn(columns, size, generator=generator, dtype=torch.float64).to(device, dtype)


@functools.lru_cache(maxsize=4)
def phases(features: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[D], even from 0 to 2 pi, from another seed."""
    generator, size = torch.Generator().manual_seed(1), len(GAMMAS) * features
    return (2 * torch.pi * torch.rand(size, generator=generator, dtype=torch.float64)).to(device, dtype)
