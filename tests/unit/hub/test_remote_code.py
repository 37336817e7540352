"""A model that brings code along: run where the user named that very model, and nowhere else."""

import json
from pathlib import Path

import pytest
import tiny_runs

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import load_examples
from debias.errors import InputError
from debias.fetch import _model_files
from debias.hub.remote_code import VARIABLE, trusted
from debias.inference.loading import hub_config, load_run
from debias.merging.fold import merge_run
from debias.models.load import load_model, load_tokenizer
from debias.plan.planner import make_plan
from debias.plan.sheet import Machine
from debias.train import train

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A Llama whose class is its folder's own."""
    folder = tiny_runs.save_llama(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    kinds = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    changes = {"model_type": "own", "auto_map": kinds, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "own.py").write_text(CODE)
    return folder


def config_of(own: Path, output: Path) -> RunConfig:
    answers = {"entailment": " yes", "neutral": " maybe", "contradiction": " no"}
    prompt = {"template": "{premise} {hypothesis}", "verbalizers": answers}
    targets = {"type": "lora", "targets": ["q_proj", "down_proj"]}
    settings = {"head": "causal_lm", "prompt": prompt, "adapter": targets, "max_steps": 2}
    return tiny_runs.config_for(own, output, **settings)


@pytest.mark.parametrize(
    ("named", "answer"),
    [
        ("org/model", True),
        ("other, org/model", True),
        ("", False),
        ("1", False),
        ("true", False),
        ("org", False),
        ("org/model-2", False),
        ("ORG/MODEL", False),
    ],
)
def test_the_very_name(named: str, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, named)
    assert trusted("org/model") is answer
    monkeypatch.delenv(VARIABLE)
    assert not trusted("org/model")


def test_a_folder_by_its_place(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("./own", str(own), f"{tmp_path}/../{tmp_path.name}/own"):
        monkeypatch.setenv(VARIABLE, path)
        assert trusted(str(own))
        assert trusted("own")
    assert not trusted(str(tmp_path))
    assert not trusted(str(tmp_path / "gone"))


def test_a_folder_is_not_what_the_hub_has_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers prefers a folder `org/model` of the working directory, which may be from anybody."""
    monkeypatch.setenv(VARIABLE, "org/model")
    monkeypatch.chdir(tmp_path)
    assert trusted("org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not trusted("org/model")


def test_what_is_said_gives_the_words_to_type(own: Path) -> None:
    for load in (lambda: load_model(str(own), "causal_lm", ["a", "b"]), lambda: hub_config(str(own))):
        with pytest.raises(InputError, match=f"{VARIABLE}={own}"):
            load()


def test_a_setting_is_none(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {own}\noutput_dir: out\ndata: {{train: generated}}\ntrust_remote_code: true\n")
    with pytest.raises(InputError, match=f"trust_remote_code: no setting, .*{VARIABLE}=MODEL"):
        load_config(file)


def test_its_code_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model.safetensors": 9, "config.json": 1, "own.py": 1, "tests/test_own.py": 1}
    assert "own.py" not in _model_files("org/own", files, "0" * 40)
    monkeypatch.setenv(VARIABLE, "org/own")
    assert "own.py" in _model_files("org/own", files, "0" * 40)
    assert "tests/test_own.py" not in _model_files("org/own", files, "0" * 40)


@pytest.mark.slow
def test_a_whole_run(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned, trained, judged and merged; each is refused again as soon as the name is gone."""
    config = config_of(own, tmp_path / "run")
    monkeypatch.setenv(VARIABLE, str(own))
    assert make_plan(config, Machine(gpu_memory=10**10)).fits
    assert load_tokenizer(str(own), "causal_lm").pad_token
    run = train(config)
    assert json.loads((run / "run.json").read_text())[VARIABLE] == str(own)
    examples = load_examples(config.data.train, config.data)[:2]
    assert load_run(run).label_scores(examples).shape == (2, 3)
    merged = merge_run(run, tmp_path / "merged")
    assert merged.agreeing == 1.0
    assert (tmp_path / "merged" / "own.py").is_file()
    monkeypatch.delenv(VARIABLE)
    for step in (
        lambda: train(config_of(own, tmp_path / "again")),
        lambda: make_plan(config, Machine(gpu_memory=10**10)),
        lambda: load_run(run),
        lambda: merge_run(run, tmp_path / "again"),
    ):
        with pytest.raises(InputError, match="it needs code of its own"):
            step()
