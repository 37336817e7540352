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
    "bias_covariance": {"strength": 0.5, "memory": 0.9},
    "irm": {"strength": 5.0, "memory": 0.9},
    "coral": {"strength": 5.0, "memory": 0.9},
    "mmd": {"strength": 1.0, "features": 8, "memory": 0.9},
    "pgi": {"strength": 50.0, "memory": 0.9},
    "cross_entropy": {},
}
OF_THE_STEP = {"bias_covariance": 0.5, "irm": 5.0, "coral": 5.0, "mmd": 1.0, "pgi": 50.0}  # and their strengths


class Heard(Mlp):
    """Whose head says what it is given."""

    base_model_prefix = ""


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    x, bias = torch.randn(14, 5, generator=generator), torch.randn(14, 3, generator=generator)
    groups = torch.tensor([0, 1] * 4 + [2, 1, 0] * 2)
    labels = torch.randint(0, 3, (14,), generator=generator)
    return {"x": x, "labels": labels, "group": groups, "bias_log_p": torch.log_softmax(bias, dim=1)}


def train(model, parts, block, over_ranks, joined=None):
    """What the loss remembers after some steps of `parts` of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, Edge(), "single_pass")
    loss = LearningLoss(make_loss(block), batch_of(0))
    for step in range(STEPS):
        batch = batch_of(step)
        if loss.ahead:
            with torch.no_grad():
                for start, stop in parts:
                    part = rows(batch, start, stop)
                    loss.gather(said_of(model, part), part)
            loss.settle(over_ranks, joined)
        for start, stop in parts:
            part = rows(batch, start, stop)
            said = said_of(model, part)
            hook.backward(loss(said, part), said.confidence_B.exp())
        hook.step()
        loss.step(over_ranks)
    return loss.memory_S


def said_of(model, part):
    with hearing(model, wanted=True) as heard:
        log_p = torch.log_softmax(model(part["x"]), dim=1)
    own = log_p.gather(1, part["labels"].unsqueeze(1)).squeeze(1)
    return Said(own, own.detach(), len(own), log_p, means_of(heard[0]))


def block_of(name):
    return {"name": name, **LOSSES[name]}


def without_penalty(block):
    """A loss that also counts groups alike is not cross-entropy without its penalty either."""
    return {**block, "strength": 0.0} if "strength" in block else {"name": "cross_entropy"}


def summed(sums):
    dist.all_reduce(sums)
    return sums


def apart(model, other):
    return max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_what_is_remembered_is_of_all_ranks(name, rank):
    alone, model, plain, own = Heard(), Heard(), Heard(), Heard()
    want = train(alone, ALL, block_of(name), lambda sums: sums)
    got = train(DistributedDataParallel(model), PARTS[rank], block_of(name), summed)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert apart(model, alone) <= 1e-5
    train(plain, ALL, without_penalty(block_of(name)), lambda sums: sums)
    assert apart(plain, alone) > 1e-3  # a penalty that does nothing would pass
    train(DistributedDataParallel(own), PARTS[rank], block_of(name), lambda sums: sums)
    assert apart(own, alone) > 1e-5  # and so would one that each rank makes of its own samples


@pytest.mark.parametrize("name", OF_THE_STEP)
def test_statistics_of_the_step_are_of_all_ranks(name, rank):
    block = {"name": name, "strength": OF_THE_STEP[name]}
    alone, model, plain, own = Heard(), Heard(), Heard(), Heard()
    whole = [(0, 14)]
    train(alone, whole, block, lambda sums: sums)
    train(DistributedDataParallel(model), PARTS[rank], block, summed, joined)
    assert apart(model, alone) <= 1e-5
    train(plain, whole, without_penalty(block), lambda sums: sums)
    assert apart(plain, alone) > 1e-3
    train(DistributedDataParallel(own), PARTS[rank], block, lambda sums: sums, lambda rows_NF: rows_NF)
    assert apart(own, alone) > 1e-5


def joined(rows_NF):
    """Of both ranks, which have unlike many."""
    found = [None, None]
    dist.all_gather_object(found, rows_NF)
    return torch.cat(found)
