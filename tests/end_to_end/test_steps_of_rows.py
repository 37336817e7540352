"""Which rows make a step: the same however it is cut, and gone on with; of like length where that does no harm."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import adapter_of, cut_off, largest_difference, save_bert, settings_for

from debias.config.run import RunConfig
from debias.data.encode import EncodedExamples
from debias.data.order import LengthBuckets
from debias.data.orders import ORDERS
from debias.losses import LOSSES, make_loss
from debias.losses.base import StepPenalty
from debias.train import train

DATA = {
    "train": {"source": "generated", "limit": 96},
    "planted_bias": {"cue": "!!", "prevalence": 0.5, "strength": 0.6},
}
EARLY = {"max_steps": 3}
# What each order cannot do without, and what makes it see some rows often.
NEEDS: dict[str, dict[str, Any]] = {
    "shuffled": {"order": "shuffled", "loss": "irm"},
    "resampled": {"order": "resampled", "loss": "coral"},
    "upsampled": {"order": {"name": "upsampled", "times": 5}, "first_stage": {"settings": EARLY}},
    "disagreement": {"order": "disagreement", "first_stage": {"keep": "log_p", "settings": EARLY}},
    "spare": {
        "order": "spare",
        "groups": {"name": "spare", "clusters": 2},
        "first_stage": {"keep": "log_p", "settings": EARLY},
    },
    "expanding": {
        "order": {"name": "expanding", "cap": 8, "warmup": 2, "added": 20, "rounds": 1, "stages": 2},
        "loss": "group_dro",
    },
}
COMPARE = {"group_dro", "irm", "coral", "mmd", "pgi", "bias_covariance", "gradient_alignment"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    save_bert(folder / "bert")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    plain = {"data": DATA, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 1, "method": "erm"}
    return settings_for(place / "bert", place / name, **{**plain, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


@pytest.mark.parametrize("name", ORDERS)
def test_cut_or_gone_on_with_a_step_has_the_same_rows(name: str, place: Path) -> None:
    """Over two epochs, and from the middle of the second; micro-batches of four in the place of one of twelve."""
    sgd = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 12, **NEEDS[name]}
    saving = {"save_strategy": "steps", "save_steps": 10, "save_total_limit": None}
    whole = run(settings(place, f"{name}_whole", **sgd, **saving))
    cut = cut_off(whole, place / f"{name}_cut", last=12)
    run(settings(place, cut.name, resume=True, **sgd, **saving))
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    small = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    assert (
        largest_difference(adapter_of(run(settings(place, f"{name}_small", **sgd, **small))), adapter_of(whole)) < 1e-5
    )


@pytest.mark.parametrize(
    ("changes", "by_length"),
    [
        ({}, [True]),
        ({"loss": "focal"}, [True]),
        ({"loss": "coral"}, [False]),
        ({"loss": {"name": "irm", "memory": 0.9}}, [False]),
        (NEEDS["upsampled"], [True, False]),
        (NEEDS["disagreement"], [True, False]),
        ({**NEEDS["disagreement"], "order": "shuffled", "loss": "bias_covariance"}, [True, False]),
        ({**NEEDS["disagreement"], "order": "shuffled", "loss": "logit_correction"}, [True, True]),
        ({"bias_model": {"name": "first_learned", "folds": 1, "steps": 2}, "order": "dpr"}, [True, False]),
    ],
)
def test_steps_are_of_like_length_where_nothing_is_repeated_or_compared(
    changes: dict[str, Any], by_length: list[bool], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run by itself, in the order in which they are trained: what comes before a run is plain."""
    found, usual = [], EncodedExamples.sampler

    def spied(encoded: EncodedExamples, batch_size: int, seed: int) -> LengthBuckets:
        made = usual(encoded, batch_size, seed)
        found.append(made.by_length)
        return made

    monkeypatch.setattr(EncodedExamples, "sampler", spied)
    run({**settings(place, "spied", max_steps=1, **changes), "output_dir": str(tmp_path / "run")})
    assert found == by_length


def test_losses_say_whether_they_compare() -> None:
    """All with statistics of the step, and those that weigh groups by what a step says of each."""
    assert {name for name, loss in LOSSES.items() if loss.compares} == COMPARE
    for name, loss in LOSSES.items():
        assert loss.compares or not (make_loss(name).ahead or issubclass(loss, StepPenalty))
