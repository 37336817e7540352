"""What a run knows of its training examples beside their labels: groups, and what its bias model says of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from debias.bias.base import BiasModel, floored, labels_of, rows_digest
from debias.bias.degenerate import faults
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


def check_groups(loss: Loss, order: Order, examples: Sequence[Example], bias_model: BiasModel | None = None) -> None:
    """InputError where the loss, the order or the bias model reads groups and a training example has none."""
    readers = [f"loss {loss.name}"] if "group" in loss.reads else []
    if isinstance(order, Resampled) and order.by == "group":
        readers.append(f"order {order.name}")
    if bias_model is not None and bias_model.needs("group"):
        readers.append(f"bias_model {bias_model.name}")
    without = next((example for example in examples if example.group is None), None)
    if readers and without is not None:
        raise InputError(f"{readers[0]}: example {without.id!r} has no group, and it needs one of each")


@dataclass(frozen=True)
class Answers:
    """What a bias model said of the training examples: `log_p` [N, C] float32. `fresh`: what is not written down yet.

    `fresh` maps a file to log-probabilities, the digest of what they depend on, and that of the rows alone.
    """

    log_p: Tensor
    fresh: Mapping[Path, tuple[np.ndarray, str, str]]

    def write(self) -> None:
        """Write down what is fresh, for this run gone on with and for the other ranks."""
        for path, (log_p_NC, digest, rows) in self.fresh.items():
            keep(path, log_p_NC, digest, rows)


def ask_bias_model(config: RunConfig, model: BiasModel, examples: Sequence[Example]) -> Answers:
    """The bias model's answers; nothing is written. What the run's folder holds of the same question is taken as it is.

    InputError, in one line, where the bias model cannot be fitted, or where training with it would be meaningless; a
    warning where that is a matter of judgement. Only one process may fit at a time.
    """
    fresh: dict[Path, tuple[np.ndarray, str, str]] = {}
    folder, labels = Path(config.output_dir) / BIAS, config.data.labels
    try:
        if (unseen := model.unseen(examples, len(labels), config.seed)) and len(labels) > 1:
            raise ValueError(
                f"label {labels[unseen[0]]!r} lies in one fold alone: no model that saw one can judge its examples; "
                "give more of them, or leave the label out"
            )
        log_p_NC = _asked(config, model, examples, folder / f"{model.name}.npz", fresh)
    except ValueError as error:
        told = str(error)
        raise InputError(told if told.startswith("bias_model") else f"bias_model {model.name}: {told}") from None
    return Answers(torch.from_numpy(log_p_NC).float(), fresh)


def _asked(
    config: RunConfig,
    model: BiasModel,
    examples: Sequence[Example],
    path: Path,
    fresh: dict[Path, tuple[np.ndarray, str, str]],
) -> np.ndarray:
    """What a bias model, or a part of one, says; parts are kept by their digest, each in a file of its own."""
    labels = len(config.data.labels)
    digest = model.digest(examples, labels, config.seed)
    held = kept(path, digest)
    if held is not None:
        return held
    digests = [part.digest(examples, labels, config.seed) for part in model.parts]
    places = [path.with_name(f"{part.name}-{one[:8]}.npz") for part, one in zip(model.parts, digests, strict=True)]
    said = [_asked(config, part, examples, at, fresh) for part, at in zip(model.parts, places, strict=True)]
    if not said:
        logger.info("bias model %s: fitting on %d examples", model.name, len(examples))
    text_fields, seed = config.data.text_fields, config.seed
    found = model.joined(said, examples) if said else model.log_p(examples, labels, text_fields, seed)
    _say_how_it_is(model, found, examples)
    fresh[path] = (found, digest, rows_digest(examples))
    return found


def facts_of_stage(log_p_NC: np.ndarray, examples: Sequence[Example], keep: str) -> dict[str, Tensor]:
    """What a first stage's log-probabilities [N, C] of the training examples become."""
    label_N = np.array([example.label for example in examples])
    wrong_N = log_p_NC.argmax(axis=1) != label_N
    logger.info("first stage: wrong on %d of %d training examples", wrong_N.sum(), len(examples))
    if keep == "errors":
        return {"error": torch.from_numpy(wrong_N)}
    told_NC = floored(np.exp(log_p_NC))
    for fault in faults(told_NC, label_N):  # warnings alone: it is trained already, and more steps may mend it
        logger.warning("first stage %s", fault.text)
    return {"bias_log_p": torch.from_numpy(told_NC).float()}


def kept(path: Path, digest: str) -> "np.ndarray | None":
    """Log-probabilities that were kept of the same settings and examples, None where there are none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            found: np.ndarray | None = held["log_p"] if str(held["digest"]) == digest else None
            return found
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def keep(path: Path, log_p_NC: np.ndarray, digest: str, rows: str = "") -> None:
    """Write log-probabilities so that `kept` finds them, whole or not at all; `rows`: the digest of the rows alone."""
    buffer = BytesIO()
    np.savez(buffer, log_p=log_p_NC, digest=np.array(digest), rows=np.array(rows))
    write_whole(path, buffer.getvalue())


def check_facts(seen: Seen, name: str, facts: Mapping[str, Tensor], examples: Sequence[Example]) -> None:
    """InputError where facts [N, ...] of the examples are not those that the run was begun with."""
    if facts:
        seen.check(name, digests_of_rows(*(fact.numpy() for fact in facts.values())), [one.id for one in examples])


def _say_how_it_is(model: BiasModel, log_p_NC: np.ndarray, examples: Sequence[Example]) -> None:
    label_N = labels_of(examples)
    right, most = (log_p_NC.argmax(axis=1) == label_N).mean(), np.bincount(label_N).max() / len(label_N)
    told = (model.name, 100 * right, 100 * most)
    logger.info("bias model %s: right on %.1f %% out of fold; the most frequent label is %.1f %%", *told)
    for fault in faults(log_p_NC, label_N):
        if fault.stops:
            raise ValueError(fault.text)
        logger.warning("bias model %s %s", model.name, fault.text)
