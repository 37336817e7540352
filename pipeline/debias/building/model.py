"""The model of a run: the base as it is loaded, in training as in inference, and what trains of it."""

import logging
from typing import Any

import torch

from debias.adapters import RunFacts, make_adapter
from debias.adapters.families import sparse_blocks
from debias.config.run import RunConfig
from debias.engines.zero import launch as zero_launch
from debias.errors import InputError
from debias.models.activations import checkpoint_activations
from debias.models.attention import check_attention, check_packing, choose_attention
from debias.models.compiling import compile_layers
from debias.models.head_dropout import drop_before_adapters, drop_before_head
from debias.models.kernels import check_liger
from debias.models.load import load_model, longest_input
from debias.models.precision import usable_bf16
from debias.models.quantized import prepare_quantized
from debias.models.source import ModelSource, resolve_model
from debias.readouts import add_router_loss, leave_out_router_loss
from debias.readouts.answers import packed_logits

logger = logging.getLogger(__name__)


def check_length(config: RunConfig, model: Any) -> None:
    """InputError if examples may be longer than the model's absolute position embeddings."""
    limit = longest_input(model)
    if limit is not None and config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}, but {config.model!r} reads at most {limit} tokens")


def build_model(config: RunConfig, source: ModelSource | None = None) -> Any:
    """The base model with what is to be trained; seed before this, for heads and adapters are drawn here.

    `source`: of `config.model`, where it has been resolved already.
    """
    check_trainable(config)
    if not make_adapter(config.adapter).reads:
        logger.info("adapter.type %s: lora_r, lora_alpha and lora_dropout have no effect", config.adapter["type"])
    model = base_model(config, source or resolve_model(config.model), training=True)
    if config.packing:
        check_packing(model, config.per_device_train_batch_size, config.max_length, packed_logits)
    if config.use_liger_kernel:
        check_liger(model)
    adapted = adapt(config, model)
    if config.torch_compile:
        compile_layers(adapted)
    return adapted


def check_trainable(config: RunConfig) -> None:
    """InputError where what is to be trained is 4-bit."""
    if config.load_in_4bit and not make_adapter(config.adapter).frozen_base:
        raise InputError(
            f"load_in_4bit: a 4-bit base cannot be trained itself; adapter.type is {config.adapter['type']!r}"
        )


def adapt(config: RunConfig, model: Any) -> Any:
    """A base model with what the run trains of it; on the meta device too."""
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    if config.head_dropout:
        drop_before_head(model, config.head_dropout, causal=config.head == "causal_lm")
    adapter = make_adapter(config.adapter)
    if adapter.held and config.deepspeed is not None:
        raise InputError(
            f"deepspeed: adapter.type {adapter.name} saves tensors that do not train, and checkpoints of DeepSpeed hold"
            " what trains alone; remove deepspeed, or take lora"
        )
    sizes = {key: getattr(config, key) for key in ("lora_r", "lora_alpha", "lora_dropout")}
    adapted = adapter.attach(model, RunFacts(config.head != "causal_lm", model.fresh_modules, **sizes))
    drop_before_adapters(adapted)
    if adapter.frozen_base and config.deepspeed is not None and usable_bf16(config.bf16):
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # of one dtype with what stage 3 has sharded; the engine keeps float32 copies
                parameter.data = parameter.data.bfloat16()
    if config.router_aux_loss_coef:
        try:
            add_router_loss(adapted, config.router_aux_loss_coef)
        except ValueError as error:
            raise InputError(str(error)) from None
    else:
        leave_out_router_loss(adapted)  # the run's setting, and not the model's configuration, says whether
    return adapted


def base_model(config: RunConfig, source: ModelSource, *, training: bool = False) -> Any:
    """The model of a source as the run loads it, in training as in inference: its dtype, head and quantization."""
    bf16, asked = usable_bf16(config.bf16), config.attn_implementation
    dtype = base_dtype(config.model_copy(update={"bf16": bf16}))
    model = load_model(
        source,
        config.head,
        config.data.labels,
        dtype=dtype,
        load_in_4bit=config.load_in_4bit,
        attn_implementation=choose_attention(asked, source, config.head, dtype, bf16=bf16, training=training),
        seed=config.seed,
    )
    if config.deepspeed is not None:
        zero_launch.mark_leaves(model, sparse_blocks(model))
    if training:
        check_attention(asked, model)
    return prepare_quantized(model) if config.load_in_4bit else model


def base_dtype(config: RunConfig) -> torch.dtype:
    """What the base model is loaded in.

    A frozen base may live in bf16; weights that train stay in float32, with autocast. DeepSpeed keeps float32 copies
    itself, and what its stage 3 has sharded on the way in must be bf16 already.
    """
    half = make_adapter(config.adapter).frozen_base or config.deepspeed is not None
    return torch.bfloat16 if config.bf16 and half else torch.float32
