"""The last hidden states of a model, heard while it is called. Shapes: B samples, T tokens, H hidden columns."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HEAD = "classifier"


@contextmanager
def hearing(model: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """Inside, the last hidden states [B, T, H] of each call of `model`, with their graph; none unless `wanted`.

    Of a model without tokens (the perceptron of pictures) they are [B, H].

    Wrappers around the model (PEFT, DistributedDataParallel, DeepSpeed) see one ordinary call, and nothing is computed
    twice. ValueError where the model is none of transformers' with a backbone and a head.
    """
    heard: list[Tensor] = []
    if not wanted:
        yield heard
        return
    module, is_head = _where(model)
    if is_head:
        handle = module.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: heard.append(output[0]))
    try:
        yield heard
    finally:
        handle.remove()


def check_hidden(model: nn.Module) -> None:
    """ValueError where `hearing` would find nothing to hear."""
    _where(model)


def means_of(hidden_BTH: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """The mean over each row's tokens that the mask marks, [B, H] float32; over all without a mask.

    Of more states than the mask has places, those before it are a learned prompt's, and are left out.
    """
    if hidden_BTH.ndim not in (2, 3):
        raise ValueError(
            f"the loss reads hidden states of samples and tokens, and this model's are {list(hidden_BTH.shape)} (a"
            " convolution's maps); choose a loss that reads answers alone"
        )
    wide_BTH = hidden_BTH.float()
    if mask_BT is None:
        return wide_BTH if wide_BTH.ndim == 2 else wide_BTH.mean(dim=1)
    marked_BT1 = mask_BT.unsqueeze(2).to(wide_BTH.dtype)
    sums_BH = (wide_BTH[:, -mask_BT.shape[1] :] * marked_BT1).sum(dim=1)
    return sums_BH / marked_BT1.sum(dim=1).clamp(min=1)


def means_of_packed(hidden_RTH: Tensor, mask_RT: Tensor, sample_RT: Tensor) -> Tensor:
    """As `means_of`, [B, H], of samples packed in rows; `sample_RT`: the sample of each token."""
    samples, wide_KH = int(sample_RT.max()) + 1, hidden_RTH[mask_RT].float()
    sums_BH = wide_KH.new_zeros(samples, wide_KH.shape[1]).index_add(0, sample_RT[mask_RT], wide_KH)
    counts_B = torch.bincount(sample_RT[mask_RT], minlength=samples).clamp(min=1)
    return sums_BH / counts_B.unsqueeze(1)


def _where(model: nn.Module) -> tuple[nn.Module, bool]:
    """Who tells the hidden states of the outermost model of transformers in `model`, and whether it is the head.

    The backbone's output; of a model without one (the perceptron), what its head is given.
    """
    for module in model.modules():
        prefix = getattr(type(module), "base_model_prefix", None)  # a class attribute of transformers' models
        if prefix and isinstance(child := module._modules.get(prefix), nn.Module):
            return child, False
        if prefix == "" and isinstance(head := module._modules.get(HEAD), nn.Module):
            return head, True
    raise ValueError(f"the loss reads hidden states, and {type(model).__name__} holds no backbone of transformers")
