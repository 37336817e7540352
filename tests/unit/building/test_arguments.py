"""TrainingArguments of a run do not depend on the runs that the process made before."""

import os
from pathlib import Path

import pytest
from tiny_runs import config_for
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_zero3_enabled

from debias.building import arguments
from debias.building.arguments import USE_DEEPSPEED, training_arguments

pytest.importorskip("deepspeed")


def test_a_plain_run_after_one_with_deepspeed_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USE_DEEPSPEED, "true")  # as accelerate leaves it behind
    left = HfTrainerDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # as TrainingArguments leaves it behind
    assert is_deepspeed_zero3_enabled()
    made = training_arguments(config_for(tmp_path, tmp_path / "run"))
    assert made.deepspeed_plugin is None
    assert USE_DEEPSPEED not in os.environ
    assert left.is_zero3()
    assert not is_deepspeed_zero3_enabled()


def test_what_the_launcher_said_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_ASKED_FOR_DEEPSPEED", "false")
    monkeypatch.setenv(USE_DEEPSPEED, "true")
    training_arguments(config_for(tmp_path, tmp_path / "run"))
    assert os.environ[USE_DEEPSPEED] == "false"
