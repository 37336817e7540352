"""The options of a DeepSpeed engine that a hook on its gradients cannot honour, each with the reason."""

from collections.abc import Callable
from typing import Any


def refusal_of(engine: Any) -> str | None:
    """The first option of this engine that is not supported, with the reason, or None."""
    return next((reason for reason, holds in UNSUPPORTED.items() if holds(engine)), None)


def _ask(engine: Any, name: str) -> Any:
    """An attribute or the answer of a method; None where this DeepSpeed has no such option."""
    found = getattr(engine, name, None)
    return found() if callable(found) else found


def _without_optimizer(engine: Any) -> bool:
    return engine.optimizer is None or type(engine.optimizer).__name__ in {"DummyOptim", "DeepSpeedZeRoOffload"}


def _offloads_to_nvme(engine: Any) -> bool:
    blocks = engine.config.get("zero_optimization", {})
    devices = {(blocks.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")}
    return "nvme" in devices


def _base_optimizer(engine: Any) -> str:
    return type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__name__


def _shards_by_mics(engine: Any) -> bool:
    return int(engine.config.get("zero_optimization", {}).get("mics_shard_size") or 1) > 1


def _is_split(*sizes: str) -> Callable[[Any], bool]:
    return lambda engine: any(int(_ask(engine, name) or 1) > 1 for name in sizes)


def _is_on(name: str) -> Callable[[Any], bool]:
    return lambda engine: bool(_ask(engine, name))


UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "the engine has no optimizer; give one to deepspeed.initialize": _without_optimizer,
    "offload to NVMe is not supported: gradients are swapped to disk before the update is known; use device cpu": (
        _offloads_to_nvme
    ),
    "the Muon optimizer is not supported: it orthogonalises gradients in its step and would undo the rule": (
        lambda engine: "muon" in _base_optimizer(engine).lower()
    ),
    "1-bit optimizers are not supported: they compress and reduce gradients by themselves": (
        lambda engine: _base_optimizer(engine) in {"OnebitAdam", "OnebitLamb", "ZeroOneAdam"}
    ),
    "ZenFlow is not supported: it steps on a part of the gradients during backward": _is_on("zenflow"),
    "SuperOffload is not supported: it steps on buckets of gradients during backward": _is_on("super_offload"),
    "pipeline parallelism is not supported: its schedule owns forward and backward": _is_on("pipeline_parallelism"),
    "DeepSpeed's expert parallelism is not supported: experts are reduced over groups of their own": (
        _is_on("has_moe_layers")
    ),
    "sequence parallelism is not supported: a rank's gradient is not a sum over its samples": (
        _is_split("sequence_parallel_size")
    ),
    "tensor parallelism is not supported: ranks share their samples": _is_split("autotp_size", "mp_world_size"),
    "MiCS and hpZ are not supported: their partition group is not the data-parallel group": (
        lambda engine: _shards_by_mics(engine) or _is_split("zero_hpz_partition_size")(engine)
    ),
    "DeepCompile is not supported: it reduces gradients inside the compiled graph": _is_on("is_deepcompile_enabled"),
    "sparse_gradients is not supported: rows that are not sent have no Gram": (
        lambda engine: bool(engine.config.get("sparse_gradients"))
    ),
    "managed_gradient_accumulation: false is not supported: the hook needs DeepSpeed's count of micro-batches": (
        lambda engine: engine.config.get("managed_gradient_accumulation", True) is False
    ),
    "gradient_allreduce_op: sum is not supported: leave the mean over ranks to DeepSpeed": (
        lambda engine: str(engine.config.get("gradient_allreduce_op", "mean")).lower() != "mean"
    ),
    "torch_autocast is not supported: use the bf16 block": _is_on("torch_autocast_enabled"),
}
