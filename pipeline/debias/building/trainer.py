"""The Trainer of a run, with its callbacks."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from debias.building.method import build_bias_weight, build_loss, build_order
from debias.building.padding import PaddingCheck
from debias.building.repeats import RepeatsSaid
from debias.building.task import Task, check_rows, say_what_packing_saves
from debias.config.run import RunConfig
from debias.data import Example
from debias.data.examples import labels_of
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.parameters import selection
from debias.errors import InputError
from debias.masks import make_mask
from debias.methods import make_rule
from debias.penalties import make_penalty
from debias.projections import make_projection
from debias.ranks.failures import record
from debias.ranks.hangs import hang_watch
from debias.ranks.stopping import StopRequest
from debias.runs.learned import StopWhenLearned, label_entropy
from debias.runs.metrics import MetricsFile, PlainProgress
from debias.runs.names import METRICS
from debias.runs.selection import ValidationFigures
from debias.sharpness import make_sharpness
from debias.smoothness import make_smoothness

logger = logging.getLogger(__name__)


def build_trainer(
    config: RunConfig,
    model: Any,
    arguments: Any,
    task: Task,
    examples: Sequence[Example],
    validation: Sequence[Example],
    stop: StopRequest,
) -> DebiasTrainer:
    """The Trainer with our callbacks; what it refuses is an InputError, and no empty folder stays."""
    folder = Path(config.output_dir)
    loss = build_loss(config)
    encoded = task.encode(examples, with_answer=True)
    check_rows(task, model, encoded)
    encoded.order, encoded.by_length = build_order(config), not loss.compares
    if config.packing:
        say_what_packing_saves(config, encoded, arguments.world_size)
    figures = ValidationFigures()
    with _nothing_left(folder):
        trainer = DebiasTrainer(
            model=model,
            args=arguments,
            train_dataset=encoded,
            eval_dataset=task.encode(validation, with_answer=False) if validation else None,
            data_collator=task.collate,
            compute_metrics=figures,
            rule=make_rule(config.method),
            readout=task.readout,
            loss=loss,
            facts=encoded.told,
            bias_weight=build_bias_weight(config.bias_weight),
            gradients=config.gradients,
            select=selection(debias_head=config.debias_head),
            max_nonfinite_steps=config.max_nonfinite_steps,
            verify=config.verify,
            sharpness=make_sharpness(config.sharpness),
            weight_penalty=make_penalty(config.weight_penalty),
            weight_projection=make_projection(config.weight_projection),
            gradient_mask=make_mask(config.gradient_mask),
            smoothness=make_smoothness(config.smoothness),
            stop=stop,
        )
    trainer.add_callback(RepeatsSaid(lambda: len(encoded.sampler(1, 0))))
    trainer.add_callback(PaddingCheck(task, encoded))
    if config.stop_when_learned is not None:
        trainer.add_callback(StopWhenLearned(config.stop_when_learned, lambda: _entropy(examples, encoded.told())))
    trainer.add_callback(
        MetricsFile(folder / METRICS, lambda logs: {**trainer.layer_figures(logs), **figures.cells(logs)})
    )
    for watch in hang_watch(config.ddp_timeout, record):
        trainer.add_callback(watch)
    _drop_printer(trainer)
    return trainer


def _entropy(examples: Sequence[Example], told: Mapping[str, Tensor]) -> float:
    """Of the labels as the run's order sees them."""
    seen_N = told.get("seen")
    return label_entropy(labels_of(examples), None if seen_N is None else seen_N.cpu().numpy())


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """What the Trainer refuses (an unknown reporter, a missing package) becomes one line, and no empty folder stays."""
    existed = folder.exists()
    try:
        yield
    except OSError as error:
        raise InputError(f"output_dir: {folder} cannot be written: {error.strerror}") from error
    except (ValueError, RuntimeError, ImportError) as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(" ".join(str(error).split())) from error


def _drop_printer(trainer: DebiasTrainer) -> None:
    """The Trainer prints every log as a raw dictionary when there is no progress bar; ours goes through logging."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.args.disable_tqdm:
        trainer.add_callback(PlainProgress(logger.info))
