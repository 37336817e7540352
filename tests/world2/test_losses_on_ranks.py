"""Losses that remember the samples of all ranks, over two ranks against one process on the joined batch."""

import os

import pytest
import torch
import torch.distributed as dist
from tiny_models import Mlp, rows
from torch.nn.parallel import DistributedDataParallel

from debias.engines import attach
from debias.losses import LearningLoss, make_loss
from debias.methods import Edge
from debias.readouts import Said
from debias.readouts.hidden import hearing, means_of

pytestmark = pytest.mark.skipif(os.environ.get("WORLD_SIZE", "2") != "2", reason="its micro-batches are of two ranks")
STEPS = 5
# Micro-batches of each rank, unequal in a rank and between the ranks; the first rank sees two groups of three.
PARTS = [[(0, 4), (4, 5)], [(5, 8), (8, 14)]]
ALL = [part for parts in PARTS for part in parts]
LOSSES = {
    "bias_covariance": {"strength": 0.5},
    "irm": {"strength": 5.0},
    "coral": {"strength": 5.0},
    "mmd": {"strength": 1.0, "features": 8},
    "cross_entropy": {},
}


class Heard(Mlp):
    """Whose head says what it is given."""

    base_model_prefix = ""


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    x, bias = torch.randn(14, 5, generator=generator), torch.randn(14, 3, generator=generator)
    groups = torch.tensor([0, 1] * 4 + [2, 1, 0] * 2)
    labels = torch.randint(0, 3, (14,), generator=generator)
    return {"x": x, "labels": labels, "group": groups, "bias_log_p": torch.log_softmax(bias, dim=1)}


def train(model, parts, name, over_ranks):
    """What the loss remembers after some steps of `parts` of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, Edge(), "single_pass")
    loss = LearningLoss(make_loss({"name": name, **LOSSES[name]}), batch_of(0))
    for step in range(STEPS):
        batch = batch_of(step)
        for start, stop in parts:
            part = rows(batch, start, stop)
            with hearing(model, wanted=True) as heard:
                log_p = torch.log_softmax(model(part["x"]), dim=1)
            own = log_p.gather(1, part["labels"].unsqueeze(1)).squeeze(1)
            said = Said(own, own.detach(), len(own), log_p, means_of(heard[0]))
            hook.backward(loss(said, part), own.detach().exp())
        hook.step()
        loss.step(over_ranks)
    return loss.memory_S


def summed(sums):
    dist.all_reduce(sums)
    return sums


def apart(model, other):
    return max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_what_is_remembered_is_of_all_ranks(name, rank):
    alone, model, plain, own = Heard(), Heard(), Heard(), Heard()
    want = train(alone, ALL, name, lambda sums: sums)
    got = train(DistributedDataParallel(model), PARTS[rank], name, summed)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert apart(model, alone) <= 1e-5
    train(plain, ALL, "cross_entropy", lambda sums: sums)
    assert apart(plain, alone) > 1e-3  # a penalty that does nothing would pass
    train(DistributedDataParallel(own), PARTS[rank], name, lambda sums: sums)
    assert apart(own, alone) > 1e-5  # and so would one that each rank makes of its own samples
