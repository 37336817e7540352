"""Hook a model that FSDP2 shards: what it may be, which way to two gradients."""

from typing import Any

import torch
from torch import nn

from debias.engines.adapter_kinds import way_for
from debias.engines.fsdp.hook import FsdpHook
from debias.engines.fsdp.shards import refusal_of, reshard
from debias.engines.parameters import Select, check_optimizer, elements, not_head, select_parameters
from debias.engines.wrapping import refuse
from debias.gradients import make_source
from debias.masks import Mask
from debias.methods import Rule
from debias.projections import Projection

# As far as the choice of a way goes, gradients that are sharded while whole weights come and go: ZeRO calls it 2.
STAGE = 2


def attach_sharded(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    rule: Rule,
    gradients: str = "auto",
    *,
    select: Select = not_head,
    max_grad_norm: float | None = None,
    max_nonfinite_steps: int = 10,
    verify: bool = True,
    weight_projection: Projection | None = None,
    gradient_mask: Mask | None = None,
) -> FsdpHook:
    """`debias.attach` for a model that `torch.distributed.fsdp.fully_shard` was called on, and its optimizer after it.

    Every rank must call it with the same arguments. Raises ValueError for meshes of two dimensions, other placements
    than rows, offload, parameters that train outside of `fully_shard`, and as `attach_model` does.
    """
    reshard(model)
    if reason := refusal_of(model):
        raise ValueError(f"attach: {reason}")
    refuse(model, optimizer)
    selected = select_parameters(model, select)
    check_optimizer(optimizer, rule, selected, model)
    sizes = [sum(elements(p) for p in some) for some in (selected.values(), model.parameters())]
    way = way_for(gradients, model, selected) if rule.uses_bias else gradients
    options: Any = {"bias": rule.uses_bias, "stage": STAGE, "elements": (sizes[0], sizes[1]), "verify": verify}
    source = make_source(way, model, selected, asked=gradients, **options)
    limits: Any = {"max_grad_norm": max_grad_norm, "max_nonfinite_steps": max_nonfinite_steps}
    more: Any = {"gradient_mask": gradient_mask, "weight_projection": weight_projection}
    return FsdpHook(model, optimizer, rule, source, **limits, **more)
