"""rsLoRA: LoRA scaled by the root of its rank (Kalajdzievski, 2023, arXiv 2312.03732), by PEFT's `use_rslora`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from debias.adapters.base import Beside, RunFacts
from debias.adapters.lora import TARGETS, attach_to_layers, check_targets


@dataclass(frozen=True)
class RsLora(Beside):
    """LoRA with the scaling `lora_alpha / sqrt(lora_r)`: its update does not shrink where the rank grows.

    `targets` as LoRA's; fused experts get none. At rank r it is LoRA with `lora_alpha` times `sqrt(r)`.

    Needs linear layers. Costs what LoRA costs. Fails where `lora_alpha` was found for LoRA at a high rank: the same
    number is `sqrt(r)` times as much here.

    Source: Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv 2312.03732.
    """

    name: ClassVar[str] = "rslora"
    reads: ClassVar[tuple[str, ...]] = ("lora_r", "lora_alpha", "lora_dropout")
    marks: ClassVar[tuple[str, ...]] = (".lora_A.", ".lora_B.")
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = field(default="auto", metadata=TARGETS)

    def __post_init__(self) -> None:
        check_targets(self.targets)

    def attach(self, model: Any, run: RunFacts) -> Any:
        return attach_to_layers(model, run, self.name, self.targets, use_rslora=True)
