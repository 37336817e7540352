"""Models that no run of ours made: from a hub id or folder, an adapter, a prompt, the names of labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from debias.adapters.loading import adapter_base, check_base
from debias.config import blocks
from debias.config.places import find_recipe
from debias.config.prompt_file import LONGEST, Shots, asked_as, is_short
from debias.config.reading import load_config, parse
from debias.config.run import RunConfig
from debias.data.shots import Shown
from debias.errors import InputError
from debias.inference.answer_scores import Scoring
from debias.inference.in_context import shown_to
from debias.inference.loading import hub_config, load, own_labels, tokenizer_of
from debias.inference.predictor import Predictor
from debias.models.source import resolve_model
from debias.runs.folder import labels_beside, settings_beside

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """A model to judge that no run of ours made; `adapter` alone names its base itself.

    `prompt`: a run's settings or recipe, or a file of `template` and `verbalizers`. `labels`: the names of a
    classifier's outputs, in order, where the model itself has none. `tokenizer`: another than the adapter's own, which
    wins over the model's.
    """

    model: str | None = None
    adapter: str | None = None
    prompt: Path | None = None
    labels: tuple[str, ...] | None = None
    bf16: bool | None = None
    load_in_4bit: bool | None = None
    deepspeed: str | None = None
    tokenizer: str | None = None


def load_given(given: Given, scoring: Scoring | None = None, shown: Shown | None = None) -> Predictor:
    """The predictor of any model, with or without an adapter. InputError for whatever does not fit together.

    An adapter that changes nothing is an error as soon as something is scored. `shown`: examples in context; prompts
    that are too long even so are cut, as others are.
    """
    config = given_config(given)
    source = resolve_model(config.model)
    if shown is not None:
        config = _with_examples(config, shown, given)
    told = (config, source, given.adapter, scoring or Scoring(), given.deepspeed)
    predictor = load(*told, shorten=True, tokenizer=given.tokenizer)
    predictor.refuses_idle_adapter = True
    predictor.any_texts = reads_any_texts(given, config)
    return predictor


def given_shots(given: Given, shots: Shots) -> Shown:
    """The examples that are put before every prompt of a model; InputError as `shown_to` raises it."""
    return shown_to(given_config(given), _source(given), shots)


def _with_examples(config: RunConfig, shown: Shown, given: Given) -> RunConfig:
    """There is room for the examples beside what `max_length` allows a prompt, as far as the model reads."""
    words = tokenizer_of(config, given.adapter, given.tokenizer)
    tokens = len(words(shown.text(config), add_special_tokens=False)["input_ids"])
    longer = shown.before(config, tokens)
    most = getattr(hub_config(config.model).get_text_config(), "max_position_embeddings", None)
    return longer if most is None else longer.model_copy(update={"max_length": min(most, longer.max_length)})


def reads_any_texts(given: Given, config: RunConfig) -> bool:
    """Whether it is a classifier of which nobody said what it reads: neither a run nor a prompt file."""
    return config.head == "classification" and _source(given) is None


def given_config(given: Given) -> RunConfig:
    """The settings under which a model is judged, before anything large is loaded."""
    source = _source(given)
    if source is None:
        config = _classifier(_model(given), given.adapter, given.labels)
    elif is_short(source):
        config = asked_as(source, _model(given))
    else:
        config = load_config(source)
        lora = blocks.read("adapter", "lora")  # whatever is judged, its base may be in 4 bits
        config = config.model_copy(update={"model": given.model or config.model, "adapter": lora})
    default = torch.cuda.is_available() if source is None or given.prompt is not None else config.bf16
    chosen = {"bf16": default if given.bf16 is None else given.bf16, "deepspeed": given.deepspeed}
    if given.load_in_4bit is not None:
        chosen["load_in_4bit"] = given.load_in_4bit
    elif config.load_in_4bit:
        logger.info("the model is judged in 4 bits, as %s says; --no-load-in-4bit judges it in 16", source)
    config = config.model_copy(update=chosen)
    if given.adapter is not None:
        check_base(given.adapter, config.model)
    if config.head != "causal_lm":
        return _ordered(config, given)
    if given.labels is not None:
        raise InputError("labels: a causal model's labels are those of its prompt's verbalizers; leave --labels out")
    return config


def _model(given: Given) -> str:
    model = given.model or (adapter_base(given.adapter) if given.adapter else None)
    if model is None:
        raise InputError(f"adapter: {given.adapter!r} names no base model; give --model")
    return model


def _source(given: Given) -> Path | None:
    """The file of settings: the one given, else that of the run that the adapter lies in or was made from."""
    if given.prompt is not None:
        return find_recipe(given.prompt)
    return settings_beside(Path(given.adapter).resolve()) if given.adapter else None


def _ordered(config: RunConfig, given: Given) -> RunConfig:
    """A classifier's labels in the order of its outputs; InputError where names show that they are others."""
    if given.adapter is None:
        labels = _in_models_order(config.model, given.labels or config.data.labels)
        return config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})})
    if given.labels is not None and given.labels != config.data.labels:
        raise InputError(f"labels: {list(given.labels)}, but {_source(given)} has {list(config.data.labels)}")
    own, told = labels_beside(Path(given.adapter)), config.data.labels
    if own is None or own == told:
        return config
    where = "--labels" if given.labels is not None else _source(given)
    labels = _by_name(told, own, f"adapter: {given.adapter} has the labels {list(own)}, but {where} has {list(told)}")
    return config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})})


def _classifier(model: str, adapter: str | None, labels: Sequence[str] | None) -> RunConfig:
    source = resolve_model(model)
    kinds = getattr(hub_config(source), "architectures", None) or []
    labels = labels or (labels_beside(Path(adapter)) if adapter else None)
    if labels is None and any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise InputError(
            f"model: {model!r} is a causal language model; give --prompt, a file of template and verbalizers"
        )
    names = labels or own_labels(source)
    if adapter is None and not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(f"model: {model!r} has no trained classification head; give an --adapter that has one")
    if names is None:
        raise InputError(f"model: {model!r} does not name its labels; give them in order with --labels")
    data = {"train": "generated", "labels": list(names)}
    return parse(RunConfig, {"model": model, "data": data, "output_dir": "none", "max_length": LONGEST}, "labels")


def _in_models_order(model: str, labels: Sequence[str]) -> tuple[str, ...]:
    """`labels` in the order of the model's outputs: by the names it gives them itself, whatever their case."""
    source = resolve_model(model)
    own, outputs = own_labels(source), hub_config(source).num_labels
    if outputs != len(labels):
        raise InputError(f"model: {model!r} has {outputs} outputs, and {len(labels)} labels were given: {list(labels)}")
    if own is None:
        return tuple(labels)
    return _by_name(labels, own, f"model: {model!r} has the labels {list(own)}, expected {list(labels)}")


def _by_name(labels: Sequence[str], own: Sequence[str], otherwise: str) -> tuple[str, ...]:
    """`labels` in the order of `own`, whatever their case; InputError, `otherwise`, where they are others."""
    by_name = {label.casefold(): label for label in labels}
    if sorted(by_name) != sorted(name.casefold() for name in own):
        raise InputError(otherwise)
    return tuple(by_name[name.casefold()] for name in own)
