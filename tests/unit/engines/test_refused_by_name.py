"""What cannot be trained with, and used to end in an error of somebody else's code: one line that says what to do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import Mlp, bert_lora, llama
from tiny_trainers import collate, examples, trainer_of
from torch import nn

from debias import attach
from debias.engines.nearby import Nearby, is_reentrant
from debias.losses import MMD, Answers, Classification, Coral, cross_entropy, gce_weight
from debias.methods import DiGraP, Edge, GradVac
from debias.readouts import Said, inputs_and_facts
from debias.smoothness import R3F, SMART

torch.set_num_threads(1)


def one_line(told: Any) -> str:
    assert "\n" not in str(told.value)
    return str(told.value)


# --- labels that are no class's number


WRONG = (-100, -1, 3, 7)


@pytest.mark.parametrize("label", WRONG)
@pytest.mark.parametrize("doing", ["train", "evaluate", "predict"])
def test_a_label_that_is_no_class_s_number(tmp_path: Any, label: int, doing: str) -> None:
    rows = examples(8)
    rows[5]["labels"] = label
    trainer = trainer_of(tmp_path, data=rows, more={"eval_dataset": rows})
    with pytest.raises(ValueError, match=rf"the fact 'labels' holds {label}, and must be 0 to 2") as told:
        trainer.predict(rows) if doing == "predict" else getattr(trainer, doing)()
    one_line(told)


@pytest.mark.parametrize("label", WRONG)
def test_a_label_that_is_no_class_s_number_in_a_loop(label: int) -> None:
    """PyTorch's -100 would have loss 0 there, the weight of the easiest sample, and a place in the mean."""
    with pytest.raises(ValueError, match=rf"holds {label}, and must be 0 to 2") as told:
        cross_entropy(torch.randn(3, 3), torch.tensor([1, label, 2]))
    one_line(told)


def test_what_cross_entropy_takes_beside_class_numbers() -> None:
    logits_BC = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    shares_BC = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    want = -(shares_BC * torch.log_softmax(logits_BC, dim=1)).sum(dim=1)
    torch.testing.assert_close(cross_entropy(logits_BC, shares_BC), want)


@pytest.mark.parametrize("label", WRONG)
def test_a_label_that_is_no_answer_s_number(label: int) -> None:
    batch = {
        "input_ids": torch.randint(1, 61, (3, 5)),
        "answer_mask": (torch.arange(5) >= 4).expand(3, 5),
        "labels": torch.tensor([0, 1, label]),
    }
    with pytest.raises(ValueError, match=rf"holds {label}, and must be 0 to 2"):
        Answers([[5], [6], [7]]).said(llama(), batch, every_label=True)


# --- readouts without classes


class Distance:
    """Regression: minus the squared distance stands for a log-probability."""

    def said(self, model: Any, batch: Any, *, every_label: bool = False) -> Said:
        inputs, facts = inputs_and_facts(batch)
        log_p_B = -((model(**inputs).logits[:, 0] - facts["labels"]) ** 2)
        return Said(log_p_B, log_p_B.detach(), len(log_p_B))

    def check_every_label(self) -> None:
        raise ValueError("no classes")

    def label_scores(self, model: Any, batch: Any) -> Any:
        return model(**inputs_and_facts(batch)[0]).logits[:, :1]


def test_a_readout_without_classes_is_evaluated(tmp_path: Any) -> None:
    rows = [{**row, "labels": float(row["labels"]) / 3} for row in examples(10)]
    trainer = trainer_of(tmp_path, data=rows, more={"readout": Distance(), "eval_dataset": rows})
    trainer.train()
    batch = collate(rows)
    with torch.no_grad():
        said_B = trainer.model(batch["input_ids"]).logits[:, 0]
    told = trainer.predict(rows)
    assert told.predictions[:, 0].tolist() == pytest.approx(said_B.tolist(), rel=1e-5)
    want = sum((one - row["labels"]) ** 2 for one, row in zip(said_B.tolist(), rows, strict=True)) / len(rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-5)
    assert told.metrics["test_loss"] == pytest.approx(want, rel=1e-5)


def test_a_readout_of_classes_still_wants_their_numbers(tmp_path: Any) -> None:
    rows = [{**row, "labels": float(row["labels"])} for row in examples(4)]
    with pytest.raises(ValueError, match=r"'labels' is torch.float32 \[4\], and must be"):
        trainer_of(tmp_path, more={"eval_dataset": rows}).evaluate()


# --- optimizers


class Asks(torch.optim.SGD):
    """Somebody's own, whose step computes the loss anew."""

    def step(self, closure: Any) -> Any:
        return super().step(closure)


class Wrapper:
    def __init__(self, **held: Any) -> None:
        vars(self).update(held)
        self.param_groups = next(iter(held.values())).param_groups

    def step(self, closure: Any = None) -> None:
        """As Accelerate's and Fabric's."""


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, Asks])
@pytest.mark.parametrize("held", ["", "optimizer", "_optimizer"])
def test_an_optimizer_that_needs_a_closure(kind: Any, held: str) -> None:
    model = Mlp()
    optimizer = kind(model.parameters(), lr=0.1)
    wanted = rf"attach: {kind.__name__}.step needs a closure.* use another optimizer"
    with pytest.raises(ValueError, match=wanted) as told:
        attach(model, Wrapper(**{held: optimizer}) if held else optimizer, Edge())
    one_line(told)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SparseAdam])
def test_an_optimizer_that_may_have_one(kind: Any) -> None:
    model = Mlp()
    attach(model, kind(model.parameters(), lr=0.1), Edge()).detach()


def without_rate(model: nn.Module) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(model.parameters())


def test_a_rule_that_reads_no_rate_needs_none() -> None:
    """Adafactor of transformers finds its own, and `lr` is None; GradVac's memory is of angles alone."""
    taken = []
    for rate in (None, 0.1):
        model = Mlp()
        optimizer = without_rate(model) if rate is None else torch.optim.SGD(model.parameters(), lr=rate)
        hook = attach(model, optimizer, GradVac())
        for seed in range(2):
            torch.manual_seed(seed)
            loss_B = cross_entropy(model(torch.randn(4, 5)), torch.tensor([0, 1, 2, 0]))
            hook.backward(loss_B, gce_weight(-loss_B))
            if not seed:
                taken.append(hook.combine().removed_share)
                model.zero_grad()
            else:
                assert hook.step().finite
    assert taken[0] == taken[1]


def test_a_rule_that_reads_a_rate_says_so() -> None:
    model = Mlp()
    with pytest.raises(ValueError, match="digrap needs the learning rate of each step, and lr of Adafactor is None"):
        attach(model, without_rate(model), DiGraP())


# --- reentrant checkpointing


def test_smart_beside_reentrant_checkpointing(tmp_path: Any) -> None:
    settings = {"use_reentrant": True}
    model = bert_lora()
    for way in ("gradient_checkpointing", "activation_checkpointing"):
        arguments = SimpleNamespace(**{way: True, f"{way}_kwargs": settings})
        assert is_reentrant(model, arguments)
        assert not is_reentrant(model, SimpleNamespace(**{way: False, f"{way}_kwargs": settings}))
        assert not is_reentrant(model, SimpleNamespace(**{way: True, f"{way}_kwargs": None}))
    checkpointed = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": settings}
    with pytest.raises(ValueError, match=r"^smoothness smart takes a gradient .* use_reentrant=False$"):
        trainer_of(tmp_path, model=model, more={"smoothness": SMART()}, **checkpointed)
    trainer_of(tmp_path, model=model, more={"smoothness": R3F()}, **checkpointed)  # takes none
    model.gradient_checkpointing_enable(settings)
    with pytest.raises(ValueError, match="smoothness smart takes a gradient"):
        Nearby(model, Classification(), SMART())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    Nearby(model, Classification(), SMART())


# --- hidden states of pictures


@pytest.mark.parametrize("loss", [Coral(), MMD()], ids=lambda loss: loss.name)
def test_hidden_states_of_a_convolution(tmp_path: Any, loss: Any) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], num_labels=3)
    rows = [{"pixel_values": torch.randn(3, 16, 16).tolist(), "labels": n % 3, "group": n % 2} for n in range(8)]
    trainer = trainer_of(tmp_path, model=ResNetForImageClassification(config), data=rows, more={"loss": loss})
    with pytest.raises(ValueError, match=r"hidden states of samples and tokens, and this model's are \[4, 6,") as told:
        trainer.train()
    one_line(told)
