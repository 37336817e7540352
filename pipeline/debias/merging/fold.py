"""A run's adapter folded into a dense model that loads without PEFT; published when its logits are the adapter's."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debias.adapters import make_adapter
from debias.adapters.families import is_sparse
from debias.adapters.loading import adapter_change, attach_adapter, check_base, part_shared
from debias.adapters.some_tokens import tokens_of
from debias.adapters.words import fit_embeddings, tokenizer_source
from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.merging.folders import check_out, find_adapter
from debias.merging.scale import check_factor, scale_layers
from debias.models.load import load_model, load_tokenizer
from debias.models.source import ModelSource, resolve_model
from debias.runs.data_files import say_changed_base
from debias.runs.folder import check_labels
from debias.runs.names import CONFIG, MERGED, MODEL
from debias.runs.whole import save_whole

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest difference of a logit that rounding explains, as a share of the largest logit.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# In half precision a near tie between experts falls to another one, and the logits of such tokens differ by far. So
# large a share of tokens must agree; an adapter that is lost shows in all of them.
AGREEING, AGREEING_SPARSE_HALF = 1.0, 0.5
PROMPTS, TOKENS = 4, 16
QUANTIZED = ("Params4bit", "Int8Params")  # parameters of bitsandbytes


@dataclasses.dataclass(frozen=True)
class Merged:
    """What was published: where, of what, and how far its logits are from those of the adapter on its base.

    `difference` is the largest of any logit, `agreeing` the share of tokens within `tolerance`; `effect` is what the
    adapter's layers change a logit by at most.
    """

    folder: str
    run: str
    adapter: str
    base: str
    dtype: str
    scale: float
    difference: float
    agreeing: float
    tolerance: float
    effect: float

    @property
    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.folder}: merged in {self.dtype}; logits differ from the adapter's by at most {self.difference:.2g}"
            f" (tolerance {self.tolerance:.2g}, {self.agreeing:.0%} of tokens within; the adapter changes them by up to"
            f" {self.effect:.2g})"
        )


def merge_run(
    run: Path,
    out: Path,
    *,
    adapter: str | None = None,
    dtype: str | None = None,
    scale: float = 1.0,
    overwrite: bool = False,
    tokenizer: str | None = None,
) -> Merged:
    """Fold the adapter of a run into its base, in `out`, with the tokenizer; returns what was checked.

    `adapter`: another one than the last, a folder of the run (`checkpoint-40`) or any PEFT folder. `dtype`: of the
    dense model; by default that of the run's base, and bfloat16 for one in 4 bits, which is loaded in 16 bits. `scale`:
    of the adapter's change to the weights (the edit `scale`); a head that was trained whole stays as it is.
    `tokenizer`: another than the adapter's own, or its base's. The model is written beside `out`, loaded again,
    compared, and only then moved there. InputError says what is wrong, and leaves what was in `out`.
    """
    run, out = Path(run), Path(out).resolve()
    config = _config_of(run)
    source = find_adapter(run, adapter)
    check_out(out, [run, source, Path(config.model)], overwrite)
    check_base(str(source), config.model)
    if config.head != "causal_lm":
        check_labels(source, config.data.labels, run / CONFIG)
    say_changed_base(run, config)
    name = _dtype_name(config, dtype)
    check_factor("scale", scale)
    if config.load_in_4bit:
        logger.info("the run's base was in 4 bits; the adapter is merged into the %s weights it was made from", name)
    base = resolve_model(config.model)
    words = load_tokenizer(tokenizer_source(base, str(source), tokenizer), config.head)
    folding = _fold(config, base, source, words, name, scale)
    told = {"run": run, "adapter": source, "base": config.model, "dtype": name, "scale": scale}

    def save(part: Path) -> None:
        folding.dense.save_pretrained(part)
        words.save_pretrained(part)
        folding.dense = None  # one model in memory at a time
        figures = compare(
            logits(reload(part, config, base, name), folding.ids), folding.wanted, name, sparse=folding.sparse
        )
        merged = _record(out, {**told, "effect": folding.effect, **figures})
        (part / MERGED).write_text(json.dumps(dataclasses.asdict(merged), indent=2) + "\n", encoding="utf-8")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_whole(out, save)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    return Merged(**json.loads((out / MERGED).read_text(encoding="utf-8")))


@dataclasses.dataclass
class _Folding:
    """A folded model, token ids, what the adapter on its base said to them, and how much of it is the adapter's."""

    dense: Any
    ids: Tensor
    wanted: Tensor
    effect: float
    sparse: bool


def _fold(config: RunConfig, named: ModelSource, source: Path, tokenizer: Any, dtype: str, scale: float) -> _Folding:
    base = load_model(named, config.head, config.data.labels, dtype=DTYPES[dtype], seed=config.seed)
    if any(type(parameter).__name__ in QUANTIZED for parameter in base.parameters()):
        raise InputError(
            f"model: {named.name!r} is quantized by its own configuration, and no adapter is merged into such weights;"
            " judge it as it is, or train on the checkpoint that it was made from, with load_in_4bit"
        )
    fit_embeddings(base, tokenizer, str(source))
    known = base.get_input_embeddings().num_embeddings  # an adapter may wrap them
    model = attach_adapter(base, str(source), base.fresh_modules).eval()
    _check_folds(model, source)
    scale_layers(model, scale, source)
    ids = prompts(tokenizer, known)
    told = torch.tensor([token for token in tokens_of(model) if token < known][: ids.shape[1]], dtype=ids.dtype)
    ids[0, : len(told)] = told  # an adapter of some tokens changes what is said of these
    wanted = logits(model, ids)
    effect = adapter_change(model, lambda: logits(model, ids).numpy())
    if effect <= TOLERANCE[dtype] * float(wanted.abs().max()):
        what = "nothing: the merged model is its base" if effect == 0 else "no logit by more than rounding may"
        logger.warning("WARNING: the adapter changes %s", what)
    part_shared(model)
    try:
        dense = model.merge_and_unload(safe_merge=True)  # fused experts too; refuses what is not finite
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"adapter: {source} cannot be merged: {' '.join(str(error).split())}") from error
    return _Folding(dense.to(DTYPES[dtype]), ids, wanted, effect, is_sparse(dense))


def _record(out: Path, told: dict[str, Any]) -> Merged:
    plain: dict[str, Any] = {key: str(one) if isinstance(one, Path) else one for key, one in told.items()}
    return Merged(folder=str(out), **plain)


def _config_of(run: Path) -> RunConfig:
    if not (run / CONFIG).is_file():
        raise InputError(f"{run}: holds no {CONFIG}; give the folder of a run")
    config = load_config(run / CONFIG)
    if config.head == "image_classification":
        raise InputError(f"{run}: head is 'image_classification'; only text models are merged")
    if not make_adapter(config.adapter).folds:
        raise InputError(f"{run}: adapter.type is {config.adapter['type']!r}: {run / MODEL} is a dense model already")
    return config


def _dtype_name(config: RunConfig, asked: str | None) -> str:
    if asked is None:
        return "bfloat16" if config.bf16 or config.load_in_4bit else "float32"
    if asked not in DTYPES:
        raise InputError(f"dtype is {asked!r}, not one of {', '.join(DTYPES)}")
    return asked


def _check_folds(model: Any, source: Path) -> None:
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.peft_config[model.active_adapter].peft_type
        raise InputError(f"adapter: {source} is of kind {getattr(kind, 'value', kind)}, which no weight can take in")


def prompts(tokenizer: Any, known: int, seed: int = 0) -> Tensor:
    """Token ids [PROMPTS, TOKENS] below `known` from the tokenizer's vocabulary, special tokens left out."""
    words = sorted(set(tokenizer.get_vocab().values()) & set(range(known)) - set(tokenizer.all_special_ids))
    drawn = torch.randint(len(words), (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(words)[drawn]


def logits(model: Any, ids: Tensor) -> Tensor:
    """What a model says to `ids`, float32; a half-precision model under autocast, for what trained in float32."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    half = dtype != torch.float32
    with torch.no_grad(), torch.autocast("cpu", dtype if half else torch.bfloat16, enabled=half):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def reload(folder: Path, config: RunConfig, source: ModelSource, dtype: str) -> Any:
    """The dense model as anybody loads it, by `from_pretrained`, with nothing missing; `source`: of its base."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if config.head == "causal_lm" else AutoModelForSequenceClassification
    # The base's code was copied into the folder.
    model, found = kind.from_pretrained(
        folder, dtype=DTYPES[dtype], output_loading_info=True, trust_remote_code=source.trusted
    )
    if found["missing_keys"]:
        raise InputError(
            f"merged model: written without {', '.join(sorted(found['missing_keys'])[:3])}; nothing is published"
        )
    return model.eval()


def compare(found: Tensor, wanted: Tensor, dtype: str, *, sparse: bool = False) -> dict[str, float]:
    """How far logits are from those wanted; InputError where rounding does not explain it."""
    tolerance = TOLERANCE[dtype] * float(wanted.abs().max())
    difference_T = (found - wanted).abs().amax(-1)
    agreeing = float((difference_T <= tolerance).float().mean())
    if not agreeing >= (AGREEING_SPARSE_HALF if sparse and dtype != "float32" else AGREEING):
        raise InputError(
            f"merged model: logits differ from the adapter's by up to {float(difference_T.max()):.3g}, {agreeing:.0%}"
            f" of tokens are within {tolerance:.3g}; nothing is published"
        )
    return {"difference": float(difference_T.max()), "agreeing": agreeing, "tolerance": tolerance}
