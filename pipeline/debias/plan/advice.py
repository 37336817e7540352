"""What a plan suggests, in plain sentences; each rule is one function of the plan."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from debias.adapters import make_adapter
from debias.config.run import RunConfig
from debias.plan.count import Counts
from debias.plan.sheet import Plan

GB = 1e9


@dataclass(frozen=True)
class Others:
    """Answers about other settings of the run, asked for only where they are needed: each takes a look at a model."""

    fits_accumulated: Callable[[int], bool]  # a micro-batch of that size, where a step has several
    saved_by_four_bit: Callable[[], int]  # bytes of one GPU


def advice(plan: Plan, run: RunConfig, counts: Counts, others: Others) -> list[str]:
    """Sentences that say what to change, the most useful first; empty where nothing is to be said."""
    found = [
        _too_large(plan, run, others),
        _data_parallel(plan, run, counts),
        _experts(plan, counts),
        _float32(plan, run, counts),
        _room(plan),
    ]
    return [sentence for sentence in found if sentence]


def _too_large(plan: Plan, run: RunConfig, others: Others) -> str:
    if plan.fits is not False:
        return ""
    batch = plan.micro_batch * plan.accumulation
    for size in range(plan.largest_micro_batch or 0, 0, -1):
        if batch % size == 0 and others.fits_accumulated(size):
            return (
                f"per_device_train_batch_size={size} fits; gradient_accumulation_steps={batch // size} keeps the batch"
                f" of {batch}"
            )
    return next(sentence for holds, sentence, changes in _cures(plan, run, others) if holds and _may_have(run, changes))


def _may_have(run: RunConfig, changes: dict[str, Any]) -> bool:
    """Whether those settings go with all others of the run: what the run refuses is no advice."""
    try:
        RunConfig.model_validate({**run.model_dump(), **changes})
    except ValidationError:
        return False
    return True


def _cures(plan: Plan, run: RunConfig, others: Others) -> list[tuple[bool, str, dict[str, Any]]]:
    """What to try where not even one sample fits, the cheapest first, with the settings that it needs."""
    activations = not run.gradient_checkpointing and plan.parts.get("activations", 0) > 0.2 * plan.total
    frozen = make_adapter(run.adapter).frozen_base
    four_bit = {"load_in_4bit": True}
    saved = others.saved_by_four_bit() if frozen and not run.load_in_4bit and _may_have(run, four_bit) else 0
    recomputed = "gradient_checkpointing=true: activations are a large part, computed again instead of kept"
    quantized = f"load_in_4bit=true (QLoRA): the frozen weights take {saved / GB:.1f} GB less"
    fewer = "adapter=lora: anything else that trains keeps its gradients and optimizer state"
    sharded = "deepspeed=zero3 shards the weights over the GPUs; give --gpus and --nodes"
    offloaded = "more GPUs (--gpus, --nodes), deepspeed=zero3_offload_all, or a shorter --seq-length"
    smaller = (
        "a shorter --seq-length, a smaller model or a larger GPU: the run's settings go with nothing else that saves"
    )
    return [
        (activations, recomputed, {"gradient_checkpointing": True}),
        # Of a mixture next to nothing: fused experts stay as they are.
        (saved > 0.2 * plan.total, quantized, four_bit),
        (not frozen, fewer, {"adapter": "lora"}),
        (plan.stage != 3, sharded, {"deepspeed": "zero3"}),
        (True, offloaded, {"deepspeed": "zero3_offload_all"}),
        (True, smaller, {}),  # of a run as it is
    ]


def _data_parallel(plan: Plan, run: RunConfig, counts: Counts) -> str:
    if plan.stage != 3 or plan.gpu_memory is None or not make_adapter(run.adapter).frozen_base:
        return ""
    frozen = sum(size.bytes for size in counts.sizes if not size.trainable)
    if frozen > 0.5 * plan.gpu_memory or not _may_have(run, {"deepspeed": None}):
        return ""
    what = "4-bit base" if run.load_in_4bit else "base"
    return (
        f"the frozen {what} ({frozen / GB:.1f} GB) fits one GPU: deepspeed=null (data parallelism of the adapters)"
        " sends a small part of what stage 3 gathers"
    )


def _experts(plan: Plan, counts: Counts) -> str:
    experts = plan.parameters.unquantized.get("experts", 0)
    if not experts:
        return ""
    size = sum(s.bytes for s in counts.sizes if s.kind == "experts" and not s.trainable and s.precision != "4-bit")
    return f"the fused experts are not 4-bit: {experts / GB:.1f}B elements take {size / GB:.0f} GB as they are"


def _float32(plan: Plan, run: RunConfig, counts: Counts) -> str:
    size = counts.bytes(precision="32-bit", trainable=False)
    frozen = make_adapter(run.adapter).frozen_base
    large = frozen and not run.bf16 and not run.load_in_4bit and size > 0.2 * plan.total
    if large and _may_have(run, {"bf16": True}):
        return "bf16=true halves the frozen weights, which are in float32"
    return ""


def _room(plan: Plan) -> str:
    if plan.fits and plan.gradient_checkpointing and plan.gpu_memory and 2 * plan.total < plan.gpu_memory:
        return "there may be room to do without gradient_checkpointing, which costs a forward pass more"
    return ""
