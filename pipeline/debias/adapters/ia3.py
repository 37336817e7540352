"""(IA)^3: what layers say, times a vector (Liu et al., NeurIPS 2022, arXiv 2205.05638), by PEFT's `IA3Config`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from debias.adapters.base import Beside, RunFacts, is_head, saved_whole, task_type, train_in_float32
from debias.adapters.beft import KEY, VALUE
from debias.adapters.families import check_names, ends, is_router
from debias.errors import InputError

FUSED = ("query_key_value", "c_attn")
NAMES = {"expects": "auto or a list of module names"}


@dataclass(frozen=True)
class IA3(Beside):
    """The outputs of key and value projections, and the inputs of the MLP's last layer, each times a vector from 1.

    `targets`: whose outputs; `auto` is the key and value projections. `feedforward`: whose inputs; `auto` is linear
    layers back to the hidden size from another one, but for attention's, and an empty list none.

    Needs named projections of attention. Costs one number for each output, or input, of a layer. Fails where a task
    asks for more than making features larger or smaller; and to give both gradients in one pass: `gradients: auto`
    takes `shared_forward`. A vector at 0 cannot be taken out of a folded weight again.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, NeurIPS
    2022, arXiv 2205.05638.
    """

    name: ClassVar[str] = "ia3"
    marks: ClassVar[tuple[str, ...]] = (".ia3_l.",)
    targets: Literal["auto"] | tuple[str, ...] = field(default="auto", metadata=NAMES)
    feedforward: Literal["auto"] | tuple[str, ...] = field(default="auto", metadata=NAMES)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError(f"targets is [], expected {NAMES['expects']}")

    def attach(self, model: Any, run: RunFacts) -> Any:
        from peft import IA3Config, get_peft_model

        outputs = _paths(model, KEY + VALUE if self.targets == "auto" else self.targets)
        if self.targets != "auto":
            check_names(model, self.targets)
        elif not outputs:
            raise InputError(f"adapter.targets: 'auto' of ia3 is {', '.join(KEY + VALUE)}, and this model has none")
        if self.feedforward == "auto":
            inputs = list(_back_to_hidden(model))
        else:
            check_names(model, self.feedforward, "feedforward")
            inputs = _paths(model, self.feedforward)
        if both := sorted(set(outputs) & set(inputs)):
            raise InputError(f"adapter.feedforward: {both[0]} is one of adapter.targets too; name it in one of the two")
        config = IA3Config(
            target_modules=_pattern(model, [*outputs, *inputs]),
            feedforward_modules=_pattern(model, inputs),
            modules_to_save=saved_whole(model, run.fresh),
            task_type=task_type(model, classification=run.classification),
        )
        adapted = get_peft_model(model, config)
        train_in_float32(adapted)
        return adapted


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return (
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_router(path, module) and not is_head(path)
    )


def _paths(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    return [path for path, _ in _linears(model) if any(ends(path, name) for name in names)]


def _back_to_hidden(model: Any) -> Iterator[str]:
    """The layers that end an MLP: from another width to the hidden size, in a numbered layer of the model.

    Outside of those lie projections of embeddings (ELECTRA's, ALBERT's, OPT's). Nor is it the output of attention,
    which has another width where heads times their size is not the hidden size (Qwen3, Gemma 3, T5).
    """
    config = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", None)
    for path, module in _linears(model):
        numbered = any(map(str.isdigit, path.split(".")))
        ends_there = module.out_features == hidden != module.in_features
        if numbered and ends_there and not _attends(model.get_submodule(path.rpartition(".")[0])):
            yield path


def _attends(module: nn.Module) -> bool:
    """Whether projections of keys or values lie in this module, each alone or as one (`qkv_proj`, `kv_b_proj`)."""
    names = [name for name, _ in module.named_children()]
    return any(name in KEY + VALUE + FUSED or "kv" in name.lower() for name in names)


def _pattern(model: nn.Module, paths: list[str]) -> str:
    """A regular expression of these paths: PEFT would shorten a long list, and not the same way twice.

    With any number for a layer's where that means no other layer, else path by path.
    """
    every = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(path)) for path in paths)
    short = "|".join(every) or "(?!)"
    meant = {path for path, _ in model.named_modules() if re.fullmatch(short, path)}
    return short if meant == set(paths) else "|".join(map(re.escape, paths))
