"""What a run knows of its examples beside their labels: groups, and what its bias model says of them.

Shapes: N training examples, M validation examples, C labels.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from debias.bias.base import AskedBase, BaseBiasModel, BiasModel, floored, folds_of, labels_of, rows_digest
from debias.bias.degenerate import faults, says_the_same
from debias.bias.given import said_of_validation
from debias.config.run import LATER, RunConfig
from debias.data import Example
from debias.data.digests import digests_of_rows
from debias.data.order import Order
from debias.data.resampled import reads_groups
from debias.data.tables import Ids
from debias.errors import InputError
from debias.losses import Loss
from debias.ranks.world import world_size
from debias.runs.digests import local_weights
from debias.runs.names import BIAS
from debias.runs.pseudo_groups import SMALLEST, PseudoGroups, pseudo_groups
from debias.runs.seen import Seen
from debias.runs.summary import Spent, keep_bias_spent, kept_bias_spent
from debias.runs.whole import write_whole

logger = logging.getLogger(__name__)
Kept = tuple[np.ndarray, str, str]  # log-probabilities, the digest of what they depend on, and that of the rows alone


def check_groups(
    loss: Loss,
    order: Order,
    examples: Sequence[Example],
    bias_model: BiasModel | None = None,
    *,
    inferred: bool = False,
) -> None:
    """InputError where the loss, the order or the bias model reads groups and a training example has none.

    So it is where the loss would have nothing to compare: all examples, or all of each label, are of one group. Groups
    that are `inferred` are there for the loss and the order, and not for the bias model that they are made of.
    """
    readers = []
    if not inferred:
        readers += [f"loss {loss.name}"] if "group" in loss.reads else []
        readers += [f"order {order.name}"] if reads_groups(order) else []
    if bias_model is not None and bias_model.needs("group"):
        readers.append(f"bias_model {bias_model.name}")
    without = next((example for example in examples if example.group is None), None) if readers else None
    if without is not None:
        raise InputError(f"{readers[0]}: example {without.id!r} has no group, and it needs one of each")
    if examples and not inferred and "group" in loss.reads:
        _check_unlike(loss, {(example.label, example.group) for example in examples})


def _check_unlike(loss: Loss, cells: set[tuple[int, str | None]]) -> None:
    groups = {group for _, group in cells}
    if len(groups) == 1:
        raise InputError(f"loss {loss.name}: all training examples are of group {groups.pop()!r}, expected two or more")
    if loss.within_labels and len(cells) == len({label for label, _ in cells}):
        raise InputError(f"loss {loss.name}: each label has one group, and it compares the groups of a label")


@dataclass(frozen=True)
class Answers:
    """What a bias model said of the training examples: `log_p` [N, C] float32. `fresh`: what is not written down yet.

    `of_validation`: of the validation examples, [M, C]; of none where there are none, or it can say nothing of them.
    `held`: what was read, which a run that starts anew in the same folder clears away. Both map files to what is in
    them. `spent`: what asking took, runs of the base included.
    """

    log_p: Tensor
    of_validation: np.ndarray
    fresh: Mapping[Path, Kept]
    held: Mapping[Path, Kept]
    spent: Spent
    folder: Path

    def write(self) -> None:
        """Write down in the run's folder what is not there, for this run gone on with and for the other ranks."""
        keep_bias_spent(self.folder, self.spent)
        gone = {path: said for path, said in self.held.items() if not path.exists()}
        for path, (log_p_NC, digest, rows) in {**gone, **self.fresh}.items():
            keep(path, log_p_NC, digest, rows)


def ask_bias_model(
    config: RunConfig,
    model: BiasModel,
    examples: Sequence[Example],
    base: AskedBase | None = None,
    validation: Sequence[Example] = (),
) -> Answers:
    """The bias model's answers; nothing is written. What the run's folder holds of the same question is taken as it is.

    Of the `validation` examples, of which nothing is learned, for the pseudo groups. InputError, in one line, where the
    bias model cannot be fitted, or where training with it would be meaningless; a warning where that is a matter of
    judgement. Only one process may fit at a time; a bias model that asks the run's `base` is asked on every rank.
    """
    labels = config.data.labels
    try:
        if (unseen := model.unseen(examples, len(labels), config.seed, config.data.text_fields)) and len(labels) > 1:
            raise ValueError(
                f"label {labels[unseen[0]]!r} lies in one fold alone: no model that saw one can judge its examples; "
                "give more of them, leave the label out, or go without: bias_model=null loss=cross_entropy"
            )
        return _Asking(config, examples, base, _those_it_can_judge(config, model, validation)).of(model)
    except InputError:  # of a run that it asks
        raise
    except ValueError as error:
        told = str(error)
        raise InputError(told if told.startswith("bias_model") else f"bias_model {model.name}: {told}") from None


def _those_it_can_judge(config: RunConfig, model: BiasModel, validation: Sequence[Example]) -> Sequence[Example]:
    """The validation examples; none, with a word, where the bias model can say nothing of them. ValueError where the
    selection needs it to.
    """
    missing = model.missing(validation)
    if missing is None:
        return validation
    if config.selection == "pseudo_groups":
        raise ValueError(f"{missing}: selection 'pseudo_groups' needs it")
    logger.info("pseudo groups are not recorded: bias_model %s: %s", model.name, missing)
    return ()


@dataclass(frozen=True)
class _Asking:
    """One bias model asked with its parts, each of which is kept in files of its own: of training, of validation."""

    config: RunConfig
    examples: Sequence[Example]
    base: AskedBase | None
    others: Sequence[Example]
    fresh: dict[Path, Kept] = field(default_factory=dict)
    held: dict[Path, Kept] = field(default_factory=dict)

    def of(self, model: BiasModel) -> Answers:
        started, folder = Spent.now(), Path(self.config.output_dir)
        log_p_NC = self._said(model, folder / BIAS / f"{model.name}.npz")
        of_training, of_validation = np.split(log_p_NC, [len(self.examples)])
        spent = Spent.now() - started if self.fresh else kept_bias_spent(folder)
        return Answers(torch.from_numpy(of_training).float(), of_validation, self.fresh, self.held, spent, folder)

    def _said(self, model: BiasModel, path: Path) -> np.ndarray:
        """What a bias model, or a part of one, says, [N + M, C]; parts are kept by their digest."""
        digest, split = self._digest(model), len(self.examples)
        of_training = self._kept(path, digest, self.examples)
        if of_training is not None and not self.others:
            return of_training
        beside, digest_beside = said_of_validation(path), self._digest_beside(model, digest)
        of_validation = self._kept(beside, digest_beside, self.others) if self.others else None
        if of_training is not None and of_validation is not None:
            return np.concatenate([of_training, of_validation])
        places = [path.with_name(f"{part.name}-{self._digest(part)[:8]}.npz") for part in model.parts]
        said = [self._said(part, at) for part, at in zip(model.parts, places, strict=True)]
        found = model.joined(said, self.examples) if said else self._fitted(model)
        _say_how_it_is(model, found, self.examples, self.others)
        if of_training is None:
            self.fresh[path] = (found[:split], digest, rows_digest(self.examples))
        else:
            found = np.concatenate([of_training, found[split:]])
        if self.others:
            self.fresh[beside] = (found[split:], digest_beside, rows_digest(self.others))
        return found

    def _kept(self, path: Path, digest: str, examples: Sequence[Example]) -> "np.ndarray | None":
        """What was kept there of these examples and settings, remembered as held."""
        found = kept(path, digest)
        if found is not None:
            self.held[path] = (found, digest, rows_digest(examples))
        return found

    def _fitted(self, model: BiasModel) -> np.ndarray:
        labels, seed = len(self.config.data.labels), self.config.seed
        if not isinstance(model, BaseBiasModel):
            logger.info("bias model %s: fitting on %d examples", model.name, len(self.examples))
            return model.log_p(self.examples, labels, self.config.data.text_fields, seed, self.others)
        if self.base is None:
            of = "validation rows" if self.others else "its training rows"
            now = " by its weights as they are now" if _weights(self.config) else ""
            raise ValueError(f"asks the run's base, and the run kept no answers about {of}{now}; {_KEEPING}")
        _check_stages(self.config, self.examples)
        logger.info("bias model %s: asking %s about %d examples", model.name, self.config.model, len(self.examples))
        return model.asked(self.examples, labels, seed, self.base, self.others)

    def _digest(self, model: BiasModel) -> str:
        found = model.digest(self.examples, len(self.config.data.labels), self.config.seed)
        if not isinstance(model, BaseBiasModel):
            return found
        told = [self.config.model_dump(include=OF_THE_BASE), *map(told_of, self.config.bias_stages()), found]
        told += _weights(self.config)
        return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()

    def _digest_beside(self, model: BiasModel, digest: str) -> str:
        """What its answers about validation examples depend on: what those about training examples do, and these."""
        own = model.digest(self.others, len(self.config.data.labels), self.config.seed)
        return hashlib.sha256(f"{digest} {own}".encode()).hexdigest()


_KEEPING = "train with eval_strategy: epoch, and with something that asks it (loss, bias_weight or selection)"
# What a bias model hears of the run whose base it asks.
OF_THE_BASE = {"model", "head", "prompt", "max_length", "load_in_4bit", "bf16"}
# Of a run before the run: what changes nothing of what it says, or only how it is spread over ranks.
NOT_TOLD = {
    *{"resume", "overwrite_output_dir", "output_dir", "sigterm_grace_seconds", "ddp_timeout", "deepspeed"},
    *{"per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"},
    *{"logging_steps", "save_strategy", "save_steps", "save_total_limit"},
}


def told_of(stage: RunConfig) -> str:
    """What a run before the run depends on, beside its examples; the same on any number of ranks.

    Weights that lie in a folder are told by their digest: others may lie there by now.
    """
    told = stage.model_dump(exclude=NOT_TOLD)
    if stage.groups is None:  # a run of a version that had no such setting
        del told["groups"]
    if stage.stop_when_learned is None:  # nor this one
        del told["stop_when_learned"]
    if not stage.head_dropout:  # nor this one
        del told["head_dropout"]
    for later in LATER:  # nor these
        if told[later] is None:
            del told[later]
    if stage.stop_when_learned is not None:  # how often it looks decides where it stops
        told["logging_steps"] = stage.logging_steps
    weights = [digest for run in (*_before_it(stage), stage) for digest in _weights(run)]
    return repr((told, _samples_a_step(stage), *weights))


def _weights(run: RunConfig) -> list[str]:
    """The digest of the weights of a run's base where that is a folder; a hub's, or a package's, has its name alone."""
    return [*local_weights(run.model).values()]


def _samples_a_step(run: RunConfig) -> int:
    return run.per_device_train_batch_size * run.gradient_accumulation_steps * world_size()


def seen_by_stages(config: RunConfig) -> int | None:
    """Examples that the runs see which the bias model asks; None where their settings alone do not say it."""
    stages = [run for stage in config.bias_stages() for run in (*_before_it(stage), stage)]
    if any(stage.max_steps < 0 or stage.stop_when_learned is not None for stage in stages):
        return None
    return sum(stage.max_steps * _samples_a_step(stage) for stage in stages)


def _before_it(stage: RunConfig) -> list[RunConfig]:
    return [stage.stage_before()] if stage.first_stage else []


EPOCHS = 5  # of Utama et al.: a model that sees the examples of its folds more often has learned them by heart


def _check_stages(config: RunConfig, examples: Sequence[Example]) -> None:
    """InputError for a fold without examples, and for steps that see those that are trained on too often."""
    for stage in config.bias_stages():
        out, left = stage.data.leave_out, len(examples)
        if out is not None:
            fold_N = folds_of(examples, out.folds, out.seed)
            size, left = int((fold_N == out.fold).sum()), int((fold_N != out.fold).sum())
            if not size or not left:
                raise InputError(
                    f"bias_model.folds is {out.folds}, but the training examples have fewer different texts"
                )
        step = _samples_a_step(stage)
        epoch = -(-left // step)
        seen = f"bias_model.steps is {stage.max_steps}: with {step} a step its models see their {left} examples"
        if stage.max_steps > EPOCHS * epoch:
            raise InputError(
                f"{seen} more than {EPOCHS} times, and learn them by heart; give {epoch} (once) or little more"
            )
        for before in _before_it(stage):
            if before.max_steps > EPOCHS * epoch:
                raise InputError(
                    f"bias_model.auxiliary_steps is {before.max_steps}: with {step} a step its models see their {left}"
                    f" examples more than {EPOCHS} times, and learn them by heart; give {EPOCHS * epoch} or fewer"
                )
        if stage.max_steps > epoch and out is None:
            raise InputError(f"{seen} more than once, and judge them; give {epoch} at most, or folds: 2")
        if stage.max_steps > epoch and out is not None and out.fold == 0:
            logger.warning("%s more than once; %d are an epoch", seen, epoch)


def facts_of_stage(log_p_NC: np.ndarray, examples: Sequence[Example], keep: str) -> dict[str, Tensor]:
    """What a first stage's log-probabilities [N, C] of the training examples become."""
    label_N = labels_of(examples)
    wrong_N = log_p_NC.argmax(axis=1) != label_N
    logger.info("first stage: wrong on %d of %d training examples", wrong_N.sum(), len(examples))
    if keep == "errors":
        return {"error": torch.from_numpy(wrong_N)}
    if keep == "teacher":  # as sure as it is: a loss makes it less so
        return {"teacher_log_p": torch.from_numpy(log_p_NC).float()}
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
        seen.check(name, digests_of_rows(*(fact.numpy() for fact in facts.values())), Ids(examples))


def guessed(log_p_MC: np.ndarray, validation: Sequence[Example], config: RunConfig) -> PseudoGroups | None:
    """The pseudo groups of the validation examples by what a bias model says of them, which are said in words.

    None, with a warning, where they would be too small; InputError where the selection needs them.
    """
    try:
        groups = pseudo_groups(labels_of(validation), log_p_MC.argmax(axis=1), config.data.labels)
    except ValueError as error:
        if config.selection == "pseudo_groups":
            raise InputError(f"selection 'pseudo_groups': {error}") from None
        logger.warning("pseudo groups are not recorded: %s", error)
        return None
    if says_the_same(log_p_MC):
        logger.warning("the bias model says the same of every validation example: its pseudo groups are the labels")
    sizes = [f"{cell.name} ({len(cell.where)})" for cell in groups.cells if cell.counts]
    logger.info("pseudo groups of validation: %s", ", ".join(sizes))
    if left_out := groups.left_out():
        logger.warning("pseudo groups of fewer than %d examples do not count: %s", SMALLEST, ", ".join(left_out))
    return groups


def _say_how_it_is(
    model: BiasModel, log_p_NC: np.ndarray, examples: Sequence[Example], others: Sequence[Example]
) -> None:
    log_p_NC, log_p_MC = np.split(log_p_NC, [len(examples)])
    if others:
        right = (log_p_MC.argmax(axis=1) == labels_of(others)).mean()
        logger.info("bias model %s: right on %.1f %% of the validation examples", model.name, 100 * right)
    label_N = labels_of(examples)
    right, most = (log_p_NC.argmax(axis=1) == label_N).mean(), np.bincount(label_N).max() / len(label_N)
    told = (model.name, 100 * right, 100 * most)
    logger.info("bias model %s: right on %.1f %% out of fold; the most frequent label is %.1f %%", *told)
    if model.may_find_nothing and says_the_same(log_p_NC):
        logger.warning("bias model %s found no shortcut, and says each label's share alone", model.name)
        return
    for fault in faults(log_p_NC, label_N):
        if fault.stops:
            raise ValueError(fault.text)
        logger.warning("bias model %s %s", model.name, fault.text)
