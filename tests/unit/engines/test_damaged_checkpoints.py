"""What may have become of a checkpoint before a run goes on from it: one line that names the file, and no traceback."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import bert_lora
from tiny_trainers import Ordered, Words, examples, trainer_of

from debias.adapters.loading import adapter_tensors
from debias.errors import InputError
from debias.methods import DiGraP, Edge

torch.set_num_threads(1)
ADAPTER = "adapter_model.safetensors"


def trainer(folder, model, steps):
    saving = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "max_steps": steps}
    rule = DiGraP() if hasattr(model, "peft_config") else Edge()
    return trainer_of(folder, model=model, rule=rule, data=Ordered(examples()), **saving)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of four steps with an adapter, and one of a whole model; checkpoints of the second and the fourth."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("adapter", bert_lora()), ("whole", Words())):
        trainer(folder / name, model, 4).train()
    return folder


def resume(runs, folder, kind, damage):
    """Go on to the sixth step from a copy whose newest checkpoint was damaged."""
    shutil.copytree(runs / kind, folder)
    damage(folder / "checkpoint-4")
    return trainer(folder, bert_lora() if kind == "adapter" else Words(), 6).train(resume_from_checkpoint=True)


def cut(name):
    def damage(checkpoint):
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def gone(name):
    return lambda checkpoint: (checkpoint / name).unlink()


def holding(name, text):
    return lambda checkpoint: (checkpoint / name).write_text(text, encoding="utf-8")


def tensors(change, name=ADAPTER):
    def damage(checkpoint):
        held = load_file(checkpoint / name)
        change(held)
        save_file(held, checkpoint / name)

    return damage


def narrower(held):
    first = min(name for name in held if held[name].ndim == 2)
    held[first] = held[first][:, 1:].contiguous()


def optimizer(change):
    def damage(checkpoint):
        state = torch.load(checkpoint / "optimizer.pt")
        change(state)
        torch.save(state, checkpoint / "optimizer.pt")

    return damage


def pickled(checkpoint):
    torch.save(load_file(checkpoint / ADAPTER), checkpoint / "adapter_model.bin")
    (checkpoint / ADAPTER).unlink()


DAMAGES = {
    "state cut": (cut("trainer_state.json"), "trainer_state.json is cut short or is no JSON"),
    "state of nothing": (holding("trainer_state.json", "[]"), "trainer_state.json does not say at which step"),
    "no state": (gone("trainer_state.json"), "trainer_state.json cannot be read: No such file"),
    "adapter cut": (cut(ADAPTER), "adapter_model.safetensors is cut short or damaged"),
    "another shape": (tensors(narrower), r"lora_A.weight has shape \[3, \d+\], this run's model has \[3, \d+\]"),
    "a tensor gone": (tensors(lambda held: held.pop(min(held))), r"are not there \(1 such tensors\)"),
    "pickled": (pickled, "adapter_model.bin is a pickle, which is not read; save its tensors as adapter_model.saf"),
    "no adapter": (gone(ADAPTER), "the model's file does not fit or cannot be read"),
    "optimizer cut": (cut("optimizer.pt"), "optimizer.pt is cut short"),
    "no optimizer": (gone("optimizer.pt"), "there is no optimizer.pt, which training goes on from"),
    "moments": (
        optimizer(lambda state: state["state"][0].update(exp_avg_sq=torch.zeros(2, 2))),
        r"optimizer.pt is of other parameters: exp_avg_sq has shape \[2, 2\]",
    ),
    "another optimizer": (
        optimizer(lambda state: state["param_groups"][0]["params"].pop()),
        "optimizer.pt or scheduler.pt does not fit",
    ),
    "schedule cut": (cut("scheduler.pt"), "scheduler.pt is cut short"),
    "random numbers cut": (cut("rng_state.pth"), "rng_state.pth is cut short"),
    "counts cut": (cut("step_counts.json"), "step_counts.json does not fit or cannot be read"),
    "rule cut": (cut("rule_state.safetensors"), "rule_state.safetensors is cut short or damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(runs, tmp_path, name):
    damage, words = DAMAGES[name]
    with pytest.raises(InputError, match=words) as told:
        resume(runs, tmp_path / "copy", "adapter", damage)
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(str(tmp_path / "copy" / "checkpoint-4"))
    assert "move this folder away to go on from checkpoint-2" in str(told.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            tensors(narrower, "model.safetensors"),
            r"classifier.weight has shape \[3, 4\], .* has \[3, 5\]",
        ),
        (cut("model.safetensors"), "model.safetensors is cut short"),
    ],
)
def test_a_damaged_model(runs, tmp_path, damage, words):
    with pytest.raises(InputError, match=words):
        resume(runs, tmp_path / "copy", "whole", damage)


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_what_is_whole_goes_on(runs, tmp_path, kind):
    done = resume(runs, tmp_path / "copy", kind, lambda checkpoint: None)
    assert done.global_step == 6


def test_the_only_checkpoint(runs, tmp_path):
    def damage(checkpoint):
        shutil.rmtree(checkpoint.with_name("checkpoint-2"))
        cut("trainer_state.json")(checkpoint)

    with pytest.raises(InputError, match="move this folder away to start anew"):
        resume(runs, tmp_path / "copy", "adapter", damage)


class Code:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_a_pickled_adapter_that_holds_code(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle that holds more than tensors") as told:
        adapter_tensors(str(tmp_path))
    assert "\n" not in str(told.value)
