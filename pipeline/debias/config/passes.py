"""What more in a step does not go with: passes of `sharpness` and `smoothness`, the term of `weight_penalty`, the mask
of `gradient_mask`, and what `weight_projection` does to weights after it.
"""

from collections.abc import Iterator
from typing import Any

from debias.config import blocks


def check_passes(run: Any) -> None:
    """ValueError, in one line, for the first setting of `run` that does not go with one of these."""
    found = {
        "sharpness": _of_sharpness,
        "smoothness": _of_smoothness,
        "weight_penalty": _of_penalty,
        "weight_projection": _of_projection,
        "gradient_mask": _of_mask,
    }
    for name, refused in ((name, refusals(run)) for name, refusals in found.items()):
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


def _of_penalty(run: Any) -> Iterator[tuple[str, bool, str]]:
    yield "deepspeed", run.deepspeed is not None, "it reads whole weights, and DeepSpeed holds them"
    yield "load_in_4bit", run.load_in_4bit, "it reads the base's weights, which would be unpacked in every step"


def _of_projection(run: Any) -> Iterator[tuple[str, bool, str]]:
    free = run.optim.startswith("schedule_free")
    yield f"optim {run.optim}", free, "it moves the weights that train, and such a run is judged by others"


def _of_mask(run: Any) -> Iterator[tuple[str, bool, str]]:
    mask = blocks.make("gradient_mask", blocks.table_of("gradient_mask"), run.gradient_mask)
    moves = mask.holds and run.optim.startswith("schedule_free")
    yield f"optim {run.optim}", moves, "it puts elements back after each step, and that one moves weights elsewhere too"
    none_left = 0 < run.max_steps <= mask.measures
    yield f"max_steps {run.max_steps}", none_left, f"of its first {mask.measures} steps none trains"
