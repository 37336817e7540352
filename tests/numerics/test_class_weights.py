"""Class weights: against torch's own weighted cross-entropy, in every way to two gradients, however a step is cut."""

import pytest
import torch
from gradient_checks import assert_same, weights_for
from tiny_models import Mlp, rows
from torch import Tensor, nn

from debias.building.method import build_loss
from debias.config.run import RunConfig
from debias.engines import attach
from debias.engines.trainer_arguments import loss_of
from debias.errors import InputError
from debias.losses import Classification, CrossEntropy, LearningLoss, make_loss
from debias.methods import Subtract
from debias.readouts import Said

LABELS = [0, 1, 2, 0, 0, 0, 1, 0, 0, 2, 0, 0]
WEIGHTS = (0.25, 1.0, 3.0)


def batch() -> dict[str, Tensor]:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"x": x, "labels": torch.tensor(LABELS)}


def loss_of_a_batch(loss: LearningLoss, model: nn.Module, part: dict[str, Tensor]) -> Tensor:
    log_p_BC = torch.log_softmax(model(part["x"]), dim=-1)
    log_p_B = log_p_BC.gather(1, part["labels"].unsqueeze(1)).squeeze(1)
    return loss(Said(log_p_B, log_p_B.detach(), len(log_p_B)), part)


def gradients_by_torch(weights: list[float], weight_B: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`main` and `bias`: torch's weighted cross-entropy, summed, of samples as they are and as bias weights them."""
    model, part = Mlp().double(), batch()
    each_B = nn.functional.cross_entropy(
        model(part["x"]), part["labels"], weight=torch.tensor(weights, dtype=torch.float64), reduction="none"
    )
    found = []
    for share_B in (torch.ones(12, dtype=torch.float64), weight_B.double()):
        made = torch.autograd.grad((share_B * each_B).sum(), list(model.parameters()), retain_graph=True)
        found.append(dict(zip(dict(model.named_parameters()), made, strict=True)))
    return found[0], {name: gradient for name, gradient in found[1].items() if "classifier" not in name}


@pytest.mark.parametrize("cuts", [[12], [1, 4, 7]])
@pytest.mark.parametrize("way", ["single_pass", "shared_forward", "two_pass"])
@pytest.mark.parametrize("weights", [WEIGHTS, "balanced"])
def test_both_gradients_are_torchs(weights, way, cuts):
    """Balanced: 12 examples, of three labels with 8, 2 and 2."""
    numbers = [12 / (3 * 8), 12 / (3 * 2), 12 / (3 * 2)] if weights == "balanced" else list(WEIGHTS)
    model, whole, weight_B = Mlp().double(), batch(), weights_for(12)
    loss = LearningLoss(CrossEntropy(weights), {"labels": whole["labels"]})
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Subtract(), way)
    start = 0
    for size in cuts:
        part, w = rows(whole, start, start + size), weight_B[start : start + size]
        hook.backward(
            loss_of_a_batch(loss, model, part), w, again=lambda p=part, v=w: (loss_of_a_batch(loss, model, p), v)
        )
        start += size
    main, bias = gradients_by_torch(numbers, weight_B)
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert_same((got, dict(hook.source.bias)), (main, bias), 1e-6)
    hook.combine()  # over the number of samples, 12, and not over the sum of their weights
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, (main[name] - bias.get(name, 0.0)) / 12, rtol=1e-5, atol=1e-8)


def test_balanced_weights_leave_the_loss_its_size():
    """Their mean over the training set is 1; a label that does not occur is nobody's."""
    for labels in ([0] * 90 + [1] * 9 + [2], [0, 0, 2], [1]):
        labels_N = torch.tensor(labels)
        weights_C = CrossEntropy("balanced").begin({"labels": labels_N})
        assert float(weights_C[labels_N].mean()) == pytest.approx(1.0)
        mass = [float(weights_C[label] * labels.count(label)) for label in set(labels)]
        assert mass == pytest.approx([mass[0]] * len(mass))


def config(**loss: object) -> RunConfig:
    return RunConfig.model_validate(
        {"model": "package:minilm", "output_dir": "run", "data": {"train": "generated"}, "loss": loss}
    )


def test_names_of_labels_in_a_run():
    made = build_loss(config(class_weights={"contradiction": 3, "entailment": 0.25, "neutral": "1.0"}))
    assert made == CrossEntropy(WEIGHTS)
    assert build_loss(config(class_weights=list(WEIGHTS))) == made
    assert build_loss(config(class_weights="balanced")) == CrossEntropy("balanced")
    assert config(class_weights={"a": 1}).loss == {"name": "cross_entropy", "class_weights": {"a": 1.0}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"entailment": 1, "neutral": 1}, "loss.class_weights: 'contradiction' is missing; give a weight for each of"),
        ({"entailment": 1, "neutral": 1, "contradicts": 1}, "loss.class_weights: 'contradicts' is no label; give"),
        ([1, 2], "loss.class_weights are 2, expected one for each of entailment, neutral, contradiction"),
    ],
)
def test_weights_that_do_not_fit_the_labels(weights, message):
    with pytest.raises(InputError, match=message):
        build_loss(config(class_weights=weights))


@pytest.mark.parametrize("weights", ["ballanced", {"a": float("nan")}, {"a": "much"}, 3, True])
def test_what_is_no_weights(weights):
    with pytest.raises(ValueError, match=r"loss\.class_weights is .*expected balanced, or a weight of 0 or more for"):
        make_loss({"name": "cross_entropy", "class_weights": weights})


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], {"a": -1}])
def test_weights_below_zero(weights):
    with pytest.raises(ValueError, match=r"loss\.class_weights is .*0 or more, one of them more than 0"):
        make_loss({"name": "cross_entropy", "class_weights": weights})


def test_weights_are_not_dropped_for_smoothing():
    class Arguments:
        label_smoothing_factor = 0.1

    with pytest.raises(ValueError, match="the loss cross_entropy with class_weights: smoothing"):
        loss_of(Arguments, CrossEntropy(WEIGHTS), Classification())


def test_balanced_outside_of_a_run_needs_the_labels():
    said = Said(torch.zeros(1), torch.zeros(1), 1)
    with pytest.raises(ValueError, match="begins with 'labels' of the whole training set"):
        LearningLoss(CrossEntropy("balanced"))(said, {"labels": torch.tensor([0])})
    with pytest.raises(ValueError, match="class_weights names labels; outside of a run give them as a list"):
        LearningLoss(CrossEntropy({"a": 1.0}))(said, {"labels": torch.tensor([0])})
