"""A causal model of a real shape with random weights, made in nf4 layer by layer: no 16-bit copy of it ever exists."""

import copy
from typing import Any

import torch
from torch import nn

from debias.building.model import adapt
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.models.quantized import NOT_QUANTIZED, prepare_quantized
from debias.plan.shapes import find_config

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def shape_config(shape: str) -> Any:
    """The configuration of a carried shape or of `tiny`, a Qwen3 of two layers for machines without a GPU."""
    if shape == "tiny":
        from transformers import AutoConfig

        return AutoConfig.for_model("qwen3", **TINY)
    return find_config(shape)


def bench_run(shape: str, *, checkpointing: bool, lora_r: int, length: int) -> RunConfig:
    """The run that is measured: QLoRA on all linear layers, bf16, answers only."""
    verbalizers = {"entailment": " True", "neutral": " Neither", "contradiction": " False"}
    values: dict[str, Any] = {"model": shape, "output_dir": "-", "data": {"train": "generated"}, "head": "causal_lm"}
    values |= {"prompt": {"template": "{premise} {hypothesis}", "verbalizers": verbalizers}, "load_in_4bit": True}
    values |= {"bf16": True, "gradient_checkpointing": checkpointing, "lora_r": lora_r, "lora_alpha": 2 * lora_r}
    return RunConfig.model_validate({**values, "max_length": length})


def build(run: RunConfig, device: torch.device, seed: int = 0) -> Any:
    """The run's model on `device`, its linear layers in nf4 with double quantization, its adapter attached.

    InputError without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = copy.deepcopy(shape_config(run.model))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
        )
    _fill(model, device)
    model.fresh_modules = []
    model.config.pad_token_id = config.pad_token_id or 0
    model.is_loaded_in_4bit = True
    adapted = adapt(run, prepare_quantized(model.train()))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # off its zero start, where lora_A has no gradient at all
            nn.init.normal_(parameter, std=0.01)
    return adapted


def _fill(model: nn.Module, device: torch.device) -> None:
    for path, module in list(model.named_modules()):
        if hasattr(module, "inv_freq"):  # computed when it is made, and lost on the meta device
            _replace(model, path, type(module)(module.config).to(device))
        elif type(module) is nn.Linear and path.rpartition(".")[2] not in NOT_QUANTIZED:
            _replace(model, path, _four_bit(module, device))
        else:
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    module._parameters[name] = _random(parameter, device)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _random(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    made = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    made = made.fill_(1.0) if made.dim() < 2 else made.normal_(std=0.02)  # a norm's scale is 1
    return nn.Parameter(made, requires_grad=False)


def _four_bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise InputError("bench gpu: bitsandbytes is not installed; pip install 'debias[quant]'") from None
    bf16, bias = torch.bfloat16, linear.bias is not None
    with torch.device("meta"):
        made = Linear4bit(linear.in_features, linear.out_features, bias, bf16, True, "nf4", bf16)
    weight = torch.empty(linear.weight.shape, dtype=bf16, device=device).normal_(std=0.02)
    options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4", "quant_storage": bf16, "module": made}
    made.weight = Params4bit(weight, requires_grad=False, **options).to(device)
    if linear.bias is not None:
        made.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=bf16, device=device), requires_grad=False)
    vars(made)["support_avx512bf16_for_cpu"] = False  # repacks weights in place
    return made
