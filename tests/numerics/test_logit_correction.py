"""Options of logit correction: against plain loops, over a training set, and what they say of wrong settings."""

import itertools
import math
from typing import Any

import pytest
import torch

from debias.losses import LearningLoss, make_loss
from debias.readouts import DONE, Said

# What a bias model says of the training examples, and their labels: neither labels nor probabilities are even.
BIAS = [[0.9, 0.06, 0.04], [0.1, 0.85, 0.05], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2], [0.02, 0.08, 0.9]]
LABELS = [0, 0, 2, 1, 0]
LOGITS = [[1.2, -0.3, 0.4], [0.1, 2.0, -1.0], [0.0, 0.0, 0.0], [-2.0, 0.7, 3.0], [4.0, -4.0, 1.0]]
SETTINGS: list[dict[str, Any]] = [
    {"tau": 0.5},
    {"tau": 1.0, "cross_entropy": 0.3},
    {"tau": 0.7, "prior": "labels"},
    {"tau": 0.25, "weights": True},
    {"tau": 0.0, "weights": True, "prior": "labels"},
    {"tau": 0.0, "weights": True, "clip": 2.0},
    {"tau": 0.6, "weights": True, "clip": 1.5, "prior": "labels", "cross_entropy": 0.5},
    {"tau": 1.0, "tau_end": 0.8},
    {"tau": 0.2, "tau_end": 1.0, "cross_entropy": 0.3, "prior": "labels"},
]


def softmax(logits: list[float]) -> list[float]:
    total = math.fsum(math.exp(one) for one in logits)
    return [math.exp(one) / total for one in logits]


def by_hand(settings: dict[str, Any], done: float) -> list[float]:
    """The losses of all training examples, written down from the formulas; nothing here is debias's."""
    given = {"tau_end": None, "cross_entropy": 0.0, "weights": False, "clip": 20.0, "prior": "uniform", **settings}
    tau = given["tau"] if given["tau_end"] is None else (1 - done) * given["tau"] + done * given["tau_end"]
    counts = [LABELS.count(label) for label in range(3)] if given["prior"] == "labels" else [1, 1, 1]
    prior = [count / sum(counts) for count in counts]
    weights = [min((prior[y] / p[y]) ** (1 - tau), given["clip"]) for p, y in zip(BIAS, LABELS, strict=True)]
    mean = math.fsum(weights) / len(weights)
    losses = []
    for logits, p_b, label, weight in zip(LOGITS, BIAS, LABELS, weights, strict=True):
        p = softmax(logits)
        product = [one * (p_b[c] / prior[c]) ** tau for c, one in enumerate(p)]
        loss = -math.log(product[label] / math.fsum(product)) * (weight / mean if given["weights"] else 1.0)
        losses.append(loss - given["cross_entropy"] * math.log(p[label]))
    return losses


def facts() -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(LABELS), "bias_log_p": torch.tensor(BIAS, dtype=torch.float64).log()}


@pytest.mark.parametrize("settings", [{}, {"tau_end": 0.0}, {"prior": "labels"}])
def test_tau_0_is_cross_entropy_to_the_bit(settings: dict[str, Any]) -> None:
    """Of answers of a causal model, too, whose log-probabilities of labels sum to less than 1."""
    for share in (1.0, 0.2):
        logits = torch.tensor(LOGITS, requires_grad=True)
        found = {}
        for block in ({"name": "logit_correction", "tau": 0.0, **settings}, {"name": "cross_entropy"}):
            log_p_BC = torch.log_softmax(logits, dim=-1) + math.log(share)
            log_p_B = log_p_BC.gather(1, torch.tensor(LABELS).unsqueeze(1)).squeeze(1)
            loss_B = LearningLoss(make_loss(block), facts())(
                Said(log_p_B, log_p_B.detach(), 5, log_p_BC), {**facts(), DONE: torch.tensor(0.4)}
            )
            found[block["name"]] = (loss_B, *torch.autograd.grad(loss_B.sum(), logits))
        for one, other in zip(*found.values(), strict=True):
            assert torch.equal(one, other)


def losses_of(loss: LearningLoss, logits_BC: torch.Tensor, done: float | None, rows: slice) -> torch.Tensor:
    log_p_BC = torch.log_softmax(logits_BC[rows], dim=-1)
    labels_B = torch.tensor(LABELS)[rows]
    log_p_B = log_p_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
    known = {name: fact[rows] for name, fact in facts().items()}
    if done is not None:
        known[DONE] = torch.tensor(done, dtype=torch.float64)
    return loss(Said(log_p_B, log_p_B.detach(), len(labels_B), log_p_BC), known)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("done", [0.0, 0.375])
def test_against_the_formulas_however_a_batch_is_cut(settings: dict[str, Any], done: float) -> None:
    loss = LearningLoss(make_loss({"name": "logit_correction", **settings}), facts())
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    want = by_hand(settings, done)
    for cuts in ([0, 5], [0, 2, 3, 5]):
        parts = [losses_of(loss, logits, done, slice(*cut)) for cut in itertools.pairwise(cuts)]
        assert torch.cat(parts).tolist() == pytest.approx(want, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses_of(loss, x, done, slice(0, 5)), logits)
    assert not loss.learns  # nothing that a checkpoint must keep: it begins the same again
    loss.step(lambda sums: pytest.fail("nothing is to be summed over ranks"))


def test_facts_may_come_after_the_loss_was_made() -> None:
    """The bias model is asked when the run's trainer is there already."""
    late: dict[str, torch.Tensor] = {"labels": torch.tensor(LABELS)}
    settings = {"tau": 0.5, "weights": True, "prior": "labels"}
    loss = LearningLoss(make_loss({"name": "logit_correction", **settings}), late)
    late["bias_log_p"] = facts()["bias_log_p"]
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    assert losses_of(loss, logits, None, slice(0, 5)).tolist() == pytest.approx(by_hand(settings, 0.0), rel=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("prior", ["uniform", "labels"])
def test_every_tau_has_one_optimum(tau: float, prior: str) -> None:
    """An honest bit z and a shortcut c, independent given y: the loss is least at log P(z | y) + log pi(y)."""
    pi, cue = [0.5, 0.3, 0.2], [0.7, 0.2, 0.4]  # P(y), P(c = 1 | y)
    honest = [0.9, 0.4, 0.2]  # P(z = 1 | y)
    cells = [(z, c, y) for z in (0, 1) for c in (0, 1) for y in range(3)]
    copies = {cell: 0 for cell in cells}
    for z, c, y in cells:  # a training set in which every cell occurs exactly as often as it should
        share = pi[y] * (cue[y] if c else 1 - cue[y]) * (honest[y] if z else 1 - honest[y])
        copies[z, c, y] = round(share * 100000)
    of_c = [[pi[y] * (cue[y] if c else 1 - cue[y]) for y in range(3)] for c in (0, 1)]
    log_p = torch.tensor([[math.log(one / sum(row)) for one in row] for row in of_c], dtype=torch.float64)
    repeats = torch.tensor([copies[cell] for cell in cells])
    known = {
        "labels": torch.tensor([y for _, _, y in cells]).repeat_interleave(repeats),
        "bias_log_p": log_p[torch.tensor([c for _, c, _ in cells]).repeat_interleave(repeats)],
    }
    weighted = {"weights": True, "clip": 1e9} if tau < 1 else {}
    loss = LearningLoss(make_loss({"name": "logit_correction", "tau": tau, "prior": prior, **weighted}), known)
    target = pi if prior == "labels" else [1 / 3] * 3
    best = [[math.log(target[y] * (honest[y] if z else 1 - honest[y])) for y in range(3)] for z in (0, 1)]
    f = torch.tensor(best, dtype=torch.float64, requires_grad=True)  # one row of logits for each value of z
    logits = f[torch.tensor([z for z, _, _ in cells]).repeat_interleave(repeats)]
    log_p_NC = torch.log_softmax(logits, dim=-1)
    log_p_N = log_p_NC.gather(1, known["labels"].unsqueeze(1)).squeeze(1)
    loss(Said(log_p_N, log_p_N.detach(), len(log_p_N), log_p_NC), known).mean().backward()
    assert f.grad is not None
    assert f.grad.abs().max() < 2e-4  # copies are rounded
    assert loss.loss.reads >= {"bias_log_p"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -0.1}, "loss.tau is -0.1, expected 0 or more"),
        ({"tau_end": -1}, "loss.tau_end is -1.0, expected 0 or more"),
        ({"cross_entropy": -0.3}, "loss.cross_entropy is -0.3, expected 0 or more"),
        ({"tau": 0.5, "weights": True, "clip": 0}, "loss.clip is 0.0, expected more than 0"),
        ({"tau": 0.5, "weights": True, "tau_end": 0.4}, "loss.tau_end goes without weights"),
        ({"weights": True}, "loss.weights have no effect at tau 1.0; choose a tau below 1"),
        ({"tau": 0.5, "clip": 5}, "loss.clip is 5.0 and cuts off weights, of which there are none"),
        ({"prior": "uniformly"}, "loss.prior is 'uniformly', not one of uniform, labels"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss({"name": "logit_correction", **settings})


def test_annealing_asks_how_far_training_is() -> None:
    loss = LearningLoss(make_loss({"name": "logit_correction", "tau_end": 0.5}), facts())
    with pytest.raises(ValueError, match=r"loss\.tau_end: this batch does not say how much of training is done"):
        losses_of(loss, torch.tensor(LOGITS), None, slice(0, 5))
