"""What wraps a model around the hook, when the hook was attached and since: taken in where it can be, else named."""

import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

logger = logging.getLogger(__name__)

# What wraps a module, by the name of its class, and where it has what it wraps.
WRAPPERS = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod", "_FabricModule": "_forward_module"}

# What they put before a name, where a model is not wrapped as it was.
_WRAPPED = re.compile(r"(?<![^.])(_forward_module\.(module\.)?|_orig_mod\.)")


def own_names(model: nn.Module) -> Callable[[str], str]:
    """A parameter's name as the model has it by itself, of one in `model`, which wrappers may be around, or in.

    What is chosen or kept by a name is the same for one process and several, compiled or not.
    """
    kinds = {path: type(module) for path, module in model.named_modules()}
    inner = {path: WRAPPERS[kind.__name__] for path, kind in kinds.items() if kind.__name__ in WRAPPERS}

    def own(name: str) -> str:
        for path, attribute in reversed(inner.items()):  # what is deeper first: its path is that of all around it
            before = f"{path}." if path else ""
            if name.startswith(f"{before}{attribute}."):
                name = before + name.removeprefix(f"{before}{attribute}.")
        return name

    return own


class Guard:
    """A hook of ours on one model: in a copy of that model, or in a file, it is nobody's and does nothing."""

    def __init__(self, act: Callable[..., Any] | None = None) -> None:
        self._act = act

    def __call__(self, *given: Any) -> Any:
        return None if self._act is None else self._act(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, ()


def by_own_names(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A state of keys NAME/KIND by own names; what older versions saved has what a wrapper put before them."""
    own = own_names(model)
    known = {name: own(name) for name, _ in model.named_parameters()}

    def key_of(key: str) -> str:
        name, slash, kind = key.rpartition("/")
        return (known.get(name) or _WRAPPED.sub("", name)) + slash + kind

    return {key_of(key): tensor for key, tensor in state.items()}


def ddp_in(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel that all of the model trains in, or None; ValueError where it holds only a part."""
    if isinstance(model, DistributedDataParallel):
        return model
    found = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if not found:
        return None
    check_whole(model, found[0])
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "attach: the model is compiled around DistributedDataParallel; compile the model first, wrap it in"
            " DistributedDataParallel, then attach to that"
        )
    return found[0]


def check_whole(model: nn.Module, ddp: DistributedDataParallel) -> None:
    """ValueError where `model` and the wrapper do not train the same parameters: the sum over ranks is of both."""
    inside = {id(p): name for name, p in ddp.module.named_parameters() if p.requires_grad}
    ours = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if odd := [name for key, name in {**inside, **ours}.items() if (key in inside) != (key in ours)]:
        raise ValueError(
            f"{odd[0]} is trained by only one of the hook's model and DistributedDataParallel ({len(odd)} such"
            " parameters); attach to the model that is wrapped"
        )


def buffers_of(ddp: DistributedDataParallel) -> list[tuple[dict[str, Any], str]]:
    """Where the buffers are that are to be the first rank's on all ranks: a module may put another tensor there."""
    named = ((f"{path}." if path else "", module._buffers) for path, module in ddp.module.named_modules())
    ignored = ddp.parameters_to_ignore
    return [(held, name) for before, held in named for name in held if f"{before}{name}" not in ignored]


def refuse_options(ddp: DistributedDataParallel) -> None:
    """ValueError for what DistributedDataParallel was told of gradients that the hook, which sums them, cannot do."""
    trained = (name for name, p in ddp.module.named_parameters() if p.requires_grad)
    if (own := next((name for name in trained if name in ddp.parameters_to_ignore), None)) is not None:
        raise ValueError(
            f"attach: DistributedDataParallel was told to ignore {own}, which trains: each rank would have its own, and"
            " the hook sums the gradients of all ranks; freeze it, or let it be trained on all ranks"
        )
    if ddp.static_graph:
        raise ValueError(
            "attach: DistributedDataParallel has static_graph=True, with which PyTorch counts on averaging by itself;"
            " leave it out"
        )
    if getattr(ddp, "_comm_hooks", None):
        logger.warning(
            "DistributedDataParallel has a communication hook (register_comm_hook), which is not called: the hook of"
            " attach sums both gradients over the ranks by itself, whole"
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 or tensor parallelism made DTensors of the parameters; an evaluation may have left some whole."""
    if any(hasattr(p, "placements") for p in model.parameters()):
        return True
    return any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__)


def refuse(model: nn.Module, optimizer: Any) -> None:
    """ValueError for what wraps the model or the optimizer, or is in the model, and cannot be trained with."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "attach: FullyShardedDataParallel (FSDP1) is not supported, it makes flat vectors of the parameters; use"
            " torch.distributed.fsdp.fully_shard (FSDP2), DistributedDataParallel, or a DeepSpeed engine"
        )
    if isinstance(model, DataParallel):
        raise ValueError(
            "attach: DataParallel is not supported, its replicas share no hooks; use torchrun and"
            " DistributedDataParallel"
        )
    if getattr(optimizer, "scaler", None) is not None:
        raise ValueError(
            "attach: the optimizer is Accelerate's with a loss scaler (fp16), which divides gradients by a scale that"
            " the hook's losses never had; use bf16 or full precision"
        )
    refuse_closure(optimizer)
    refuse_sparse(model)


def refuse_closure(optimizer: Any) -> None:
    """ValueError for an optimizer whose step asks for losses of its own: a step here has one pair of gradients."""
    inner = optimizer
    while inner is not None:  # Accelerate and Fabric wrap it
        optimizer, held = inner, getattr(inner, "__dict__", {})
        inner = held.get("optimizer", held.get("_optimizer"))
    if not hasattr(type(optimizer), "step"):
        return
    asked = inspect.signature(type(optimizer).step).parameters.get("closure")
    if asked is not None and asked.default is inspect.Parameter.empty:
        raise ValueError(
            f"attach: {type(optimizer).__name__}.step needs a closure, which computes the loss again within a step; two"
            " gradients are combined once a step: use another optimizer, such as torch.optim.AdamW"
        )


def refuse_sparse(model: nn.Module) -> None:
    """ValueError for an embedding that trains with sparse gradients: rules, sums and norms read dense ones."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
            raise ValueError(
                f"{name or 'the model'} is an {type(module).__name__} with sparse=True, whose gradients are not"
                " supported; set sparse=False, or freeze it"
            )


def keep_buffers() -> None:
    """Let two backward passes go through one compiled graph: its buffers must not be given away in the first.

    Of the whole process, and read when a graph is compiled: there is no such option of one compilation, and nothing
    tells what will be compiled after the hook was attached. What was compiled before is compiled anew when it is next
    used, for PyTorch would no longer look whether its buffers are gone.
    """
    settings: Any = importlib.import_module("torch._functorch.config")
    if settings.donated_buffer:
        settings.donated_buffer = False
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def active_ddp() -> DistributedDataParallel | None:
    """The DistributedDataParallel whose forward pass is running."""
    active: DistributedDataParallel | None = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return active


def why_lost(selected: Mapping[str, nn.Parameter], now: Mapping[str, nn.Parameter], model: nn.Module) -> str | None:
    """Why a parameter of the rule is not what and where it was when the hook was attached; None where all are.

    `now`: those that `model` has now.
    """
    lost = next((name for name, p in selected.items() if now.get(name) is not p), None)
    if lost is None:
        return None
    names = {id(p): name for name, p in now.items()}
    new = names.get(id(selected[lost]))
    how = f"is now {new}" if new is not None else "is no longer a parameter of the model"
    done = _wrapper(now, model)
    return f"{lost} {how}: {done} after the hook was attached; call detach() and attach to the finished model"


def _wrapper(now: Mapping[str, nn.Parameter], model: nn.Module) -> str:
    """What was done to a model, by what its parameters have become."""
    if is_sharded(model) or any("_flat_param" in name or "_fsdp_wrapped_module" in name for name in now):
        return "the model was sharded (FSDP or tensor parallelism)"
    if any(hasattr(p, "ds_id") for p in now.values()):
        return "DeepSpeed took the model over"
    if any(".base_layer." in name or "lora_" in name for name in now):
        return "an adapter was added"
    return "the model was wrapped, or its layers were replaced,"


def before_each_step(optimizer: Any, check: Callable[[], None]) -> list[Callable[[], None]]:
    """Call `check` before each step of an optimizer of PyTorch's; returns what ends it."""
    if not isinstance(getattr(optimizer, "_optimizer_step_pre_hooks", None), dict):
        return []  # a wrapper (Accelerate's), or something of somebody's own
    return [optimizer.register_step_pre_hook(lambda *_: check()).remove]


def refuse_scaled_step() -> None:
    """RuntimeError where this is called from torch.amp.GradScaler.step, which divides the update by its scale."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler._maybe_opt_step.__code__:
            raise RuntimeError(
                "GradScaler.step after the hook's combine: it divides the update by the scale, which a rule has seen"
                " already or which the hook's count has taken off; give the hook"
                " backward(scaler.scale(loss_B), weight_B, count=len(loss_B) * scaler.get_scale()), then step the"
                " optimizer yourself where the report is finite (see attach)"
            )
        frame = frame.f_back


def step_goes_on(optimizer: Any) -> bool:
    """Whether Accelerate's `accumulate()` says that more micro-batches of this step are to come.

    An optimizer that it prepared leaves such a step out by itself; RuntimeError for one that it did not prepare, which
    would step.
    """
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is None or accelerate.GradientState._shared_state.get("sync_gradients", True):
        return False
    if hasattr(optimizer, "gradient_state"):
        return True
    raise RuntimeError(
        "a step inside Accelerate's accumulate(), before its last micro-batch, with an optimizer that Accelerate did"
        " not prepare: it would step at each; give attach the prepared optimizer, or call the hook's step (or combine)"
        " only where accelerator.sync_gradients is true"
    )
