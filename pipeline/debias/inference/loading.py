"""Models to judge, loaded: the one of a run's folder, or any other as settings say; whole, or sharded over ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from debias.adapters.loading import attach_adapter
from debias.adapters.words import fit_embeddings, tokenizer_source
from debias.building.model import base_model, check_length
from debias.building.task import build_task, padded_for
from debias.config import deepspeed_file as zero_config
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.engines.zero import inference as zero_inference
from debias.engines.zero import launch as zero_launch
from debias.errors import InputError
from debias.inference.answer_scores import Scoring
from debias.inference.batches import LONGEST_WAIT, join
from debias.inference.predictor import Predictor
from debias.models.load import load_tokenizer, longest_input
from debias.models.load_errors import readable_errors
from debias.models.source import ModelSource, resolve_model
from debias.ranks.world import world_size
from debias.runs.data_files import say_changed_base
from debias.runs.digests import weights_digest
from debias.runs.folder import check_labels
from debias.runs.names import ADAPTER, CONFIG, MODEL, trained


def load_run(
    run: Path, scoring: Scoring | None = None, *, deepspeed: str | None = None, config: RunConfig | None = None
) -> Predictor:
    """The predictor of a finished run's folder. InputError when the folder holds no trained model.

    `deepspeed`: weights are sharded over the ranks, with this configuration of stage 3; so are those of a run that
    trained at stage 3, where there are several ranks. `config`: the run's own, where it has been read already.
    """
    run = Path(run)
    if not (run / CONFIG).exists():
        raise InputError(f"{run}: holds no {CONFIG}; give the folder of a run")
    config = config or load_config(run / CONFIG)
    saved = trained(run)
    if saved is None:
        raise InputError(f"{run}: holds no {ADAPTER}/ or {MODEL}/; the run has not finished")
    if deepspeed is None and world_size() > 1 and _stage(config.deepspeed) == 3:
        deepspeed = config.deepspeed
    whole = saved.name == MODEL
    source = resolve_model(saved.as_posix() if whole else config.model)
    if whole:
        check_order(source, config.data.labels, config.head)
    elif config.head != "causal_lm":
        check_labels(saved, config.data.labels, run / CONFIG)
    if not whole:
        say_changed_base(run, config)
    weights = weights_digest(saved)
    predictor = load(config, source, None if whole else str(saved), scoring or Scoring(), deepspeed)
    predictor.weights = weights
    return predictor


def load_untrained(config: RunConfig) -> Predictor:
    """The base of a run before it trains, to look into; its head, if it has one, is as it was drawn.

    The weights are sharded over several ranks where the run trains at stage 3.
    """
    sharded = world_size() > 1 and _stage(config.deepspeed) == 3
    return load(config, config.model, None, Scoring(), config.deepspeed if sharded else None, untrained=True)


def load(
    config: RunConfig,
    model: str | ModelSource,
    adapter: str | None,
    scoring: Scoring,
    deepspeed: str | None = None,
    *,
    shorten: bool = False,
    tokenizer: str | None = None,
    untrained: bool = False,
) -> Predictor:
    """The predictor of a model, with or without an adapter, loaded as `config` says.

    `shorten`: a `max_length` above what the model reads becomes that, and is no error. `tokenizer`: another than the
    adapter's own, or the model's. `untrained`: a head that no one has trained is no error.
    """
    source = resolve_model(model)
    loading = _Loading(source, adapter, _words(config, source, adapter, tokenizer), scoring, shorten, untrained)
    if deepspeed is not None:
        return _load_sharded(config, loading, deepspeed)
    join()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    float32 = device == "cpu" and config.bf16 and not has_bf16()
    whole = _assembled(config, loading, float32=float32)
    if float32:
        config = config.model_copy(update={"bf16": False})
    if not config.load_in_4bit:
        whole = whole.to(device)
    return _predictor(config, loading, whole)


@dataclass(frozen=True)
class _Loading:
    """What is loaded beside the settings: a model, an adapter on it, the tokenizer; and how it is to score."""

    source: ModelSource
    adapter: str | None
    words: ModelSource
    scoring: Scoring
    shorten: bool
    untrained: bool


def tokenizer_of(config: RunConfig, adapter: str | None = None, tokenizer: str | None = None) -> Any:
    """The tokenizer of a model with or without an adapter: the one named, the adapter's own, or the model's."""
    return load_tokenizer(_words(config, resolve_model(config.model), adapter, tokenizer), config.head)


def _words(config: RunConfig, source: ModelSource, adapter: str | None, tokenizer: str | None) -> ModelSource:
    base = source if source.name == config.model else resolve_model(config.model)  # one trained whole has its base's
    return base if config.head == "image_classification" else tokenizer_source(base, adapter, tokenizer)


def _load_sharded(config: RunConfig, loading: _Loading, name: str) -> Predictor:
    try:
        zero_launch.open_group(timeout=LONGEST_WAIT)
    except ImportError:
        raise InputError("deepspeed is not installed; pip install 'debias[deepspeed]'") from None
    config = config.model_copy(update={"deepspeed": name})
    settings = zero_inference.settings(_zero_block(name), bf16=config.bf16)
    with zero_inference.loading(settings):
        model = _assembled(config, loading)
    return _predictor(config, loading, zero_inference.shard(model, settings), sharded=True)


def _predictor(config: RunConfig, loading: _Loading, model: Any, *, sharded: bool = False) -> Predictor:
    limit = longest_input(model)
    if loading.shorten and limit is not None:
        config = config.model_copy(update={"max_length": min(limit, config.max_length)})
    check_length(config, model)
    task = build_task(config, load_tokenizer(loading.words, config.head))
    return Predictor(model, padded_for(task, model), config, loading.scoring, sharded=sharded)


def _assembled(config: RunConfig, loading: _Loading, *, float32: bool = False) -> Any:
    source, adapter = loading.source, loading.adapter
    base = base_model(config, source)
    if loading.words.name not in (source.name, config.model):
        fit_embeddings(base, load_tokenizer(loading.words, config.head), adapter)
    if float32:
        base = _in_float32(base)
    if adapter is None:
        if config.head != "causal_lm" and base.fresh_modules and not loading.untrained:
            raise InputError(
                f"model: {source.name!r} has no trained {', '.join(base.fresh_modules)}; give an adapter that has"
            )
        return base
    if config.deepspeed is None:
        for name in base.fresh_modules:  # trained and saved in float32, whatever the base's dtype
            base.get_submodule(name).float()
    return attach_adapter(base, adapter, base.fresh_modules)


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers itself; where it does not, float32 is exact and many times faster."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_float32(base: Any) -> Any:
    """The same weights, 4-bit and bf16 ones too, as float32 numbers."""
    fresh = base.fresh_modules
    if getattr(base, "is_quantized", False):
        base = base.dequantize()
    base = base.float()
    base.fresh_modules = fresh
    return base


def _stage(name: str | None) -> int:
    return 0 if name is None else int(_zero_block(name).get("stage", 0))


def _zero_block(name: str) -> dict[str, Any]:
    path = zero_config.find(name)
    try:
        block = json.loads(path.read_text(encoding="utf-8")).get("zero_optimization", {})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"deepspeed: {path} cannot be read: {' '.join(str(error).split())}") from None
    return block if isinstance(block, dict) else {}


def check_order(model: ModelSource, labels: Sequence[str], head: str) -> None:
    """InputError if a saved classifier names its outputs otherwise, or in another order, than `labels`."""
    if head == "image_classification":
        import debias.models.vision  # noqa: F401 (makes its own kind of model known to AutoConfig)
    own = own_labels(model) if head != "causal_lm" else None
    if own is not None and own != tuple(labels):
        raise InputError(
            f"{model.name}: its config.json has the labels {list(own)}, the run's config.yaml {list(labels)}"
        )


def own_labels(model: str | ModelSource) -> tuple[str, ...] | None:
    """A classifier's names of its outputs in order; None where they are LABEL_0 and so on, which names nothing."""
    names = getattr(hub_config(model), "id2label", None) or {}
    ordered = tuple(str(names[index]) for index in sorted(names))
    return None if all(name.startswith("LABEL_") for name in ordered) else ordered


def hub_config(model: str | ModelSource) -> Any:
    """The configuration of a model; InputError where there is none."""
    source = resolve_model(model)
    with readable_errors(source.name):
        return source.config
