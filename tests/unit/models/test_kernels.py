"""debias.models.kernels: Liger where it is installed, faked here; its loss stays off."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
from transformers.models.llama import modeling_llama

from debias.building.arguments import a_run_of_its_own, training_arguments
from debias.building.model import build_model
from debias.errors import InputError
from debias.models.kernels import check_liger, liger_settings


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and a package with kernels for Llama and Qwen3-MoE."""
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None, "qwen3_moe": None}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_its_loss_is_not_used(liger: None) -> None:
    assert liger_settings(checkpointing=True) == {"fused_linear_cross_entropy": False, "cross_entropy": False}


def test_what_overwrites_its_input_runs_under_checkpointing_alone(liger: None) -> None:
    assert liger_settings(checkpointing=False) == {
        "fused_linear_cross_entropy": False,
        "cross_entropy": False,
        "swiglu": False,
        "geglu": False,
    }


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(InputError, match=r"use_liger_kernel: liger_kernel cannot be imported \(ModuleNotFoundError\)"):
        liger_settings(checkpointing=False)


def test_without_a_gpu(liger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use_liger_kernel: its kernels need a CUDA GPU, and there is none"):
        liger_settings(checkpointing=False)


def test_models(liger: None) -> None:
    check_liger(tiny_models.llama())
    with pytest.raises(InputError, match="Liger has no kernels for 'gpt2' models"):
        check_liger(tiny_models.gpt2())
    with pytest.raises(InputError, match="Liger replaces the fused experts of 'qwen3_moe' models"):
        check_liger(tiny_models.qwen3_moe())


def test_the_next_run_is_without_it(liger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger writes its norm into transformers' own module, from which every later Llama would be built."""
    norm, positions = modeling_llama.LlamaRMSNorm, modeling_llama.apply_rotary_pos_emb
    with a_run_of_its_own():
        check_liger(tiny_models.llama())
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", torch.nn.Identity)
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *rest: (q, k))
        assert type(tiny_models.llama().model.norm) is torch.nn.Identity
    assert modeling_llama.LlamaRMSNorm is norm
    assert modeling_llama.apply_rotary_pos_emb is positions
    assert type(tiny_models.llama().model.norm) is norm


def test_the_setting_reaches_the_trainer_and_the_model(liger: None, monkeypatch: Any, tmp_path: Path) -> None:
    folder = tiny_runs.save_bert(tmp_path / "bert")
    config = tiny_runs.config_for(folder, tmp_path / "run", use_liger_kernel=True, attn_implementation="sdpa")
    with pytest.raises(InputError, match="Liger has no kernels for 'bert' models"):
        build_model(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="need a CUDA GPU"):
        training_arguments(config)
    for checkpointing in (False, True):
        monkeypatch.setattr("debias.building.arguments.liger_settings", lambda **given: given)
        given = config.model_copy(update={"gradient_checkpointing": checkpointing})
        arguments = training_arguments(given)
        assert arguments.use_liger_kernel is True
        assert arguments.liger_kernel_config == {"checkpointing": checkpointing}
