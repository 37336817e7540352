"""Cross-entropy of a causal model's tokens, some positions at a time. Shapes: B rows, T tokens, K positions kept,
N tokens asked for at a position, H hidden columns, V vocabulary.

Logits are the largest tensor of a training step: at 150,000 tokens of vocabulary, 4,096 positions of them are 2.5 GB in
float32, and the loss keeps them twice. Here the language-model head sees a chunk of positions, and every chunk but the
first is computed again in the backward pass, so that no more than one chunk of logits exists at a time.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_OF_TOKENS = ("input_ids", "inputs_embeds", "position_ids")  # each [B, T, ...]


def token_losses(
    model: nn.Module, inputs: Mapping[str, Any], keep_K: Tensor, targets_BKN: Tensor, chunk: int | None = None
) -> Tensor:
    """Cross-entropy [B, K, N] float32 of the tokens `targets_BKN` at the positions `keep_K` of a causal model.

    `chunk`: positions, all rows together, whose logits may exist at a time (one position of each row at least); None:
    all. The result and its gradients are those without chunks. A model may take `logits_to_keep` and not heed it.
    Raises ValueError when a model that is no causal model of transformers would need chunks, and for logits of other
    positions than those asked for.
    """
    step = keep_K.numel() if chunk is None else max(1, chunk // targets_BKN.shape[0])
    pieces = 1 if chunk is None else _agreed(model, math.ceil(keep_K.numel() / step), keep_K.device)
    if pieces == 1:
        return _cross_entropy(_kept(model(**inputs, logits_to_keep=keep_K).logits, keep_K, inputs), targets_BKN)
    first, *sizes = (len(piece_K) for piece_K in keep_K.tensor_split(pieces))
    head = _Head(*_causal_model(model))
    with head.listening():
        # The wrappers around the model (DistributedDataParallel, DeepSpeed, PEFT) see one ordinary call.
        logits_BKV = _kept(model(**inputs, logits_to_keep=keep_K[:first]).logits, keep_K[:first], inputs)
    losses = [_cross_entropy(logits_BKV, targets_BKN[:, :first])]
    rest_BKH = head.take_hidden()[:, keep_K[first:]]
    for hidden_BKH, part_BKN in zip(rest_BKH.split(sizes, 1), targets_BKN[:, first:].split(sizes, 1), strict=True):
        # The check compares shapes, and those of weights that ZeRO-3 gathers and releases change meanwhile.
        losses.append(checkpoint(head.losses, hidden_BKH, part_BKN, use_reentrant=False, determinism_check="none"))
    return torch.cat(losses, dim=1)


def _agreed(model: nn.Module, pieces: int, device: torch.device) -> int:
    """As many pieces on every rank where the head's weight is gathered from all of them for each; some may be empty."""
    sharded = hasattr(next(model.parameters(), None), "ds_id")  # ZeRO-3
    if not sharded or not dist.is_initialized():
        return pieces
    most = torch.tensor(pieces, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def _kept(logits: Tensor, keep_K: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The logits [B, K, V] of the positions asked for, of a model that gives these or (an old one, or one whose forward
    swallows what it does not know) those of all T positions.
    """
    tokens = next(tensor.shape[1] for name in _OF_TOKENS if (tensor := inputs.get(name)) is not None)
    width = logits.shape[1]
    if width not in (len(keep_K), tokens):
        raise ValueError(
            f"the model gave logits of {width} positions of {tokens}; {len(keep_K)} were asked for (logits_to_keep),"
            " and which they are cannot be told: its forward must heed logits_to_keep, or give those of all positions"
        )
    return logits if width == len(keep_K) else logits[:, keep_K]


def _cross_entropy(logits_BKV: Tensor, targets_BKN: Tensor) -> Tensor:
    if targets_BKN.shape[-1] == 1:  # one kernel, which keeps no [B, K, V] beside the logits
        flat = targets_BKN.flatten()
        losses = nn.functional.cross_entropy(logits_BKV.float().flatten(0, 1), flat, reduction="none")
        return losses.view_as(targets_BKN)
    return -torch.log_softmax(logits_BKV.float(), dim=-1).gather(2, targets_BKN)


def causal_forward(model: nn.Module) -> tuple[nn.Module | None, Mapping[str, Any]]:
    """The outermost part of `model` whose forward takes `logits_to_keep` by name, and that forward's parameters."""
    for module in model.modules():
        parameters = inspect.signature(type(module).forward).parameters
        if "logits_to_keep" in parameters:
            return module, parameters
    return None, {}


def _causal_model(model: nn.Module) -> tuple[Any, str]:
    """The transformers model inside `model` that has the head, and the name of its backbone among its children."""
    causal, _ = causal_forward(model)
    for name, child in () if causal is None else causal.named_children():
        if getattr(type(child), "base_model_prefix", ""):  # a class attribute of transformers' models
            return causal, name
    raise ValueError(
        f"loss_chunk_size: {type(model).__name__} holds no causal model of transformers; set loss_chunk_size to null"
    )


class _Head:
    """What a causal model does after its backbone (head, soft-capping, scaling), on hidden states given to it.

    The model's own forward runs with a backbone that returns those states: what it does with them need not be known,
    the head is called as a module (ZeRO-3 gathers its weight, an adapter on it acts), and no layer runs again.
    """

    def __init__(self, causal: Any, backbone: str) -> None:
        self._causal = causal
        self._backbone = backbone
        self._output: Any = None
        self._kind: Any = None
        self._autocast: tuple[str, torch.dtype | None] = ("cpu", None)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the backbone's output is noted, and the autocast it ran under."""
        handle = self._causal._modules[self._backbone].register_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, backbone: nn.Module, inputs: Any, output: Any) -> None:
        self._output, self._kind = output, type(output)
        device = output[0].device.type
        # Accelerate puts autocast around the outer forward only; the chunks are computed outside of it.
        enabled = torch.is_autocast_enabled(device)
        self._autocast = (device, torch.get_autocast_dtype(device) if enabled else None)

    def take_hidden(self) -> Tensor:
        """The backbone's last hidden states [B, T, H]; not kept here, where they would live until the backward pass."""
        if self._output is None:
            raise ValueError("loss_chunk_size: the model's backbone was not called as a module; set it to null")
        hidden: Tensor = self._output[0]
        self._output = None
        return hidden

    def losses(self, hidden_BKH: Tensor, targets_BKN: Tensor) -> Tensor:
        """Cross-entropy of one chunk, [B, K, N]."""
        device, dtype = self._autocast
        output = (hidden_BKH,) if self._kind is tuple else self._kind(last_hidden_state=hidden_BKH)
        given = _Given(output, self._causal._modules[self._backbone])
        with (
            _swapped(self._causal, self._backbone, given),
            torch.autocast(device, dtype=dtype, enabled=dtype is not None),
        ):
            logits_BKV = self._causal.forward(use_cache=False).logits
        if logits_BKV.shape[1] != hidden_BKH.shape[1]:
            raise ValueError(
                f"loss_chunk_size: the model gave logits of {logits_BKV.shape[1]} positions for hidden states of"
                f" {hidden_BKH.shape[1]} (logits_to_keep); set loss_chunk_size to null"
            )
        return _cross_entropy(logits_BKV, targets_BKN)


class _Given(nn.Module):
    """A backbone that returns the hidden states it was made with; all else of it is the one it stands for's."""

    def __init__(self, output: Any, backbone: nn.Module) -> None:
        super().__init__()
        self._output = output
        self._stands_for = (backbone,)  # in a tuple: it is no part of this module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._stands_for[0], name)  # Falcon-H1's head reads a multiplier there

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._output


@contextmanager
def _swapped(parent: nn.Module, name: str, child: nn.Module) -> Iterator[None]:
    kept = parent._modules[name]
    parent._modules[name] = child
    try:
        yield
    finally:
        parent._modules[name] = kept
