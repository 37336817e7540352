"""A run's folder: looking at it changes nothing, opening it does what was decided when it was looked at."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import config_for

from debias.config.reading import dump_config, load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.runs.folder import look, save_trained
from debias.runs.names import ADAPTER, CONFIG, EVAL, METRICS, SUMMARY, checkpoint_at, last_checkpoint


def config(folder: Path, **changes: Any) -> RunConfig:
    return config_for(folder / "bert", folder / "run", **changes)


def begun(folder: Path, steps: int = 0, status: str = "running", **changes: Any) -> Path:
    """A folder as a run of `config` leaves it, with a checkpoint at `steps`."""
    run = folder / "run"
    run.mkdir()
    (run / CONFIG).write_text(dump_config(config(folder, **changes)))
    (run / SUMMARY).write_text(json.dumps({"status": status, "steps": steps}))
    (run / METRICS).touch()
    if steps:
        checkpoint_at(run, steps).mkdir()
        (run / ADAPTER).mkdir()
    return run


def content(folder: Path) -> dict[str, Any]:
    return {str(path): path.is_file() and (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("changes", [{"resume": True}, {"resume": "auto"}, {"overwrite_output_dir": True}])
def test_a_look_writes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = begun(tmp_path, steps=3)
    before = content(tmp_path)
    found = look(config(tmp_path, **changes))
    assert found.held
    assert found.checkpoint == (checkpoint_at(run, 3) if "resume" in changes else None)
    assert content(tmp_path) == before


def test_a_look_makes_no_folder(tmp_path: Path) -> None:
    found = look(config(tmp_path, resume="auto"))
    assert found.config.resume is False
    assert not found.path.exists()
    found.open()
    assert load_config(found.path / CONFIG) == found.config


def test_auto_goes_on_with_what_was_begun(tmp_path: Path) -> None:
    begun(tmp_path)
    assert look(config(tmp_path, resume="auto")).config.resume is True


def test_a_run_that_begins_after_the_look_is_left_alone(tmp_path: Path) -> None:
    found = look(config(tmp_path, overwrite_output_dir=True))
    begun(tmp_path, steps=2)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"holds another run \(running at step 2\)"):
        found.open()
    assert content(tmp_path) == before


def test_what_is_replaced_and_what_is_kept(tmp_path: Path) -> None:
    run = begun(tmp_path, steps=2)
    (run / EVAL).mkdir()
    (run / "notes.txt").write_text("mine")
    look(config(tmp_path, overwrite_output_dir=True)).open()
    assert sorted(path.name for path in run.iterdir()) == [CONFIG, "notes.txt"]


@pytest.mark.parametrize(
    ("status", "steps", "planned", "finished"), [("finished", 4, 4, True), ("failed", 4, 4, False)]
)
def test_the_end_of_the_plan(tmp_path: Path, status: str, steps: int, planned: int, finished: bool) -> None:
    begun(tmp_path, steps, status)
    assert look(config(tmp_path, resume=True, max_steps=planned)).is_finished(64, 1) is finished


def test_a_finished_run_goes_on_to_a_longer_plan(tmp_path: Path) -> None:
    begun(tmp_path, 4, "finished")
    assert not look(config(tmp_path, resume=True, max_steps=9)).is_finished(64, 1)
    with pytest.raises(InputError, match="is at step 4 already, and max_steps or num_train_epochs plan 3"):
        look(config(tmp_path, resume=True, max_steps=3)).is_finished(64, 1)


def test_the_newest_checkpoint_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", ".old-checkpoint-11", "checkpoint-12.part"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(("planned", "kept"), [(4, True), (9, False)])
def test_results_go_where_a_finished_run_trains_on_and_stay_where_it_does_not(tmp_path, caplog, planned, kept):
    run = begun(tmp_path, 4, "finished")
    (run / EVAL).mkdir()
    (run / EVAL / "hans.json").write_text("{}")
    (run / EVAL / ".snli.1.scores").touch()
    found = look(config(tmp_path, resume=True, max_steps=planned))
    if not found.is_finished(64, 1):
        found.open()
    assert (run / EVAL / "hans.json").exists() is kept
    assert (run / EVAL).exists() is kept
    assert ("was judged on 1 suites before" in caplog.text) is not kept


class _Model:
    """What `save_trained` asks of a PEFT model."""

    peft_config = ()

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        save_file({"lora_A": torch.ones(2, 3)}, folder.mkdir() or folder / "adapter_model.safetensors")

    def parameters(self) -> list[Any]:
        return []


def test_results_of_an_adapter_go_with_it(tmp_path: Path) -> None:
    """Somebody judged the old one while the run went on."""
    (tmp_path / EVAL).mkdir()
    (tmp_path / EVAL / "hans.json").write_text("{}")
    save_trained(_Model(), SimpleNamespace(save_pretrained=lambda _: None), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ADAPTER]
