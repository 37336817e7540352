"""What a run knows of its training examples beside their labels: groups, and what its bias model says of them."""

import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from debias.bias.base import BiasModel, digest_of, floored
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.digests import digests_of_rows
from debias.data.order import Order
from debias.data.resampled import Resampled
from debias.errors import InputError
from debias.losses import Loss
from debias.runs.names import BIAS
from debias.runs.seen import Seen
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


def bias_log_p(config: RunConfig, model: BiasModel, examples: Sequence[Example]) -> Tensor:
    """The bias model's log-probabilities [N, C] float32 of the training examples, kept in the run's folder.

    What is kept there of the same settings and examples is taken as it is. Only one process may call this at a time.
    """
    labels = len(config.data.labels)
    digest = digest_of(repr(model), examples, labels, config.seed)
    folder = Path(config.output_dir) / BIAS
    held = kept(folder / f"{model.name}.npz", digest)
    if held is None:
        logger.info("bias model %s: fitting on %d examples", model.name, len(examples))
        try:
            held = model.log_p(examples, labels, config.data.text_fields, config.seed)
        except ValueError as error:
            raise InputError(str(error)) from None
        _say_how_it_is(model, held, examples)
        keep(folder / f"{model.name}.npz", held, digest)
    return torch.from_numpy(held).float()


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


def check_facts(seen: Seen, name: str, facts: Mapping[str, Tensor], examples: Sequence[Example]) -> None:
    """InputError where facts [N, ...] of the examples are not those that the run was begun with."""
    if facts:
        seen.check(name, digests_of_rows(*(fact.numpy() for fact in facts.values())), [one.id for one in examples])


def _say_how_it_is(model: BiasModel, log_p_NC: np.ndarray, examples: Sequence[Example]) -> None:
    label_N = np.array([example.label for example in examples])
    right, most = (log_p_NC.argmax(axis=1) == label_N).mean(), np.bincount(label_N).max() / len(label_N)
    told = (model.name, 100 * right, 100 * most)
    logger.info("bias model %s: right on %.1f %% out of fold; the most frequent label is %.1f %%", *told)
    if right <= most:
        logger.warning("bias model %s knows no more than the most frequent label: there is nothing to correct", told[0])
