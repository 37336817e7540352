"""An adapter on its base: loaded whole or not at all, and shown to change what the model says."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debias.errors import InputError
from debias.models.experts import route_experts


def attach_adapter(base: Any, name: str, needed: Sequence[str] = ()) -> Any:
    """`base` with the adapter of a folder or hub id; InputError when it cannot be read or lacks a weight.

    `needed`: modules of the base that were drawn at random and must come with the adapter.
    """
    from peft import PeftModel, load_peft_weights

    if Path(name).is_dir() and not (Path(name) / "adapter_config.json").is_file():
        raise InputError(f"adapter: {name} holds no adapter_config.json; give the folder of a PEFT adapter")
    with _fitting(name):
        saved = load_peft_weights(name, device="cpu")
    lost = [module for module in needed if not any(f".{module}." in key for key in saved)]
    if lost:
        raise InputError(f"adapter: {name!r} lacks the weights of {', '.join(lost)}, which its base has not either")
    with warnings.catch_warnings(record=True) as caught, _fitting(name):
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, name)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise InputError(f"adapter: {name!r} lacks weights: {str(warning.message)[:200]}")
    route_experts(model)
    return model


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"adapter: {name!r} does not fit or cannot be read: {told[-1][:200]}") from error


def adapter_base(name: str) -> str | None:
    """The model that an adapter says it was trained on; None where it says nothing."""
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    except (OSError, ValueError, json.JSONDecodeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"adapter: {name!r} cannot be read: {first}") from None
    return base or None


def adapter_change(model: Any, scores: Callable[[], np.ndarray]) -> float:
    """The largest difference that the adapter's layers make to `scores()`.

    A head that was trained whole stays as it is: it would hide an adapter that does nothing.
    """
    with_adapter = scores()
    with _without_layers(model):
        without = scores()
    return float(np.abs(with_adapter - without).max())


@contextmanager
def _without_layers(model: Any) -> Iterator[None]:
    layers = _layers(model)
    if not layers:  # a learned prompt or the like has no layers of its own
        with model.disable_adapter():
            yield
        return
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(model: Any) -> None:
    """Add LoRA matrices to the float32 weights they adapt: the same sums, and fewer of them."""
    plain = [layer for layer in _layers(model) if type(layer.get_base_layer()).__name__ in ("Linear", "Conv1D")]
    if all(layer.get_base_layer().weight.dtype == torch.float32 for layer in plain):
        with torch.inference_mode(False):
            for layer in plain:
                layer.merge()


def _layers(model: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
