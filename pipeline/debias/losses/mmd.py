"""Maximum mean discrepancy between groups (Li et al., CVPR 2018).

Shapes: B samples, G groups, H hidden columns, D random features, S: the memory of `group_sums`, of D values, and in its
last column, for every group alike, the mean squared distance of two samples, 0 before it is known. Where statistics are
of the step itself it is that distance alone, and kernels are exact (`mmd_step`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from debias.config.blocks import WAS
from debias.losses import group_sums, mmd_step
from debias.losses.base import HIDDEN, StepPenalty
from debias.losses.mmd_step import GAMMAS
from debias.readouts.said import Said

FEATURES = 128  # of each kernel, where nobody says


@dataclass(frozen=True)
class MMD(StepPenalty):
    """Cross-entropy and `strength` times how far groups lie apart: the squared distance of their mean features.

    The maximum mean discrepancy, over pairs of groups, of the last hidden states h (a sample's mean over its tokens, of
    a causal model over the prompt; of a perceptron what its head is given), with a sum of five Gaussian kernels
    `exp(-gamma |x - y|^2 / d)`, gamma 1/4 to 4, d the mean squared distance of two samples in the first step. It is
    that of the whole step, however it is cut into micro-batches and ranks, without bias: within a group of pairs of two
    samples. A group of one sample in a step is left out of it. Cross-entropy is as it was.
    `memory`: groups are those of the steps before, and each kernel is taken by `features` (128) random Fourier
    features, drawn alike in every run, so that a distance of distributions is one of means (sums over samples that fade
    by `memory` each step): right on average, off by about `sqrt(2 / features)` of a kernel's values.

    Needs a group of each training example, of the data or inferred (`groups`), and a model whose hidden states can be
    heard. Costs a forward pass more where a step has several micro-batches, the hidden states of a step in each process
    (`8 N H` bytes), and the distances of each sample to all of them; with `memory` a product of h with `5 features`
    columns. Fails where groups tell the label: then the task has to go, too; where a step has few samples of a group:
    draw groups alike (`order`; steps are of random rows, not of like length, which costs padding); and where hidden
    states outgrow the widths of the first step by far: the penalty is then nothing, and with `memory` the noise of its
    features, which does harm (BENCHMARKS.md). `loss_mean: tokens` divides the penalty by answer tokens, as it does
    cross-entropy: their proportion is unchanged. SubpopBench's widths are fixed, from 0.03 to 30, whatever the
    distances are.

    Source: Li et al., Domain Generalization with Adversarial Feature Learning, CVPR 2018; over pairs of groups as in
    Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023, arXiv 2302.12254; several widths as in
    Long et al., ICML 2015, arXiv 1502.02791; features of Rahimi & Recht, Random Features for Large-Scale Kernel
    Machines, NIPS 2007.
    """

    name: ClassVar[str] = "mmd"
    reads: ClassVar[frozenset[str]] = frozenset({"group", HIDDEN})
    learns: ClassVar[bool] = True
    strength: float = 1.0
    features: int | None = field(default=None, metadata={WAS: FEATURES})
    memory: float | None = group_sums.memory_setting()

    def __post_init__(self) -> None:
        group_sums.check(self.strength, self.memory)
        if self.ahead and self.features is not None:
            raise ValueError(
                f"features is {self.features}: they stand for kernels of the steps before, and of the step itself these"
                f" are exact; set memory to {group_sums.BEFORE}, or leave features out"
            )
        if not self.ahead and self.features is None:
            object.__setattr__(self, "features", FEATURES)
        if self.features is not None and self.features < 1:
            raise ValueError(f"features is {self.features}, expected 1 or more")

    @property
    def in_rows(self) -> bool:
        """Of the step itself, whose kernels are of pairs."""
        return self.ahead

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if self.ahead:
            of_step_B = mmd_step.tangent(_heard(said), facts["group"], memory_S)
            return self.strength * of_step_B.to(said.log_p_B.dtype) - said.log_p_B
        features_BD, group_B = self._features(said, memory_S), facts["group"]
        dtype, known = features_BD.dtype, memory_S[0, -1] > 0
        mean_GD, seen_G = group_sums.means(memory_S[:, :-1])
        distance, slope_GD = group_sums.apart(mean_GD, seen_G)
        level_G = (slope_GD * mean_GD).sum(dim=1).to(dtype)
        pull_B = (slope_GD.to(dtype)[group_B] * features_BD).sum(dim=1) - level_G[group_B]
        tangent_B = known * (distance.to(dtype) + group_sums.evened(memory_S)[group_B].to(dtype) * pull_B)
        return self.strength * tangent_B.to(said.log_p_B.dtype) - said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`group_sums` of features, none seen, and no distance; of the step itself that alone."""
        if self.features is None:
            return torch.zeros(1, dtype=torch.float64)
        return group_sums.begun(facts, values=len(GAMMAS) * self.features + 1)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Of each group how many samples, and the sums of their features; in the first step, of their projections, and
        of their mean square. Where statistics are of the step itself, of each sample its group and its hidden states.
        """
        if self.ahead:
            return mmd_step.rows_of(_heard(said), facts["group"])
        projected_BD, known = self._projections(said), memory_S[0, -1] > 0
        square_B1 = projected_BD.square().mean(dim=1, keepdim=True)
        values_BD = torch.where(known, self._features(said, memory_S), projected_BD)
        return group_sums.summed(torch.cat([values_BD, square_B1], dim=1), facts["group"], len(memory_S))

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The samples of the step, and the distance: that of the first one."""
        return mmd_step.packed(sums, memory_S[0])

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; of the first step the mean squared distance is kept alone."""
        if memory_S.flatten()[-1] > 0:
            if self.memory is None:
                return memory_S
            return torch.cat([group_sums.faded(sums[:, :-1], memory_S[:, :-1], self.memory), memory_S[:, -1:]], dim=1)
        if (len(sums) if self.ahead else sums[:, 1].sum()) == 1:
            raise ValueError(
                "loss mmd takes its widths from the distances of a first step's samples, and this step has one; set"
                " per_device_train_batch_size or gradient_accumulation_steps to 2 or more"
            )
        if self.ahead:
            return mmd_step.distance_of(sums).reshape(1)
        return torch.cat([memory_S[:, :-1], _distance(sums).expand(len(memory_S), 1)], dim=1)

    def _projections(self, said: Said) -> Tensor:
        """Of hidden states on random directions of unit variance, [B, D], differentiable."""
        hidden_BH, features = _heard(said), self.features
        assert features is not None
        return hidden_BH @ directions(hidden_BH.shape[1], features, hidden_BH.device, hidden_BH.dtype)

    def _features(self, said: Said, memory_S: Tensor) -> Tensor:
        """[B, D], whose products are on average the sum of the kernels; of an unknown distance those at distance 1."""
        projected_BD, features = self._projections(said), self.features
        assert features is not None
        gamma_D = projected_BD.new_tensor(GAMMAS).repeat_interleave(features)
        distance = torch.where(memory_S[0, -1] > 0, memory_S[0, -1], 1.0).to(gamma_D.dtype)
        phase_D = phases(features, projected_BD.device, projected_BD.dtype)
        return (2 / features) ** 0.5 * torch.cos(projected_BD * (2 * gamma_D / distance).sqrt() + phase_D)


def _heard(said: Said) -> Tensor:
    if said.hidden_BH is None:
        raise ValueError("loss mmd reads hidden states; ask for them: said(..., hidden=True)")
    return said.hidden_BH


def _distance(sums_GF: Tensor) -> Tensor:
    """The mean squared distance of two samples by what a step says of their projections; 0 where all are alike.

    A projection's variance is, on average over directions, that of the hidden states, all columns together.
    """
    sums_F = sums_GF.sum(dim=0)
    count, mean_F = sums_F[1], sums_F[2:] / sums_F[1].clamp(min=1)
    square, variance = mean_F[-1], mean_F[-1] - mean_F[:-1].square().mean()
    return torch.where(variance > 1e-12 * square, 2 * variance * count / (count - 1).clamp(min=1), 0.0)


def directions(columns: int, features: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[H, D], normal: the same in every process and run, drawn on the CPU in float64 from a seed of their own."""

    def drawn() -> Tensor:
        generator, size = torch.Generator().manual_seed(0), len(GAMMAS) * features
        return torch.randn(columns, size, generator=generator, dtype=torch.float64).to(device, dtype)

    return _held(("directions", columns, features, device, dtype), drawn)


def phases(features: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[D], even from 0 to 2 pi, from another seed."""

    def drawn() -> Tensor:
        generator, size = torch.Generator().manual_seed(1), len(GAMMAS) * features
        return (2 * torch.pi * torch.rand(size, generator=generator, dtype=torch.float64)).to(device, dtype)

    return _held(("phases", features, device, dtype), drawn)


_DRAWN: dict[Hashable, Tensor] = {}


def _held(key: Hashable, draw: Callable[[], Tensor]) -> Tensor:
    """Drawn once; what a plan draws has no numbers, and is not kept."""
    found = _DRAWN.get(key)
    if found is None:
        found = draw()
        if type(found) is Tensor:
            _DRAWN[key] = found
    return found
