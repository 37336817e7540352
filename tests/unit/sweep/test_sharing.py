"""Which finished run's answers of a bias model are laid in a new run's folder."""

import json

import pytest
import yaml

from debias.runs.data_files import BASE
from debias.runs.digests import weights_digest
from debias.sweep.grid import PlannedRun, plan_sweep
from debias.sweep.sharing import take_over

ASKED = {"bias_model": {"name": "lexical"}, "loss": {"name": "logit_correction"}}


@pytest.fixture
def planned(tmp_path):
    def plan(seeds=(0,), grid=(("loss.tau=1",), ("loss.tau=0.5",)), **changes) -> list[PlannedRun]:
        recipe = {"model": "m", "data": {"train": {"source": "generated", "limit": 9}}, "output_dir": "x"}
        (tmp_path / "bed.yaml").write_text(yaml.safe_dump({**recipe, **ASKED, **changes}))
        return plan_sweep([tmp_path / "bed.yaml"], seeds, grid, tmp_path / "out")

    return plan


def finish(run, status="finished"):
    for name in ("adapter", "bias"):
        (run.folder / name).mkdir(parents=True)
    (run.folder / "config.yaml").write_text("")
    (run.folder / "run.json").write_text(json.dumps({"status": status}))
    (run.folder / "bias" / "lexical.npz").write_text(run.name)


def test_the_answers_of_a_finished_run_are_laid_there_whole(planned):
    first, second = planned()
    take_over([first, second], second)
    assert not second.folder.exists()  # nobody has asked yet
    finish(first)
    take_over([first, second], second)
    assert (second.folder / "bias" / "lexical.npz").read_text() == first.name
    assert [path.name for path in second.folder.iterdir()] == ["bias"]


@pytest.mark.parametrize(
    "grid",
    [
        (("loss.tau=1",), ("bias_model.folds=3",)),
        (("loss.tau=1",), ("max_length=64",)),
        (("loss.tau=1",), ("data.train.limit=8",)),
        (("loss.tau=1",), ("model=n",)),
        (("loss.tau=1",), ("bias_model=null",)),
    ],
)
def test_another_question_has_other_answers(planned, grid):
    if grid[1][0] == "bias_model=null":
        grid = (("loss=cross_entropy",), ("loss=cross_entropy", "bias_model=null"))
    first, second = planned(grid=grid)
    finish(first)
    take_over([first, second], second)
    assert not second.folder.exists()


def test_another_seed_and_an_unfinished_run_have_other_answers(planned):
    first, second, other, _ = planned(seeds=(0, 1))
    finish(first)
    take_over([first, second, other], other)
    assert not other.folder.exists()
    (first.folder / "run.json").write_text('{"status": "interrupted"}')
    take_over([first, second, other], second)
    assert not second.folder.exists()


def test_what_cannot_be_copied_is_asked_anew(planned, monkeypatch, caplog):
    first, second = planned()
    finish(first)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("debias.sweep.sharing.shutil.copytree", full)
    take_over([first, second], second)
    assert not second.folder.exists()
    assert "asks its bias model anew" in caplog.text


def test_what_somebody_else_has_begun_there_stays(planned, caplog):
    first, second = planned()
    finish(first)
    second.folder.mkdir(parents=True)
    (second.folder / "config.yaml").write_text("theirs")
    take_over([first, second], second)
    assert [path.name for path in second.folder.iterdir()] == ["config.yaml"]
    assert "asks its bias model anew" in caplog.text


def test_answers_of_a_base_whose_weights_have_changed_since_are_not_taken(planned, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"first")
    first, second = planned(model=str(base))
    finish(first)
    (first.folder / "run.json").write_text(json.dumps({"status": "finished", BASE: weights_digest(base)}))
    (base / "model.safetensors").write_bytes(b"second")
    take_over([first, second], second)
    assert not second.folder.exists()
