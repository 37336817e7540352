"""Steps, tokens, disk and hours of a plan, against arithmetic by hand."""

import pytest
from planned_runs import run_of

from debias.plan.effort import effort_of
from debias.plan.planner import make_plan
from debias.plan.sheet import Machine
from debias.plan.table import table_of


def found(run, machine=None, *, length=None, rows=None, validation_rows=None, speed=None):
    return effort_of(
        run, machine or Machine(), length=length, rows=rows, validation_rows=validation_rows, tokens_per_second=speed
    )


def test_steps_and_hours_of_an_epoch():
    run = run_of(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3)
    told = found(run, Machine(gpus=2, nodes=2), rows=1000, speed=500.0)
    assert (told.steps, told.tokens) == (96, 96 * 32 * 32)  # 1,000 rows an epoch, 32 a step; 32 tokens each
    assert told.hours == pytest.approx(96 * 32 * 32 / 500 / 3600)
    assert told.kept == 1000 * (10 * 32 + 48)
    assert (told.tokens_before, told.tokens_asked) == (0, 0)


def test_steps_are_those_of_the_trainer():
    """An epoch ends with a step of its own, however small; where an order has longer epochs nothing is said."""
    assert found(run_of(per_device_train_batch_size=32, num_train_epochs=3), rows=100).steps == 12
    assert found(run_of(per_device_train_batch_size=4, gradient_accumulation_steps=3), rows=41).steps == 4
    assert found(run_of(order={"name": "resampled", "by": "label"}), rows=64).steps is not None
    for order in ({"name": "expanding"}, {"name": "upsampled"}):
        told = found(run_of(order=order), rows=100, speed=10.0)
        assert (told.steps, told.tokens, told.hours) == (None, None, None)
        assert found(run_of(order=order, max_steps=7), rows=100).steps == 7


def test_what_it_does_not_know():
    told = found(run_of(), speed=500.0)
    assert (told.rows, told.steps, told.tokens, told.kept, told.hours) == (None, None, None, None, None)
    told = found(run_of(max_steps=10), length=64, speed=500.0)
    assert told.steps == 10
    assert told.kept is None
    assert told.hours == pytest.approx(10 * run_of().per_device_train_batch_size * 64 / 500 / 3600)
    assert found(run_of(max_steps=10)).hours is None
    limited = run_of(data={"train": {"source": "generated", "limit": 300}})
    assert (found(limited).rows, found(limited, rows=400).rows) == (300, 400)


def test_the_pass_and_the_runs_of_a_bias_model():
    bias = {"name": "first_learned", "steps": 7}
    run = run_of(loss="logit_correction", method="erm", bias_model=bias, max_steps=5)
    told = found(run, rows=90, speed=10.0)
    each = [stage.max_steps * stage.per_device_train_batch_size * 32 for stage in run.bias_stages()]
    assert [stage.max_steps for stage in run.bias_stages()] == [7, 7]
    assert (told.tokens_before, told.tokens_asked) == (sum(each), 90 * 32)
    assert told.hours == pytest.approx((told.tokens + sum(each) + 90 * 32 / 3) / 10 / 3600)
    words = run_of(loss="logit_correction", method="erm", bias_model="lexical")
    assert found(words, rows=90).tokens_asked == 0


def test_a_second_pass_takes_its_time():
    """Of the run alone: what trains before it does so plainly."""
    stage = {"first_stage": {"keep": "errors", "settings": {"max_steps": 3}}, "max_steps": 5, "order": "upsampled"}
    plain, twice = (found(run_of(**stage, **more), rows=90, speed=10.0) for more in ({}, {"sharpness": "sam"}))
    assert (plain.tokens, plain.tokens_before) == (twice.tokens, twice.tokens_before)
    assert twice.hours - plain.hours == pytest.approx(plain.tokens / 10 / 3600)
    for more, passes in (({"smoothness": {"name": "smart", "steps": 2}}, 4), ({"smoothness": "r3f"}, 2)):
        told = found(run_of(**stage, **more, sharpness="sam"), rows=90, speed=10.0)
        assert told.hours - plain.hours == pytest.approx((2 * passes - 1) * plain.tokens / 10 / 3600)


def test_the_first_stage_counts():
    run = run_of(first_stage={"keep": "errors", "settings": {"max_steps": 3}}, max_steps=5, order="upsampled")
    told = found(run, rows=90)
    assert told.tokens_before == 3 * run.per_device_train_batch_size * 32


VALIDATED = {"train": "generated", "validation": {"source": "generated", "limit": 50}}


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"num_train_epochs": 3, "eval_strategy": "epoch"}, 3),
        ({"num_train_epochs": 2.5, "eval_strategy": "epoch"}, 3),  # the part of an epoch is judged as well
        ({"max_steps": 25, "eval_strategy": "epoch"}, 3),
        ({"max_steps": 20, "eval_strategy": "epoch"}, 2),
        ({"max_steps": 25, "eval_strategy": "steps", "eval_steps": 10}, 3),  # and after the last step
        ({"max_steps": 30, "eval_strategy": "steps", "eval_steps": 10}, 3),
        ({"max_steps": 7, "eval_strategy": "steps", "eval_steps": 10}, 1),
        ({"max_steps": 30, "eval_strategy": "steps", "logging_steps": 15}, 2),  # as the Trainer reads what is missing
        ({"max_steps": 25}, 0),
    ],
)
def test_validations_are_passes_over_their_rows(settings, times):
    """Ten steps an epoch: 80 rows, 8 a step."""
    run = run_of(data=VALIDATED, per_device_train_batch_size=8, gradient_accumulation_steps=1, **settings)
    told = found(run, rows=80, speed=10.0)
    assert (told.validations, told.tokens_validated) == (times, times * 50 * 32)
    assert told.hours == pytest.approx((told.tokens + times * 50 * 32 / 3) / 10 / 3600)
    assert found(run, rows=80, validation_rows=70).tokens_validated == times * 70 * 32


def test_validations_of_unknown_rows_are_told_apart():
    unknown = run_of(data={**VALIDATED, "validation": "generated"}, max_steps=20, eval_strategy="epoch")
    told = found(unknown, rows=80, speed=10.0)
    assert told.validations > 0
    assert told.tokens_validated is None
    assert told.hours == pytest.approx(told.tokens / 10 / 3600)
    plan = make_plan(unknown, Machine(gpus=1, cuda=False)).model_copy(update={"effort": told})
    assert [*table_of(plan).columns[0].cells][-1] == "hours of training, at most; validations come on top"
