"""The story of a run, top to bottom."""

import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from debias.checkpoint import METRICS, SUMMARY, last_checkpoint, open_run, save_trained
from debias.config import RunConfig
from debias.data.encode import Collator
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.selection import not_head
from debias.errors import InputError
from debias.models.adapters import describe
from debias.models.load import load_tokenizer
from debias.setup_run import (
    build_bias_weight,
    build_model,
    build_rule,
    build_task,
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
    examples, validation = training_examples(config, base), validation_examples(config, base)
    tokenizer = load_tokenizer(config.model, config.head)
    task = build_task(config, tokenizer)
    set_seed(config.seed)  # before the head and the adapter are drawn
    model = build_model(config)
    sizes = describe(model)
    logger.info(
        "%s trainable of %s parameters, %s in 4 bit", *(f"{sizes[k]:,}" for k in ("trainable", "all", "four_bit"))
    )
    train_data = task.encode(examples, with_answer=True)
    eval_data = task.encode(validation, with_answer=False) if validation else None

    with arguments.main_process_first(local=False, desc="opening the run"):
        folder = open_run(config) if arguments.process_index == 0 else Path(config.output_dir)
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
    summary = {
        "status": "running",
        "seed": config.seed,
        "method": {"name": rule.name, **dataclasses.asdict(rule)},
        "train_examples": len(examples),
        "parameters": sizes,
        **environment(),
    }
    if trainer.is_world_process_zero():
        _write_summary(folder, summary)
    checkpoint = last_checkpoint(folder) if config.resume else None
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.is_world_process_zero():
            save_trained(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    except OSError as error:
        _write_summary(folder, {**summary, "status": "failed"}, must=False)
        kept = last_checkpoint(folder)
        stays = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved"
        raise InputError(f"{folder}: saving failed: {error.strerror or error}; {stays}") from error
    finished = {
        **summary,
        "status": "finished",
        "seconds": round(time.time() - started, 1),
        **_outcome(trainer, outcome),
    }
    if trainer.is_world_process_zero():
        _write_summary(folder, finished)
    return folder


def training_arguments(config: RunConfig) -> Any:
    """The Hugging Face arguments of a run: every setting of one name is passed on."""
    import torch
    from transformers import TrainingArguments

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
