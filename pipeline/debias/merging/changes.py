"""An adapter's folder as the changes it makes to weights, and such changes as an adapter's folder; no base is loaded.

Read as it stands: `scaling * B A` with PEFT's own rules for ranks and scalings (`rank_pattern`, `alpha_pattern`,
rsLoRA). What a change is not, or not alone (DoRA's magnitudes, biases, weights that PEFT alters when it attaches), is
refused by name. Shapes: E experts, O outputs, I inputs, R the rank (of an expert).
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debias.adapters.loading import adapter_settings, adapter_tensors
from debias.errors import InputError
from debias.merging.edits import LowRank

PREFIX = "base_model.model."
FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
# Settings of PEFT's LoRA under which the change of a weight is still `scaling * B A`. Any other one, known to this
# PEFT or not, is refused unless it stands at its default: a new variant must not be edited as if it were LoRA.
OF_THE_FILE = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
}
WHERE = {
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
}
HOW_MUCH = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_dropout"}
START = {"init_lora_weights", "eva_config"}
UNDERSTOOD = frozenset(OF_THE_FILE | WHERE | HOW_MUCH | START)
# The others (pissa, olora, loftq, ...) subtract their start from the base when PEFT attaches them.
BASE_STAYS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: PEFT's settings, and its tensors sorted into pairs (A, B) by module and modules saved whole."""

    folder: Path
    config: Any
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]

    def rank(self, module: str) -> int:
        """R of one module's change."""
        return _rank_and_alpha(self.config, module, self.folder)[0]

    def shape(self, module: str) -> list[int]:
        """[O, I] of the weight that a module's change is of; of a stack of experts [E, O, I]."""
        a_RI, b_OR = self.pairs[module]
        stack = [len(a_RI) // self.rank(module)] if _parameters(self.config, module) else []
        return [*stack, len(b_OR), a_RI.shape[1]]

    def change(self, module: str) -> LowRank:
        """The change of one module's weight in float64, scaling in it; of a stack of experts [E, ...]."""
        a_RI, b_OR = (tensor.double() for tensor in self.pairs[module])
        rank, alpha = _rank_and_alpha(self.config, module, self.folder)
        if _parameters(self.config, module):
            a_RI = a_RI.view(-1, rank, a_RI.shape[-1])  # expert after expert
            b_OR = b_OR.view(b_OR.shape[0], rank, -1).permute(2, 0, 1)  # experts innermost
        scaling = alpha / (math.sqrt(rank) if self.config.use_rslora else rank)
        return LowRank(a_RI, b_OR).times(scaling)


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a PEFT folder; InputError in one line for what is no change of weights, or not finite."""
    config = adapter_settings(str(folder))
    _check_settings(config, folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for name, tensor in adapter_tensors(str(folder)).items():
        found = FACTOR.fullmatch(name)
        if found:
            pairs.setdefault(found[1], {})[found[2]] = tensor
        elif ".lora_" in name or not name.startswith(PREFIX):
            raise InputError(f"adapter: {folder}: {name} is no matrix beside a linear layer, which is what is edited")
        else:
            whole[name.removeprefix(PREFIX)] = tensor
    for module, pair in pairs.items():
        _check_pair(module, pair, config, folder)
    broken = next((name for name, tensor in whole.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise InputError(f"adapter: {folder}: {broken} is not finite")
    if not pairs:
        raise InputError(f"adapter: {folder} holds no LoRA matrices")
    return Adapter(folder, config, {module: (pair["A"], pair["B"]) for module, pair in pairs.items()}, whole)


def _check_settings(config: Any, folder: Path) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise InputError(f"adapter: {folder} is of kind {kind}; only the changes of LoRA are edited")
    if config.init_lora_weights not in BASE_STAYS:
        raise InputError(
            f"adapter: {folder}: init_lora_weights is {config.init_lora_weights!r}, under which the base is altered too"
        )
    written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name, value in {**written, **config.to_dict()}.items():
        if name not in UNDERSTOOD and value and value != _default(config, name):
            raise InputError(f"adapter: {folder}: {name} is {value!r}, under which a change is not B A alone")


def _default(config: Any, name: str) -> Any:
    """Of a setting of PEFT's; what it must be where a setting is not known: nothing."""
    field = next((field for field in dataclasses.fields(config) if field.name == name), None)
    return None if field is None or field.default is dataclasses.MISSING else field.default


def _check_pair(module: str, pair: Mapping[str, Tensor], config: Any, folder: Path) -> None:
    if pair.keys() != {"A", "B"}:
        raise InputError(f"adapter: {folder}: {module} has lora_{min(pair)} alone")
    a_RI, b_OR = pair["A"], pair["B"]
    if a_RI.ndim != 2 or b_OR.ndim != 2:
        raise InputError(f"adapter: {folder}: {module} is no linear layer: its A is {list(a_RI.shape)}")
    rank, _ = _rank_and_alpha(config, module, folder)
    rows, columns = a_RI.shape[0], b_OR.shape[1]
    if rows != columns or (rows % rank if _parameters(config, module) else rows != rank):
        raise InputError(f"adapter: {folder}: {module} has {rows} rows of A and {columns} columns of B at rank {rank}")
    if not (a_RI.isfinite().all() and b_OR.isfinite().all()):
        raise InputError(f"adapter: {folder}: {module} is not finite")


def _rank_and_alpha(config: Any, module: str, folder: Path) -> tuple[int, float]:
    """As PEFT reads them for a module. Of fused parameters of one module, which PEFT saves without their names."""
    from peft.utils.other import get_pattern_key

    found = set()
    for key in _parameters(config, module) or [module]:
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), key), config.lora_alpha)
        found.add((rank, alpha))
    if len(found) > 1:
        raise InputError(f"adapter: {folder}: {module}: its parameters have several ranks or alphas, {sorted(found)}")
    return found.pop()


def _parameters(config: Any, module: str) -> list[str]:
    """The paths of the fused parameters that a module's matrices may be of, none for a linear layer.

    PEFT puts adapters of several parameters of one module around each other: `experts`, `experts.base_layer`.
    """
    path = module.replace(".base_layer", "")
    targets = [target.rpartition(".") for target in config.target_parameters or ()]
    return [f"{path}.{name}" for end, _, name in targets if path == end or path.endswith(f".{end}")]


def write_adapter(folder: Path, like: Any, changes: Mapping[str, LowRank], whole: Mapping[str, Tensor]) -> None:
    """A plain PEFT adapter in `folder`, whose every scaling is 1; `like`: PEFT's settings of one on the same modules.

    LoRA's matrices are written in float32: what PEFT computes with, even where they were trained in 16 bits.
    """
    from safetensors.torch import save_file

    changes = _of_one_rank(like, changes)
    tensors = dict(whole)
    for module, change in changes.items():
        a, b = change.a_RI, change.b_OR
        if a.ndim == 3:
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1, 2)
        tensors |= {f"{module}.lora_A.weight": a.float(), f"{module}.lora_B.weight": b.float()}
    folder.mkdir(parents=True, exist_ok=True)
    _settings(like, changes).save_pretrained(folder)
    whole_names = {PREFIX + name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole_names, folder / "adapter_model.safetensors", {"format": "pt"})


def _settings(like: Any, changes: Mapping[str, LowRank]) -> Any:
    """`like` with the ranks of `changes`, and as alpha of each its rank."""
    ranks = dict(_ranks(like, changes))
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    others = {key: rank for key, rank in ranks.items() if rank != usual}
    settings = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": dict(others)}
    # The start is of no account to an adapter that is there, and some have demands on the rank.
    settings |= {"use_rslora": False, "init_lora_weights": True, "eva_config": None}
    return dataclasses.replace(like, **settings)


def _ranks(like: Any, changes: Mapping[str, LowRank]) -> Iterator[tuple[str, int]]:
    """Of every module or fused parameter, by a pattern that is that one alone."""
    for module, change in changes.items():
        for path in _parameters(like, module) or [module]:
            yield f"^{re.escape(path)}", change.rank


def _of_one_rank(like: Any, changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The fused parameters of one module with one rank, filled up with zeros: PEFT's file does not say which is which.

    Ranks are told by a parameter's name, and matrices saved by the order in which PEFT happened to attach them.
    """
    most = dict[tuple[str, ...], int]()
    keys = {module: tuple(_parameters(like, module)) or (module,) for module in changes}
    for module, change in changes.items():
        most[keys[module]] = max(most.get(keys[module], 0), change.rank)
    return {module: _filled(change, most[keys[module]]) for module, change in changes.items()}


def _filled(change: LowRank, rank: int) -> LowRank:
    more = rank - change.rank
    pad = torch.nn.functional.pad
    return change if more == 0 else LowRank(pad(change.a_RI, (0, 0, 0, more)), pad(change.b_OR, (0, more)))
