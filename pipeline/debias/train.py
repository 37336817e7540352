"""The story of a run, top to bottom."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from debias.bias.base import BaseBiasModel, BiasModel, digest_of
from debias.bias.given import said_of_validation
from debias.building.arguments import a_run_of_its_own, forget_accelerate, training_arguments
from debias.building.examples import run_examples, training_examples, validation_examples
from debias.building.facts import (
    Answers,
    ask_bias_model,
    check_facts,
    check_groups,
    facts_of_stage,
    guessed,
    keep,
    kept,
    seen_by_stages,
    told_of,
)
from debias.building.groups import InferredGroups
from debias.building.idle_settings import asks_bias_model, say_what_has_no_effect
from debias.building.method import build_bias_model, build_loss, build_order
from debias.building.run import Built, build_run
from debias.building.task import check_answers
from debias.config.places import find_recipe, resolve_paths
from debias.config.reading import load_config, parse
from debias.config.run import STAGES, RunConfig
from debias.data.digests import digests_of
from debias.data.examples import Example
from debias.data.facts import facts_of
from debias.data.order import Order
from debias.data.tables import Ids
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.parameters import elements
from debias.engines.step import NonFiniteGradients
from debias.errors import InputError, Interrupted
from debias.gradients import NotExact
from debias.inference.asking import AskedRun
from debias.inference.batches import from_first
from debias.inference.training_set import log_p_of
from debias.losses import Loss
from debias.plan.guard import refuse_what_cannot_fit
from debias.ranks.stopping import StopRequest
from debias.ranks.world import is_first, ranks_here, world_size
from debias.runs.data_files import BASE, DATA_FILES, data_files
from debias.runs.digests import local_weights
from debias.runs.folder import Folder, look, save_trained
from debias.runs.learned import learned_at
from debias.runs.pseudo_groups import PseudoGroups
from debias.runs.seen import Seen
from debias.runs.selection import selected
from debias.runs.summary import Spent, Summary, bias_spent, kept_bias_spent, spent_before

SAID = "said.npz"  # beside the runs before a run: what the first one said of the training examples
SAID_OF_VALIDATION = said_of_validation(Path(SAID)).name


@dataclasses.dataclass(frozen=True)
class Told:
    """What runs before the run said: facts of the training examples, a bias model's `answers`, and log-probabilities of
    the validation examples [M, C] by a first stage in the place of a bias model. `spent`: what a first stage took that
    was asked in another run, which this one replaces.
    """

    facts: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    answers: Answers | None = None
    of_validation: np.ndarray | None = None
    spent: Spent = dataclasses.field(default_factory=Spent)


def train(config: RunConfig | Mapping[str, Any] | str | Path, base: Path | None = None) -> Path:
    """Train what `config` says; returns the run's folder. `base` is the folder its data paths are relative to.

    `config`: a `RunConfig`, settings as a YAML file would have them (`{"model": ..., "data": {"train": ...}, ...}`), or
    such a file or a shipped recipe by its name, beside which its data lies if `base` is not given.
    The folder holds `adapter/` (plain PEFT; `model/` without LoRA), `config.yaml`, `metrics.jsonl` and `run.json`.
    Everything that can be wrong with the input is found before the folder is made, as InputError.
    """
    config, base = _read(config, base)
    # From the start: a signal that comes while the model is loaded ends the run at its first step, with a checkpoint.
    with StopRequest(config.sigterm_grace_seconds) as stop, a_run_of_its_own():
        return _train(config, base, stop)


def _read(given: RunConfig | Mapping[str, Any] | str | Path, base: Path | None) -> tuple[RunConfig, Path | None]:
    """The settings of a run, however they were given, and the folder that its paths are relative to."""
    if isinstance(given, RunConfig):
        return given, base
    if isinstance(given, Mapping):
        return parse(RunConfig, given, where="config"), base
    if not isinstance(given, str | Path):
        raise InputError(f"config: expected a RunConfig, a mapping of settings or a file, got {type(given).__name__}")
    file = find_recipe(Path(given))
    return load_config(file), file.resolve().parent if base is None else base


def _train(config: RunConfig, base: Path | None, stop: StopRequest) -> Path:
    config = resolve_paths(config, base)
    started, answered = _started(config)
    loss, order, bias_model = build_loss(config), build_order(config), _bias_model(config)
    told = _before(config, base, loss, order, bias_model)
    started = started - told.spent
    arguments = training_arguments(config)
    first = arguments.process_index == 0
    folder = _look(config, arguments)
    config = folder.config
    if first:
        say_what_has_no_effect(config)
    refuse_what_cannot_fit(config, arguments.world_size, ranks_here(arguments.world_size))
    examples, validation = run_examples(config, base)
    check_groups(loss, order, examples, bias_model, inferred=config.groups is not None)
    seen = _seen(folder, first, examples, validation, told.facts)
    inferred = InferredGroups(config)
    ask = functools.cache(lambda: told.answers or _asked(config, bias_model, examples, validation))
    if folder.is_finished(_size(order, facts_of(examples) | told.facts, inferred, ask), arguments.world_size):
        return folder.path
    # Before the model is loaded and anything written: with some bias models there is nothing to train.
    answers = ask() if first else told.answers
    groups = _groups(config, validation, answers, told)
    built = build_run(config, arguments, examples, validation, stop)
    built.trainer.train_dataset.facts |= told.facts
    known = _known(config, built, len(examples))
    if answers is not None and not answers.fresh:
        started -= answered  # of another run, whose bias model said the same
        known |= _seen_elsewhere(config)
    summary = Summary(folder.path, known, writes=first, started=started)
    with arguments.main_process_first(local=False, desc="opening the run"):
        if first:
            folder.open()
            seen.write()
        if bias_model is not None:  # the other ranks read what the first one asked and writes down here
            answers = ask()
            assert answers is not None
            groups = groups if first else _groups(config, validation, answers, told)
            check_facts(seen, "bias_model", {"bias_log_p": answers.log_p}, examples)
            if first:
                answers.write()
                seen.write()
            built.trainer.train_dataset.facts["bias_log_p"] = answers.log_p
        inferred.put(built.trainer.train_dataset.facts, writes=first)
    built.figures.groups = groups
    summary.begin()
    with summary.failures((NonFiniteGradients, NotExact)):
        _fit(built, folder)
    trainer = built.trainer
    ended = {
        "status": "interrupted" if trainer.interrupted else "finished",
        **selected(config, trainer),
        **_outcome(trainer),
    }
    summary.end(ended)
    if trainer.interrupted:
        raise Interrupted(f"{folder.path}: stopped by SIGTERM at step {ended['steps']}, saved; go on with resume=true")
    return folder.path


def _asked(
    config: RunConfig, model: BiasModel | None, examples: Sequence[Example], validation: Sequence[Example]
) -> Answers | None:
    return None if model is None else ask_bias_model(config, model, examples, validation=validation)


def _size(order: Order, facts: dict[str, Tensor], inferred: InferredGroups, ask: Callable[[], Answers | None]) -> int:
    """Examples of an epoch. Where that depends on inferred groups the first rank makes them, and tells the others: only
    one may fit a bias model, and nothing is written yet.
    """
    if "group" not in order.sized_by or not inferred.wanted:
        return order.size(facts)
    size_1 = None
    if is_first():
        answers = ask()
        facts |= {} if answers is None else {"bias_log_p": answers.log_p}
        inferred.put(facts, writes=False)
        size_1 = np.array([order.size(facts)])
    told_1 = from_first(size_1)
    assert told_1 is not None
    return int(told_1[0])


def _known(config: RunConfig, built: Built, examples: int) -> dict[str, Any]:
    """What run.json says from the beginning on."""
    rule = built.trainer.rule
    method = {"method": {"name": rule.name, **dataclasses.asdict(rule)}, **config.method_parts()}
    read = {"train_examples": examples, DATA_FILES: data_files(config)}
    read |= {BASE: base} if (base := local_weights(config.model).get(config.model)) else {}
    return {"seed": config.seed, **method, **read, **built.sizes}


def _started(config: RunConfig) -> tuple[Spent, Spent]:
    """When the run began, earlier by what earlier attempts took; and what answers took that were there before it."""
    folder, now = Path(config.output_dir), Spent.now()
    if _goes_on(config):
        return now - spent_before(folder), bias_spent(folder)
    return now, kept_bias_spent(folder)


def _goes_on(config: RunConfig) -> bool:
    """Whether what lies in the run's folder is of this run; else it is of another, which is replaced."""
    return bool(config.resume) or not config.overwrite_output_dir


def _seen_elsewhere(config: RunConfig) -> dict[str, Any]:
    """For run.json, what runs saw that the bias model asked in another run, in whose folder they lie."""
    elsewhere = config.bias_stages() and not (Path(config.output_dir) / STAGES).is_dir()
    return {"examples_before": seen_by_stages(config)} if elsewhere else {}


def _bias_model(config: RunConfig) -> BiasModel | None:
    """The run's bias model; none where it would ask the run's base, for which runs may be trained, and nobody hears."""
    model = build_bias_model(config)
    return None if isinstance(model, BaseBiasModel) and not asks_bias_model(config) else model


def _groups(
    config: RunConfig, validation: Sequence[Example], answers: Answers | None, told: Told
) -> PseudoGroups | None:
    """The pseudo groups of the validation examples, where somebody has said what is easy about them."""
    said = told.of_validation if answers is None else answers.of_validation
    return None if said is None or not len(said) else guessed(said, validation, config)


def _before(config: RunConfig, base: Path | None, loss: Loss, order: Order, model: BiasModel | None) -> Told:
    """What is said before the run by runs of its own base: the facts of a first stage, and a bias model's answers.

    On every rank: all train and judge together. What this run could not be is found before anything is trained.
    """
    asks_base = isinstance(model, BaseBiasModel)
    if config.first_stage is None and not asks_base:
        return Told()
    folder = look(config)
    check_answers(config, loss)
    refuse_what_cannot_fit(config, world_size(), ranks_here(world_size()))
    examples, validation = training_examples(config, base), validation_examples(config, base)
    check_groups(loss, order, examples, model, inferred=config.groups is not None)
    for name, read in (("data.train", examples), ("data.validation", validation)):
        Seen(folder, writes=False).check(name, digests_of(read), Ids(read))
    told = _first_stage(config, base, examples, validation)
    if model is None or not asks_base:
        return told
    answers = ask_bias_model(config, model, examples, AskedRun(config, base, train), validation)
    return dataclasses.replace(told, answers=answers)


def _first_stage(
    config: RunConfig, base: Path | None, examples: Sequence[Example], validation: Sequence[Example]
) -> Told:
    """What the run before this one says, if there is one: trained where it has not been, and asked once."""
    if config.first_stage is None:
        return Told()
    stage, keep_as = config.stage_before(), config.first_stage.keep
    asked = {SAID: examples}
    if keep_as == "log_p" and validation:
        asked[SAID_OF_VALIDATION] = validation
    said, trained = _said_by(stage, base, asked)
    spent = Spent() if trained or _goes_on(config) else spent_before(Path(stage.output_dir))
    facts = facts_of_stage(said[SAID], examples, keep_as)
    return Told(facts, of_validation=said.get(SAID_OF_VALIDATION), spent=spent)


def _said_by(
    stage: RunConfig, base: Path | None, asked: Mapping[str, Sequence[Example]]
) -> tuple[dict[str, np.ndarray], bool]:
    """Log-probabilities [N, C] of the run before this one of each of these examples, and whether it was asked anew.

    What was kept of the same question is taken as it is. It is trained once, whatever it is asked.
    """
    digests = {name: digest_of(told_of(stage), of, len(stage.data.labels), stage.seed) for name, of in asked.items()}
    places = {name: Path(stage.output_dir).with_name(name) for name in asked}
    held = {name: kept(places[name], digest) for name, digest in digests.items()}
    said = {name: log_p_NC for name, log_p_NC in held.items() if log_p_NC is not None}
    missing = [name for name in asked if name not in said]
    if missing:
        run = train(stage, base)
        for name in missing:
            said[name] = log_p_of(run, asked[name])
            if is_first():
                keep(places[name], said[name], digests[name])
        forget_accelerate()
    return said, bool(missing)


def _seen(
    folder: Folder, first: bool, examples: Sequence[Example], validation: Sequence[Example], facts: dict[str, Tensor]
) -> Seen:
    """What the run reads, as it was where the run goes on; InputError where it is not."""
    seen = Seen(folder, writes=first)
    seen.check("data.train", digests_of(examples), Ids(examples))
    seen.check("data.validation", digests_of(validation), Ids(validation))
    check_facts(seen, "first_stage", facts, examples)
    return seen


def _look(config: RunConfig, arguments: Any) -> Folder:
    """The run's folder as all ranks find it.

    The first rank first: it may still be writing down how the run before this one ended. None goes on before all have
    looked: the first is about to open the run.
    """
    with arguments.main_process_first(local=False, desc="looking at the run"):
        folder = look(config)
    with arguments.main_process_first(local=False, desc="having looked"):
        return folder


def _fit(built: Built, folder: Folder) -> None:
    """Train, and save what was trained unless a signal stopped it; what it saved then is a checkpoint."""
    trainer = built.trainer
    trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    steps = trainer.state.global_step
    if 0 < steps <= trainer.step_counts.skipped:  # also where it was gone on with after its last step, and took none
        raise NonFiniteGradients(f"no gradient was finite in {steps} steps, nothing was trained (NaN in the weights?)")
    if not trainer.interrupted:
        state = trainer.trained_state()  # on every rank: it may be gathered from them
        if trainer.args.process_index == 0:
            save_trained(trainer.accelerator.unwrap_model(trainer.model), built.tokenizer, folder.path, state)


def _outcome(trainer: DebiasTrainer) -> dict[str, Any]:
    hook = trainer.hook
    found: dict[str, Any] = {"steps": trainer.state.global_step}
    learned = learned_at(trainer.callback_handler.callbacks)
    if learned is not None:
        found["learned_at"] = learned
    counts = trainer.step_counts
    if counts.mean_of_all is not None:
        found["train_loss"] = counts.mean_of_all
    if hook is None:  # resumed after the last step: nothing was left to train
        return {**found, "skipped_steps": counts.skipped} if counts.known else found
    found |= {"measured_steps": hook.measured} if hook.measured else {}
    acts_on = {"tensors": len(hook.selected), "elements": sum(elements(p) for p in hook.selected.values())}
    return {**found, "gradients": hook.gradients, "acts_on": acts_on, "skipped_steps": hook.skipped}
