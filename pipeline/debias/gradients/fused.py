"""The ordinary backward pass, with the fused branch of `layers.py` where PEFT has products, a scaling and a sum."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from debias.gradients.base import Plain
from debias.gradients.layers import Forward, branch_forward, is_plain_lora
from debias.gradients.single_pass import active_pair, why_compiled
from debias.gradients.taps import Nobody, Tap


class Fused(Plain):
    """`Plain` whose LoRA layers run as one fused branch, where both of their matrices train.

    Layers that anything is special about keep PEFT's forward, and so do all of a model that is compiled. What is hooked
    to a matrix, merged or disabled later on takes PEFT's way in the same call.
    """

    name: ClassVar[str] = Plain.name

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, selected)
        self._fused: dict[nn.Module, Forward] = {}
        trains, tap = {id(p) for p in self.selected.values()}, Tap(Nobody(), None, None)
        for module in () if why_compiled(model) else model.modules():
            if "forward" not in vars(module) and is_plain_lora(module):
                pair = active_pair(module)
                if all(id(layer.weight) in trains and type(layer) is nn.Linear for layer in pair):
                    forward: Any = branch_forward(module, tap)
                    self._fused[module] = module.forward = forward

    def detach(self) -> None:
        for module, forward in self._fused.items():
            if vars(module).get("forward") is forward:
                del module.forward
        self._fused = {}
        super().detach()
