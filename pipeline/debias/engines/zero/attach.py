"""Hook an engine of DeepSpeed: what it may be, which way to two gradients, whether the ranks agree."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch.distributed as dist
from torch import nn

from debias.engines.adapter_kinds import way_for
from debias.engines.followers import Followers
from debias.engines.parameters import Select, elements, not_head, select_parameters, whole_shape
from debias.engines.wrapping import refuse_sparse
from debias.engines.zero.ground import ZeroGround
from debias.engines.zero.homes import home_of
from debias.engines.zero.hook import ZeroHook
from debias.engines.zero.refusal import refusal_of
from debias.gradients import GradientSource, make_source
from debias.masks import Mask
from debias.methods import Rule
from debias.projections import Projection

logger = logging.getLogger(__name__)


def is_engine(model: object) -> bool:
    """True for a DeepSpeed engine."""
    return isinstance(model, deepspeed.DeepSpeedEngine)


def attach_engine(
    engine: Any,
    rule: Rule,
    gradients: str = "auto",
    *,
    select: Select = not_head,
    max_nonfinite_steps: int = 10,
    verify: bool = True,
    weight_projection: Projection | None = None,
    gradient_mask: Mask | None = None,
) -> ZeroHook:
    """`debias.attach` for a DeepSpeed engine; collective: every rank must call it with the same arguments.

    Raises ValueError, on every rank, for an engine option that is not supported, a selected parameter that the
    optimizer lacks, `single_pass` where it is not exact, `shared_forward` at stage 3, a projection or a mask where a
    part of the optimizer's state is offloaded, or ranks that disagree.
    """
    if reason := refusal_of(engine):
        raise ValueError(f"debias.attach: {reason}")
    refuse_sparse(engine.module)
    selected = select_parameters(engine.module, select)
    if not sum(elements(p) for p in selected.values()):
        raise ValueError(f"the rule would act on nothing: {len(selected)} trainable tensors without an element")
    if lost := _not_optimized(engine, selected):
        raise ValueError(f"{lost[0]} is trainable but not in the optimizer ({len(lost)} such parameters)")
    refuse_partly_offloaded(engine, weight_projection or gradient_mask)
    more = f"{gradients}, verify={verify}, {weight_projection}, {gradient_mask}"
    _check_agreement(engine, rule, more, selected)
    _say_clipping(engine)
    source = _source(engine, rule, gradients, selected, verify)
    trainable = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    try:
        home = home_of(engine, trainable)
        followers = Followers(lambda: ZeroGround(engine, home), gradient_mask, weight_projection)
        limit = max_nonfinite_steps
        return ZeroHook(engine, rule, source, home, max_nonfinite_steps=limit, followers=followers)
    except BaseException:
        source.detach()
        raise


def refuse_partly_offloaded(engine: Any, follower: Projection | Mask | None) -> None:
    """ValueError where something follows the optimizer's step, and DeepSpeed has two optimizers."""
    if follower is not None and getattr(engine.optimizer, "backup_optimizer", None) is not None:
        raise ValueError(
            f"{follower.name} follows one optimizer, and offload_optimizer.ratio below 1 makes two; set it to 1.0"
        )


def _say_clipping(engine: Any) -> None:
    """DeepSpeed's default has been 1.0 since 0.19.3: a loop that never asked for clipping has it."""
    limit = engine.gradient_clipping()
    if limit and "gradient_clipping" not in engine.config and dist.get_rank() == 0:
        logger.warning(
            "gradient_clipping is not in the DeepSpeed config: DeepSpeed clips the update at %s; write it down, 0.0 for"
            " none",
            limit,
        )


def _source(
    engine: Any, rule: Rule, gradients: str, selected: Mapping[str, nn.Parameter], verify: bool
) -> GradientSource:
    stage = int(engine.zero_optimization_stage())
    sizes = [sum(elements(p) for p in some) for some in (selected.values(), engine.module.parameters())]
    way = way_for(gradients, engine.module, selected, stage=stage) if rule.uses_bias else gradients
    options: Any = {"bias": rule.uses_bias, "stage": stage, "elements": (sizes[0], sizes[1]), "verify": verify}
    return make_source(way, engine.module, selected, asked=gradients, **options)


def _not_optimized(engine: Any, selected: Mapping[str, nn.Parameter]) -> list[str]:
    optimizer = engine.optimizer
    groups = next(
        (
            getattr(optimizer, name)
            for name in ("fp16_groups", "bit16_groups", "bf16_groups")
            if hasattr(optimizer, name)
        ),
        None,
    )
    if groups is None:
        groups = [group["params"] for group in optimizer.param_groups]
    held = {id(p) for group in groups for p in group}
    return [name for name, p in selected.items() if id(p) not in held]


def _check_agreement(engine: Any, rule: Rule, gradients: str, selected: Mapping[str, nn.Parameter]) -> None:
    """ValueError, on every rank, where ranks attach differently: later they would wait for each other for ever."""
    facts = {
        "rule": repr(rule),
        "gradients": gradients,
        "selected parameters": [(name, tuple(whole_shape(p))) for name, p in selected.items()],
        "engine": (
            int(engine.zero_optimization_stage()),
            engine.train_micro_batch_size_per_gpu(),
            engine.gradient_accumulation_steps(),
            engine.gradient_clipping(),
            [str(dtype) for dtype in engine.get_data_types()],
        ),
    }
    own = {key: hashlib.sha256(repr(value).encode()).hexdigest() for key, value in facts.items()}
    everyone: list[dict[str, str]] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    for key in own:
        other = [rank for rank, theirs in enumerate(everyone) if theirs[key] != everyone[0][key]]
        if other:
            shown = f" (here {facts[key]})" if key != "selected parameters" else ""
            raise ValueError(f"debias.attach: rank {other[0]} has another {key} than rank 0{shown}")
