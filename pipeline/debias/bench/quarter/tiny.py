"""A tiny model of each family with random weights, and batches for it. Shapes: B samples, T tokens."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debias.adapters.lora import add_lora
from debias.engines import attach
from debias.methods import Edge
from debias.models.activations import checkpoint_activations
from debias.models.load import load_model
from debias.models.quantized import prepare_quantized
from debias.readouts import Answers, Classification, Readout

FAMILIES = ("bert", "llama", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text")
MIXTURES = ("qwen3_moe", "llama4_text")
VOCABULARY, SAMPLES, TOKENS = 256, 6, 24
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
CAUSAL = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
OWN: dict[str, dict[str, Any]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "llama4_text": {
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
        "no_rope_layer_interval": 2,
    },
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
}


def build(
    family: str, device: str, *, dtype: torch.dtype = torch.float32, four_bit: bool = False, checkpointing: bool = False
) -> Any:
    """A model of that family with LoRA on all that it takes, B off its zero start so that every gradient is there."""
    classify = family == "bert"
    torch.manual_seed(0)
    base = _base(family, classify)
    if four_bit:  # as a run loads it: through a checkpoint
        with tempfile.TemporaryDirectory() as folder:
            base.save_pretrained(folder)
            kind: Any = "classification" if classify else "causal_lm"
            base = prepare_quantized(
                load_model(str(Path(folder)), kind, ["a", "b", "c"], dtype=dtype, load_in_4bit=True)
            )
    else:
        base = base.to(device=device, dtype=dtype)
    if checkpointing:
        checkpoint_activations(base)
    model = add_lora(base, r=8, alpha=16, dropout=0.0, targets="auto", classification=classify).train().to(device)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def _base(family: str, classify: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    given = {**SIZES, **({} if classify else CAUSAL), **OWN.get(family, {})}
    kind = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    config = AutoConfig.for_model(family, **given)
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
    for parameter in model.parameters():
        if parameter.ndim == 3:  # some fused experts are left as the memory was
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def batch_for(family: str, device: str, *, padded: bool = True) -> tuple[Readout, dict[str, Tensor]]:
    """Rows of unequal length (or all of the full one), the answers of causal models at the end."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, VOCABULARY, (SAMPLES, TOKENS), generator=generator)
    missing_B1 = torch.randint(0, TOKENS // 2, (SAMPLES, 1), generator=generator) * int(padded)
    place_T = torch.arange(TOKENS)
    if family == "bert":
        mask_BT = (place_T < TOKENS - missing_B1).long()
        labels_B = torch.randint(0, 3, (SAMPLES,), generator=generator)
        batch = {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT, "labels": labels_B}
        return Classification(), {name: tensor.to(device) for name, tensor in batch.items()}
    mask_BT = (place_T >= missing_B1).long()
    answer_BT = (place_T >= TOKENS - 2).expand(SAMPLES, -1)
    batch = {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT, "answer_mask": answer_BT.contiguous()}
    return Answers([[5], [6], [7]]), {name: tensor.to(device) for name, tensor in batch.items()}


def update_of(model: Any, readout: Readout, batch: dict[str, Any], way: str, autocast: torch.dtype | None) -> Tensor:
    """The update that EDGE makes of one batch by that way, of all adapters end to end, float64."""
    device = next(iter(model.parameters())).device
    weight_B = torch.linspace(0.02, 0.7, SAMPLES, device=device)
    hook = attach(model, None, Edge(), way, verify=False)

    def forward() -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            return -readout.said(model, batch).log_p_B, weight_B

    try:
        hook.backward(*forward(), again=forward, sample_index=batch.get("sample_index"))
        hook.combine()
        found = [p.grad.flatten().double() for p in hook.selected.values() if p.grad is not None]
        return torch.cat(found)
    finally:
        model.zero_grad(set_to_none=True)
        hook.detach()


def error_of(got: Tensor, want: Tensor) -> float:
    """Relative: |got - want| / |want|."""
    return float((got - want).norm() / want.norm())


@contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """An attribute that is another one inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
