"""DoRA: weight-decomposed low-rank adaptation (Liu et al., ICML 2024, arXiv 2402.09353), by PEFT's `use_dora`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from debias.adapters.base import Beside, RunFacts
from debias.adapters.lora import TARGETS, attach_to_layers, check_targets


@dataclass(frozen=True)
class Dora(Beside):
    """`W' = m (W + s B A) / |W + s B A|` row by row: LoRA turns a row, and a magnitude `m` for each row trains too.

    `targets` as LoRA's; fused experts get none, for PEFT has no DoRA on parameters. The norm is a constant in the
    backward pass (section 4.3 of the paper).

    Needs linear layers. Costs what LoRA costs, one number more for each row, and the norm of `W + s B A` in every
    forward pass. Fails to give both gradients in one pass: `gradients: auto` takes `shared_forward`.

    Source: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024, arXiv 2402.09353.
    """

    name: ClassVar[str] = "dora"
    reads: ClassVar[tuple[str, ...]] = ("lora_r", "lora_alpha", "lora_dropout")
    marks: ClassVar[tuple[str, ...]] = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = field(default="auto", metadata=TARGETS)

    def __post_init__(self) -> None:
        check_targets(self.targets)

    def attach(self, model: Any, run: RunFacts) -> Any:
        return attach_to_layers(model, run, self.name, self.targets, use_dora=True)
