"""Taking the two gradients of a model by one of the ways, and comparing what was taken."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines import not_head
from debias.gradients import GradientSource, MicroBatch, make_source
from debias.losses import Answers, Classification, cross_entropy

Gradients = dict[str, Tensor]
Forward = Callable[[nn.Module, Any], Tensor]

# What the project promises: fp32 gradients of the ways agree to 1e-5, relative, tensor by tensor.
FP32 = 1e-5


def text_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return -Classification().said(model, batch).log_p_B


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return -Answers([[5], [6]]).said(model, batch).log_p_B


def mlp_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return cross_entropy(model(batch["x"]), batch["labels"])


def selected_of(model: nn.Module, select: Callable[[str, nn.Parameter], bool] = not_head) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad and select(name, p)}


def weights_for(samples: int, seed: int = 11) -> Tensor:
    """Weights as unequal as they come: 0.02 to 0.7, one of them 0."""
    weight_B = 0.02 + 0.68 * torch.rand(samples, generator=torch.Generator().manual_seed(seed))
    weight_B[samples // 2] = 0.0
    return weight_B


def take(
    way: str,
    model: nn.Module,
    forward: Forward,
    batches: Sequence[Any],
    weights: Sequence[Tensor],
    select: Callable[[str, nn.Parameter], bool] = not_head,
    seed: int = 0,
) -> tuple[Gradients, Gradients]:
    """(main of every trainable tensor, bias of every selected one), summed over the batches; leaves the model clean."""
    source = make_source(way, model, selected_of(model, select))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    for batch, weight_B in zip(batches, weights, strict=True):
        add_batch(source, model, forward, batch, weight_B)
    main = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    bias = {name: gradient.clone() for name, gradient in source.bias.items()}
    source.detach()
    model.zero_grad(set_to_none=True)
    return main, bias


def add_batch(source: GradientSource, model: nn.Module, forward: Forward, batch: Any, weight_B: Tensor) -> None:
    source.backward(MicroBatch(forward(model, batch), weight_B, again=lambda: (forward(model, batch), weight_B)))


def by_samples(
    model: nn.Module,
    forward: Forward,
    batch: Mapping[str, Tensor],
    weight_B: Tensor,
    select: Callable[[str, nn.Parameter], bool] = not_head,
) -> tuple[Gradients, Gradients]:
    """The definition: one backward pass for each sample by itself, main = sum g_i, bias = sum w_i g_i, sums float64."""
    selected = selected_of(model, select)
    main: Gradients = {}
    bias: Gradients = {}
    for i, weight in enumerate(weight_B.tolist()):
        model.zero_grad(set_to_none=True)
        forward(model, {key: value[i : i + 1] for key, value in batch.items()}).sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                main[name] = main.get(name, 0.0) + p.grad.double()
                if name in selected:
                    bias[name] = bias.get(name, 0.0) + weight * p.grad.double()
    model.zero_grad(set_to_none=True)
    return main, bias


def worst(got: Gradients, want: Gradients) -> tuple[float, str]:
    """The largest relative error of a tensor, and its name.

    Softmax ignores the key bias of an attention layer, so that its gradient is rounding and nothing else: its error is
    measured against a hundredth of the largest gradient. Everything else has at least 1e-4 of it.
    """
    assert set(got) == set(want), f"not the same tensors: {sorted(set(got) ^ set(want))}"
    assert got
    largest = max(float(tensor.double().norm()) for tensor in want.values())
    errors = []
    for name, tensor in want.items():
        assert got[name].shape == tensor.shape
        error = float((got[name].double() - tensor.double()).norm())
        assert error == error, f"{name} is not a number"
        floor = largest * (1e-2 if "key" in name and name.endswith("bias") else 1e-4)
        errors.append((error / max(float(tensor.double().norm()), floor), name))
    return max(errors)


def assert_same(got: tuple[Gradients, Gradients], want: tuple[Gradients, Gradients], tolerance: float = FP32) -> None:
    for side, name in enumerate(("main", "bias")):
        error, tensor = worst(got[side], want[side])
        assert error <= tolerance, f"{name} gradient of {tensor}: relative error {error:.2e}"
