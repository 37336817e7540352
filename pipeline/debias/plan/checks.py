"""What `debias train` refuses without a look at data or weights, for those who plan first: the very same checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from debias.building.arguments import check_names
from debias.building.model import check_length
from debias.config import blocks
from debias.config.run import RunConfig
from debias.data.prompt import check_template
from debias.engines.weight_term import WeightTerm
from debias.errors import InputError
from debias.plan.skeleton import base_skeleton, period_of, shallow, skeleton


def check_run(run: RunConfig, config: Any) -> None:
    """InputError as `train` has it; `config` is transformers' configuration of the model."""
    check_names(run)
    if run.prompt is not None:
        for template in (run.prompt.template, *run.prompt.more_templates):
            check_template(template, run.data.text_fields)
    check_length(run, base_skeleton(run, shallow(config, 1)))


def check_adapted(run: RunConfig, config: Any) -> None:
    """InputError where `weight_penalty` cannot take the adapted model, of which each kind of layer is built."""
    if run.weight_penalty is not None:
        period = period_of(base_skeleton(run, config), config)
        check_penalty(run, skeleton(run, shallow(config, period)))


def check_penalty(run: RunConfig, model: nn.Module) -> None:
    """InputError as `train` has it where `weight_penalty` cannot take that adapted model."""
    if run.weight_penalty is None:
        return
    penalty = blocks.make("weight_penalty", blocks.table_of("weight_penalty"), run.weight_penalty)
    try:
        WeightTerm(model, penalty)
    except ValueError as error:
        raise InputError(str(error)) from None


@contextmanager
def sizes_that_exist(run: RunConfig, length: int) -> Iterator[None]:
    """Tensors of more bytes than a number or a machine holds become InputError with the settings that ask for them."""
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        if not any(word in str(error).lower() for word in ("overflow", "allocate memory", "too large")):
            raise
        raise InputError(
            f"per_device_train_batch_size {run.per_device_train_batch_size} x max_length {length} with lora_r"
            f" {run.lora_r}: no machine holds such a tensor; give smaller ones"
        ) from None
