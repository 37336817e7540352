"""What models add to their own loss beside the labels': DebiasTrainer beside the Trainer, which asks the model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import bert, llama, qwen3_moe
from tiny_trainers import trainer_of
from torch import nn
from transformers import Trainer

from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.own_terms import OwnTerms, refuse_own_losses
from debias.losses import Answers, Classification
from debias.methods import Edge, MainOnly
from debias.readouts import add_router_loss, router_loss_of
from debias.sharpness import SAM

torch.set_num_threads(1)

READ = Answers([[5], [6]], mean_over="tokens")


def rows(count=8):
    draw = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(1, 61, (7,), generator=draw)} for _ in range(count)]


def collate(given, *, own):
    ids = torch.stack([row["input_ids"] for row in given])
    mask_BT = (torch.arange(7) >= 5).expand(len(given), 7)
    known = {"labels": torch.where(mask_BT, ids, -100)} if own else {"answer_mask": mask_BT}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **known}


def trained(folder, model, kind, rule=None, **more):
    """What two steps make of a model's weights."""
    given = {"data_collator": lambda given: collate(given, own=kind is Trainer)}
    given |= {} if kind is Trainer else {"readout": READ, **more}
    rule = {} if rule is None else {"rule": rule}
    model, before = model.train(), {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(folder, kind=kind, model=model, data=rows(), remove_unused_columns=False, more=given, **rule)
    trainer.train()
    return {name: p.detach() - before[name] for name, p in model.named_parameters() if p.requires_grad}, trainer


def mixture(asks=True, coefficient=0.5):
    model = qwen3_moe(output_router_logits=asks, router_aux_loss_coef=coefficient, vocab_size=61)
    for p in model.parameters():
        if p.ndim == 3:
            nn.init.normal_(p, std=0.2)
    return model


def adalora(task="CAUSAL_LM"):
    from peft import AdaLoraConfig, get_peft_model

    ranks = {"init_r": 4, "target_r": 2, "total_step": 20, "tinit": 2, "tfinal": 2}
    config = AdaLoraConfig(**ranks, orth_reg_weight=0.5, target_modules=["q_proj"], task_type=task)
    model = get_peft_model(llama(), config)
    for name, p in model.named_parameters():
        if "lora_E" in name:
            nn.init.normal_(p)
    return model


def largest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("made", [mixture, adalora])
def test_what_a_model_adds_to_its_own_loss_trains_as_with_the_trainer(tmp_path, made):
    torch.manual_seed(0)
    model = made()
    theirs, _ = trained(tmp_path / "theirs", copy.deepcopy(model), Trainer)
    ours, trainer = trained(tmp_path / "ours", copy.deepcopy(model), DebiasTrainer, MainOnly())
    without, _ = trained(tmp_path / "without", silenced(copy.deepcopy(model)), DebiasTrainer, MainOnly())
    assert largest(ours, theirs) < 1e-6 < 1e-4 < largest(without, theirs)
    assert router_loss_of(trainer.model) is None  # left as it was
    assert not any(module._forward_pre_hooks for module in trainer.model.modules())


def silenced(model):
    if hasattr(model, "peft_config"):
        model.peft_config["default"].orth_reg_weight = 0.0
    else:
        model.config.output_router_logits = False
    return model


@pytest.mark.parametrize("made", [mixture, adalora])
def test_it_is_a_part_of_main_alone(tmp_path, made):
    """Of a rule that looks at both, auto goes a way that keeps it out of bias; its bias gradient is that without."""
    torch.manual_seed(0)
    model, seen = made(), {}
    for name, one in (("with", model), ("without", silenced(copy.deepcopy(model)))):
        _, trainer = trained(tmp_path / name, copy.deepcopy(one), DebiasTrainer, Edge(), gradients="auto")
        first = trainer.state.log_history[0]
        seen[name] = first["main_norm"], first["bias_norm"]
    assert seen["with"][1] == pytest.approx(seen["without"][1], rel=1e-5)
    assert seen["with"][0] != pytest.approx(seen["without"][0], rel=1e-3)


def test_a_trainer_that_trains_twice_asks_twice(tmp_path):
    model = mixture()
    _, trainer = trained(tmp_path, model, DebiasTrainer, MainOnly())
    trainer.train()
    assert router_loss_of(model) is None
    assert trainer._own_terms.take() is None


def test_a_router_loss_that_somebody_added_stays(tmp_path):
    model = mixture()
    mine = add_router_loss(model, 0.25)
    terms = OwnTerms(model)
    terms.end()
    assert router_loss_of(model) is mine


@pytest.mark.parametrize(
    "made", [lambda: mixture(asks=False), lambda: mixture(coefficient=0.0), lambda: adalora(task=None), llama]
)
def test_nothing_is_asked_for_where_the_trainer_adds_nothing(tmp_path, made):
    model = made()
    assert OwnTerms(model).take() is None
    theirs, _ = trained(tmp_path / "theirs", copy.deepcopy(model), Trainer)
    ours, _ = trained(tmp_path / "ours", copy.deepcopy(model), DebiasTrainer, MainOnly())
    assert largest(ours, theirs) < 1e-6


def test_a_classifier_on_a_mixture_has_no_router_loss_and_needs_none():
    """transformers' own classifiers add none, whatever the configuration says."""
    model = qwen3_moe(classify=True, output_router_logits=True)
    assert OwnTerms(model).take() is None


class Unknown(nn.Module):
    """A model of transformers that adds its routers' loss by a coefficient that lies elsewhere."""

    base_model_prefix = "model"

    def __init__(self, **more):
        super().__init__()
        self.config = SimpleNamespace(text_config=SimpleNamespace(output_router_logits=True), problem_type=None)
        vars(self).update(more)

    def forward(self, input_ids):
        aux_loss = input_ids.float().mean()
        return aux_loss


def test_a_loss_of_routers_that_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^config.output_router_logits is true: how Unknown adds .* set it to false$"):
        OwnTerms(Unknown())


@pytest.mark.parametrize("name", ["z_loss_coefficient", "label_smoothing"])
def test_another_loss_of_a_model_s_own_is_refused_by_name(name):
    refuse_own_losses(Unknown(**{name: 0.0}), READ)
    with pytest.raises(ValueError, match=rf"^{name} of Unknown is 0\.1: .* set it to 0$"):
        refuse_own_losses(Unknown(**{name: 0.1}), READ)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_a_problem_of_another_type_is_refused_by_name(tmp_path, kind):
    with pytest.raises(ValueError, match=f"^config.problem_type is '{kind}'"):
        trainer_of(tmp_path, model=bert(problem_type=kind))

    class Own(Classification):
        """Which reads what it likes."""

    refuse_own_losses(bert(problem_type="single_label_classification"), Classification())
    refuse_own_losses(bert(problem_type=kind), READ)
    with pytest.raises(ValueError, match="problem_type"):
        refuse_own_losses(bert(problem_type=kind), Own())


@pytest.mark.parametrize("given", [{"sharpness": "sam"}, {"deepspeed": True}])
def test_orthogonality_is_refused_where_it_cannot_be_had(given):
    with pytest.raises(ValueError, match=r"^orth_reg_weight is 0\.5: AdaLoRA's orthogonality does not go with"):
        OwnTerms(adalora(), **given)


def test_a_second_pass_is_refused_beside_the_routers_loss(tmp_path):
    more = {"readout": READ, "sharpness": SAM()}
    with pytest.raises(ValueError, match="has no second pass"):
        trainer_of(tmp_path, model=mixture(), data=rows(), more=more)
