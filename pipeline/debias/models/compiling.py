"""`torch_compile`: the layers of a model, each compiled by itself."""

import logging
from typing import Any

import torch

from debias.errors import InputError

logger = logging.getLogger(__name__)


def compile_layers(model: Any, *, retain_graph: bool = True) -> int:
    """Compile each transformer layer of `model` in place, for batches of any shape; returns how many there are.

    Layers of one kind share their compiled code, so this takes as long for 36 of them as for two. Names, hooks, the
    head and DistributedDataParallel around the model are as before. `retain_graph`: a second backward pass through one
    graph is to come (shared_forward), for which buffers must not be given away in the first. Raises InputError for a
    model that does not name its layers.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(getattr(inner, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds and list(module.children())]
    if any(p.ndim == 3 for layer in layers for p in layer.parameters()):
        raise InputError("torch_compile: layers with fused experts have not been tried; set it to false")
    if not layers:
        raise InputError(f"torch_compile: a {type(inner).__name__} does not say what its layers are; set it to false")
    if retain_graph:
        # Of the whole process, and read when a graph is compiled: there is no such option of one compilation.
        torch._functorch.config.donated_buffer = False
    for layer in layers:
        layer.compile(dynamic=True)
    logger.info("torch_compile: %d layers, compiled in the first steps", len(layers))
    return len(layers)
