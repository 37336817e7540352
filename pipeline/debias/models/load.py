"""A base model and its tokenizer, from a hub id, a local folder or a package; quantized to 4 bit where asked."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from debias.errors import InputError
from debias.models.load_errors import readable_errors
from debias.models.quantized import close_cpu_trap, four_bit
from debias.models.source import ModelSource, resolve_model

logger = logging.getLogger(__name__)
Head = Literal["classification", "causal_lm", "image_classification"]


# What may be missing of a checkpoint whose class does not say which part of it is the backbone.
HEADS = frozenset({"classifier", "score", "lm_head"})

# Checkpoints of models that also see: what turns the names of their text part's weights into those of the text model.
# transformers does so itself for Llama-4 as a causal language model.
TEXT_PARTS: dict[str, dict[str, str]] = {
    "llama4": {},
    "gemma3": {r"^language_model\.": "", r"^model\.language_model\.": "model."},
}
LABEL_KEYS = frozenset({"id2label", "label2id"})


def load_tokenizer(model: str | ModelSource, head: Head) -> Any:
    """The model's tokenizer; causal models are padded on the left, with the end token where there is no pad token.

    For image classifiers their image processor, which has its place. InputError for a model that comes without one.
    """
    source = resolve_model(model)
    with readable_errors(source.name):
        if head == "image_classification":
            from debias.models.vision import load_image_processor

            return load_image_processor(source)
        tokenizer = _tokenizer(source)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"model: {source.name!r} has a tokenizer with neither a pad nor an end token; nothing can pad"
            )
        # Padding is told apart by the attention mask, never by the id.
        tokenizer.pad_token = tokenizer.eos_token
    if head == "causal_lm":
        tokenizer.padding_side = "left"
    return tokenizer


def _tokenizer(source: ModelSource) -> Any:
    """As transformers reads it, which makes an empty one of a folder that has none: all text would be [UNK]."""
    from transformers import AutoTokenizer

    none = InputError(f"model: {source.name!r} has no tokenizer (tokenizer.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=source.trusted)
    except ValueError as error:
        if "instantiate the backend tokenizer" in str(error):
            raise none from None
        raise
    ordinary = set(tokenizer.get_vocab()) - {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    if len(ordinary) < 2:  # some have a lone mark for spaces
        raise none
    return tokenizer


def load_model(
    model: str | ModelSource,
    head: Head,
    labels: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    load_in_4bit: bool = False,
    attn_implementation: str | None = None,
    seed: int = 0,
) -> Any:
    """The base model with a head for `labels`; a classification head is freshly initialised (seed before this).

    `seed` is what a model without trained weights (`vision:mlp`, `vision:vit`) is drawn with. `fresh_modules` of the
    result names what the checkpoint lacks and was drawn at random. Raises InputError when the model cannot be found,
    lacks weights other than a head's, or the head itself, or bitsandbytes is asked for and missing.
    """
    source = resolve_model(model)
    options: dict[str, Any] = {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if load_in_4bit:
        options["quantization_config"] = four_bit(dtype)
    if head != "causal_lm":
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: index for index, label in enumerate(labels)}
    with readable_errors(source.name):
        if head == "image_classification":
            from debias.models.vision import load_image_model

            loaded, missing = load_image_model(source, labels, options, seed)
        else:
            loaded, missing = _load_text_model(source, head, options)
    parameters = dict(loaded.named_parameters())
    missing = [key for key in missing if key in parameters]
    _check_backbone(source.name, loaded, missing)
    loaded.fresh_modules = sorted({key.rpartition(".")[0] for key in missing})
    if head == "causal_lm":
        _check_causal(source.name, loaded)
    if head != "image_classification":
        _name_pad(loaded, source, head)
    if load_in_4bit:
        close_cpu_trap(loaded)
    return loaded


def _load_text_model(source: ModelSource, head: Head, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The model of a checkpoint, of one that also sees its text part alone; and the keys that it lacks."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config, given = source.config, dict(options)
    if config.model_type in TEXT_PARTS:
        logger.info("model: the text part of %s (%s)", source.name, config.model_type)
        given["key_mapping"], config = TEXT_PARTS[config.model_type], copy.deepcopy(config.get_text_config())
        for key in LABEL_KEYS & given.keys():  # of a configuration that is given, arguments change nothing
            setattr(config, key, given.pop(key))
        given["config"] = config
    if head == "classification":
        _check_has_classifier(source.name, config)
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    model, found = kind.from_pretrained(
        source.path, output_loading_info=True, trust_remote_code=source.trusted, **given
    )
    return model, list(found["missing_keys"])


def _name_pad(model: Any, source: ModelSource, head: Head) -> None:
    """Give a model that names no padding, or none that it has a row for, its tokenizer's: classifiers pool by it."""
    configs = [model.config, model.config.get_text_config()]
    without = [config for config in configs if not has_row(model, getattr(config, "pad_token_id", None))]
    if without:
        pad = load_tokenizer(source, head).pad_token_id
        for config in without:
            config.pad_token_id = pad


def has_row(model: Any, token: int | None) -> bool:
    """Whether a model has an embedding of a token; taken for granted of one that embeds otherwise (CANINE hashes)."""
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (NotImplementedError, AttributeError):
        return token is not None
    return token is not None and 0 <= token < rows


def _check_backbone(name: str, model: Any, missing: Sequence[str]) -> None:
    """InputError for missing weights that are no head's: drawn at random they would be taken for a new head."""
    root = model.base_model_prefix
    inside = bool(root) and hasattr(model, root)  # some models name a part they do not have
    lost = []
    for key in missing:
        first, *_ = parts = key.split(".")
        if (first == root if inside else first not in HEADS) and "pooler" not in parts:
            lost.append(key)
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"model: {name!r} lacks the weights {', '.join(sorted(lost)[:3])}{more}; its files are damaged, or of"
            " another model: save or fetch it again"
        )


def _check_has_classifier(name: str, config: Any) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS

    own = getattr(config, "auto_map", None) or {}  # classes of the model's own code
    if type(config) not in CLASSIFIERS and "AutoModelForSequenceClassification" not in own:
        raise InputError(
            f"head: {name!r} is a {config.model_type}, for which transformers has no sequence classifier; use head"
            " 'causal_lm' with a prompt"
        )


def _check_causal(name: str, model: Any) -> None:
    """An encoder sees the answer it is asked for, and a random frozen head is not saved with an adapter."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    encoder = model.config.model_type in MASKED and not getattr(model.config, "is_decoder", False)
    if encoder or model.fresh_modules:
        reason = f"it lacks {', '.join(model.fresh_modules)}" if model.fresh_modules else "it reads both ways"
        raise InputError(f"head: {name!r} is no causal language model ({reason}); use head 'classification'")


def longest_input(model: nn.Module) -> int | None:
    """The number of tokens that a model's tables of positions allow; None for a model without such tables."""
    limits = [limit for module in model.modules() for limit in _position_tables(module)]
    config: Any = getattr(model, "config", None)
    if any(hasattr(module, "build_mpt_alibi_tensor") for module in model.modules()):  # biases up to there alone
        limits.append(config.max_seq_len)
    if not limits:
        return None
    learned: Any = getattr(model, "active_peft_config", None)  # a learned prompt stands before the text
    return min(limits) - (learned.num_virtual_tokens if getattr(learned, "is_prompt_learning", False) else 0)


def _position_tables(module: nn.Module) -> Iterator[int]:
    """How many tokens each table of absolute positions that a module itself holds has rows for."""
    for name, table in module.named_children():
        if "Embedding" in type(table).__name__ and hasattr(table, "weight") and _names_positions(name):
            # OPT's and BART's kin skip rows, RoBERTa's start to count behind their padding index.
            padding = getattr(table, "padding_idx", None)
            skipped = 0 if padding is None else padding + 1
            rows: Any = getattr(table, "num_embeddings", None)  # at stage 3 of DeepSpeed the weight is empty
            yield int((rows or len(table.get_parameter("weight"))) - getattr(table, "offset", skipped))
    for name, table in (*module.named_buffers(recurse=False), *vars(module).items()):
        if not isinstance(table, Tensor) or table.ndim != 2 or not _names_positions(name):
            continue
        if table.is_floating_point():
            yield len(table)
        elif len(table) == 1:  # `position_ids`, from which forward takes the first
            yield table.shape[1]


def _names_positions(name: str) -> bool:
    """Whether a table is one of places in the text, and none of distances or of places on a page."""
    absolute = "position" in name or name in {"wpe", "pos_encoding"}
    other = any(word in name for word in ("relative", "distance", "bias")) or name.startswith(("x_", "y_", "h_", "w_"))
    return absolute and not other
