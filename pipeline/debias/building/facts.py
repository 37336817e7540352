"""What a run knows of its training examples beside their labels: groups, and what its bias model says of them."""

import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from debias.bias.base import AskedBase, BaseBiasModel, BiasModel, digest_of, floored, folds_of
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.order import Order
from debias.data.resampled import Resampled
from debias.errors import InputError
from debias.losses import Loss
from debias.ranks.world import world_size
from debias.runs.names import BIAS
from debias.runs.whole import write_whole

logger = logging.getLogger(__name__)


def check_groups(loss: Loss, order: Order, examples: Sequence[Example]) -> None:
    """InputError where the loss or the order reads groups and a training example has none."""
    readers = [f"loss {loss.name}"] if "group" in loss.reads else []
    if isinstance(order, Resampled) and order.by == "group":
        readers.append(f"order {order.name}")
    without = next((example for example in examples if example.group is None), None)
    if readers and without is not None:
        raise InputError(f"{readers[0]}: example {without.id!r} has no group, and it needs one of each")


def asked_before(
    config: RunConfig, model: BiasModel | None, examples: Sequence[Example], base: AskedBase
) -> "np.ndarray | None":
    """What a bias model that asks the run's base says of the training examples, [N, C] float64; None of any other.

    What is kept of the same settings and examples is taken as it is: nothing is trained. On every rank.
    """
    if not isinstance(model, BaseBiasModel):
        return None
    held = kept(*_place_and_digest(config, model, examples))
    if held is not None:
        return held
    _check_stages(config, examples)
    logger.info("bias model %s: asking %s about %d examples", model.name, config.model, len(examples))
    try:
        found = model.asked(examples, len(config.data.labels), config.seed, base)
    except InputError:
        raise
    except ValueError as error:  # a layer that there is not, a package that is not here
        raise InputError(str(error)) from error
    _say_how_it_is(model, found, examples)
    return found


def bias_log_p(
    config: RunConfig, model: BiasModel, examples: Sequence[Example], said: "np.ndarray | None" = None
) -> Tensor:
    """The bias model's log-probabilities [N, C] float32 of the training examples, kept in the run's folder.

    What is kept there of the same settings and examples is taken as it is; `said`: what it has said already. Only one
    process may call this at a time.
    """
    labels = len(config.data.labels)
    place, digest = _place_and_digest(config, model, examples)
    held = kept(place, digest)
    if held is None:
        held = said if said is not None else _fitted(config, model, examples, labels)
        keep(place, held, digest)
    return torch.from_numpy(held).float()


def _fitted(config: RunConfig, model: BiasModel, examples: Sequence[Example], labels: int) -> np.ndarray:
    logger.info("bias model %s: fitting on %d examples", model.name, len(examples))
    try:
        found = model.log_p(examples, labels, config.data.text_fields, config.seed)
    except ValueError as error:
        raise InputError(str(error)) from None
    _say_how_it_is(model, found, examples)
    return found


# What a bias model hears of the run whose base it asks.
OF_THE_BASE = {"model", "head", "prompt", "max_length", "load_in_4bit", "bf16"}


def _place_and_digest(config: RunConfig, model: BiasModel, examples: Sequence[Example]) -> tuple[Path, str]:
    told = repr(model)
    if isinstance(model, BaseBiasModel):
        told += repr([config.model_dump(include=OF_THE_BASE), *map(told_of, config.bias_stages())])
    digest = digest_of(told, examples, len(config.data.labels), config.seed)
    return Path(config.output_dir) / BIAS / f"{model.name}.npz", digest


# Of a run before the run: what changes nothing of what it says, or only how it is spread over ranks.
NOT_TOLD = {
    *{"resume", "overwrite_output_dir", "output_dir", "sigterm_grace_seconds", "ddp_timeout", "deepspeed"},
    *{"per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"},
    *{"logging_steps", "save_strategy", "save_steps", "save_total_limit"},
}


def told_of(stage: RunConfig) -> str:
    """What a run before the run depends on, beside its examples; the same on any number of ranks."""
    return repr((stage.model_dump(exclude=NOT_TOLD), _samples_a_step(stage)))


def _samples_a_step(run: RunConfig) -> int:
    return run.per_device_train_batch_size * run.gradient_accumulation_steps * world_size()


EPOCHS = 5  # of Utama et al.: a model that sees the examples of its folds more often has learned them by heart


def _check_stages(config: RunConfig, examples: Sequence[Example]) -> None:
    """InputError for a fold without examples, and for steps that see those of the other folds too often."""
    for stage in config.bias_stages():
        out = stage.data.leave_out
        if out is None:
            continue
        fold_N = folds_of(examples, out.folds, out.seed)
        size, left = int((fold_N == out.fold).sum()), int((fold_N != out.fold).sum())
        if not size or not left:
            raise InputError(f"bias_model.folds is {out.folds}, but the training examples have fewer different texts")
        step = _samples_a_step(stage)
        epoch = -(-left // step)
        seen = f"bias_model.steps is {stage.max_steps}: with {step} a step its models see their {left} examples"
        if stage.max_steps > EPOCHS * epoch:
            raise InputError(
                f"{seen} more than {EPOCHS} times, and learn them by heart; give {epoch} (once) or little more"
            )
        if stage.max_steps > epoch and out.fold == 0:
            logger.warning("%s more than once; %d are an epoch", seen, epoch)


def facts_of_stage(log_p_NC: np.ndarray, examples: Sequence[Example], keep: str) -> dict[str, Tensor]:
    """What a first stage's log-probabilities [N, C] of the training examples become."""
    label_N = np.array([example.label for example in examples])
    wrong_N = log_p_NC.argmax(axis=1) != label_N
    logger.info("first stage: wrong on %d of %d training examples", wrong_N.sum(), len(examples))
    if keep == "errors":
        return {"error": torch.from_numpy(wrong_N)}
    return {"bias_log_p": torch.from_numpy(floored(np.exp(log_p_NC))).float()}


def kept(path: Path, digest: str) -> "np.ndarray | None":
    """Log-probabilities that were kept of the same settings and examples, None where there are none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            found: np.ndarray | None = held["log_p"] if str(held["digest"]) == digest else None
            return found
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def keep(path: Path, log_p_NC: np.ndarray, digest: str) -> None:
    """Write log-probabilities so that `kept` finds them, whole or not at all."""
    buffer = BytesIO()
    np.savez(buffer, log_p=log_p_NC, digest=np.array(digest))
    write_whole(path, buffer.getvalue())


def _say_how_it_is(model: BiasModel, log_p_NC: np.ndarray, examples: Sequence[Example]) -> None:
    label_N = np.array([example.label for example in examples])
    right, most = (log_p_NC.argmax(axis=1) == label_N).mean(), np.bincount(label_N).max() / len(label_N)
    told = (model.name, 100 * right, 100 * most)
    logger.info("bias model %s: right on %.1f %% out of fold; the most frequent label is %.1f %%", *told)
    if right <= most:
        logger.warning("bias model %s knows no more than the most frequent label: there is nothing to correct", told[0])
