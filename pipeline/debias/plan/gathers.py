"""How often stage 3 gathers each tensor in a forward and backward pass, read off a forward pass of a few layers.

DeepSpeed gathers a module's tensors when it is called, and again when the backward pass comes through its output: not
through the output of a frozen embedding, nor of what is frozen in the first layer, whose input has no gradient. Layers
that are computed again in the backward pass are gathered once more; at the end of such a layer DeepSpeed may find a
tensor still there, so that with checkpointing this is at most.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

from debias.config.run import RunConfig
from debias.plan.live import Live, fake_in_place
from debias.plan.skeleton import base_skeleton, layers_of, period_of, shallow, skeleton
from debias.plan.trace import Load, Step, experts_of_any_dtype

UNSEEN = 2  # of a tensor whose module is not called by itself: forward and backward


def gathers_of(run: RunConfig, config: Any) -> Callable[[str], int]:
    """A function from a tensor's name in `Counts` to its gathers in a pass; `config` is transformers' of the model."""
    base = base_skeleton(run, config)
    period = period_of(base, config)
    layers = layers_of(base, config)
    path = next(path for path, module in base.named_modules() if module is layers)
    inside = re.compile(rf"(.*(?:^|\.){re.escape(path)}\.)(\d+)(\..*)")
    model = skeleton(run, shallow(config, min(2 * period, config.num_hidden_layers)))
    modules = _modules_of(model)
    uses = _uses(run, model)
    again = 1 if run.gradient_checkpointing else 0

    def gathers(name: str) -> int:
        found = inside.fullmatch(name)
        if found is None:
            return sum(uses[module] for module in modules.get(name, [])) or UNSEEN
        head, index, tail = found.groups()
        # All layers behind the first period are like those of the second.
        few = int(index) if int(index) < period else period + int(index) % period
        known = f"{head}{few}{tail}"
        return again + (sum(uses[module] for module in modules.get(known, [])) or UNSEEN)

    return gathers


def _modules_of(model: nn.Module) -> dict[str, list[str]]:
    """The modules that use each tensor, by the name that it is counted under: two where a head is tied."""
    names: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(names[id(parameter)], []).append(path)
        found.setdefault(f"{path}.weight", [path])  # 4-bit weights are no parameters here
    return found


def _uses(run: RunConfig, model: nn.Module) -> Counter[str]:
    """Of each module: its calls in a forward pass, and how many of them the backward pass comes through."""
    seen: Counter[str] = Counter()

    def noting(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[path] += 1 + any(one.requires_grad for one in _tensors(output))

        return note

    for path, module in model.named_modules():
        module.register_forward_hook(noting(path))
    with FakeTensorMode(allow_non_fake_inputs=True), experts_of_any_dtype():
        fake_in_place(model)
        with torch.enable_grad(), Live() as live:
            Step(run, model, Load(micro_batch=1, length=8, answer_tokens=1), live).losses()
    return seen


def _tensors(output: Any) -> Iterator[Tensor]:
    return (one for one in tree_iter(output) if isinstance(one, Tensor))
