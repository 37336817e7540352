"""An adapter on its base: loaded whole or not at all, and shown to change what the model says."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from debias.adapters.base import SAVED_WHOLE, fresh_of
from debias.adapters.experts import route_experts
from debias.errors import InputError
from debias.hub.packages import model_path

logger = logging.getLogger(__name__)
# What PEFT raises for a file that is cut short or is something else, for weights of other shapes, for JSON without end,
# and for `target_modules` that is no regular expression.
UNFIT: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError)
UNFIT += (AttributeError, SafetensorError, re.error)
# Starts of LoRA that PEFT subtracts from the base as it attaches: of random numbers, or of data that are not there any
# more (`lora_ga` then subtracts nothing). The others that alter the base (pissa, olora, loftq) do so of it alone.
NOT_AGAIN = ("pissa_niter", "corda", "lora_ga")


def attach_adapter(base: Any, name: str, needed: Sequence[str] | None = None) -> Any:
    """`base` with the adapter of a folder or hub id; InputError when it cannot be read or its weights are not all used.

    `needed`: modules of the base that were drawn at random and must come with the adapter; by default those that
    `load_model` found (`fresh_modules`).
    """
    from peft import PeftModel

    check_start(name)
    saved = adapter_tensors(name)
    whole = {f".{key.replace(SAVED_WHOLE, '.').rpartition('.')[0]}" for key in saved}  # not LoRA on what was drawn
    lost = [module for module in fresh_of(base, needed) if not any(key.endswith(f".{module}") for key in whole)]
    if lost:
        raise InputError(f"adapter: {name!r} lacks the weights of {', '.join(lost)}, which its base has not either")
    with warnings.catch_warnings(record=True) as caught, _fitting(name), _left_over(base) as idle:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, name)
    idle = [key for key in idle if not _is_a_copy(key, saved)]
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise InputError(f"adapter: {name!r} lacks weights: {str(warning.message)[:200]}")
    if idle and not model.active_peft_config.is_prompt_learning:  # whose weights are no module's
        more = f" and {len(idle) - 2} more" if len(idle) > 2 else ""
        raise InputError(
            f"adapter: {name!r} was trained on another model: {type(base).__name__} has no place for its weights"
            f" {', '.join(sorted(idle)[:2])}{more}"
        )
    route_experts(model)
    return model


def check_start(name: str) -> None:
    """InputError for an adapter of which PEFT cannot make the base again that it was trained on."""
    start = str(getattr(adapter_settings(name), "init_lora_weights", None)).lower()
    if start.startswith(NOT_AGAIN):
        raise InputError(
            f"adapter: {name!r}: init_lora_weights is {start!r}, which alters the base by"
            f" {'random numbers' if start.startswith('pissa') else 'data'} each time it is attached; save it with"
            " path_initial_model_for_weight_conversion, as plain LoRA (PEFT's save_pretrained)"
        )
    if start == "loftq" and not torch.cuda.is_available():
        raise InputError(f"adapter: {name!r}: init_lora_weights is 'loftq', which PEFT attaches on a CUDA GPU alone")


def adapter_tensors(name: str) -> dict[str, torch.Tensor]:
    """What an adapter's file holds, by PEFT's names, on the CPU; the base is not needed."""
    from peft import load_peft_weights

    _check_folder(Path(name))
    with _fitting(name):
        saved: dict[str, torch.Tensor] = load_peft_weights(name, device="cpu")
    return saved


def adapter_settings(name: str) -> Any:
    """What PEFT reads of an adapter's `adapter_config.json`, a `PeftConfig` of its kind."""
    from peft import PeftConfig

    _check_folder(Path(name))
    try:
        return PeftConfig.from_pretrained(name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"adapter: {name!r} cannot be read: {first}") from None


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter: {folder} holds no adapter_config.json; give the folder of a PEFT adapter")
    if folder.is_dir() and not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise InputError(f"adapter: {folder} holds no weights (adapter_model.safetensors)")


def _is_a_copy(key: str, saved: Mapping[str, torch.Tensor]) -> bool:
    """Whether PEFT wrote a second copy that it does not read: of embeddings that were resized and trained whole, and of
    tokens that a tied head shares with them.
    """
    if ".modules_to_save." in key:
        return key.replace(".modules_to_save.", ".") in saved
    _, tokens, what = key.partition(".token_adapter.")
    if not tokens or key not in saved:
        return False
    twins = [tensor for other, tensor in saved.items() if other != key and other.endswith(f"{tokens}{what}")]
    return any(torch.equal(twin, saved[key]) for twin in twins)


@contextmanager
def _left_over(base: Any) -> Iterator[list[str]]:
    """What of a state that is loaded inside no module takes; PEFT says nothing of it."""
    found: list[str] = []
    watch = base.register_load_state_dict_post_hook(lambda _, keys: found.extend(keys.unexpected_keys))
    try:
        yield found
    finally:
        watch.remove()


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    try:
        yield
    except UnpicklingError as error:
        raise InputError(
            f"adapter: {name!r}: adapter_model.bin is a pickle that holds more than tensors, which is not run; save its"
            " tensors as adapter_model.safetensors"
        ) from error
    except UNFIT as error:
        told = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"adapter: {name!r} does not fit or cannot be read: {told[-1][:200]}") from error


def adapter_base(name: str) -> str | None:
    """The model that an adapter says it was trained on; None where it says nothing."""
    return adapter_settings(name).base_model_name_or_path or None


def check_base(adapter: str, model: str) -> None:
    """Warn where an adapter is put on another model than it says it was trained on: same shapes fit silently."""
    base = adapter_base(adapter)
    if base is not None and not same_model(base, model):
        logger.warning("WARNING: the adapter was trained on %s and is put on %s", base, model)


def same_model(one: str, other: str) -> bool:
    """Whether two names lead to one model: hub ids, or paths to one folder."""
    return _place(one) == _place(other)


def _place(name: str) -> str:
    """The folder of a model's name, else the name: what an adapter names may be on another machine."""
    try:
        path = model_path(name)
    except InputError:
        return name
    return str(Path(path).resolve()) if Path(path).is_dir() else path


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


def merge(model: Any) -> bool:
    """Add adapters to the float32 weights and biases they adapt: the same sums, and fewer of them; whether it was done.

    A tensor that another module has too (tied embeddings, layers that PEFT replicated) is left as it is: what is folded
    into it would reach that module as well. Nothing is folded where PEFT cannot fold one of the layers.
    """
    shared = shared_tensors(model)
    plain = [layer for layer in _layers(model) if _has_place(layer) and not _is_shared(layer, shared)]
    if not all(layer.get_base_layer().weight.dtype == torch.float32 for layer in plain):
        return False
    with torch.inference_mode(False):
        try:
            for layer in plain:
                layer.merge()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            logger.info("the adapter stays beside its base: %s", " ".join(str(error).split())[:200])
            unmerge(model)
            return False
    return bool(plain)


def unmerge(model: Any) -> None:
    """Take out of the weights what `merge` put in; what rounding left differs from the weights before by an ulp."""
    with torch.inference_mode(False):
        for layer in reversed(_layers(model)):
            if layer.merged:
                layer.unmerge()


def shared_tensors(model: Any) -> frozenset[int]:
    """The addresses of memory that parameters or buffers of more than one module are in, views of it included."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.device.type != "meta" and tensor.numel():
                holders.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(module))
    return frozenset(place for place, modules in holders.items() if len(modules) > 1)


def part_shared(model: Any) -> None:
    """Give every module weights of its own where an adapter would be folded into another's too.

    Embeddings stay tied unless one of the two is adapted: then they are untied, in the configuration as well.
    """
    adapted = {id(layer.get_base_layer()) for layer in _layers(model)}
    base = model.get_base_model()
    ends = [getattr(end, "base_layer", end) for end in (base.get_input_embeddings(), base.get_output_embeddings())]
    tied = not any(id(end) in adapted for end in ends)
    seen: set[int] = set()
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            place = tensor.untyped_storage().data_ptr()
            if place in seen and not (tied and any(module is end for end in ends)):
                setattr(module, name, torch.nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
            seen.add(place)
    if not tied and ends[1] is not None and base.config.tie_word_embeddings:
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
        logger.info("the head and the embeddings are untied: the adapter changes one of them")


def _is_shared(layer: Any, shared: frozenset[int]) -> bool:
    tensors = layer.get_base_layer().parameters(recurse=False)
    return any(tensor.untyped_storage().data_ptr() in shared for tensor in tensors)


def _has_place(layer: Any) -> bool:
    """Whether the base's layer can take the adapter in: what is a bias (BEFT, LoRA's) only where there is one."""
    base = layer.get_base_layer()
    to_bias = hasattr(layer, "beft_bias") or any(getattr(layer, "lora_bias", {}).values())
    return type(base).__name__ in ("Linear", "Conv1D") and not (to_bias and base.bias is None)


def _layers(model: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
