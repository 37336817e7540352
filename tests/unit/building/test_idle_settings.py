"""What is said of settings that do nothing beside the others; defaults, and what has an effect, are never named."""

from pathlib import Path

import pytest

from debias.building.idle_settings import without_effect
from debias.config.reading import apply_overrides, load_config
from debias.config.run import RunConfig

RECIPES = Path(__file__).parents[3] / "launch" / "recipes"
MINIMAL = {"model": "m", "output_dir": "o", "data": {"train": "generated", "validation": "generated"}}


def said(*overrides):
    return without_effect(RunConfig.model_validate(apply_overrides(MINIMAL, overrides)))


CAUSAL = [
    "head=causal_lm",
    "prompt={template: '{premise} {hypothesis}', verbalizers: {entailment: a, neutral: b, contradiction: c}}",
]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["adapter=full"], []),
        (["lora_r=5"], []),
        (["adapter=full", "lora_r=5"], ["lora_r=5: adapter is full"]),
        (["adapter=bitfit", "lora_alpha=5", "lora_r=8"], ["lora_alpha=5.0: adapter is bitfit"]),
        (["adapter=dora", "lora_r=5"], []),
        (["adapter=beft", "lora_dropout=0.1", "lora_r=8"], ["lora_dropout=0.1: adapter is beft"]),
        (["eval_steps=5"], ["eval_steps=5: eval_strategy is no"]),
        (["eval_steps=5", "eval_strategy=steps"], []),
        (["save_steps=7"], ["save_steps=7: save_strategy is epoch"]),
        (["save_steps=7", "save_strategy=steps", "save_total_limit=3"], []),
        (["save_total_limit=3", "save_strategy=no"], ["save_total_limit=3: save_strategy is no"]),
        (["num_train_epochs=3"], []),
        (["num_train_epochs=3", "max_steps=9"], ["num_train_epochs=3.0: max_steps is 9"]),
        (["warmup_steps=3"], []),
        (
            ["warmup_steps=3", "lr_scheduler_type=constant"],
            ["warmup_steps=3.0: lr_scheduler_type is constant; constant_with_warmup has one"],
        ),
        (["gradients=two_pass"], []),
        (
            ["method=erm", "gradients=two_pass"],
            ["gradients=two_pass: method erm does not look at the bias gradient"],
        ),
        (["method=erm", "debias_head=true"], ["debias_head=True: method erm does not look at the bias gradient"]),
        *(([f"method={name}", "debias_head=true"], []) for name in ("edge", "component_clip", "l2_sp", "digrap")),
        ([*CAUSAL, "answer_probability=geometric_mean"], []),
        (
            [*CAUSAL, "answer_probability=geometric_mean", "method=erm"],
            ["answer_probability=geometric_mean: method erm does not look at the bias gradient"],
        ),
        (
            [*CAUSAL, "answer_probability=geometric_mean", "bias_weight={source: file, column: weight}"],
            ["answer_probability=geometric_mean: bias_weight is of file, not of the model's own answers"],
        ),
        (["per_device_eval_batch_size=8"], ["per_device_eval_batch_size=8: eval_strategy is no"]),
        (["per_device_eval_batch_size=8", "eval_strategy=epoch"], []),
        (
            ["data.train={source: a.csv, seed: 3}"],
            ["data.train.seed=3: it draws the rows of a limit, and data.train has none"],
        ),
        (["data.train={source: a.csv, seed: 3, limit: 9}"], []),
        (["data.train={source: generated, seed: 3}"], []),
        (
            ["data.swap={tokens: ['!!'], spread: 3.0, folds: 4}"],
            ["data.swap.spread=3.0: tokens are given, and none is looked for"],
        ),
        (["data.swap={spread: 3.0}"], []),
        (["data.group_field=domain"], []),
        (
            ["data.group_field=domain", "data.planted_bias={cue: '!!'}"],
            ["data.group_field=domain: data.planted_bias makes the groups"],
        ),
        (
            ["data.train={source: a.csv, split: test}", "data.validation={source: some/hub, split: test}"],
            ["data.train.split=test: a.csv is a file, which has no splits"],
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_said(overrides, expected):
    assert said(*overrides) == expected


PARTIAL = "bias_model={name: partial_input, fields: [hypothesis]}"


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        ([PARTIAL], ["bias_model"]),
        ([PARTIAL, "bias_weight.source=bias_model"], []),
        ([PARTIAL, "eval_strategy=epoch"], []),
        (["bias_model=first_learned", "eval_strategy=epoch"], ["bias_model"]),
        (["bias_model=first_learned", "eval_strategy=epoch", "selection=pseudo_groups"], []),
        (["first_stage={keep: log_p}", "eval_strategy=epoch"], []),
        (["first_stage={keep: errors}", "eval_strategy=epoch"], ["first_stage"]),
        ([PARTIAL, "bias_weight.source=bias_model", "method=erm"], ["bias_weight", "bias_model"]),
        ([PARTIAL, "loss=logit_correction", "method=erm"], []),
        (["first_stage={keep: errors}"], ["first_stage"]),
        (["first_stage={keep: errors}", "order=upsampled"], []),
        (["first_stage={keep: log_p}"], ["first_stage"]),
        (["first_stage={keep: log_p}", "loss=logit_correction"], []),
        ([PARTIAL, "loss=logit_correction", "first_stage={keep: errors}"], ["first_stage"]),
        ([PARTIAL, "loss=confidence_regularization", "first_stage={keep: teacher}"], []),
        ([PARTIAL, "loss=debiased_focal", "first_stage={keep: teacher}"], ["first_stage"]),
        ([PARTIAL, "first_stage={keep: errors}", "order=upsampled"], ["bias_model"]),
    ],
    ids=str,
)
def test_what_is_fitted_or_trained_for_nobody_is_said(overrides, idle):
    assert [line.partition("=")[0] for line in said(*overrides)] == idle


def test_another_bias_weight_for_a_rule_without_bias():
    (line,) = said("method=erm", "bias_weight.q=0.3")
    assert line.startswith("bias_weight=")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_a_recipe_has_an_effect(recipe):
    assert without_effect(load_config(recipe)) == []
