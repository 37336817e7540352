"""The random states of the CPU and of each GPU that a model lies on: remembered, and set again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

RandomState = tuple[Tensor, Mapping[int, Tensor]]


def gpus_of(model: nn.Module) -> list[int]:
    """The numbers of the GPUs on which the model's parameters lie."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def random_state(gpus: list[int]) -> RandomState:
    """As it is now, here and on these GPUs."""
    return torch.get_rng_state(), {index: torch.cuda.get_rng_state(index) for index in gpus}


def set_random_state(state: RandomState) -> None:
    """As it was: what is drawn next is what was drawn then."""
    on_cpu, on_gpus = state
    torch.set_rng_state(on_cpu)
    for index, one in on_gpus.items():
        torch.cuda.set_rng_state(one, index)
