"""What people import by name, and what `train` may be given."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import debias
import debias.train
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError

SETTINGS = {"model": "m", "output_dir": "runs/o", "data": {"train": "mine.jsonl"}, "method": "subtract"}


@pytest.fixture
def asked(monkeypatch):
    """What would have been trained: the settings, and the folder that their paths are relative to."""
    found = []
    monkeypatch.setattr("debias.train._train", lambda config, base, stop: found.append((config, base)))
    return found


def test_every_name_of_the_package_is_there():
    assert all(getattr(debias, name) is not None for name in debias.__all__)
    from debias import DebiasTrainer, Edge, attach
    from debias.engines import attach as engines_attach
    from debias.engines.hf_trainer import DebiasTrainer as Trainer
    from debias.methods import Edge as Rule

    assert (Edge, attach, DebiasTrainer) == (Rule, engines_attach, Trainer)
    with pytest.raises(AttributeError, match="no attribute 'Egde'"):
        _ = debias.Egde


def test_the_package_itself_loads_nothing_heavy():
    code = "import sys, debias; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("form", [dict, str, Path, RunConfig])
def test_train_takes_settings_in_every_form(asked, tmp_path, form):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    given = {dict: SETTINGS, str: str(file), Path: file, RunConfig: RunConfig.model_validate(SETTINGS)}[form]
    debias.train.train(given)
    debias.train.train(given, base=tmp_path / "data")
    (config, base), (again, other) = asked
    assert config == again == load_config(file)
    assert base == (tmp_path if form in (str, Path) else None)
    assert other == tmp_path / "data"


def test_train_takes_a_recipe_by_its_name(asked):
    debias.train.train("qwen3_8b_qlora_edge")
    assert asked[0][0].model == "Qwen/Qwen3-8B"
    assert asked[0][1].name == "recipes"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**SETTINGS, "metod": "edge"}, "config: metod: unknown key; did you mean method"),
        ({"model": "m"}, "config: data: missing"),
        ("no_such_recipe", "no_such_recipe: no such file here, and no recipe of that name"),
        ("gone/run.yaml", "run.yaml: no such file"),
        (["model"], "config: expected a RunConfig, a mapping of settings or a file, got list"),
        (None, "got NoneType"),
    ],
    ids=str,
)
def test_what_train_cannot_read(asked, given, words):
    with pytest.raises(InputError, match=words):
        debias.train.train(given)
    assert asked == []
