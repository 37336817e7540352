"""What FSDP2 made of a model: which rows of which parameter lie on this rank. The one file that knows its names."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was called on, the outermost first."""
    return [module for module in model.modules() if any(one.__name__ == "FSDPModule" for one in type(module).__mro__)]


def reshard(model: nn.Module) -> None:
    """Give each module its sharded parameters back: after an evaluation the outermost one holds whole ones."""
    for module in fsdp_modules(model):
        module.reshard()


def refusal_of(model: nn.Module) -> str | None:
    """Why a sharded model cannot be trained, or None; asked after `reshard`."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    modules = fsdp_modules(model)
    spread = next((name for name, p in model.named_parameters() if hasattr(p, "placements")), None)
    if not modules:
        return f"{spread} is a DTensor of tensor parallelism, which is not supported; shard with fully_shard alone"
    if plain := next((name for name, p in trained.items() if not hasattr(p, "placements")), None):
        return (
            f"{plain} trains outside of fully_shard, so that nobody would sum its gradient over the ranks; call"
            " fully_shard(model) on the whole model after its layers"
        )
    return _of_parameters(trained) or _of_reduction(modules)


def _of_parameters(trained: Mapping[str, Any]) -> str | None:
    first = next(iter(trained.values()), None)
    for name, p in trained.items():
        mesh = p.device_mesh
        if mesh.ndim != 1:
            return f"{name} lies on a mesh of {mesh.ndim} dimensions (HSDP or tensor parallelism); use one of 1"
        if not p.placements[0].is_shard(0):
            return f"{name} is placed as {p.placements[0]}; only rows (Shard(0)) are supported"
        if first is not None and mesh != first.device_mesh:
            return f"{name} lies on another mesh than the parameters before it"
        if p.to_local().device.type != mesh.device_type:
            return f"{name} lies on the {p.to_local().device.type} (offload of FSDP2), which is not supported"
    return None


def _of_reduction(modules: Iterable[Any]) -> str | None:
    """Gradients are taken to be means over the ranks, which is FSDP2's default."""
    for module in modules:
        for group in getattr(module._get_fsdp_state(), "_fsdp_param_groups", ()):
            if getattr(group, "gradient_divide_factor", None) is not None:
                return "set_gradient_divide_factor was called; leave the mean over ranks as it is, the hook divides"
    return None


def whole_parameters(model: nn.Module, sharded: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The parameters as layers read them, by the names of `sharded`: autograd leaves gradients there. Collective.

    Of one module at a time, whose rows are let go again.
    """
    found: dict[str, Tensor] = {}
    prefixes = {module: f"{name}." if name else "" for name, module in model.named_modules()}
    for module in fsdp_modules(model):
        module.unshard()
        inside = ((f"{prefixes[module]}{name}", p) for name, p in module.named_parameters(remove_duplicate=False))
        found |= {name: p for name, p in inside if name in sharded and not hasattr(p, "placements")}
        module.reshard()
    return found


def sync_each_pass(modules: Iterable[Any]) -> None:
    """Each backward pass is reduced by itself, whatever `set_requires_gradient_sync` was told for accumulation."""
    for module in modules:
        module.set_requires_gradient_sync(True, recurse=False)


def local(tensor: Any) -> Tensor:
    """This rank's rows, flat, in the memory of the DTensor."""
    with torch.no_grad():
        rows: Tensor = tensor.to_local()
        return rows.detach().view(-1)


def whole(like: Any, flat: Tensor) -> Tensor:
    """The whole of what lies on the ranks as the rows of `like` do, from this rank's part [N]. Collective."""
    from torch.distributed.tensor import DTensor

    rows = flat.view(like.to_local().shape)
    options: Any = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    gathered: Tensor = DTensor.from_local(rows, like.device_mesh, like.placements, **options).full_tensor()
    return gathered
