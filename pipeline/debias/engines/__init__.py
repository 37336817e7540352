"""ROOM 4: where gradients live: sums over ranks, the Gram, the write-back."""

from debias.engines.attaching import attach
from debias.engines.parameters import not_head, select_parameters
from debias.engines.step import NonFiniteGradients, StepReport
from debias.engines.torch_engine import TorchHook

__all__ = ["NonFiniteGradients", "StepReport", "TorchHook", "attach", "not_head", "select_parameters"]
