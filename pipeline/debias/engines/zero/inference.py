"""ZeRO-3 for judging: weights sharded over ranks as they load, gathered layer by layer in a forward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def settings(zero: Mapping[str, Any], *, bf16: bool) -> dict[str, Any]:
    """A configuration for inference from the `zero_optimization` block of one for training."""
    useful = ("offload_param", "memory_efficient_linear")
    kept = {k: v for k, v in zero.items() if (k in useful or k.startswith("stage3_")) and v != "auto"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {**kept, "stage": 3},
        "steps_per_print": 10**9,
    }


@contextmanager
def loading(configuration: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `from_pretrained` gives each rank its shard of every weight and never holds the whole model."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    keeper = HfDeepSpeedConfig(dict(configuration))  # transformers has a weak reference to it
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del keeper


def shard(model: nn.Module, configuration: Mapping[str, Any]) -> Any:
    """The model with DeepSpeed's hooks, which gather what a layer needs; every rank must run the same passes."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, config=dict(configuration))
    return engine.module
