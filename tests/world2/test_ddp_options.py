"""What DistributedDataParallel does beside averaging: buffers, names, options that cannot be with a hook's own sums."""

import os

import pytest
import torch
import torch.distributed as dist
from gradient_checks import mlp_loss, weights_for
from tiny_models import Mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from debias.engines import attach
from debias.methods import Edge, MainOnly

pytestmark = pytest.mark.skipif(os.environ.get("WORLD_SIZE", "2") != "2", reason="its batches are of two ranks")


class Moving(nn.Module):
    """Batch norm, and a centre of hidden states that moves and is read while training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.classifier = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)
        self.register_buffer("centre", torch.zeros(7))
        self.register_buffer("other", torch.zeros(7))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.first(x)))
        before = self.centre.clone() + self.other
        if self.training:
            self.centre.mul_(0.5).add_(0.5 * hidden.detach().mean(dim=0))
            self.other = 0.9 * self.other + 0.1 * hidden.detach().mean(dim=0)  # another tensor each time
            self.seen.fill_(True)
        return self.classifier(hidden - before)


def batch_of(step, rank, samples=8):
    generator = torch.Generator().manual_seed(2 * step + rank)
    x = torch.randn(samples, 5, generator=generator) + 3 * rank
    return {"x": x, "labels": torch.randint(0, 3, (samples,), generator=generator)}


def trained(how, rank, **options):
    model = Moving()
    if how == "attach, then wrap":
        hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), MainOnly())
    ddp = DistributedDataParallel(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if how == "wrap, then attach":
        hook = attach(ddp, optimizer, MainOnly())
    for step in range(6):
        loss_B = mlp_loss(ddp, batch_of(step, rank))
        if how == "plain":
            loss_B.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            hook.backward(loss_B, weights_for(8))
            hook.step()
    return model


@pytest.mark.parametrize("how", ["wrap, then attach", "attach, then wrap"])
def test_buffers_are_the_first_ranks_as_ever(how, rank):
    want, model = trained("plain", rank), trained(how, rank)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), want.named_parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-6, name
    for name, buffer in model.named_buffers():
        others = [torch.zeros_like(buffer, dtype=torch.float32) for _ in range(2)]
        dist.all_gather(others, buffer.to(torch.float32))
        assert torch.equal(*others), name


def test_who_wants_buffers_of_each_rank_has_them(rank):
    model = trained("wrap, then attach", rank, broadcast_buffers=False)
    others = [torch.zeros(7) for _ in range(2)]
    dist.all_gather(others, model.norm.running_mean)
    assert not torch.equal(*others)


def test_buffers_of_a_rank_without_samples(rank):
    """It takes part in the step's sums, and so in what follows them."""
    model = Moving()
    ddp = DistributedDataParallel(model)
    hook = attach(ddp, torch.optim.SGD(model.parameters(), lr=0.1), Edge(), "shared_forward")
    for step in range(2):
        if rank == 0 or step == 1:
            hook.backward(mlp_loss(ddp, batch_of(step, rank)), weights_for(8))
        hook.step()
    others = [torch.zeros(7) for _ in range(2)]
    dist.all_gather(others, model.centre)
    assert torch.equal(*others)


def test_select_is_asked_the_same_names_with_and_without_the_wrapper(rank):
    asked = {}
    for how in ("bare", "wrapped"):
        names = asked.setdefault(how, [])
        model = Mlp()
        whole = model if how == "bare" else DistributedDataParallel(model)

        def select(name, parameter, names=names):
            names.append(name)
            return not name.startswith("second")

        hook = attach(whole, torch.optim.SGD(model.parameters(), lr=0.1), Edge(), select=select)
        assert {name.removeprefix("module.") for name in hook.selected} == {
            "first.weight",
            "first.bias",
            "classifier.weight",
            "classifier.bias",
        }
        hook.detach()
    assert asked["bare"] == asked["wrapped"]


def told_to_ignore():
    model = Mlp()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["second.weight"])
    return DistributedDataParallel(model)


REFUSED = {
    "static graph": (lambda: DistributedDataParallel(Mlp(), static_graph=True), "static_graph=True"),
    "a parameter of each rank's own": (told_to_ignore, "told to ignore second.weight, which trains"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_go_with_the_hooks_sums(build, words, rank):
    ddp = build()
    with pytest.raises(ValueError, match=words):
        attach(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1), Edge())


def test_a_communication_hook_is_said_to_be_left_out(rank, caplog):
    ddp = DistributedDataParallel(Mlp())
    ddp.register_comm_hook(None, lambda state, bucket: None)
    attach(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1), Edge())
    assert [record for record in caplog.records if "register_comm_hook" in record.message]
