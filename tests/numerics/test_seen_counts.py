"""What a loss begins with, where an order sees some examples more often than others."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from debias.data.orders import make_order
from debias.losses import LOSSES, make_loss
from debias.readouts.said import Said
from debias.runs.learned import label_entropy

TIMES = torch.tensor([1, 3, 1, 2, 5, 1, 4, 2, 1, 1])
MORE: list[dict[str, Any]] = [
    {"name": "cross_entropy", "class_weights": "balanced"},
    {"name": "class_balanced", "beta": 0.5},
    {"name": "logit_correction", "tau": 0.3, "weights": True},
]
EVEN = [{"name": "balanced_softmax"}, {"name": "class_balanced"}, MORE[0]]


def facts() -> dict[str, torch.Tensor]:
    """Of ten examples of three labels and two groups."""
    log_p_NC = torch.log_softmax(torch.randn(10, 3, generator=torch.Generator().manual_seed(4)), dim=1)
    return {
        "index": torch.arange(10),
        "labels": torch.tensor([0, 0, 1, 2, 0, 1, 0, 2, 0, 0]),
        "group": torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 1, 0]),
        "bias_log_p": log_p_NC,
        "teacher_log_p": log_p_NC.flip(0),
    }


@pytest.mark.parametrize("block", [*({"name": name} for name in LOSSES), *MORE], ids=str)
def test_examples_that_are_seen_often_count_as_if_they_were_there_often(block: dict[str, Any]) -> None:
    """The oracle is the same data with its rows written so many times, and an ordinary order."""
    known, loss = facts(), make_loss(block)
    often = {name: column.repeat_interleave(TIMES, dim=0) for name, column in known.items()}
    found, expected = loss.begin(known | {"seen": TIMES.double()}), loss.begin(often)
    if loss.name == "pgi":  # which group of a label is the most frequent is asked of the data as it is
        as_it_is = torch.bincount(known["labels"] * 2 + known["group"], minlength=6).double().view(3, 2)
        assert torch.equal(found[..., 0], as_it_is)
        found, expected = found[..., 1:], expected[..., 1:]
    if loss.name == "ldam":  # so are its margins
        expected = loss.begin(known)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "order", [{"name": "resampled", "by": "label"}, {"name": "resampled", "by": "label", "exponent": -1}]
)
def test_margins_are_those_of_the_training_data_whatever_is_drawn(order: dict[str, Any]) -> None:
    """By the paper's equation, of 81 and 16 examples."""
    known = {"labels": torch.tensor([0] * 81 + [1] * 16), "index": torch.arange(97)}
    seen_N = make_order(order).seen(known)
    assert seen_N is not None
    margins = make_loss({"name": "ldam", "max_margin": 0.5}).begin(known | {"seen": seen_N})
    assert margins.tolist() == pytest.approx([0.5 * 2 / 3, 0.5], rel=1e-12)


@pytest.mark.parametrize("block", EVEN, ids=str)
def test_labels_that_an_order_has_evened_out_are_not_corrected_again(block: dict[str, Any]) -> None:
    """A model that sees nothing of the input is best where it says half and half: the slope there is 0."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    known = {"labels": labels, "index": torch.arange(100)}
    seen_N = make_order({"name": "resampled", "by": "label"}).seen(known)
    assert seen_N is not None
    loss = make_loss(block)
    memory_S = loss.begin(known | {"seen": seen_N})
    z_C = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_p_BC = torch.log_softmax(z_C, 0).expand(100, 2)
    said = Said(log_p_BC.gather(1, labels[:, None])[:, 0], log_p_BC.detach()[:, 0], 100, log_p_BC)
    (loss(said, {"labels": labels}, memory_S) * seen_N).mean().backward()
    assert z_C.grad is not None
    assert z_C.grad.abs().max() < 1e-12


def test_entropy_of_labels_is_that_of_what_is_seen() -> None:
    labels = np.array([0] * 9 + [1])
    assert label_entropy(labels, np.array([1.0] * 9 + [9.0])) == pytest.approx(math.log(2))
    assert label_entropy(labels, np.array([0.0] * 9 + [9.0])) == 0.0
