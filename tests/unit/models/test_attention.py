"""debias.models.attention: the choice of attention on hardware that is faked, and what packed rows need."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch

from debias.config.reading import load_config, parse
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.models import attention
from debias.models.attention import check_attention, check_packing, choose_attention, packing_refusal
from debias.models.load import load_model
from debias.readouts.answers import packed_logits
from debias.train import train

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_runs.save_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with a GPU of that capability, or none, and with flash_attn or without."""

    def make(capability: tuple[int, int] | None = (9, 0), flash_attn: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn") if flash_attn else None)

    return make


def test_auto_takes_flash_attention_where_it_can_run(gpu: Callable[..., None], llama: str) -> None:
    gpu()
    assert choose_attention("auto", llama, "causal_lm", BF16) == "flash_attention_2"
    assert choose_attention("auto", llama, "causal_lm", torch.float16) == "flash_attention_2"
    assert choose_attention("auto", llama, "causal_lm", BF16, training=False) is None
    assert choose_attention("auto", llama, "image_classification", BF16) is None
    assert choose_attention("auto", llama, "causal_lm", FP32, bf16=True) is None  # full fine-tuning under autocast


@pytest.mark.parametrize(
    ("machine", "dtype", "reason"),
    [
        ({"capability": None}, BF16, "there is no CUDA GPU"),
        ({"capability": (7, 5)}, BF16, "the GPU has compute capability 7.5, flash attention needs 8.0"),
        ({"flash_attn": False}, BF16, "flash_attn cannot be imported (ModuleNotFoundError)"),
        ({}, FP32, "the model is loaded in float32"),
    ],
)
def test_auto_says_why_not_and_a_name_is_an_error(
    gpu: Callable[..., None], llama: str, machine: Any, dtype: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(**machine)
    with caplog.at_level(logging.INFO):
        assert choose_attention("auto", llama, "causal_lm", dtype) is None
    assert f"auto takes no flash attention: {reason}" in caplog.text
    with pytest.raises(
        InputError, match=r"attn_implementation is 'flash_attention_2', but .*; use auto or sdpa"
    ) as error:
        choose_attention("flash_attention_2", llama, "causal_lm", dtype)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_build_of_flash_attn_is_as_good_as_none(gpu: Callable[..., None], monkeypatch: Any) -> None:
    gpu()

    def broken(name: str) -> Any:
        raise OSError("undefined symbol")

    monkeypatch.setattr(attention.importlib, "import_module", broken)
    with pytest.raises(InputError, match=r"flash_attn cannot be imported \(OSError\)"):
        choose_attention("flash_attention_2", "any", "causal_lm", BF16)


def test_flash_attention_by_name_under_autocast(gpu: Callable[..., None]) -> None:
    gpu()
    assert choose_attention("flash_attention_2", "any", "causal_lm", FP32, bf16=True) == "flash_attention_2"
    gpu(flash_attn=False)  # another version is another package, which transformers looks for
    assert choose_attention("flash_attention_3", "any", "causal_lm", BF16) == "flash_attention_3"


def test_a_class_without_flash_attention(gpu: Callable[..., None], tmp_path: Path) -> None:
    gpu()
    tiny_models.llama4().config.save_pretrained(tmp_path / "llama4")
    assert choose_attention("auto", str(tmp_path / "llama4"), "causal_lm", BF16) is None
    from transformers import BloomConfig

    BloomConfig().save_pretrained(tmp_path / "bloom")
    assert choose_attention("auto", str(tmp_path / "bloom"), "causal_lm", BF16) is None
    assert choose_attention("auto", str(tmp_path / "nothing"), "causal_lm", BF16) is None


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_name_is_passed_on(name: str, llama: str) -> None:
    assert choose_attention(name, llama, "causal_lm", FP32) == name
    model = load_model(llama, "causal_lm", ["a", "b"], attn_implementation=name)
    assert model.config._attn_implementation == name
    check_attention(name, model)


def test_auto_is_sdpa_here_and_says_so(llama: str, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(
        llama, "causal_lm", ["a", "b"], attn_implementation=choose_attention("auto", llama, "causal_lm", FP32)
    )
    with caplog.at_level(logging.INFO):
        check_attention("auto", model)
    assert "attn_implementation: sdpa" in caplog.text


def test_another_attention_than_the_one_asked_for_is_an_error() -> None:
    with pytest.raises(InputError, match=r"is 'flash_attention_3', but LlamaForCausalLM would run with 'sdpa'"):
        check_attention("flash_attention_3", tiny_models.llama())


# Packed rows.


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "llama4", "gemma3", "gpt2"])
def test_families_that_pack(family: str) -> None:
    assert packing_refusal(getattr(tiny_models, family)(), 1000, packed_logits) is None


def test_eager_attention_does_not_pack() -> None:
    with pytest.raises(InputError, match=r"packing: LlamaForCausalLM .*attention is eager, not sdpa.*; set packing to"):
        check_packing(tiny_models.llama(attn_implementation="eager"), 4, 10, packed_logits)


def test_long_rows_of_llama_4() -> None:
    model = tiny_models.llama4(floor_scale=64)
    assert packing_refusal(model, 63, packed_logits) is None
    assert "from token 64 on; it may have 64" in str(packing_refusal(model, 64, packed_logits))
    model.config._attn_implementation = "flash_attention_2"
    assert "cannot attend in chunks of 8, a row may have 40" in str(packing_refusal(model, 40, packed_logits))


def test_layers_with_a_state_do_not_pack() -> None:
    model = tiny_models.llama()
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention carry a state" in str(packing_refusal(model, 40, packed_logits))


def test_a_model_without_positions_does_not_pack() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2))
    model.config._attn_implementation = "sdpa"
    assert "takes no position_ids" in str(packing_refusal(model, 40, packed_logits))


def unknown(kind: type[Any] | None = None) -> Any:
    """A model of a family that is not in the table; of `kind`, one whose samples see each other."""
    model = tiny_models.llama()
    model.config.model_type = "a_new_one"
    if kind is not None:
        model.__class__ = kind
    return model


def leaky() -> type[Any]:
    from transformers import LlamaForCausalLM

    class Leaky(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(input_ids=input_ids, **kwargs)

    return Leaky


def test_an_unknown_family_is_tried_out() -> None:
    model = unknown()
    assert packing_refusal(model, 40, packed_logits) is None
    assert model.training
    leak = unknown(leaky())
    assert "its samples see each other" in str(packing_refusal(leak, 40, packed_logits))
    next(leak.parameters()).ds_id = 0
    told = str(packing_refusal(leak, 40, packed_logits))
    assert "cannot be tried out at stage 3 of DeepSpeed, where only gemma3_text, " in told


def test_a_family_is_tried_out_as_it_is_trained() -> None:
    """One that makes a cache unless `use_cache` is false does not look for where positions start again."""

    def heedless(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, position_ids=positions).logits

    assert packing_refusal(granite(), 40, packed_logits) is None
    assert "its samples see each other" in str(packing_refusal(granite(), 40, heedless))


def granite() -> Any:
    model = tiny_models.granitemoe()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def test_an_unknown_family_is_tried_out_in_bf16() -> None:
    assert packing_refusal(unknown().bfloat16(), 40, packed_logits) is None
    assert "its samples see each other" in str(packing_refusal(unknown(leaky()).bfloat16(), 40, packed_logits))


# Settings.


def test_a_run_of_before_there_was_auto_loads(llama: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    settings = {**tiny_runs.settings_for(Path(llama), tmp_path / "run"), "attn_implementation": None}
    path.write_text(json.dumps(settings))
    assert load_config(path).attn_implementation == "auto"
    assert load_config(path, ["attn_implementation=sdpa"]).attn_implementation == "sdpa"


def test_a_flash_attention_that_is_not_there_ends_a_run_before_its_folder_is_made(llama: str, tmp_path: Path) -> None:
    config = tiny_runs.config_for(Path(llama), tmp_path / "run", attn_implementation="flash_attention_2")
    with pytest.raises(InputError, match="attn_implementation is 'flash_attention_2', but there is no CUDA GPU"):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"packing": True}, "packing goes with head 'causal_lm'"),
        ({"loss_chunk_size": 64}, "loss_chunk_size goes with head 'causal_lm'"),
        ({"loss_chunk_size": 0}, "loss_chunk_size.*greater than or equal to 1"),
        ({"torch_compile": True, "gradients": "single_pass"}, "torch_compile goes with gradients auto, shared_forward"),
        ({"torch_compile": True, "deepspeed": "zero3"}, "torch_compile has not been tried with deepspeed"),
    ],
)
def test_settings_that_do_not_go_together(llama: str, tmp_path: Path, settings: Any, complaint: str) -> None:
    values = {**tiny_runs.settings_for(Path(llama), tmp_path / "run"), **settings}
    with pytest.raises(InputError, match=complaint) as error:
        parse(RunConfig, values, where="run.yaml")
    assert "\n" not in str(error.value)
