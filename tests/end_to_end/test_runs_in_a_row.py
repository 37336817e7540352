"""One process, several runs, as in a notebook: each is what it would be alone, and leaves the process as it was."""

import os
import sys

import pytest
import torch
from tiny_runs import adapter_of, save_bert, settings_for

from debias.errors import InputError
from debias.train import train

# Runs that set something of their process while they are under way; those of DeepSpeed open a group of ranks.
FIRST = {
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "accumulation, other seed": {"gradient_accumulation_steps": 2, "seed": 7},
    "stage 1": {"deepspeed": "zero1", "bf16": True},
    "stage 3": {"deepspeed": "zero3"},
    "fails at a step": {"learning_rate": 1e37, "max_nonfinite_steps": 0},
    "fails with DeepSpeed": {"deepspeed": "zero3", "learning_rate": 1e37, "max_nonfinite_steps": 0},
}


def process_state():
    """What another run, or a process that is started from here, would find."""
    kept = ("ACCELERATE_", "FSDP_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "CUBLAS_", "CUDA_")
    return {
        "environment": {name: value for name, value in os.environ.items() if name.startswith(kept)},
        "group": torch.distributed.is_initialized(),
        "linear": torch.nn.functional.linear,
        "numbers": (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_anomaly_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hook": sys.excepthook,
        "hooks": [
            len(hooks)
            for name, hooks in vars(torch.nn.modules.module).items()
            if name.startswith("_global_") and hasattr(hooks, "__len__")
        ],
    }


@pytest.mark.slow
def test_a_run_is_what_it_is_alone_whatever_ran_before(tmp_path):
    model = save_bert(tmp_path / "model", hidden_dropout_prob=0.1)  # dropout: random numbers have to be the same, too
    alone = adapter_of(train(settings_for(model, tmp_path / "alone")))
    before = process_state()
    for number, (name, changes) in enumerate(FIRST.items()):
        first = settings_for(model, tmp_path / f"first{number}", **changes)
        if name.startswith("fails"):
            with pytest.raises(InputError, match="non-finite gradients"):
                train(first)
        else:
            assert (train(first) / "adapter").is_dir()
        assert process_state() == before, name
        then = adapter_of(train(settings_for(model, tmp_path / f"then{number}")))
        assert then.keys() == alone.keys()
        assert all(torch.equal(then[key], alone[key]) for key in alone), name
