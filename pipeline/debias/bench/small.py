"""A classifier of one small layer: where the rows are to be most of what a measurement takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debias.models.load import load_tokenizer
from debias.models.source import resolve_model


def small_classifier(model: str, folder: Path, labels: Sequence[str]) -> None:
    """Random weights in `folder`, with the tokenizer of `model`."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = load_tokenizer(resolve_model(model), "classification")
    names = dict(enumerate(labels))
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = BertConfig(**shape, id2label=names, label2id={name: place for place, name in names.items()})
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
