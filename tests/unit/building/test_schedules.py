"""The learning rate's schedule: tried before anything is loaded, each of transformers' with what it needs."""

import pytest
from transformers import SchedulerType

from debias.building.arguments import training_arguments
from debias.building.idle_settings import without_effect
from debias.building.schedules import check_schedule
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError

MINIMAL = {"model": "m", "output_dir": "o", "data": {"train": "generated", "validation": "generated"}}
# What the schedules need that cannot do without a setting.
NEED = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
    "warmup_stable_decay": {"num_decay_steps": 10},
}
VALIDATED = {"eval_strategy": "epoch"}


def config(kind, **changes):
    return RunConfig.model_validate({**MINIMAL, "lr_scheduler_type": kind, **changes})


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_every_schedule_says_what_it_lacks_and_takes_what_it_needs(kind):
    """In one line that names the setting; a new schedule of transformers that needs one is found here."""
    settings = NEED.get(kind, {})
    check_schedule(config(kind, lr_scheduler_kwargs=settings, **VALIDATED))
    if settings:
        with pytest.raises(InputError, match=r"lr_scheduler_(type|kwargs) is") as told:
            check_schedule(config(kind, **VALIDATED))
        assert "\n" not in str(told.value)
        assert any(name in str(told.value) for name in settings)
    with pytest.raises(InputError, match=r"lr_scheduler_kwargs.*" + kind):
        check_schedule(config(kind, lr_scheduler_kwargs={**settings, "cycels": 2}, **VALIDATED))


@pytest.mark.parametrize(
    ("written", "number"), [("1e-5", 1e-5), ("2E3", 2000.0), ("1.5e+0", 1.5), (".5e0", 0.5), ("3", 3), ("0.1", 0.1)]
)
def test_numbers_as_people_write_them(tmp_path, written, number):
    plain = "model: package:minilm\noutput_dir: out\ndata: {train: generated}\n"
    (tmp_path / "run.yaml").write_text(f"{plain}lr_scheduler_kwargs: {{min_lr: {written}, mode: max}}\n")
    assert load_config(tmp_path / "run.yaml").lr_scheduler_kwargs == {"min_lr": number, "mode": "max"}
    told = load_config(tmp_path / "run.yaml", [f"lr_scheduler_kwargs={{min_lr: {written}}}"])
    assert told.lr_scheduler_kwargs == {"min_lr": number}


@pytest.mark.parametrize(
    ("kind", "settings", "changes", "words"),
    [
        ("polynomial", {"lr_end": 1.0}, {}, "lr_end"),
        ("cosine", {"num_cycles": "many"}, {}, "lr_scheduler_kwargs is .*many.*'cosine' cannot take it"),
        ("linear", {"num_cycles": 2}, {}, "lr_scheduler_kwargs.num_cycles: no setting of 'linear'; it has none"),
        ("cosine", {"power": 2}, {}, "lr_scheduler_kwargs.power: no setting of 'cosine'; it has num_cycles"),
        ("reduce_lr_on_plateau", {}, {}, "follows the loss on data.validation; set eval_strategy"),
        ("greedy", {}, {}, "follows the loss on data.validation; set eval_strategy"),
        (
            "reduce_lr_on_plateau",
            {},
            {"selection": "validation", **VALIDATED},
            r"grows as it gets better; set lr_scheduler_kwargs: \{mode: max\}",
        ),
    ],
)
def test_what_a_schedule_cannot_take(kind, settings, changes, words):
    with pytest.raises(InputError, match=words):
        check_schedule(config(kind, lr_scheduler_kwargs=settings, **changes))


def test_the_settings_reach_the_schedule():
    from transformers import get_scheduler

    given = config("cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.25}, learning_rate=0.5)
    arguments = training_arguments(given)
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, 0, 4, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs
    )
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.125)]


def test_a_warmup_that_a_schedule_has_not():
    said = without_effect(config("greedy", warmup_steps=5, **VALIDATED))
    assert said == ["warmup_steps=5.0: lr_scheduler_type is greedy; constant_with_warmup has one"]
