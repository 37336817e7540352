"""The script that runs transformers' own tests of its Trainer, on a checkout of three tests."""

import importlib
import sys

import pytest
import torch
from in_the_place_of_trainer import InItsPlace, ItsOwnLoss
from tiny_trainers import examples, trainer_of
from torch import nn
from transformers import Trainer

from debias.methods import MainOnly

suite = importlib.import_module("run_trainer_suite")
names = importlib.import_module("names_of_another_version")

TESTS = """
import pytest
import transformers
from transformers import OfAnotherVersion

def test_of_another_version():
    OfAnotherVersion()

def test_both():
    assert transformers.Trainer.__mro__

def test_the_trainer_alone():
    assert transformers.Trainer.__name__ == "Trainer"

def test_neither():
    assert False, transformers.Trainer.__name__

@pytest.mark.skip
def test_skipped():
    pass
"""


def test_what_differs_is_told():
    plain = {"a": "passed", "b": "passed", "c": "failed: x", "d": "skipped", "e": "failed: x"}
    ours = {"a": "passed", "b": "failed: y", "c": "failed: y", "d": "skipped", "f": "passed"}
    assert suite.differences(plain, ours) == [
        "b: passed -> failed: y",
        "e: failed: x -> not run",
        "f: not run -> passed",
    ]


class Line(nn.Module):
    """A regression that answers with a tuple, as the suite's models do."""

    def __init__(self):
        super().__init__()
        self.config, self.slope = None, nn.Parameter(torch.zeros(6))

    def forward(self, input_ids, labels=None):
        y = input_ids.float() @ self.slope
        return (y,) if labels is None else (nn.functional.mse_loss(y, labels.float()), y)


def test_a_model_without_classes_is_trained_on_its_own_loss(tmp_path):
    """Weights, losses and the evaluation are the Trainer's."""
    ends = []
    for kind, given in ((Trainer, {}), (InItsPlace, {"rule": MainOnly(), "readout": ItsOwnLoss()})):
        arguments = {"learning_rate": 1e-5, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "max_steps": 3}
        trainer = trainer_of(tmp_path, kind=kind, model=Line(), more=given, **arguments)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        ends.append([*trainer.model.slope.tolist(), *losses, trainer.evaluate(examples(4))["eval_loss"]])
    assert len(ends[0]) == 6 + 3 + 1
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)


@pytest.mark.slow
def test_a_checkout_is_run_with_and_without(tmp_path, monkeypatch, capfd):
    (tmp_path / "tests" / "trainer").mkdir(parents=True)
    (tmp_path / "tests" / "trainer" / "test_small.py").write_text(TESTS, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_trainer_suite.py", str(tmp_path), "-p", "no:cacheprovider"])
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 1
    told = capfd.readouterr().out.splitlines()
    (line,) = [line for line in told if line.startswith("tests.trainer.") and " -> " in line]
    assert line.startswith("tests.trainer.test_small::test_the_trainer_alone: passed -> ")
    assert "InItsPlace" in line
    assert told[-1] == "5 tests, 1 pass with DebiasTrainer, 1 differ from the Trainer"


def test_names_of_another_version_are_there_and_fail_where_they_are_used(tmp_path):
    (tmp_path / "test_a.py").write_text("import transformers\nfrom transformers.trainer import Trainer, Gone as Here\n")
    (tmp_path / "test_b.py").write_text("if True:\n    from transformers import (\n        AutoModel,\n        Gone)\n")
    (tmp_path / "test_c.py").write_text("from transformersnot import Gone\nfrom . import Gone\n")
    wanted = [("trainer", "Trainer"), ("trainer", "Gone"), ("", "AutoModel"), ("", "Gone")]
    assert list(names.imported(tmp_path)) == [(f"transformers.{place}".rstrip("."), name) for place, name in wanted]
    kind = names.absent("transformers", "Gone")
    with pytest.raises(NotImplementedError, match=r"the installed transformers has no transformers\.Gone"):
        kind("any", thing=1)


def test_what_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_trainer_suite.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no tests/trainer; give a clone of transformers"):
        suite.main()
