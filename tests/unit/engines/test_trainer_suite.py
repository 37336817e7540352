"""The script that runs transformers' own tests of its Trainer, on a checkout of three tests."""

import importlib
import sys

import pytest

suite = importlib.import_module("run_trainer_suite")

TESTS = """
import pytest
import transformers

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


@pytest.mark.slow
def test_a_checkout_is_run_with_and_without(tmp_path, monkeypatch, capfd):
    (tmp_path / "tests" / "trainer").mkdir(parents=True)
    (tmp_path / "tests" / "trainer" / "test_small.py").write_text(TESTS, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_trainer_suite.py", str(tmp_path), "-p", "no:cacheprovider"])
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 1
    told = capfd.readouterr().out.splitlines()
    assert [line for line in told if " -> " in line] == [
        line for line in told if "test_the_trainer_alone: passed -> " in line and "InItsPlace" in line
    ]
    assert told[-1] == "4 tests, 1 pass with DebiasTrainer, 1 differ from the Trainer"


def test_what_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_trainer_suite.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no tests/trainer; give a clone of transformers"):
        suite.main()
