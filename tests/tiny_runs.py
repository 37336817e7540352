"""Tiny random models with tokenizers of their own, in folders that `from_pretrained` reads, and runs on them."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from debias.config.run import RunConfig
from debias.data import generate

PROMPT = {
    "template": "premise : {premise} question : {hypothesis} answer :",
    "verbalizers": {"entailment": " yes", "neutral": " maybe", "contradiction": " no"},
}


EXTRA = ("premise", "question", "answer", ":", "yes", "no", "maybe", "!!")


@cache
def words() -> tuple[str, ...]:
    """The words of the generator's first pairs, and those that prompts and cues need."""
    rows = generate("train", 300, 0) + generate("validation", 60, 0)
    text = " ".join(row[field] for row in rows for field in ("premise", "hypothesis")).lower()
    return tuple(sorted({*text.replace(".", " . ").replace(",", " , ").split(), *EXTRA}))


def tokenizer(*, causal: bool) -> Any:
    """A word-level tokenizer; with [CLS] and [SEP] around the texts for an encoder, [BOS] before them for a decoder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]"]
    vocabulary = {word: index for index, word in enumerate([*special, *words()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous")]
    )
    if causal:
        inner.post_processor = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 4)])
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_bert(folder: Path, **changes: Any) -> Path:
    """A two-layer BERT of width 16 without dropout, no head, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    words_ = tokenizer(causal=False)
    settings = {
        "vocab_size": len(words_),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    BertModel(BertConfig(**{**settings, **changes})).save_pretrained(folder)
    words_.save_pretrained(folder)
    return folder


def save_llama(folder: Path, **changes: Any) -> Path:
    """A two-layer Llama of width 32, with a tokenizer that has no pad token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words_ = tokenizer(causal=True)
    settings = {
        "vocab_size": len(words_),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "bos_token_id": 4,
        "eos_token_id": 5,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    words_.save_pretrained(folder)
    return folder


def save_foreign_adapter(model: Path, folder: Path) -> Path:
    """A PEFT adapter of a causal model that no run of ours made, off its start."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def settings_for(model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run of four steps on 64 generated pairs."""
    return {
        "model": str(model),
        "data": {"train": {"source": "generated", "limit": 64}},
        "output_dir": str(output),
        "max_length": 48,
        "lora_r": 4,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        **changes,
    }


def config_for(model: Path, output: Path, **changes: Any) -> RunConfig:
    """`settings_for`, validated."""
    return RunConfig.model_validate(settings_for(model, output, **changes))


def adapter_of(run: Path) -> dict[str, Any]:
    """The adapter's tensors by name."""
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


def largest_difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """Over all tensors; the names must be the same."""
    assert left.keys() == right.keys()
    return max(float((left[name].detach().float() - right[name].detach().float()).abs().max()) for name in left)


def cut_off(whole: Path, cut: Path, last: int = 4) -> Path:
    """In the folder `cut`, a finished run of `last` steps, as it was when it was cut off after the checkpoint before:
    of 4 steps, saved each 2, after the first 2.
    """
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / f"checkpoint-{last}")
    shutil.rmtree(cut / "adapter")
    return cut
