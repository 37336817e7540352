"""Tiny models on the disk, made once."""

from pathlib import Path

import pytest
import tiny_runs
from command_line import Command, command_line


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of width 16 without dropout."""
    return tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def bert_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dropout, so that the random state matters."""
    folder = tmp_path_factory.mktemp("models") / "bert_dropout"
    return tiny_runs.save_bert(folder, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 32."""
    return tiny_runs.save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""
    return command_line(monkeypatch, capsys)
