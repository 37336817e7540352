"""A model's name is resolved once, and its configuration read once."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import save_bert
from transformers import AutoConfig

from debias.errors import InputError
from debias.hub.remote_code import VARIABLE
from debias.models.load import load_model, load_tokenizer
from debias.models.source import ModelSource, resolve_model

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_a_source_is_itself(bert: Path) -> None:
    source = resolve_model(str(bert))
    assert resolve_model(source) is source
    assert source == ModelSource(str(bert), str(bert), False)


def test_trust_is_that_of_the_moment(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(bert))
    assert resolve_model(str(bert)).trusted
    assert not resolve_model("org/other").trusted


@pytest.mark.parametrize(
    ("name", "message"), [("package:bert", "no known package|not a known package"), ("./gone", "is no folder")]
)
def test_a_name_of_nothing(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_model(name)


def test_the_configuration_is_read_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, usual = [], AutoConfig.from_pretrained

    def reading(*given: Any, **settings: Any) -> Any:
        read.append(given)
        return usual(*given, **settings)

    monkeypatch.setattr(AutoConfig, "from_pretrained", reading)
    source = resolve_model(str(bert))
    assert read == []
    first = source.config
    assert source.config is first
    assert len(read) == 1


def test_loading_leaves_the_configuration_as_it_is(bert: Path) -> None:
    source = resolve_model(str(bert))
    before = source.config.to_dict()
    load_tokenizer(source, "classification")
    model = load_model(source, "classification", LABELS)
    assert model.config.num_labels == 3
    assert source.config.to_dict() == before
