"""The run's model without its weights, on the meta device: the shapes and dtypes that training will have."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from debias.building.model import adapt, base_dtype, check_trainable
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.hub.remote_code import trusted
from debias.models.quantized import NOT_QUANTIZED, prepare_quantized

BLOCK = 64  # elements of one 8-bit scale of nf4
SCALES = 256  # 8-bit scales of one float32 scale: double quantization


class _Unpacked(torch.autograd.Function):
    """A product with a weight that is unpacked for it, forward and backward; the unpacked weight is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int) -> Tensor:
        ctx.inputs = x.shape[-1]
        return x @ x.new_empty(ctx.inputs, outputs)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor, None]:
        (delta,) = deltas
        return delta @ delta.new_empty(delta.shape[-1], ctx.inputs), None


class FourBitLinear(nn.Linear):
    """The sizes of bitsandbytes' nf4 layer with double quantization, and what its products allocate."""

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias=False, device="meta", dtype=dtype)
        elements = inputs * outputs
        del self.weight
        blocks = -(-elements // BLOCK)
        self.register_buffer("weight", torch.empty(-(-elements // 2), 1, dtype=torch.uint8, device="meta"))
        self.register_buffer("absmax", torch.empty(blocks, dtype=torch.uint8, device="meta"))
        self.register_buffer("absmax2", torch.empty(-(-blocks // SCALES), dtype=torch.float32, device="meta"))
        self.register_buffer("codes", torch.empty(16 + 256 + 1, dtype=torch.float32, device="meta"))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.compute_dtype = dtype

    @property
    def W_q(self) -> Tensor:
        """By this name PEFT (DoRA) knows a layer that unpacks its own weight."""
        return self.weight

    def dequantize(self) -> Tensor:
        """The weight unpacked, [O, I] in the compute dtype."""
        return self.weight.new_empty(self.out_features, self.in_features, dtype=self.compute_dtype)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Unpacked.apply(input.to(self.compute_dtype), self.out_features)
        return (output if self.bias is None else output + self.bias.to(output.dtype)).to(input.dtype)


def skeleton(run: RunConfig, config: Any) -> Any:
    """The model of `config` on the meta device, in the run's dtype and quantization, with what it trains attached.

    InputError when transformers has no such model with the run's head, or an adapter does not fit.
    """
    check_trainable(run)
    model = quantized_skeleton(run, config)
    with torch.device("meta"):  # adapters of an absurd rank take no memory either
        return adapt(run, model.train())


def quantized_skeleton(run: RunConfig, config: Any) -> Any:
    """The model alone, in 4 bits where the run says so."""
    model = base_skeleton(run, config)
    if not run.load_in_4bit:
        return model
    _quantize(model, base_dtype(run))
    model.is_loaded_in_4bit = True
    return prepare_quantized(model)


def base_skeleton(run: RunConfig, config: Any) -> Any:
    """The model alone, in the run's dtype; see `skeleton`."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    kind: Any = AutoModelForCausalLM if run.head == "causal_lm" else AutoModelForSequenceClassification
    if run.head == "classification":
        config.num_labels = len(run.data.labels)
    try:
        with torch.device("meta"):
            model = kind.from_config(
                config,
                attn_implementation=attention_of(run, kind, config),
                dtype=base_dtype(run),
                trust_remote_code=trusted(run.model),
            )
    except (ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"model: {run.model!r} has no {run.head} model in transformers: {reason}") from None
    model.fresh_modules = [] if run.head == "causal_lm" else list(heads_of(model))
    if config.pad_token_id is None:
        model.config.pad_token_id = 0
    return model


def attention_of(run: RunConfig, kind: Any, config: Any) -> str:
    """The attention whose memory is traced: flash attention keeps what sdpa without a mask keeps.

    Eager for a model that has no other here (Gemma-2, GPT-OSS), as training takes it; `kind`: transformers' auto class.
    """
    made = kind._model_mapping.get(type(config), None)
    only_eager = made is not None and not getattr(made, "_supports_sdpa", True)
    return "eager" if run.attn_implementation == "eager" or only_eager else "sdpa"


def heads_of(model: nn.Module) -> Iterator[str]:
    """The heads among the model's own children."""
    return (name for name, _ in model.named_children() if name in ("classifier", "score"))


def _quantize(model: nn.Module, dtype: torch.dtype) -> None:
    skipped = set(NOT_QUANTIZED)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and not any(path == name or path.endswith("." + name) for name in skipped):
            parent, _, name = path.rpartition(".")
            bias = None if module.bias is None else module.bias.data
            setattr(
                model.get_submodule(parent), name, FourBitLinear(module.in_features, module.out_features, bias, dtype)
            )


def shallow(config: Any, layers: int) -> Any:
    """A copy of the configuration with its first `layers` layers only."""
    whole = config.num_hidden_layers
    config = copy.deepcopy(config)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(config, key, value[:layers])
        elif key == "moe_layers" and isinstance(value, list):
            setattr(config, key, [index for index in value if index < layers])
    config.num_hidden_layers = layers
    return config


def layers_of(model: nn.Module, config: Any) -> nn.ModuleList:
    """The list of transformer layers; InputError where none has the number that the configuration says."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = next((each for each in lists if len(each) == config.num_hidden_layers), None)
    if found is None:
        raise InputError(
            f"model: {config.model_type} has no list of {config.num_hidden_layers} layers; it cannot be planned"
        )
    return found


def period_of(model: nn.Module, config: Any) -> int:
    """After how many layers the same kinds of layers come again (1 where all are alike)."""
    kinds = [
        (
            tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()),
            *(value[index] for value in vars(config).values() if isinstance(value, list) and len(value) == len(layers)),
        )
        for layers in [layers_of(model, config)]
        for index, layer in enumerate(layers)
    ]
    whole = len(kinds)
    return next(p for p in range(1, whole + 1) if all(kinds[i] == kinds[i + p] for i in range(whole - p)))
