"""The story of a run, top to bottom."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from debias.bias.base import BaseBiasModel, BiasModel, digest_of
from debias.building.arguments import forget_accelerate, training_arguments
from debias.building.examples import training_examples, validation_examples
from debias.building.facts import asked_before, bias_log_p, check_groups, facts_of_stage, keep, kept, told_of
from debias.building.idle_settings import asks_bias_model, say_what_has_no_effect
from debias.building.method import build_bias_model, build_loss, build_order
from debias.building.run import Built, build_run
from debias.building.task import check_answers
from debias.config.places import resolve_paths
from debias.config.run import RunConfig
from debias.data.facts import facts_of
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.parameters import elements
from debias.engines.step import NonFiniteGradients
from debias.errors import Interrupted
from debias.gradients import SamplesNotFirst
from debias.inference.asking import AskedRun
from debias.inference.training_set import log_p_of
from debias.plan.guard import refuse_what_cannot_fit
from debias.ranks.stopping import StopRequest
from debias.ranks.world import is_first
from debias.runs.folder import Folder, look, save_trained
from debias.runs.selection import selected
from debias.runs.summary import Summary

SAID = "said.npz"  # beside the runs before a run: what the first one said of the training examples


def train(config: RunConfig, base: Path | None = None) -> Path:
    """Train what `config` says; returns the run's folder. `base` is the folder its data paths are relative to.

    The folder holds `adapter/` (plain PEFT; `model/` without LoRA), `config.yaml`, `metrics.jsonl` and `run.json`.
    Everything that can be wrong with the input is found before the folder is made, as InputError.
    """
    # From the start: a signal that comes while the model is loaded ends the run at its first step, with a checkpoint.
    with StopRequest(config.sigterm_grace_seconds) as stop:
        return _train(config, base, stop)


def _train(config: RunConfig, base: Path | None, stop: StopRequest) -> Path:
    started = time.time()
    config = resolve_paths(config, base)
    loss, order, bias_model = build_loss(config), build_order(config), build_bias_model(config)
    if config.first_stage is not None or config.bias_stages():
        look(config)  # what this run could not be is found before anything is trained
        check_answers(config, loss)
    told, said = _first_stage(config, base), _asked(config, base, bias_model)
    arguments = training_arguments(config)
    first = arguments.process_index == 0
    folder = _look(config, arguments)
    config = folder.config
    if first:
        say_what_has_no_effect(config)
    refuse_what_cannot_fit(config, arguments.world_size)
    examples, validation = training_examples(config, base), validation_examples(config, base)
    check_groups(loss, order, examples)
    if folder.is_finished(order.size(facts_of(examples) | told), arguments.world_size):
        return folder.path
    built = build_run(config, arguments, examples, validation, stop)
    built.trainer.train_dataset.facts |= told
    rule = built.trainer.rule
    method = {"name": rule.name, **dataclasses.asdict(rule)}
    known = {"seed": config.seed, "method": method, "train_examples": len(examples), **built.sizes}
    summary = Summary(folder.path, known, writes=first)
    with arguments.main_process_first(local=False, desc="opening the run"):
        if first:
            folder.open()
    if bias_model is not None and (said is not None or not isinstance(bias_model, BaseBiasModel)):
        with arguments.main_process_first(local=False, desc="asking the bias model"):
            built.trainer.train_dataset.facts["bias_log_p"] = bias_log_p(config, bias_model, examples, said)
    summary.begin()
    with summary.failures((NonFiniteGradients, SamplesNotFirst)):
        outcome = _fit(built, folder)
    trainer = built.trainer
    how = {"status": "interrupted" if trainer.interrupted else "finished", "seconds": round(time.time() - started, 1)}
    ended = {**how, **selected(config, trainer), **_outcome(trainer, outcome, resumed=folder.checkpoint is not None)}
    summary.end(ended)
    if trainer.interrupted:
        raise Interrupted(f"{folder.path}: stopped by SIGTERM at step {ended['steps']}, saved; go on with resume=true")
    return folder.path


def _first_stage(config: RunConfig, base: Path | None) -> dict[str, Tensor]:
    """The facts of the run before this one, if there is one: trained where it has not been, and asked once."""
    if config.first_stage is None:
        return {}
    stage = config.stage_before()
    examples = training_examples(config, base)
    digest = digest_of(told_of(stage), examples, len(config.data.labels), stage.seed)
    place = Path(stage.output_dir).with_name(SAID)
    log_p_NC = kept(place, digest)
    if log_p_NC is None:
        log_p_NC = log_p_of(train(stage, base), examples)
        if is_first():
            keep(place, log_p_NC, digest)
        forget_accelerate()
    return facts_of_stage(log_p_NC, examples, config.first_stage.keep)


def _asked(config: RunConfig, base: Path | None, model: BiasModel | None) -> "np.ndarray | None":
    """What a bias model that asks this run's base says of the training examples, if there is one and someone hears."""
    if not isinstance(model, BaseBiasModel) or not asks_bias_model(config):
        return None
    examples = training_examples(config, base)
    return asked_before(config, model, examples, AskedRun(config, base, examples, train))


def _look(config: RunConfig, arguments: Any) -> Folder:
    """The run's folder as all ranks find it.

    The first rank first: it may still be writing down how the run before this one ended. None goes on before all have
    looked: the first is about to open the run.
    """
    with arguments.main_process_first(local=False, desc="looking at the run"):
        folder = look(config)
    with arguments.main_process_first(local=False, desc="having looked"):
        return folder


def _fit(built: Built, folder: Folder) -> Any:
    """Train, and save what was trained unless a signal stopped it; what it saved then is a checkpoint."""
    trainer = built.trainer
    outcome = trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    steps = trainer.state.global_step
    if trainer.hook is not None and trainer.hook.skipped >= steps:
        raise NonFiniteGradients(f"no gradient was finite in {steps} steps, nothing was trained (NaN in the weights?)")
    if not trainer.interrupted:
        state = trainer.trained_state()  # on every rank: it may be gathered from them
        if trainer.args.process_index == 0:
            save_trained(trainer.accelerator.unwrap_model(trainer.model), built.tokenizer, folder.path, state)
    return outcome


def _outcome(trainer: DebiasTrainer, outcome: Any, resumed: bool) -> dict[str, Any]:
    hook = trainer.hook
    found = {"steps": trainer.state.global_step}
    if not resumed:  # the Trainer's mean over a resumed part divides by the steps of the whole
        found["train_loss"] = outcome.training_loss
    if hook is None:  # resumed after the last step: nothing was left to train
        return found
    acts_on = {"tensors": len(hook.selected), "elements": sum(elements(p) for p in hook.selected.values())}
    return {**found, "gradients": hook.gradients, "acts_on": acts_on, "skipped_steps": hook.skipped}
