"""Groups that a first stage or a bias model says: what loss and order then read, and what they need."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import adapter_of, cut_off, largest_difference, save_bert, settings_for
from train_many import on_ranks

from debias.bias.base import floored
from debias.building.examples import training_examples
from debias.building.groups import FILE
from debias.config.run import RunConfig
from debias.data.examples import labels_of
from debias.data.spare_sampled import SpareSampled
from debias.errors import InputError
from debias.grouping import make_grouping
from debias.grouping.spare import Spare
from debias.losses import GroupDRO
from debias.train import train

DATA = {"train": {"source": "generated", "limit": 96}}  # whose rows have no groups that a run is told
EARLY = {"first_stage": {"keep": "log_p", "settings": {"max_steps": 3}}}
WORDS = {"bias_model": {"name": "partial_input", "fields": ["hypothesis"]}}
DRO = {"method": "erm", "loss": "group_dro"}
EXPANDING = {"name": "expanding", "cap": 4, "warmup": 1, "added": 20, "rounds": 1, "stages": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inferred")
    save_bert(folder / "bert")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    return settings_for(place / "bert", place / name, **{"data": DATA, "per_device_train_batch_size": 12, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


@pytest.mark.parametrize(("early", "file"), [(EARLY, "stages/said.npz"), (WORDS, "bias/partial_input.npz")])
def test_group_dro_is_told_by_what_was_said(
    place: Path, early: dict[str, Any], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups in the run's folder are those of what was kept, and the loss begins with their sizes."""
    begun, begin = [], GroupDRO.begin

    def spied(loss: GroupDRO, facts: Any) -> Any:
        begun.append(facts["group"].tolist())
        return begin(loss, facts)

    monkeypatch.setattr(GroupDRO, "begin", spied)
    asked = settings(place, f"dro_{len(file)}", groups="eiil", **DRO, **early)
    done = run(asked)
    with np.load(done / file) as held:
        log_p_NC = floored(np.exp(held["log_p"])) if early is EARLY else held["log_p"]
    config = RunConfig.model_validate(asked)
    examples = training_examples(config, None)
    single_NC = log_p_NC.astype(np.float32).astype(np.float64)  # the precision of a fact
    wanted = make_grouping("eiil").infer(single_NC, labels_of(examples), config.data.labels, 0)
    assert begun[-1] == wanted.group_N.tolist()
    assert len(wanted.names) > 3
    with np.load(done / "bias" / FILE) as held:
        assert held["group"].tolist() == wanted.group_N.tolist()
        assert tuple(held["names"]) == wanted.names
    assert json.loads((done / "run.json").read_text())["groups"] == {"name": "eiil", "with_labels": True}


def test_groups_that_nobody_reads_ask_nobody(place: Path) -> None:
    """The bias model would ask the run's base, which a run that reads nothing of it does not."""
    learned = {"bias_model": {"name": "first_learned", "steps": 2}}
    done = run(settings(place, "unread", groups="guessed", method="erm", max_steps=1, **learned))
    assert not (done / "bias" / FILE).exists()
    assert not (done / "stages").exists()


def test_spare_draws_by_its_clusters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, drew = [], SpareSampled.epoch

    def spied(order: SpareSampled, facts: Any, generator: Any) -> Any:
        read.append(facts["draw_weight"].numpy())
        return drew(order, facts, generator)

    monkeypatch.setattr(SpareSampled, "epoch", spied)
    spare = {"groups": {"name": "spare", "clusters": 2}, "order": "spare", "method": "erm", **EARLY}
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "max_steps": 4}
    done = run(settings(place, "spare", **spare, **saving))
    with np.load(done / "bias" / FILE) as held:
        assert np.array_equal(read[-1], held["draw_weight"])
    plain = run(settings(place, "even", method="erm", **saving))
    assert largest_difference(adapter_of(done), adapter_of(plain)) > 1e-4


@pytest.mark.parametrize(
    ("early", "planted"), [(EARLY, {}), (WORDS, {"planted_bias": {"prevalence": 0.5, "strength": 0.6}})]
)
def test_an_order_as_long_as_inferred_groups_make_it(
    place: Path, early: dict[str, Any], planted: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a run is finished depends on them: not on groups of the data's own, and known before they are written."""
    caplog.set_level(logging.INFO, "debias")
    asked = {"groups": "guessed", "order": EXPANDING, "method": "erm", "max_steps": -1, "num_train_epochs": 1, **early}
    asked |= {"data": {**DATA, **planted}, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None}
    name = f"expanding_{len(planted)}"
    done = run(settings(place, name, **asked))
    with np.load(done / "bias" / FILE) as held:
        group_N = held["group"]
    label_N = labels_of(training_examples(RunConfig.model_validate(settings(place, name, **asked)), None))
    smallest = min(Counter(zip(label_N, group_N.tolist(), strict=True)).values())
    begun = min(4, smallest) * len(set(zip(label_N, group_N.tolist(), strict=True)))
    seen = begun + min(begun + 20, 96) + min(begun + 40, 96)
    steps = -(-seen // 12)
    assert json.loads((done / "run.json").read_text())["steps"] == steps
    assert caplog.text.count("groups by guessed: ") == 1
    before = adapter_of(done)
    run(settings(place, name, **asked, resume=True))
    assert f"was finished at step {steps} and is left as it is" in caplog.text
    for path in [done / "adapter", *(one for one in done.glob("checkpoint-*") if one.name != "checkpoint-3")]:
        shutil.rmtree(path)
    run(settings(place, name, **asked, resume=True))
    assert largest_difference(adapter_of(done), before) == 0.0


@pytest.mark.slow
def test_a_run_gone_on_with_has_the_same_groups(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from the folder; where they are gone they are made again."""
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "max_steps": 4}
    asked = {"groups": {"name": "spare", "clusters": 2}, **DRO, **EARLY, **saving}
    whole = run(settings(place, "whole", **asked))
    made = []
    infer = Spare.infer
    monkeypatch.setattr(Spare, "infer", lambda *given: made.append(1) or infer(*given))
    for name, gone in (("cut", None), ("bare", FILE)):
        cut = cut_off(whole, place / name)
        if gone:
            (cut / "bias" / gone).unlink()
        run(settings(place, name, **asked, resume=True))
        assert len(made) == bool(gone)
        assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(place: Path) -> None:
    """The first rank makes the groups, and the other reads them."""
    sgd = {"optim": "sgd", "learning_rate": 0.05, "groups": {"name": "spare", "clusters": 2}, **EARLY}
    ways: dict[str, dict[str, Any]] = {"dro": DRO, "drawn": {"order": "spare", "method": "erm"}}
    ways["expanding"] = {"order": EXPANDING, "method": "erm"}
    two = [
        settings(place, f"two_{name}", **{**sgd, **way, "per_device_train_batch_size": 6}) for name, way in ways.items()
    ]
    on_ranks(2, two)
    for name, way in ways.items():
        one = run(settings(place, f"one_{name}", **sgd, **way))
        assert largest_difference(adapter_of(place / f"two_{name}"), adapter_of(one)) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**DRO, "groups": "eiil"},
            "groups eiil are made of what a bias model says, but bias_model is missing; name one",
        ),
        (
            {**DRO, "groups": "eiil", "first_stage": {"keep": "errors"}},
            "groups eiil are made of what a bias model says",
        ),
        ({**DRO, "groups": "eil", **EARLY}, "groups.name is 'eil', not one of guessed, eiil, spare"),
        (DRO, "loss group_dro needs a group of each row; set data.group_field .* or let a bias model say them"),
        ({"order": "spare", **EARLY}, "order spare draws by the clusters of groups spare; set groups: spare"),
        ({"order": "spare", "groups": "eiil", **EARLY}, "order spare draws by the clusters of groups spare"),
        (
            {**DRO, "groups": "guessed", "bias_model": {"name": "groups"}},
            "bias_model groups needs a group of each row|bias_model groups: example .* has no group",
        ),
    ],
)
def test_what_does_not_fit_leaves_nothing(place: Path, changes: dict[str, Any], message: str) -> None:
    data = {"train": str(place / "my.jsonl")}
    row = {"premise": "a b", "hypothesis": "c", "label": "neutral"}
    (place / "my.jsonl").write_text("".join(json.dumps({**row, "hypothesis": str(i)}) + "\n" for i in range(12)))
    with pytest.raises((InputError, ValueError), match=message):
        run(settings(place, "refused", data=data, **changes))
    assert not (place / "refused").exists()


def test_groups_that_nobody_reads_are_named(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "debias")
    run(settings(place, "idle", method="erm", groups="guessed", loss="logit_correction", **WORDS))
    assert "groups={'name': 'guessed', 'by': 'guess'}: neither the loss nor the order reads groups" in caplog.text
    assert "groups by guessed: " not in caplog.text
