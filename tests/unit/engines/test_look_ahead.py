"""The pass ahead of a step: dropout masks are those of the passes that follow, and nothing else feels it."""

from typing import Any

import pytest
import torch
from torch import nn

from debias.engines.look_ahead import LookAhead, refuse_look_ahead

BATCHES = [{"x": torch.arange(6.0).reshape(2, 3) + i} for i in range(3)]


class Noisy(nn.Module):
    """With dropout, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x))


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "more_draws"])
def test_each_micro_batch_is_passed_as_it_was_seen(*, beside: bool) -> None:
    """Though others draw in between; and what they draw is not what a mask was made of."""
    torch.manual_seed(0)
    model, ahead, seen = Noisy().train(), LookAhead(), []
    ahead.begin(BATCHES)

    def see(batch: Any) -> None:
        assert not torch.is_grad_enabled()
        seen.append(model(batch["x"]))

    assert ahead.look(model, see)
    assert model.norm.num_batches_tracked == 0
    drawn = []
    for batch, want in zip(BATCHES, seen, strict=True):
        assert not ahead.look(model, see)
        with ahead.as_seen():
            assert torch.equal(model(batch["x"]), want)
        if beside:
            drawn.append(torch.rand(6))
    assert len(seen) == len(BATCHES)
    assert model.norm.num_batches_tracked == len(BATCHES)
    assert len({tuple(one.tolist()) for one in drawn}) == len(drawn)
    masks = [(one != 0).flatten() for one in seen]
    assert not any(torch.equal(one >= 0.5, mask) for one in drawn for mask in masks)


def test_a_step_of_one_micro_batch_is_not_seen_ahead() -> None:
    model, ahead = Noisy().train(), LookAhead()
    ahead.begin(BATCHES[:1])
    assert ahead.is_one
    assert not ahead.look(model, lambda batch: pytest.fail("seen"))
    before = torch.get_rng_state()
    with ahead.as_seen():
        assert torch.equal(torch.get_rng_state(), before)


def test_gradients_taken_elsewhere_are_refused() -> None:
    refuse_look_ahead("coral", None)
    with pytest.raises(ValueError, match=r"loss coral takes statistics of the step at the weights, and sharpness sam"):
        refuse_look_ahead("coral", "sam")
