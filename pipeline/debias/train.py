"""The story of a run, top to bottom."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debias.adapters.survey import as_records, describe, left_over, render, survey
from debias.building.arguments import training_arguments
from debias.building.examples import training_examples, validation_examples
from debias.building.facts import bias_log_p, check_groups
from debias.building.idle_settings import say_what_has_no_effect
from debias.building.method import build_bias_model, build_loss, build_rule
from debias.building.model import build_model, check_length
from debias.building.task import build_task
from debias.building.trainer import build_trainer
from debias.config.places import resolve_paths
from debias.config.run import RunConfig
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.parameters import elements
from debias.engines.step import NonFiniteGradients
from debias.errors import InputError, Interrupted
from debias.gradients import SamplesNotFirst
from debias.methods import Rule
from debias.models.load import load_tokenizer
from debias.plan.guard import refuse_what_cannot_fit
from debias.ranks.stopping import StopRequest
from debias.runs.environment import environment
from debias.runs.folder import SUMMARY, check_run, last_checkpoint, open_run, save_trained
from debias.runs.resume import decide_resume, is_finished, planned_steps
from debias.runs.selection import check_selection, selected
from debias.runs.whole import write_whole

logger = logging.getLogger(__name__)


def train(config: RunConfig, base: Path | None = None) -> Path:
    """Train what `config` says; returns the run's folder. `base` is the folder its data paths are relative to.

    The folder holds `adapter/` (plain PEFT; `model/` without LoRA), `config.yaml`, `metrics.jsonl` and `run.json`.
    Everything that can be wrong with the input is found before the folder is made, as InputError.
    """
    # From the start: a signal that comes while the model is loaded ends the run at its first step, with a checkpoint.
    with StopRequest(config.sigterm_grace_seconds) as stop:
        return _train(config, base, stop)


def _train(config: RunConfig, base: Path | None, stop: StopRequest) -> Path:
    from transformers import set_seed

    started = time.time()
    config = decide_resume(resolve_paths(config, base))
    rule, loss, bias_model = build_rule(config), build_loss(config), build_bias_model(config)
    arguments = training_arguments(config)
    first = arguments.process_index == 0
    if first:
        check_run(config)
        say_what_has_no_effect(config)
    refuse_what_cannot_fit(config, arguments.world_size)
    examples, validation = training_examples(config, base), validation_examples(config, base)
    check_groups(loss, examples)
    folder = Path(config.output_dir)
    checkpoint = last_checkpoint(folder) if config.resume else None
    planned = planned_steps(config, len(examples), arguments.world_size)
    # The first rank first: it may still be writing down how the run before this one ended.
    with arguments.main_process_first(local=False, desc="looking at the run"):
        finished = is_finished(config, planned)
    if finished:
        logger.info("resume: %s was finished at step %d and is left as it is", folder, planned)
        return folder
    check_selection(config, planned, checkpoint)
    tokenizer = load_tokenizer(config.model, config.head)
    task = build_task(config, tokenizer)
    set_seed(config.seed)  # before the head and the adapter are drawn
    model = build_model(config)
    check_length(config, model)
    sizes = _sizes(model)
    trainer = build_trainer(config, model, arguments, task, examples, validation, stop)
    with arguments.main_process_first(local=False, desc="opening the run"):
        if first:
            open_run(config)
    if bias_model is not None:
        with arguments.main_process_first(local=False, desc="asking the bias model"):
            trainer.train_dataset.facts["bias_log_p"] = bias_log_p(config, bias_model, examples)
    summary = {**_running(config, rule, len(examples)), **sizes, **environment()}
    if first:
        _write_summary(folder, summary)
    if config.resume and checkpoint is None:
        logger.warning("resume: %s holds no checkpoint yet; training starts at step 0", folder)
    with _failure_recorded(folder, summary, first):
        outcome = _fit(trainer, checkpoint, tokenizer, folder)
    ended = {
        **summary,
        "status": "interrupted" if trainer.interrupted else "finished",
        "seconds": round(time.time() - started, 1),
        **selected(config, trainer),
        **_outcome(trainer, outcome, resumed=checkpoint is not None),
    }
    if first:
        _write_summary(folder, ended)
    if trainer.interrupted:
        raise Interrupted(f"{folder}: stopped by SIGTERM at step {ended['steps']}, saved; go on with resume=true")
    return folder


@contextmanager
def _failure_recorded(folder: Path, summary: dict[str, Any], first: bool) -> Iterator[None]:
    """What ends a run is in its run.json; what a user can mend becomes one line with the last good checkpoint."""
    try:
        yield
    except BaseException as error:
        if first:
            _write_summary(folder, {**summary, "status": "failed"}, must=False)
        if isinstance(error, OSError | ImportError | NonFiniteGradients | SamplesNotFirst):
            raise InputError(_what_stays(folder, error)) from error
        raise


def _running(config: RunConfig, rule: Rule, examples: int) -> dict[str, Any]:
    return {
        "status": "running",
        "seed": config.seed,
        "method": {"name": rule.name, **dataclasses.asdict(rule)},
        "train_examples": examples,
    }


def _sizes(model: Any) -> dict[str, Any]:
    """What trains, what is adapted and how the base is stored, said and for run.json."""
    sizes, rows = describe(model), survey(model)
    logger.info(
        "%s trainable of %s parameters, %s in 4 bit", *(f"{sizes[k]:,}" for k in ("trainable", "all", "four_bit"))
    )
    logger.info("%s", render(rows))
    if found := left_over(rows):
        logger.info("%s", found)
    return {"parameters": sizes, "layers": as_records(rows)}


def _fit(trainer: DebiasTrainer, checkpoint: Path | None, tokenizer: Any, folder: Path) -> Any:
    """Train, and save what was trained unless a signal stopped it; what it saved then is a checkpoint."""
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step
    if trainer.hook is not None and trainer.hook.skipped >= steps:
        raise NonFiniteGradients(f"no gradient was finite in {steps} steps, nothing was trained (NaN in the weights?)")
    if not trainer.interrupted:
        state = trainer.trained_state()  # on every rank: it may be gathered from them
        if trainer.args.process_index == 0:
            save_trained(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder, state)
    return outcome


def _what_stays(folder: Path, error: Exception) -> str:
    what = f"saving failed: {error.strerror or error}" if isinstance(error, OSError) else str(error)
    kept = last_checkpoint(folder)
    return f"{folder}: {what}; " + (f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved")


def _outcome(trainer: DebiasTrainer, outcome: Any, resumed: bool) -> dict[str, Any]:
    hook = trainer.hook
    found = {"steps": trainer.state.global_step}
    if not resumed:  # the Trainer's mean over a resumed part divides by the steps of the whole
        found["train_loss"] = outcome.training_loss
    if hook is None:  # resumed after the last step: nothing was left to train
        return found
    acts_on = {"tensors": len(hook.selected), "elements": sum(elements(p) for p in hook.selected.values())}
    return {**found, "gradients": hook.gradients, "acts_on": acts_on, "skipped_steps": hook.skipped}


def _write_summary(folder: Path, summary: dict[str, Any], must: bool = True) -> None:
    try:
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError:
        if must:
            raise
