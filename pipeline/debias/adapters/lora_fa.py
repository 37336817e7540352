"""LoRA with A as it was drawn: B alone trains (Zhang et al., 2023, arXiv 2308.03303)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from debias.adapters.base import SAVED_WHOLE, Beside, RunFacts
from debias.adapters.lora import TARGETS, attach_to_layers, check_targets

FROZEN, TRAINED = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class LoraFA(Beside):
    """LoRA whose A stays as it was drawn: of `W + s B A` only B trains, in a random room of r directions of the input.

    `targets` as LoRA's; fused experts get none. Which directions a layer may read is then nobody's choice: neither the
    task's nor the shortcut's.

    Needs linear layers, and not DeepSpeed, whose checkpoints here hold what trains alone. Costs `r O` parameters that
    train in each layer, and keeps r numbers of its input for a token in the place of I. Fails where r is small: nothing
    says that the random directions hold what the task needs.

    Source: Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, 2023,
    arXiv 2308.03303; B alone also in Zhu et al., Asymmetry in Low-Rank Adapters of Foundation Models, ICML 2024, arXiv
    2402.16842.
    """

    name: ClassVar[str] = "lora_fa"
    reads: ClassVar[tuple[str, ...]] = ("lora_r", "lora_alpha", "lora_dropout")
    marks: ClassVar[tuple[str, ...]] = (FROZEN, TRAINED)
    held: ClassVar[tuple[str, ...]] = (FROZEN,)
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = field(default="auto", metadata=TARGETS)

    def __post_init__(self) -> None:
        check_targets(self.targets)

    def attach(self, model: Any, run: RunFacts) -> Any:
        adapted = attach_to_layers(model, run, self.name, self.targets)
        for path, parameter in adapted.named_parameters():
            if FROZEN in path:
                parameter.requires_grad = False
        return adapted

    @classmethod
    def owns(cls, parameter: str) -> bool:
        return SAVED_WHOLE in parameter or TRAINED in parameter
