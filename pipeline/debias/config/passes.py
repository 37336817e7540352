"""What more passes in a step do not go with: those of `sharpness` move weights, those of `smoothness` ask again."""

from collections.abc import Iterator
from typing import Any

from debias.config import blocks


def check_passes(run: Any) -> None:
    """ValueError, in one line, for the first setting of `run` that does not go with its sharpness or smoothness."""
    for name, refused in (("sharpness", _of_sharpness(run)), ("smoothness", _of_smoothness(run))):
        if getattr(run, name) is not None:
            for key, asked, why in refused:
                if asked:
                    raise ValueError(f"{name} does not go with {key}: {why}; remove one of the two")


def _of_sharpness(run: Any) -> Iterator[tuple[str, bool, str]]:
    yield "deepspeed", run.deepspeed is not None, "it moves weights within a step, and DeepSpeed holds them"
    yield "router_aux_loss_coef", run.router_aux_loss_coef > 0, "a loss of the batch has no second pass"
    ahead = blocks.make("loss", blocks.table_of("loss"), run.loss).ahead
    elsewhere = "its statistics of the step are those at the weights (loss.memory 0.9: those of the steps before)"
    yield f"loss {run.loss['name']}", ahead, elsewhere


def _of_smoothness(run: Any) -> Iterator[tuple[str, bool, str]]:
    yield "deepspeed", run.deepspeed is not None, "it has not been tried"
    yield "router_aux_loss_coef", run.router_aux_loss_coef > 0, "a loss of the batch would be that of the last answer"
    yield "bf16", run.bf16, "answers near each other are the same in 16 bits"
    yield "stop_when_learned", run.stop_when_learned is not None, "the loss is not the entropy that is left"
    yield "answer_probability", run.answer_probability != "product", "it reads answers of one token each"
