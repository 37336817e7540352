"""All pieces of a run put together, in the order in which what is wrong with them can be found."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias.adapters.survey import as_records, describe, left_over, render, survey
from debias.building.model import build_model, check_length
from debias.building.task import build_task, padded_for
from debias.building.trainer import build_trainer
from debias.config.run import RunConfig
from debias.data import Example
from debias.engines.hf_trainer import DebiasTrainer
from debias.models.load import load_tokenizer
from debias.models.source import resolve_model
from debias.ranks.stopping import StopRequest
from debias.runs.selection import ValidationFigures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """What trains, the tokenizer that is saved with it, and for run.json what trains, layer by layer."""

    trainer: DebiasTrainer
    tokenizer: Any
    sizes: Mapping[str, Any]

    @property
    def figures(self) -> ValidationFigures:
        """What is figured out of each validation."""
        found = self.trainer.compute_metrics
        assert isinstance(found, ValidationFigures)
        return found


def build_run(
    config: RunConfig, arguments: Any, examples: Sequence[Example], validation: Sequence[Example], stop: StopRequest
) -> Built:
    """Load and draw everything that the run trains with; nothing is written."""
    from transformers import set_seed

    source = resolve_model(config.model)
    tokenizer = load_tokenizer(source, config.head)
    task = build_task(config, tokenizer)
    set_seed(config.seed)  # before the head and the adapter are drawn
    model = build_model(config, source)
    check_length(config, model)
    sizes = _sizes(model)
    task = padded_for(task, model)
    return Built(build_trainer(config, model, arguments, task, examples, validation, stop), tokenizer, sizes)


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
