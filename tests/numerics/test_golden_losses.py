"""Every loss of the table: a golden value, an oracle in plain loops, gradients by finite differences, ugly inputs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from debias.losses import LOSSES, LearningLoss, Loss, make_loss
from debias.readouts import Said

LOG_P = [[math.log(0.7), math.log(0.2), math.log(0.1)], [math.log(0.05), math.log(0.9), math.log(0.05)]]
LABELS = [0, 2]
GROUPS = [0, 1]
BIAS = [[0.1, 0.8, 0.1], [0.2, 0.3, 0.3]]
TEACHER = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]
TRAINING_GROUPS = [0, 0, 0, 1]  # shares 3/4 and 1/4
TRAINING_LABELS = [0, 1, 2, 2]
# Labels and groups of a training set of its own, for a loss that reads of each label how its groups are shared out:
# 3/4 and 1/4, 1/3 and 2/3, 4/5 and 1/5.
SHARES = ([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1])
TRAINING = {"gerne": SHARES}
# Settings, and the loss of the two samples above on its first step.
GOLDEN: dict[str, tuple[dict[str, Any], list[float]]] = {
    "cross_entropy": ({"class_weights": [2.0, 1.0, 0.5]}, [2 * 0.35667494393873245, 0.5 * 2.995732273553991]),
    "focal": ({"gamma": 2.0}, [0.09 * 0.35667494393873245, 0.9025 * 2.995732273553991]),
    # p is [.7, .2, .1] and [.05, .9, .05], the bias model's BIAS.
    "logit_correction": ({"tau": 1.0}, [-math.log(0.07 / 0.24), -math.log(0.015 / 0.295)]),
    # The detector knows nothing before the first step: a half, squared.
    "blind": ({"gamma": 2.0}, [0.25 * 0.35667494393873245, 0.25 * 2.995732273553991]),
    # Guess 1 of both; labels in training by guess 1: .8, .8 and .8 + .3.
    "ula": ({"tau": 1.0}, [-math.log(0.56 / 0.83), -math.log(0.055 / 0.815)]),
    # g is log 2 before the first step: the bias model's probabilities to that power, and a tenth of their entropy.
    "learned_mixin": ({"penalty": 0.1}, [0.9396324286891521, 3.0924497078370066]),
    # 0.6 of cross-entropy, 0.4 of its mean over the three labels.
    "label_smoothing": (
        {"epsilon": 0.4},
        [
            0.6 * 0.35667494393873245 - 0.4 / 3 * math.log(0.7 * 0.2 * 0.1),
            0.6 * 2.995732273553991 - 0.4 / 3 * math.log(0.05 * 0.9 * 0.05),
        ],
    ),
    # The bias model says .1 and .3 of the right labels.
    "debiased_focal": ({"gamma": 2.0}, [0.81 * 0.35667494393873245, 0.49 * 2.995732273553991]),
    # The teacher's probabilities to the powers .9 and .7.
    "confidence_regularization": ({}, [0.9671308103027247, 2.3005418764202803]),
    # exp(-4 * .1) / 1 and exp(-4 * .3) / 2, over the mean of the four training examples'.
    "afr": ({"gamma": 4.0}, [0.799059152090891, 1.5078000224157837]),
    # log p plus log n, with n = 1, 1, 2: .7 / (.7 + .2 + .2), .1 / (.05 + .9 + .1).
    "balanced_softmax": ({}, [math.log(11 / 7), math.log(1.05 / 0.1)]),
    # Margins 1/2 of a label that occurs once, 1/2 (1/2)^(1/4) of one that does twice; squares of probabilities.
    "ldam": (
        {"max_margin": 0.5, "scale": 2.0},
        [
            -math.log(0.49 / math.e / (0.49 / math.e + 0.04 + 0.01)),
            -math.log(0.0025 * math.exp(-(0.5**0.25)) / (0.0025 * math.exp(-(0.5**0.25)) + 0.81 + 0.0025)),
        ],
    ),
    # 1 / (1 - 1/2) and 1 / (1 - 1/4), of sum 3: weights 9/8, 9/8 and 3/4 of labels that occur 1, 1 and 2 times.
    "class_balanced": ({"beta": 0.5}, [9 / 8 * 0.35667494393873245, 0.75 * 2.995732273553991]),
    # Every loss is above eta at 0.
    "cvar_dro": ({"alpha": 0.25, "step_size": 0.1}, [4 * 0.35667494393873245, 4 * 2.995732273553991]),
    # 1 + 3/2 (1 / (2 a) - 1) of groups whose share of their label is 3/4 and 1/5.
    "gerne": ({"c": 0.5, "beta": 2.0}, [0.5 * 0.35667494393873245, 3.25 * 2.995732273553991]),
    # 1 - p_b(y) is .9 and .7 here, .9, .2, .9 and .7 in training: 2 hard, 2 easy, which weigh 2 / (3/2 * 2); mean 5/6.
    "gradient_alignment": ({"gamma": 1.5, "threshold": 0.75}, [1.2 * 0.35667494393873245, 0.8 * 2.995732273553991]),
    # Nothing is known before the first step; of tau 1/2 is left: p times the root of BIAS.
    "bias_covariance": ({"strength": 3.0, "tau": 0.5, "memory": 0.9}, [0.668331389364093, 2.986514751467729]),
    # Nothing is known before the first step: groups of shares 3/4 and 1/4 count the same.
    "irm": ({"strength": 5.0, "memory": 0.9}, [0.35667494393873245 / 1.5, 2.995732273553991 / 0.5]),
    "coral": ({"strength": 5.0, "memory": 0.9}, [0.35667494393873245, 2.995732273553991]),
    "mmd": ({"strength": 5.0, "memory": 0.9}, [0.35667494393873245, 2.995732273553991]),
    "pgi": ({"strength": 5.0, "memory": 0.9}, [0.35667494393873245 / 1.5, 2.995732273553991 / 0.5]),
    # p is .7 and .05; the bias model says .1 and .3 of the right labels.
    "gce": ({"q": 0.5}, [2 * (1 - math.sqrt(0.7)), 2 * (1 - math.sqrt(0.05))]),
    "relative_difficulty": (
        {},
        [
            math.log(0.1) / (math.log(0.1) + math.log(0.7)) * 0.35667494393873245,
            math.log(0.3) / (math.log(0.3) + math.log(0.05)) * 2.995732273553991,
        ],
    ),
    # The logits are log p here; (1 - shares) 3/4 and 1/2 of the right labels, shares 1/4, 1/4, 1/2 of others; .1 and
    # .3 to the power 1/2 for yes, .9 and .7 for no. Sigmoid of log p is p / (1 + p).
    "one_vs_rest": (
        {"q": 0.5},
        [
            0.75 * math.sqrt(0.1) * math.log(1.7 / 0.7) + math.sqrt(0.9) * (0.25 * math.log(1.2) + 0.5 * math.log(1.1)),
            0.5 * math.sqrt(0.3) * math.log(1.05 / 0.05)
            + math.sqrt(0.7) * (0.25 * math.log(1.05) + 0.25 * math.log(1.9)),
        ],
    ),
    "group_dro": ({"step_size": 0.1}, [0.5 / 0.75 * 0.35667494393873245, 0.5 / 0.25 * 2.995732273553991]),
}


def oracle_cross_entropy(log_p: list[float], label: int, group: int) -> float:
    return -(2.0, 1.0, 0.5)[label] * log_p[label]


def oracle_focal(log_p: list[float], label: int, group: int) -> float:
    p = math.exp(log_p[label])
    return -((1 - p) ** 2) * math.log(p)


def oracle_label_smoothing(log_p: list[float], label: int, group: int) -> float:
    target = [0.4 / len(log_p) + (0.6 if c == label else 0.0) for c in range(len(log_p))]
    return -math.fsum(share * one for share, one in zip(target, log_p, strict=True))


def oracle_logit_correction(log_p: list[float], label: int, group: int) -> float:
    product = [math.exp(one) * bias for one, bias in zip(log_p, BIAS[group], strict=True)]
    return -math.log(product[label] / math.fsum(product))


def oracle_blind(log_p: list[float], label: int, group: int) -> float:
    return -(0.5**2) * log_p[label]


def oracle_ula(log_p: list[float], label: int, group: int) -> float:
    guess = BIAS[group].index(max(BIAS[group]))
    among = list(zip(TRAINING_LABELS, TRAINING_GROUPS, strict=True))
    masses = [math.fsum(BIAS[of][guess] for y, of in among if y == c) for c in range(3)]
    mixed = [math.exp(one) * mass / math.fsum(masses) for one, mass in zip(log_p, masses, strict=True)]
    return -math.log(mixed[label]) + math.log(math.fsum(mixed))


def oracle_learned_mixin(log_p: list[float], label: int, group: int) -> float:
    trusted = [bias ** math.log(2) for bias in BIAS[group]]
    mixed = [math.exp(one) * bias for one, bias in zip(log_p, trusted, strict=True)]
    q = [bias / math.fsum(trusted) for bias in trusted]
    return -math.log(mixed[label] / math.fsum(mixed)) - 0.1 * math.fsum(one * math.log(one) for one in q)


def oracle_debiased_focal(log_p: list[float], label: int, group: int) -> float:
    return -((1 - BIAS[group][label]) ** 2) * log_p[label]


def oracle_confidence_regularization(log_p: list[float], label: int, group: int) -> float:
    powers = [p ** (1 - BIAS[group][label]) for p in TEACHER[group]]
    return -math.fsum(power / math.fsum(powers) * one for power, one in zip(powers, log_p, strict=True))


def oracle_afr(log_p: list[float], label: int, group: int) -> float:
    def weight(of: int, among: int) -> float:
        return math.exp(-4 * BIAS[among][of]) / TRAINING_LABELS.count(of)

    whole = [weight(of, among) for of, among in zip(TRAINING_LABELS, TRAINING_GROUPS, strict=True)]
    return -weight(label, group) / (math.fsum(whole) / len(whole)) * log_p[label]


def oracle_balanced_softmax(log_p: list[float], label: int, group: int) -> float:
    counted = [TRAINING_LABELS.count(c) * math.exp(one) for c, one in enumerate(log_p)]
    return -(log_p[label] + math.log(TRAINING_LABELS.count(label)) - math.log(math.fsum(counted)))


def oracle_ldam(log_p: list[float], label: int, group: int) -> float:
    rarest = min(TRAINING_LABELS.count(c) for c in range(len(log_p)))
    margin = 0.5 * (rarest / TRAINING_LABELS.count(label)) ** 0.25
    own = 2.0 * (log_p[label] - margin)
    # How much larger the others are: the sum of exponentials without the largest would overflow.
    return math.log1p(math.fsum(math.exp(min(700.0, 2.0 * log_p[c] - own)) for c in range(len(log_p)) if c != label))


def oracle_class_balanced(log_p: list[float], label: int, group: int) -> float:
    weights = [0.5 / (1 - 0.5 ** TRAINING_LABELS.count(c)) for c in range(len(log_p))]
    return -weights[label] * len(weights) / math.fsum(weights) * log_p[label]


def oracle_cvar_dro(log_p: list[float], label: int, group: int) -> float:
    return max(-log_p[label] - 0.0, 0.0) / 0.25 + 0.0


def oracle_gerne(log_p: list[float], label: int, group: int) -> float:
    """By two laws of the groups of a label: as they are, and less biased; each sample as often as the law asks for."""
    groups = [of for other, of in zip(*SHARES, strict=True) if other == label]
    if group not in groups:
        return 0.0
    law = groups.count(group) / len(groups)
    less_biased = law + 0.5 * (1 / len(set(groups)) - law)
    biased, lighter = -log_p[label], -less_biased / law * log_p[label]
    return lighter + 2.0 * (lighter - biased)


def oracle_gradient_alignment(log_p: list[float], label: int, group: int) -> float:
    def hard(of: int, among: int) -> bool:
        return 1 - BIAS[among][of] >= 0.75

    known = [hard(of, among) for of, among in zip(TRAINING_LABELS, TRAINING_GROUPS, strict=True)]
    weights = [1.0 if one else known.count(True) / (1.5 * known.count(False)) for one in known]
    own = 1.0 if hard(label, group) else known.count(True) / (1.5 * known.count(False))
    return -own / (math.fsum(weights) / len(weights)) * log_p[label]


def oracle_group_dro(log_p: list[float], label: int, group: int) -> float:
    share = TRAINING_GROUPS.count(group) / len(TRAINING_GROUPS)
    return -log_p[label] * (1 / len(set(TRAINING_GROUPS))) / share


def oracle_bias_covariance(log_p: list[float], label: int, group: int) -> float:
    mixed = [math.exp(one) * math.sqrt(bias) for one, bias in zip(log_p, BIAS[group], strict=True)]
    return -math.log(mixed[label] / math.fsum(mixed))


def oracle_irm(log_p: list[float], label: int, group: int) -> float:
    groups = len(set(TRAINING_GROUPS))
    return -log_p[label] * len(TRAINING_GROUPS) / TRAINING_GROUPS.count(group) / groups


def oracle_pgi(log_p: list[float], label: int, group: int) -> float:
    return oracle_irm(log_p, label, group)


def oracle_coral(log_p: list[float], label: int, group: int) -> float:
    return -log_p[label]


def oracle_mmd(log_p: list[float], label: int, group: int) -> float:
    return -log_p[label]


def oracle_gce(log_p: list[float], label: int, group: int) -> float:
    return (1 - math.exp(log_p[label]) ** 0.5) / 0.5


def oracle_relative_difficulty(log_p: list[float], label: int, group: int) -> float:
    own, theirs = -log_p[label], -math.log(BIAS[group][label])
    return theirs / (theirs + own + 1e-8) * own


def oracle_one_vs_rest(log_p: list[float], label: int, group: int) -> float:
    """With log p for logits: the denominator of the softmax is 1."""
    loss, confidence = 0.0, BIAS[group][label]
    for c, z in enumerate(log_p):
        share = TRAINING_LABELS.count(c) / len(TRAINING_LABELS)
        p = math.exp(z) / (1 + math.exp(z))
        if c == label:
            loss -= (1 - share) * confidence**0.5 * (math.log(p) if p else z)
        else:
            loss -= share * (1 - confidence) ** 0.5 * math.log1p(-p)
    return loss


ORACLES: dict[str, Callable[[list[float], int, int], float]] = {name: globals()[f"oracle_{name}"] for name in GOLDEN}


# Losses whose gradient is not that of their value, for they hold a weight of their own constant.
WEIGHED_BY_ITSELF = {"relative_difficulty"}


def begun(name: str) -> LearningLoss:
    settings, _ = GOLDEN[name]
    training = TRAINING.get(name, (TRAINING_LABELS, TRAINING_GROUPS))
    return LearningLoss(make_loss({"name": name, **settings}), facts(*training))


def facts(labels: list[int], groups: list[int]) -> dict[str, torch.Tensor]:
    said = {"bias_log_p": BIAS, "teacher_log_p": TEACHER}
    logs = {name: torch.tensor([p[group] for group in groups], dtype=torch.float64).log() for name, p in said.items()}
    return {"labels": torch.tensor(labels), "group": torch.tensor(groups), **logs}


def said_of(logits_BC: torch.Tensor, labels: list[int]) -> Said:
    log_p_BC = torch.log_softmax(logits_BC, dim=-1)
    log_p_B = log_p_BC.gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
    hidden_BH, log_z_B = torch.ones(len(labels), 2, dtype=log_p_BC.dtype), torch.zeros_like(log_p_B)
    return Said(log_p_B, log_p_B.detach(), len(labels), log_p_BC, hidden_BH, log_z_B)


def test_every_loss_has_a_golden_row() -> None:
    assert set(GOLDEN) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_golden(name: str) -> None:
    loss_B = begun(name)(said_of(torch.tensor(LOG_P, dtype=torch.float64), LABELS), facts(LABELS, GROUPS))
    assert loss_B.tolist() == pytest.approx(GOLDEN[name][1], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_against_the_oracle_and_finite_differences(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(6, 3, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    labels, groups = [0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 0]
    loss = begun(name)
    loss_B = loss(said_of(logits, labels), facts(labels, groups))
    rows = torch.log_softmax(logits.detach(), dim=-1).tolist()
    want = [ORACLES[name](row, label, group) for row, label, group in zip(rows, labels, groups, strict=True)]
    assert loss_B.tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    if scale < 10 and name not in WEIGHED_BY_ITSELF:
        assert torch.autograd.gradcheck(lambda x: loss(said_of(x, labels), facts(labels, groups), counts=False), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_certain_and_hopeless_samples_stay_finite(name: str) -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 0.0]], requires_grad=True)
    loss_B = begun(name)(said_of(logits, [0, 0]), facts([0, 0], [0, 1]))
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_does_not_know_its_neighbours(name: str) -> None:
    """Or accumulation and ranks would change what is trained."""
    generator = torch.Generator().manual_seed(2)
    logits, labels, groups = torch.randn(5, 3, generator=generator), [0, 1, 2, 0, 1], [0, 1, 0, 1, 0]
    whole = begun(name)(said_of(logits, labels), facts(labels, groups))
    alone = [begun(name)(said_of(logits[i : i + 1], labels[i : i + 1]), facts(labels[i : i + 1], groups[i : i + 1]))
             for i in range(5)]  # fmt: skip
    torch.testing.assert_close(whole, torch.cat(alone))


def test_relative_difficulty_weighs_the_gradient_of_cross_entropy() -> None:
    """Through W nothing goes; of what both find equally hard W is a half, of what misleads more, and 0 of the cue's."""
    logits, labels, groups = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), [0, 1, 2, 0], [0, 1, 0, 1]
    said, known = said_of(logits, labels), facts(labels, groups)
    begun("relative_difficulty")(said, known).sum().backward()
    p_BC = torch.softmax(logits.detach(), dim=1)
    for i, (label, group) in enumerate(zip(labels, groups, strict=True)):
        own, theirs = -math.log(p_BC[i, label]), -math.log(BIAS[group][label])
        want = [theirs / (own + theirs) * (float(p_BC[i, c]) - (c == label)) for c in range(3)]
        assert logits.grad is not None
        assert logits.grad[i].tolist() == pytest.approx(want, rel=1e-6)
    for p_b, weight in ((0.5, 0.5), (0.25, 2 / 3), (1.0, 0.0)):
        even = said_of(torch.tensor([[0.0, 0.0, -90.0]], dtype=torch.float64), [0])
        told = {"labels": torch.tensor([0]), "bias_log_p": torch.tensor([[p_b, 0.1, 0.1]], dtype=torch.float64).log()}
        assert float(begun("relative_difficulty")(even, told)) == pytest.approx(weight * math.log(2), abs=1e-8)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_half_way_to_no_bias_model_at_all(gamma: float) -> None:
    """Annealed from 1 to 0: half of training is done at alpha 1/2, at its end every sample counts the same."""
    logits, labels, groups = torch.randn(4, 3, dtype=torch.float64), [0, 1, 2, 0], [0, 1, 0, 1]
    said, known = said_of(logits, labels), facts(labels, groups)
    loss = LearningLoss(make_loss({"name": "debiased_focal", "gamma": gamma, "anneal_to": 0.0}))
    plain = LearningLoss(make_loss({"name": "debiased_focal", "gamma": gamma}))
    for done, alpha in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        want = []
        for row, label, group in zip(said.log_p_B.tolist(), labels, groups, strict=True):
            powers = [p**alpha for p in BIAS[group]]
            want.append(-((1 - powers[label] / math.fsum(powers)) ** gamma) * row)
        found = loss(said, {**known, "done": torch.tensor(done, dtype=torch.float64)})
        assert found.tolist() == pytest.approx(want, rel=1e-12)
    even = loss(said, {**known, "done": torch.tensor(1.0)}) / -said.log_p_B
    assert even.tolist() == pytest.approx([(2 / 3) ** gamma] * 4)
    assert not torch.allclose(plain(said, known) / -said.log_p_B, even)
    with pytest.raises(ValueError, match=r"loss\.anneal_to: this batch does not say how much of training is done"):
        loss(said, known)


def test_a_teachers_answer_is_its_own_where_the_bias_model_is_lost_and_even_where_it_is_sure() -> None:
    labels, lost, sure = [1, 1], [1 - 1e-4, 1e-6, 1e-4], [1e-6, 1 - 1e-6, 1e-6]
    known = facts(labels, [0, 0]) | {"bias_log_p": torch.tensor([lost, sure], dtype=torch.float64).log()}
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    begun("confidence_regularization")(said_of(logits, labels), known).sum().backward()
    assert logits.grad is not None
    # The gradient is p - target; p is a third each.
    assert (1 / 3 - logits.grad[0]).tolist() == pytest.approx(TEACHER[0], abs=1e-4)
    assert (1 / 3 - logits.grad[1]).tolist() == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_ula_reads_the_guess_and_not_how_sure_it_is() -> None:
    sure, unsure = [0.05, 0.9, 0.05], [0.3, 0.4, 0.3]
    training = torch.tensor([[0.8, 0.1, 0.1], sure, unsure, [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]], dtype=torch.float64)
    known = {"labels": torch.tensor([0, 1, 0, 2, 2]), "bias_log_p": training.log()}
    said = said_of(torch.zeros(3, 3, dtype=torch.float64), [0, 0, 0])
    asked = {"labels": torch.tensor([0, 0, 0]), "bias_log_p": torch.tensor([sure, unsure, training[0].tolist()]).log()}
    found = LearningLoss(make_loss({"name": "ula", "tau": 2.0}), known)(said, asked).tolist()
    want = []
    for guess in (1, 1, 0):
        masses = [
            sum(float(p[guess]) for p, y in zip(training, known["labels"], strict=True) if y == c) for c in range(3)
        ]
        want.append(-math.log(masses[0] ** 2 / sum(mass**2 for mass in masses)))
    assert found == pytest.approx(want)
    # A label that no example has is unlikely, and not impossible.
    of_two = {"labels": torch.tensor([0, 1, 0, 1, 1]), "bias_log_p": training.log()}
    rare = LearningLoss(make_loss("ula"), of_two)(said, {**asked, "labels": torch.tensor([2, 2, 2])})
    assert rare.tolist() == pytest.approx([-math.log(1e-4 / (1 + 1e-4))] * 3, rel=1e-6)


def test_weights_of_afr_have_mean_1_and_even_labels_at_gamma_0() -> None:
    said = Said(torch.full((4,), -1.0), torch.zeros(4), 4)
    known = facts(TRAINING_LABELS, TRAINING_GROUPS)
    for gamma in (0.0, 1.0, 9.0):
        weight_B = LearningLoss(make_loss({"name": "afr", "gamma": gamma}), known)(said, known)
        assert float(weight_B.mean()) == pytest.approx(1.0)
    even = LearningLoss(make_loss({"name": "afr", "gamma": 0}), known)(said, known)
    assert even.tolist() == pytest.approx([4 / 3, 4 / 3, 2 / 3, 2 / 3])  # every label a third of the mass


def test_cross_entropy_without_weights() -> None:
    said = said_of(torch.tensor(LOG_P, dtype=torch.float64), LABELS)
    assert LearningLoss(make_loss("cross_entropy"))(said, {}).tolist() == pytest.approx(
        [0.35667494393873245, 2.995732273553991]
    )


def test_focal_without_focus_is_cross_entropy() -> None:
    said = said_of(torch.randn(4, 3), [0, 1, 2, 0])
    assert torch.equal(make_loss({"name": "focal", "gamma": 0})(said, {}, torch.zeros(0)), -said.log_p_B)


Step = list[tuple[float, int, int]]  # the loss, label and group of each sample


def group_dro_by_hand(steps: list[Step], step_size: float = 0.01, adjustment: float = 0.0) -> list[float]:
    """Algorithm 1 in plain loops: q after the steps."""
    q = [1 / len(set(TRAINING_GROUPS))] * len(set(TRAINING_GROUPS))
    for step in steps:
        for group in range(len(q)):
            own = [loss for loss, _, of in step if of == group]
            added = adjustment / math.sqrt(TRAINING_GROUPS.count(group))
            q[group] *= math.exp(step_size * (math.fsum(own) / len(own) + added if own else 0.0))
        total = math.fsum(q)
        q = [value / total for value in q]
    return q


def cvar_dro_by_hand(steps: list[Step], alpha: float = 0.1, step_size: float = 0.01) -> list[float]:
    """Eta after subgradient steps on the mean of `eta + max(loss - eta, 0) / alpha`."""
    eta = 0.0
    for step in steps:
        eta -= step_size * math.fsum(1 - (1 / alpha if loss > eta else 0.0) for loss, _, _ in step) / len(step)
    return [eta]


def gradient_alignment_by_hand(steps: list[Step], gamma: float = 1.6, threshold: float = 0.8) -> list[float]:
    """What hard and easy samples weigh after the steps: by the last that had both."""
    hard: list[float] = []
    easy: list[float] = []
    for step in steps:
        pulls = [(1 - math.exp(-loss), 1 - BIAS[group][label] >= threshold) for loss, label, group in step]
        if {found for _, found in pulls} == {True, False}:
            hard, easy = ([pull for pull, found in pulls if found is kind] for kind in (True, False))
    share = math.fsum(hard) / (gamma * math.fsum(easy))
    mean = (len(hard) + share * len(easy)) / (len(hard) + len(easy))
    return [1 / mean, share / mean]


def weights_of_alignment(loss: LearningLoss) -> list[float]:
    sure = Said(torch.full((2,), -1.0, dtype=torch.float64), torch.zeros(2), 2)
    return loss(sure, facts([0, 1], [0, 0]), counts=False).tolist()  # 1 - p_b is .9 and .2


# The loss that learns, what it has learned, and the same by hand.
LEARNING: list[tuple[dict[str, Any], Callable[[LearningLoss], list[float]], Callable[..., list[float]]]] = [
    *(
        ({"name": "group_dro", **block}, lambda loss: loss.memory_S.chunk(3)[0].tolist(), group_dro_by_hand)
        for block in ({"step_size": 0.0}, {}, {"step_size": 5.0}, {"step_size": 0.5, "adjustment": 3.0})
    ),
    *(
        ({"name": "cvar_dro", **block}, lambda loss: loss.memory_S[:1].tolist(), cvar_dro_by_hand)
        for block in ({}, {"alpha": 0.4, "step_size": 0.7}, {"alpha": 1.0, "step_size": 0.3})
    ),
    ({"name": "gradient_alignment"}, weights_of_alignment, gradient_alignment_by_hand),
    ({"name": "gradient_alignment", "gamma": 0.5, "threshold": 0.75}, weights_of_alignment, gradient_alignment_by_hand),
]


def test_every_loss_that_learns_is_learned_by_hand() -> None:
    # Of hidden states, of moments and of groups' means: tests of their own.
    elsewhere = {"learned_mixin", "blind", "bias_covariance", "irm", "coral", "mmd", "pgi"}
    found = {block["name"] for block, _, _ in LEARNING}
    assert found | elsewhere == {name for name, loss in LOSSES.items() if loss.learns}


@pytest.mark.parametrize("cuts", [[6], [1, 2, 3], [1] * 6, [5, 1]], ids=str)
@pytest.mark.parametrize(("block", "learned", "by_hand"), LEARNING, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_what_is_learned_is_what_the_algorithm_says_however_a_step_is_cut(
    block: dict[str, Any], learned: Any, by_hand: Any, cuts: list[int]
) -> None:
    generator = torch.Generator().manual_seed(9)
    loss = LearningLoss(make_loss(block), facts(TRAINING_LABELS, TRAINING_GROUPS))
    told: list[Step] = []
    for step in range(4):
        logits = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        labels, groups = [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 1] if step % 2 else [0] * 6  # a group that is not there
        said = said_of(logits, labels)
        told.append([(-float(value), label, of) for value, label, of in zip(said.log_p_B, labels, groups, strict=True)])
        start = 0
        for size in cuts:
            part = slice(start, start + size)
            loss(said_of(logits[part], labels[part]), facts(labels[part], groups[part]))
            start += size
        loss.step(lambda sums: sums)
    assert learned(loss) == pytest.approx(by_hand(told, **{k: v for k, v in block.items() if k != "name"}), rel=1e-9)


def test_eta_finds_the_worst_tenth_and_the_loss_its_mean() -> None:
    """Losses 0.00, 0.01, ..., 0.99: the worst tenth begins at .90, and its mean is .945."""
    log_p = -torch.arange(100, dtype=torch.float64) / 100
    loss = LearningLoss(make_loss({"name": "cvar_dro", "alpha": 0.1, "step_size": 0.001}))
    for _ in range(2000):
        loss(Said(log_p, log_p, 100), {})
        loss.step(lambda sums: sums)
    assert float(loss.memory_S[0]) == pytest.approx(0.9, abs=0.011)
    assert float(loss(Said(log_p, log_p, 100), {}).mean()) == pytest.approx(0.945, abs=1e-3)


def test_a_group_adjustment_favours_the_small_group() -> None:
    """Of two groups that lose the same, the smaller gains weight; without the adjustment neither does."""
    said = Said(torch.full((4,), -1.0, dtype=torch.float64), torch.zeros(4), 4)
    found = []
    for adjustment in (0.0, 1.0):
        loss = LearningLoss(
            make_loss({"name": "group_dro", "adjustment": adjustment}), facts(TRAINING_LABELS, TRAINING_GROUPS)
        )
        loss(said, facts(TRAINING_LABELS, TRAINING_GROUPS))
        loss.step(lambda sums: sums)
        found.append(loss.memory_S[:2].tolist())
    assert found[0] == pytest.approx([0.5, 0.5])
    assert found[1][1] > 0.5 > found[1][0]


@pytest.mark.parametrize(("c", "beta"), [(0.5, 1.0), (1.0, 0.0), (0.25, 3.0)])
def test_at_balance_gerne_gives_the_groups_of_a_label_the_same_mass(c: float, beta: float) -> None:
    labels, groups = SHARES
    said = Said(torch.full((12,), -1.0, dtype=torch.float64), torch.zeros(12), 12)
    weights = LearningLoss(make_loss({"name": "gerne", "c": c, "beta": beta}), facts(*SHARES))(said, facts(*SHARES))
    for label in range(3):
        masses = [
            math.fsum(w for w, y, g in zip(weights.tolist(), labels, groups, strict=True) if (y, g) == (label, group))
            for group in range(2)
        ]
        assert masses == pytest.approx([labels.count(label) / 2] * 2)
    plain = LearningLoss(make_loss({"name": "gerne", "c": 0.0}), facts(*SHARES))(said, facts(*SHARES))
    assert plain.tolist() == [1.0] * 12


def test_losses_of_rare_labels_are_cross_entropy_where_labels_are_even() -> None:
    even = facts([0, 1, 2, 2, 1, 0], [0] * 6)
    said = said_of(torch.randn(4, 3, dtype=torch.float64), [0, 1, 2, 0])
    for block in ("balanced_softmax", "class_balanced", {"name": "ldam", "max_margin": 0.0}):
        loss = LearningLoss(make_loss(block), even)
        torch.testing.assert_close(loss(said, facts([0, 1, 2, 0], [0] * 4)), -said.log_p_B)


@pytest.mark.parametrize("name", ["balanced_softmax", "ldam", "class_balanced"])
def test_a_label_that_does_not_occur_is_no_fault(name: str) -> None:
    """Neither the last nor one before it; answers to it stay finite, and so does what is learned from them."""
    for labels in ([1, 2, 2], [0, 1, 1], [0, 2]):
        logits = torch.randn(len(labels), 3, dtype=torch.float64, requires_grad=True)
        loss_B = LearningLoss(make_loss(name), facts(labels, [0] * len(labels)))(
            said_of(logits, labels), facts(labels, [0] * len(labels))
        )
        loss_B.sum().backward()
        assert loss_B.isfinite().all()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_weights_by_effective_numbers_go_from_none_to_one_over_n() -> None:
    said = Said(torch.full((4,), -1.0, dtype=torch.float64), torch.zeros(4), 4)
    known = facts(TRAINING_LABELS, TRAINING_GROUPS)
    for beta, want in ((0.0, [1, 1, 1, 1]), (1 - 1e-12, [1.2, 1.2, 0.6, 0.6])):
        found = LearningLoss(make_loss({"name": "class_balanced", "beta": beta}), known)(said, known)
        assert found.tolist() == pytest.approx(want, rel=1e-3)


def test_a_bias_model_that_finds_nothing_hard_is_named(caplog: pytest.LogCaptureFixture) -> None:
    known = facts([1, 1], [0, 0])  # 1 - p_b is .2
    loss = LearningLoss(make_loss("gradient_alignment"), known)
    said = Said(torch.full((2,), -1.0), torch.zeros(2), 2)
    assert loss(said, known).tolist() == [1.0, 1.0]
    assert "gradient_alignment: no training example is hard at threshold 0.8: all weigh the same" in caplog.text


def test_ranks_add_up_and_a_skipped_step_teaches_nothing() -> None:
    one, half = begun("group_dro"), begun("group_dro")
    logits, labels, groups = torch.randn(4, 3), [0, 1, 2, 0], [0, 1, 0, 1]
    one(said_of(logits, labels), facts(labels, groups))
    half(said_of(logits[:2], labels[:2]), facts(labels[:2], groups[:2]))
    other = begun("group_dro").loss.sums(said_of(logits[2:], labels[2:]), facts(labels[2:], groups[2:]), half.memory_S)
    one.step(lambda sums: sums)
    half.step(lambda sums: sums + other)
    torch.testing.assert_close(one.memory_S, half.memory_S, rtol=1e-6, atol=0)
    before = one.memory_S.clone()
    one(said_of(logits, labels), facts(labels, groups))
    one.step(lambda sums: sums, applied=False)
    assert torch.equal(one.memory_S, before)
    one.step(lambda sums: sums)  # of a rank without samples
    assert one.memory_S.sum() == pytest.approx(2.0)  # q, shares and no adjustment


def test_a_second_forward_pass_is_not_counted_twice() -> None:
    once, twice = begun("group_dro"), begun("group_dro")
    said, known = said_of(torch.randn(4, 3), [0, 1, 2, 0]), facts([0, 1, 2, 0], [0, 1, 0, 1])
    once(said, known)
    twice(said, known)
    twice(said, known, counts=False)
    for loss in (once, twice):
        loss.step(lambda sums: sums)
    assert torch.equal(once.memory_S, twice.memory_S)


def test_state_goes_on_and_another_loss_is_refused() -> None:
    loss, again = begun("group_dro"), begun("group_dro")
    loss(said_of(torch.randn(4, 3), [0, 1, 2, 0]), facts([0, 1, 2, 0], [0, 1, 0, 1]))
    loss.step(lambda sums: sums)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.memory_S, loss.memory_S)
    assert loss.memory_S.shape == (4,)  # as it was before there were adjustments: older checkpoints go on
    with pytest.raises(ValueError, match="the checkpoint is of group_dro with 4 numbers, not of this run"):
        LearningLoss(make_loss("group_dro"), {"group": torch.tensor([0, 1, 2])}).load_state_dict(loss.state_dict())


def test_a_fact_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="loss group_dro reads 'group', which this batch lacks"):
        begun("group_dro")(said_of(torch.randn(1, 3), [0]), {"labels": torch.tensor([0])})


@pytest.mark.parametrize("block", ["group_dro", {"name": "logit_correction", "tau": 0.5, "prior": "labels"}])
def test_facts_of_the_training_set_that_are_missing_are_named(block: Any) -> None:
    loss = LearningLoss(make_loss(block), {"labels": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match=r"begins with '\w+' of the whole training set, and has \['labels'\]; give it"):
        loss(said_of(torch.zeros(2, 3), [0, 1]), facts([0, 1], [0, 0]))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"name": "focal", "gamma": -1}, "loss.gamma is -1.0, expected 0 or more"),
        ({"name": "blind", "gamma": -1}, "loss.gamma is -1.0, expected 0 or more"),
        ({"name": "blind", "temperature": 0}, "loss.temperature is 0.0, expected more than 0"),
        ({"name": "ula", "tau": -1}, "loss.tau is -1.0, expected 0 or more"),
        ({"name": "learned_mixin", "penalty": -0.1}, "loss.penalty is -0.1, expected 0 or more"),
        ({"name": "learned_mixin", "step_size": -1}, "loss.step_size is -1.0, expected 0 or more"),
        ({"name": "debiased_focal", "gamma": -1}, "loss.gamma is -1.0, expected 0 or more"),
        ({"name": "debiased_focal", "anneal_to": 1.5}, "loss.anneal_to is 1.5, expected 0 to 1"),
        ({"name": "confidence_regularization", "anneal_to": -0.5}, "loss.anneal_to is -0.5, expected 0 to 1"),
        ({"name": "afr", "gamma": -4}, "loss.gamma is -4.0, expected 0 or more"),
        ({"name": "group_dro", "step_size": -0.1}, "loss.step_size is -0.1, expected 0 or more"),
        ({"name": "group_dro", "adjustment": -1}, "loss.adjustment is -1.0, expected 0 or more"),
        ({"name": "cvar_dro", "alpha": 0}, "loss.alpha is 0.0, expected a share above 0 and up to 1"),
        ({"name": "cvar_dro", "step_size": -1}, "loss.step_size is -1.0, expected 0 or more"),
        ({"name": "gerne", "c": 1.5}, "loss.c is 1.5, expected 0 to 1"),
        ({"name": "gerne", "beta": -1}, "loss.beta is -1.0, expected 0 or more"),
        ({"name": "class_balanced", "beta": 1}, "loss.beta is 1.0, expected 0 or more and less than 1"),
        ({"name": "ldam", "scale": 0}, "loss.scale is 0.0, expected more than 0"),
        ({"name": "ldam", "max_margin": -0.1}, "loss.max_margin is -0.1, expected 0 or more"),
        ({"name": "bias_covariance", "strength": -1}, "loss.strength is -1.0, expected 0 or more"),
        (
            {"name": "bias_covariance", "memory": 1},
            "loss.memory is 1.0, expected 0 or more and less than 1, or null: of the step itself",
        ),
        ({"name": "gradient_alignment", "gamma": 0}, "loss.gamma is 0.0, expected more than 0"),
        ({"name": "gradient_alignment", "threshold": 1}, "loss.threshold is 1.0, expected between 0 and 1"),
        ({"name": "irm", "strength": -1}, "loss.strength is -1.0, expected 0 or more"),
        ({"name": "irm", "warmup": 2}, "loss.warmup is 2.0, expected 0 to 1, a share of training"),
        ({"name": "coral", "strength": -1}, "loss.strength is -1.0, expected 0 or more"),
        (
            {"name": "coral", "memory": 1},
            "loss.memory is 1.0, expected 0 or more and less than 1, or null: of the step itself",
        ),
        ({"name": "mmd", "strength": -1}, "loss.strength is -1.0, expected 0 or more"),
        ({"name": "mmd", "memory": 0.9, "features": 0}, "loss.features is 0, expected 1 or more"),
        ({"name": "pgi", "strength": -1}, "loss.strength is -1.0, expected 0 or more"),
        ({"name": "pgi", "warmup": -0.1}, "loss.warmup is -0.1, expected 0 to 1, a share of training"),
        (
            {"name": "pgi", "memory": 1},
            "loss.memory is 1.0, expected 0 or more and less than 1, or null: of the step itself",
        ),
        ({"name": "gce", "q": 0}, "loss.q is 0.0, expected above 0 and up to 1"),
        ("foccal", "loss.name is 'foccal', not one of .*; did you mean focal?"),
    ],
)
def test_wrong_settings(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss(block)


def test_a_loss_is_a_loss() -> None:
    assert all(issubclass(row, Loss) and row.__doc__ for row in LOSSES.values())


def test_experts_read_a_label_by_itself() -> None:
    """Against a loop over labels: a shift of all logits, which softmax does not see, is seen."""
    labels, groups = [0, 2, 1], [0, 1, 0]
    logits = torch.randn(3, 3, dtype=torch.float64)
    for shift in (0.0, -2.0, 5.0):
        z_BC = (logits + shift).requires_grad_()
        log_p_BC, log_z_B = torch.log_softmax(z_BC, dim=1), torch.logsumexp(z_BC, dim=1)
        right_B = log_p_BC.gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
        said = Said(right_B, right_B.detach(), 3, log_p_BC, None, log_z_B)
        for q in (0.0, 0.2, 1.0):
            loss = LearningLoss(make_loss({"name": "one_vs_rest", "q": q}), facts(TRAINING_LABELS, TRAINING_GROUPS))
            (gradient_BC,) = torch.autograd.grad(loss(said, facts(labels, groups)).sum(), z_BC, retain_graph=True)
            for i, (label, group) in enumerate(zip(labels, groups, strict=True)):
                for c in range(3):
                    share = TRAINING_LABELS.count(c) / 4
                    sigmoid = 1 / (1 + math.exp(-z_BC[i, c].item()))
                    confidence = BIAS[group][label]
                    yes, no = (1 - share) * confidence**q, share * (1 - confidence) ** q
                    want = yes * (sigmoid - 1) if c == label else no * sigmoid
                    assert float(gradient_BC[i, c]) == pytest.approx(want, rel=1e-9)
    with pytest.raises(ValueError, match="one_vs_rest reads a classifier's logits, and this readout has none"):
        loss(Said(right_B, right_B.detach(), 3, log_p_BC), facts(labels, groups))
