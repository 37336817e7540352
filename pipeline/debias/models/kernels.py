"""`use_liger_kernel`: Liger's norms, rotary positions and, with checkpointing, activations; not its loss."""

import importlib
import sys
from typing import Any

import torch

from debias.errors import InputError

# Its loss takes the place of the causal model's forward, which our own loss calls with the positions to keep, or of
# torch's cross_entropy for the whole process. Its MLPs call their linear layers, so adapters and single_pass see them.
NOT_ITS_LOSS = {"fused_linear_cross_entropy": False, "cross_entropy": False}
# Their backward pass writes its result into what they saved, unseen by autograd: of a graph that is run twice, in a
# look of single_pass or by shared_forward, the second pass is garbage. Under checkpointing each pass makes them anew.
RUN_ONCE = {"swiglu": False, "geglu": False}

# What modules of models held before Liger wrote its own norms and positions there, for the whole process.
_before: dict[str, dict[str, Any]] = {}


def liger_settings(*, checkpointing: bool) -> dict[str, bool]:
    """What the Trainer's `liger_kernel_config` must be, with gradient checkpointing or without.

    InputError where Liger is not installed or there is no GPU.
    """
    _liger()
    if not torch.cuda.is_available():
        raise InputError("use_liger_kernel: its kernels need a CUDA GPU, and there is none; set it to false")
    return NOT_ITS_LOSS | ({} if checkpointing else RUN_ONCE)


def check_liger(model: Any) -> None:
    """InputError for a model that Liger has nothing for (it would say nothing), or whose fused experts it replaces."""
    kind = str(model.config.model_type)
    if kind not in _liger().MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"use_liger_kernel: Liger has no kernels for {kind!r} models; set it to false")
    if any(parameter.ndim == 3 for parameter in model.parameters()):
        raise InputError(
            f"use_liger_kernel: Liger replaces the fused experts of {kind!r} models, which adapters act on; set it to"
            " false"
        )
    home = type(model).__module__
    _before.setdefault(home, dict(vars(sys.modules[home])))


def forget_liger() -> None:
    """Behind a run: the next model of its kind is built without Liger's parts, unless it asks for them."""
    while _before:
        home, names = _before.popitem()
        vars(sys.modules[home]).update(names)


def _liger() -> Any:
    try:
        return importlib.import_module("liger_kernel.transformers.monkey_patch")
    except Exception as error:  # a version for another transformers or triton fails in many ways
        raise InputError(
            f"use_liger_kernel: liger_kernel cannot be imported ({type(error).__name__}); pip install liger-kernel"
        ) from None
