"""The story of a run, top to bottom."""

import dataclasses
import difflib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from debias.checkpoint import METRICS, SUMMARY, check_run, last_checkpoint, open_run, save_trained
from debias.config import RunConfig
from debias.data.encode import Collator
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.selection import not_head
from debias.engines.torch_engine import NonFiniteGradients
from debias.errors import InputError
from debias.models.adapters import describe
from debias.models.load import load_tokenizer
from debias.setup_run import (
    build_bias_weight,
    build_model,
    build_rule,
    build_task,
    check_length,
    training_examples,
    validation_examples,
)
from debias.telemetry import MetricsFile, environment, write_whole

logger = logging.getLogger(__name__)


def train(config: RunConfig, base: Path | None = None) -> Path:
    """Train what `config` says; returns the run's folder. `base` is the folder its data paths are relative to.

    The folder holds `adapter/` (plain PEFT; `model/` without LoRA), `config.yaml`, `metrics.jsonl` and `run.json`.
    Everything that can be wrong with the input is found before the folder is made, as InputError.
    """
    from transformers import set_seed

    started = time.time()
    rule, bias_weight = build_rule(config), build_bias_weight(config)
    arguments = training_arguments(config)
    logger.debug("device %s", arguments.device)  # asking for it gives each rank its own GPU, before models are loaded
    first = arguments.process_index == 0
    if first:
        check_run(config)
    examples, validation = training_examples(config, base), validation_examples(config, base)
    tokenizer = load_tokenizer(config.model, config.head)
    task = build_task(config, tokenizer)
    set_seed(config.seed)  # before the head and the adapter are drawn
    model = build_model(config)
    check_length(config, model)
    sizes = describe(model)
    logger.info(
        "%s trainable of %s parameters, %s in 4 bit", *(f"{sizes[k]:,}" for k in ("trainable", "all", "four_bit"))
    )
    train_data = task.encode(examples, with_answer=True)
    eval_data = task.encode(validation, with_answer=False) if validation else None

    folder = Path(config.output_dir)
    with _nothing_left(folder):
        trainer = DebiasTrainer(
            model=model,
            args=arguments,
            train_dataset=train_data,
            eval_dataset=eval_data,
            data_collator=Collator(tokenizer),
            compute_metrics=accuracy,
            callbacks=[MetricsFile(folder / METRICS)],
            rule=rule,
            objective=task.objective,
            bias_weight=bias_weight,
            gradients=config.gradients,
            select=(lambda name, parameter: True) if config.debias_head else not_head,
            max_nonfinite_steps=config.max_nonfinite_steps,
        )
    _drop_printer(trainer)
    with arguments.main_process_first(local=False, desc="opening the run"):
        if first:
            open_run(config)
    summary = {
        "status": "running",
        "seed": config.seed,
        "method": {"name": rule.name, **dataclasses.asdict(rule)},
        "train_examples": len(examples),
        "parameters": sizes,
        **environment(),
    }
    if first:
        _write_summary(folder, summary)
    checkpoint = last_checkpoint(folder) if config.resume else None
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if first:
            save_trained(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    except BaseException as error:
        if first:
            _write_summary(folder, {**summary, "status": "failed"}, must=False)
        if isinstance(error, OSError | ImportError | NonFiniteGradients):
            raise InputError(_what_stays(folder, error)) from error
        raise
    finished = {
        **summary,
        "status": "finished",
        "seconds": round(time.time() - started, 1),
        **_outcome(trainer, outcome),
    }
    if first:
        _write_summary(folder, finished)
    return folder


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """What the Trainer refuses (an unknown reporter, a missing package) becomes one line, and no empty folder stays."""
    existed = folder.exists()
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(" ".join(str(error).split())) from error


def _what_stays(folder: Path, error: Exception) -> str:
    what = f"saving failed: {error.strerror or error}" if isinstance(error, OSError) else str(error)
    kept = last_checkpoint(folder)
    return f"{folder}: {what}; " + (f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved")


def training_arguments(config: RunConfig) -> Any:
    """The Hugging Face arguments of a run: every setting of one name is passed on."""
    import torch
    from transformers import SchedulerType, TrainingArguments
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    _check_choice("lr_scheduler_type", config.lr_scheduler_type, [kind.value for kind in SchedulerType])
    _check_choice("optim", config.optim, [kind.value for kind in OptimizerNames])
    for reporter in (config.report_to,) if isinstance(config.report_to, str) else config.report_to:
        _check_choice("report_to", reporter, ["none", "all", *INTEGRATION_TO_CALLBACK])
    names = set(TrainingArguments.__dataclass_fields__) & set(RunConfig.model_fields) - {"gradient_checkpointing"}
    values = {name: getattr(config, name) for name in names}
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    report_to = [config.report_to] if isinstance(config.report_to, str) else list(config.report_to)
    extra = {
        "report_to": report_to,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_backend": "gloo" if launched and not torch.cuda.is_available() else None,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
    }
    known = {k: v for k, v in extra.items() if k in TrainingArguments.__dataclass_fields__}
    try:
        return TrainingArguments(**{**values, **known})
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from None


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{key} is {value!r}, not one of {', '.join(known)}{hint}")


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of label scores [N, C] whose largest is the label's."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=-1) == prediction.label_ids))}


def _outcome(trainer: DebiasTrainer, outcome: Any) -> dict[str, Any]:
    hook = trainer.hook
    found = {"steps": trainer.state.global_step, "train_loss": outcome.training_loss}
    if hook is None:  # resumed after the last step: nothing was left to train
        return found
    elements = sum(p.numel() for p in hook.selected.values())
    acts_on = {"tensors": len(hook.selected), "elements": elements}
    return {**found, "gradients": hook.gradients, "acts_on": acts_on, "skipped_steps": hook.skipped}


def _write_summary(folder: Path, summary: dict[str, Any], must: bool = True) -> None:
    try:
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError:
        if must:
            raise


def _drop_printer(trainer: DebiasTrainer) -> None:
    """The Trainer prints every log as a raw dictionary when there is no progress bar; ours goes through logging."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
