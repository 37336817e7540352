"""The tokenizer that goes with an adapter, and a base that has an embedding of each of its tokens."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debias.adapters.loading import adapter_tensors
from debias.models.load_errors import readable_errors
from debias.models.source import ModelSource, resolve_model

logger = logging.getLogger(__name__)
FILE = "tokenizer_config.json"
# Below embeddings or the head, what of an adapter's file has a row for each token; all else (the blocks of OFT, the
# elements of SHiRA) is of other shapes.
ROWS = re.compile(
    r"(token_adapter\.)?(base_layer\.)*weight|(base_layer\.)*modules_to_save\.(default\.)?weight|lora_B(\.weight)?"
)


def tokenizer_source(base: ModelSource, adapter: str | None = None, given: str | None = None) -> ModelSource:
    """Whose tokenizer reads the text: the one that was asked for, the adapter's own if it has one, else its base's.

    An adapter saved with its tokenizer was trained on that one's chat template and added tokens.
    """
    if given is not None:
        return resolve_model(given)
    if adapter is None:
        return base
    own = resolve_model(adapter)
    if not _has_tokenizer(own):
        return base
    if base.trusted and not own.trusted:
        logger.info("the tokenizer is that of %s: code in the adapter's copy of it is not run", base.name)
        return base
    return own


def _has_tokenizer(source: ModelSource) -> bool:
    if Path(source.path).is_dir():
        return (Path(source.path) / FILE).is_file()
    from transformers.utils import cached_file

    with readable_errors(source.name):
        quiet = ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors")
        found = cached_file(source.path, FILE, **dict.fromkeys(quiet, False))
    return found is not None


def fit_embeddings(base: Any, tokenizer: Any, adapter: str | None) -> None:
    """Give `base` the rows of embeddings that the adapter holds, or that a tokenizer other than its own asks for.

    Warns where there are tokens that neither the base nor the adapter has an embedding of: they get the mean of all
    (not in shards of DeepSpeed's stage 3, where a text that has one fails).
    """
    have, words = base.get_input_embeddings().num_embeddings, len(tokenizer)
    saved = None if adapter is None else saved_rows(base, adapter_tensors(adapter))
    if saved is not None and saved != have:
        logger.info("embeddings: %d rows, as the adapter has them, in place of %d", saved, have)
        base.resize_token_embeddings(saved, mean_resizing=False)
    rows = have if saved is None else saved
    if words > rows and not any(hasattr(parameter, "ds_id") for parameter in base.parameters()):
        logger.warning(
            "WARNING: the tokenizer has %d tokens and the model %d; no weights were saved for the others, which are"
            " read as the mean of all",
            *(words, rows),
        )
        base.resize_token_embeddings(words, mean_resizing=False)
        _mean_below(base, rows)


def saved_rows(base: Any, saved: Mapping[str, Tensor]) -> int | None:
    """How many tokens the embeddings in an adapter's file are of; None where it holds none.

    They are there whole (`modules_to_save`, or because they were resized), or as LoRA's matrices on them.
    """
    for path, module in base.named_modules():
        if module is base.get_input_embeddings() or module is base.get_output_embeddings():
            for key, tensor in saved.items():
                inside = key.partition(f".{path}.")[2]
                if inside.startswith("lora_embedding_A"):
                    return tensor.shape[1]
                if ROWS.fullmatch(inside):
                    return tensor.shape[0]
    return None


def _mean_below(base: Any, rows: int) -> None:
    with torch.no_grad():
        for module in (base.get_input_embeddings(), base.get_output_embeddings()):
            if module is not None:
                module.weight[rows:] = module.weight[:rows].float().mean(dim=0).to(module.weight.dtype)
