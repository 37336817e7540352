"""BEFT: bias-efficient fine-tuning of one kind of bias (Huang et al., arXiv 2509.15974), by PEFT's `BeftConfig`.

Which bias: the value projection's, as the paper found best in general, or what `selection_scores` says of a finished
BitFit run of the same base.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from debias.adapters.base import Beside, RunFacts, is_skeleton, saved_whole, task_type, train_in_float32
from debias.adapters.families import check_names, ends, is_router, linear_names
from debias.errors import InputError

logger = logging.getLogger(__name__)

# What architectures call the projections of attention.
QUERY = ("q_proj", "query", "query_proj", "q_lin", "q")
KEY = ("k_proj", "key", "key_proj", "k_lin", "k")
VALUE = ("v_proj", "value", "value_proj", "v_lin", "v")


@dataclass(frozen=True)
class Beft(Beside):
    """A vector `[1, O]` added to the output of each layer in `targets`, from zero: the layer's bias, tuned alone.

    `targets`: `auto` (the value projections) or endings of layers' names (`query`, `k_proj`). Where a layer has no bias
    of its own it gets one, and the adapter cannot be folded into the base.

    Needs named projections of attention. Costs one number for each output of a layer: less than any other form here.
    Fails where a task asks for more than a shift of outputs: the paper's case is little data. Its score of which bias
    to tune is undefined where the base's biases are zero or absent.

    Source: Huang et al., BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes, 2025, arXiv
    2509.15974.
    """

    name: ClassVar[str] = "beft"
    marks: ClassVar[tuple[str, ...]] = (".beft_bias.",)
    targets: Literal["auto"] | tuple[str, ...] = field(
        default="auto", metadata={"expects": "auto (the value projections) or a list of module names"}
    )

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets is [], expected auto (the value projections) or a list of module names")

    def attach(self, model: Any, run: RunFacts) -> Any:
        from peft import BeftConfig, get_peft_model

        names = value_names(model) if self.targets == "auto" else list(self.targets)
        check_names(model, names)
        _check_layers(model, names)
        config = BeftConfig(
            target_modules=names,
            modules_to_save=saved_whole(model, run.fresh),
            task_type=task_type(model, classification=run.classification),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected that the base layer has no bias", UserWarning)  # said once
            adapted = get_peft_model(model, config)
        train_in_float32(adapted)
        return adapted


def value_names(model: nn.Module) -> list[str]:
    """The names of a model's value projections; InputError where none is known."""
    there = linear_names(model)
    found = [name for name in VALUE if name in there]
    if not found:
        raise InputError(
            f"adapter.targets: 'auto' of beft is the value projection ({', '.join(VALUE)}), and this model has none;"
            f" give a list of {', '.join(there)}"
        )
    return found


def _targeted(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    return (
        (path, module)
        for path, module in model.named_modules()
        if any(ends(path, name) for name in names) and not is_router(path, module)
    )


def _check_layers(model: nn.Module, names: Sequence[str]) -> None:
    """InputError for layers that PEFT's BEFT does not take; a warning for those that have no bias of their own."""
    layers = dict(_targeted(model, names))
    for path, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise InputError(f"adapter.targets: beft adapts nn.Linear alone, and {path} is a {type(layer).__name__}")
    bare = [path for path, layer in layers.items() if layer.bias is None]
    if bare and not is_skeleton(model):
        logger.warning(
            "adapter.type: beft: %d of %d layers have no bias of their own (%s the first); each gets one, and the"
            " adapter cannot be merged into the base",
            len(bare),
            len(layers),
            bare[0],
        )


def beft_scores(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, float]:
    """By name of layer (`query`), `1 - <w, u> / max(|w|, |u|)^2` of tuned bias w and base bias u, mean over layers.

    The paper's importance of a bias: 0 where tuning left a bias as it was, larger the more it turned or
    changed its length, at most 2. `base` and `tuned` map paths (`...layer.0...query.bias`) to vectors. Layers whose
    base bias is zero or absent have no score: there any direction scores 1. NaN where no layer of a name has one.
    ValueError where two biases of one path differ in shape. Computed in float64.
    """
    found: dict[str, list[float]] = {}
    for path, tuned_O in tuned.items():
        if path.endswith(".bias"):
            scores = found.setdefault(path.split(".")[-2], [])
            scores += _score(path, base.get(path), tuned_O)
    return {name: sum(scores) / len(scores) if scores else math.nan for name, scores in found.items()}


def _score(path: str, base_O: Tensor | None, tuned_O: Tensor) -> list[float]:
    if base_O is None:
        return []
    if base_O.shape != tuned_O.shape:
        raise ValueError(f"{path}: shape {list(tuned_O.shape)}, but {list(base_O.shape)} in the base")
    u_O, w_O = base_O.to(torch.float64), tuned_O.to(torch.float64)
    uu = float(u_O @ u_O)
    return [1 - float(w_O @ u_O) / max(uu, float(w_O @ w_O))] if uu else []


def best_target(scores: Mapping[str, float]) -> str:
    """The name with the largest score; the value projection, with a warning, where not every score is defined.

    ValueError where there is no score at all, nor a value projection to fall back to.
    """
    undefined = [name for name, score in scores.items() if not math.isfinite(score)]
    if scores and not undefined:
        return max(scores, key=lambda name: scores[name])
    value = next((name for name in VALUE if name in scores), None)
    if value is None:
        raise ValueError(f"scores: {dict(scores)} names no value projection ({', '.join(VALUE)})")
    logger.warning(
        "beft: the score of %s is undefined, as the base's biases are zero or absent; %s is taken, the paper's default",
        ", ".join(undefined),
        value,
    )
    return value


def selection_scores(run: Path | str) -> dict[str, float]:
    """`beft_scores` of the query, key and value projections, from a finished BitFit run and the base it started from.

    Give `best_target` of them to `adapter: {type: beft, targets: [...]}` of the next run. InputError for a run of
    another adapter, one that has not finished, and models whose projections are not known by name.
    """
    from debias.config.reading import load_config
    from debias.models.load import load_model
    from debias.runs.folder import CONFIG, MODEL

    run = Path(run)
    config = load_config(run / CONFIG)
    if config.adapter["type"] != "bitfit":
        raise InputError(f"{run}: adapter.type is {config.adapter['type']!r}; scores come from a bitfit run")
    if not (run / MODEL).is_dir():
        raise InputError(f"{run}: holds no {MODEL}/; the run has not finished")
    base, tuned = (
        _projection_biases(load_model(name, config.head, config.data.labels, seed=config.seed))
        for name in (config.model, str(run / MODEL))
    )
    if not tuned:
        raise InputError(f"{run}: no bias of a query, key or value projection ({', '.join(QUERY + KEY + VALUE)})")
    return beft_scores(base, tuned)


def _projection_biases(model: nn.Module) -> dict[str, Tensor]:
    endings = tuple(f".{name}.bias" for name in QUERY + KEY + VALUE)
    return {path: p.detach() for path, p in model.named_parameters() if path.endswith(endings)}
