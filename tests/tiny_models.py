"""Models of a few thousand parameters with random weights, and batches for them. No network, no files."""

from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 61


def bert(dropout: float = 0.0, seed: int = 0, layers: int = 2, **settings: Any) -> nn.Module:
    """A three-way sequence classifier, two layers of 16."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **settings,
    )
    return BertForSequenceClassification(config).train()


def llama(seed: int = 0, hidden: int = 16, layers: int = 2, **settings: Any) -> nn.Module:
    """A causal language model, two layers of 16, two heads over one key-value head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            **settings,
        }
    )
    return LlamaForCausalLM(config).train()


def gpt2(seed: int = 0, **settings: Any) -> nn.Module:
    """A causal language model with absolute positions, whose linear layers are transformers' Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **sizes, **dropout, **settings)
    return GPT2LMHeadModel(config).train()


# One small model of each family of large ones: hidden 32, two layers, 200 tokens, float32, in training mode. With
# `classify=True` a three-way sequence classifier, where the family has the class (Llama-4 has none).
FAMILIES = ("llama", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text")
FAMILY_SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True},
    # As Scout, smaller: one expert a token beside a shared one, in every second layer here; attention in chunks, and
    # every fourth layer (here the second) sees the whole without rotary positions.
    "llama4_text": {
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
        "no_rope_layer_interval": 2,
    },
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}


def family_config(family: str, **settings: Any) -> Any:
    """The configuration of one of FAMILIES, tiny, with `settings` over it."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**FAMILY_SIZES, **FAMILY_SETTINGS[family], **settings})


def family(name: str, seed: int = 0, *, classify: bool = False, **settings: Any) -> Any:
    """A model of one of FAMILIES with random weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    if classify:
        settings = {"num_labels": 3, **settings}
    torch.manual_seed(seed)
    model = kind.from_config(family_config(name, **settings), dtype=torch.float32)
    for parameter in model.parameters():  # some fused experts are left as the memory was
        if parameter.ndim == 3:
            nn.init.normal_(parameter, std=0.2)
    return model.train()


def qwen3(seed: int = 0, *, classify: bool = False, **settings: Any) -> Any:
    """Qwen3, dense."""
    return family("qwen3", seed, classify=classify, **settings)


def qwen3_moe(seed: int = 0, *, classify: bool = False, **settings: Any) -> Any:
    """Qwen3-MoE: four fused experts in each layer, two a token."""
    return family("qwen3_moe", seed, classify=classify, **settings)


def llama4(seed: int = 0, **settings: Any) -> Any:
    """Llama-4 text, Scout's features: layer 0 dense with chunked attention, layer 1 sparse with a shared expert."""
    return family("llama4_text", seed, **settings)


def gemma3(seed: int = 0, *, classify: bool = False, **settings: Any) -> Any:
    """Gemma-3 text: layer 0 with a sliding window of 8, layer 1 without."""
    return family("gemma3_text", seed, classify=classify, **settings)


def granitemoe(seed: int = 0, **settings: Any) -> Any:
    """Granite's experts: a forward that hands `use_cache` on without naming it."""
    from transformers import AutoModelForCausalLM, GraniteMoeConfig

    torch.manual_seed(seed)
    sizes = {**FAMILY_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 32, **settings}
    return AutoModelForCausalLM.from_config(GraniteMoeConfig(**sizes)).train()


def with_lora(model: nn.Module, dropout: float = 0.0, seed: int = 1, r: int = 3, **settings: Any) -> Any:
    """PEFT LoRA on all linear layers, its matrices off their zero start so that every gradient is there."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config: dict[str, Any] = {"target_modules": "all-linear", "r": r, "lora_alpha": 6, "lora_dropout": dropout}
    peft_model = get_peft_model(model, LoraConfig(**{**config, **settings})).train()
    randomize_lora(peft_model)
    return peft_model


def randomize_lora(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)


def randomized(model: Any) -> Any:
    """The model with every trained parameter moved from where an adapter begins, which is where it changes nothing."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def bert_lora(dropout: float = 0.0, seed: int = 1, **settings: Any) -> Any:
    """LoRA on every linear layer; the classifier trains whole, in modules_to_save."""
    return with_lora(bert(), dropout, seed, task_type="SEQ_CLS", **settings)


def llama_lora(dropout: float = 0.0, seed: int = 1, **settings: Any) -> Any:
    return with_lora(llama(), dropout, seed, task_type="CAUSAL_LM", **settings)


class Mlp(nn.Module):
    """Linear layers only, so that full fine-tuning is exact in one pass. `classifier` is its head."""

    def __init__(self, seed: int = 0, columns: int = 5, hidden: int = 7, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(columns, hidden, bias=bias)
        self.second = nn.Linear(hidden, hidden, bias=bias)
        self.classifier = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Doubled(torch.autograd.Function):
    """Twice the square of the input, whose backward pass writes into what it saved, unseen by autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(4 * x)
        return 2 * x * x

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> Tensor:
        (delta,), (slope,) = deltas, ctx.saved_tensors
        grad: Tensor = delta * slope
        slope.data.copy_(grad)
        return grad


class RunsOnce(Mlp):
    """A graph that is garbage when it is run backward again; not `fused`: the same by torch's own operations."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.classifier(self.second(Doubled.apply(hidden) if self.fused else 2 * hidden * hidden))


def text_batch(samples: int = 6, tokens: int = 9, seed: int = 2) -> dict[str, Tensor]:
    """Right-padded rows of unequal length with labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (samples, tokens), generator=generator)
    lengths = torch.randint(3, tokens + 1, (samples, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).long()
    labels = torch.randint(0, 3, (samples,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def answer_batch(samples: int = 5, tokens: int = 11, seed: int = 3) -> dict[str, Tensor]:
    """Left-padded prompts with answers of one to three tokens at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (samples, tokens), generator=generator)
    padding = torch.randint(0, tokens - 5, (samples, 1), generator=generator)
    padding[0] = 0
    mask = (torch.arange(tokens) >= padding).long()
    answers = torch.tensor([1 + i % 3 for i in range(samples)]).unsqueeze(1)
    answer_mask = torch.arange(tokens) >= tokens - answers
    labels = torch.zeros(samples, dtype=torch.long)
    return {"input_ids": ids * mask, "attention_mask": mask, "answer_mask": answer_mask, "labels": labels}


def rows(batch: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {key: value[start:stop] for key, value in batch.items()}
