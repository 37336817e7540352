"""What `debias train` refuses without a look at data or weights, for those who plan first: the very same checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from debias.building.arguments import check_names
from debias.building.model import check_length
from debias.config.run import RunConfig
from debias.data.prompt import check_template
from debias.errors import InputError
from debias.plan.skeleton import base_skeleton, shallow


def check_run(run: RunConfig, config: Any) -> None:
    """InputError as `train` has it; `config` is transformers' configuration of the model."""
    check_names(run)
    if run.prompt is not None:
        for template in (run.prompt.template, *run.prompt.more_templates):
            check_template(template, run.data.text_fields)
    check_length(run, base_skeleton(run, shallow(config, 1)))


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
