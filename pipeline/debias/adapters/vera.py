"""VeRA: two vectors around random matrices that all layers share (Kopiczko et al., ICLR 2024), by PEFT."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from debias.adapters.base import Beside, RunFacts, saved_whole, task_type, train_in_float32
from debias.adapters.families import choose_targets
from debias.adapters.lora import TARGETS, check_targets, warn_of_experts


@dataclass(frozen=True)
class Vera(Beside):
    """`W + diag(b) B diag(d) A` with A and B drawn once and shared by all layers; the vectors b and d train.

    `targets` as LoRA's; fused experts get none. `rank`: columns of the shared matrices, saved with the adapter, so that
    nobody has to draw them again.

    Needs linear layers, and not DeepSpeed, whose checkpoints here hold what trains alone. Costs `rank + O` parameters
    in each layer, `4 rank (I + O)` bytes for the widest of them (which a plan does not count), and a product of that
    rank in each layer. Fails to give both gradients in one pass: `gradients: auto` takes `shared_forward`. The vectors
    take a learning rate ten times LoRA's, the paper says.

    Source: Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, ICLR 2024, arXiv 2310.11454.
    """

    name: ClassVar[str] = "vera"
    reads: ClassVar[tuple[str, ...]] = ("lora_dropout",)
    marks: ClassVar[tuple[str, ...]] = (".vera_lambda_d.", ".vera_lambda_b.")
    held: ClassVar[tuple[str, ...]] = (".vera_A.", ".vera_B.")
    targets: Literal["auto", "all-linear"] | tuple[str, ...] = field(default="auto", metadata=TARGETS)
    rank: int = 256

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}, expected a rank greater than 0")

    def attach(self, model: Any, run: RunFacts) -> Any:
        from peft import VeraConfig, get_peft_model

        warn_of_experts(model, self.name)
        config = VeraConfig(
            r=self.rank,
            vera_dropout=run.lora_dropout,
            target_modules=choose_targets(model, self.targets, experts=False).modules,
            modules_to_save=saved_whole(model, run.fresh),
            task_type=task_type(model, classification=run.classification),
        )
        adapted = get_peft_model(model, config)
        train_in_float32(adapted)
        return adapted
