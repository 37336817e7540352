"""What a run takes beside memory: steps, tokens, what is kept on disk of its rows, and hours at a given throughput."""

import math

from debias.config import blocks
from debias.config.run import RunConfig
from debias.data.order import Order
from debias.losses import make_loss
from debias.plan.sheet import Effort, Machine
from debias.smoothness import make_smoothness

# Bytes of a row on disk for each of its tokens: its text, the number of the token, and a byte of mask or kind; and
# what a row has beside them. A million rows of SNLI's length, 28 tokens each, took 333 MB.
TOKEN_BYTES, ROW_BYTES = 5 + 4 + 1, 48
# Of a training step's time on the same tokens: a forward pass that keeps nothing is a third of forward and backward.
PASS_SHARE = 1 / 3


def effort_of(
    run: RunConfig,
    machine: Machine,
    *,
    length: int | None,
    rows: int | None,
    validation_rows: int | None = None,
    tokens_per_second: float | None,
) -> Effort:
    """Of a run with all that it trains, asks before it and validates; None stands where the number of rows would have
    to be known.

    `rows`: of the training set, in the place of the run's `data.train.limit`; `validation_rows`: in the place of
    `data.validation.limit`. `tokens_per_second`: in training, of all processes together, of a run that passes each
    sample once. Every row is taken to be `length` tokens long, so that bytes and hours are those at most; validations
    of an unknown number of rows are no part of the hours.
    """
    rows = rows or run.data.train.limit
    length = length or run.max_length
    stages = [*_first_stage(run), *run.bias_stages()]
    stages = [*stages, *(before for stage in stages for before in _first_stage(stage))]
    steps, earlier = steps_of(run, machine, rows), [steps_of(stage, machine, rows) for stage in stages]
    tokens = _tokens(run, steps, machine, length)
    before = [_tokens(stage, of_stage, machine, length) for stage, of_stage in zip(stages, earlier, strict=True)]
    asked = rows and rows * length if _asks_base(run) else 0
    validations = _validations(run, steps, steps_of_epoch(run, machine, rows))
    limit = run.data.validation.limit if run.data.validation else None
    each = validation_rows or limit
    validated = 0 if validations == 0 else None if None in (validations, each) else (validations or 0) * (each or 0)
    hours = None
    if tokens_per_second and None not in (tokens, asked, *before):
        trained = sum(_passes(one) * (of or 0) for one, of in zip((run, *stages), (tokens, *before), strict=True))
        passed = (asked or 0) + (validated or 0) * length
        hours = (trained + PASS_SHARE * passed) / tokens_per_second / 3600
    kept = rows and rows * (TOKEN_BYTES * length + ROW_BYTES)
    return Effort(
        rows=rows,
        steps=steps,
        tokens=tokens,
        tokens_before=None if None in before else sum(one or 0 for one in before),
        tokens_asked=asked,
        validations=validations,
        tokens_validated=None if validated is None else validated * length,
        kept=kept,
        hours=hours,
    )


def _first_stage(run: RunConfig) -> list[RunConfig]:
    return [run.stage_before()] if run.first_stage else []


def steps_of(run: RunConfig, machine: Machine, rows: int | None) -> int | None:
    """Optimizer steps, as the Trainer counts them: of an epoch whole ones; None where the number of rows is not known,
    or an epoch of this order has another length than the data.
    """
    if run.max_steps > 0:
        return run.max_steps
    of_epoch = steps_of_epoch(run, machine, rows)
    return None if of_epoch is None else max(1, math.ceil(run.num_train_epochs * of_epoch))


def steps_of_epoch(run: RunConfig, machine: Machine, rows: int | None) -> int | None:
    """Optimizer steps of one epoch; None as for `steps_of`."""
    if rows is None or blocks.table_of("order")[run.order["name"]].size is not Order.size:
        return None
    batches = math.ceil(rows / (run.per_device_train_batch_size * machine.world))
    return math.ceil(batches / run.gradient_accumulation_steps)


def _validations(run: RunConfig, steps: int | None, of_epoch: int | None) -> int | None:
    """How often a run judges `data.validation`: after every `eval_steps`, or each epoch, and after the last step."""
    if run.eval_strategy == "no":
        return 0
    if run.eval_strategy == "epoch":
        return None if None in (steps, of_epoch) else math.ceil((steps or 0) / (of_epoch or 1))
    return None if steps is None else math.ceil(steps / (run.eval_steps or run.logging_steps))


def _passes(run: RunConfig) -> float:
    """Forward and backward passes of each sample that a step sees."""
    term = make_smoothness(run.smoothness)
    ahead = PASS_SHARE if looks_ahead(run) else 0.0
    return (1 if term is None else term.passes) * (1 if run.sharpness is None else 2) + ahead


def looks_ahead(run: RunConfig) -> bool:
    """Whether a step begins with a forward pass of all its micro-batches, for its loss's statistics."""
    return run.gradient_accumulation_steps > 1 and make_loss(run.loss).ahead


def _batch(run: RunConfig, machine: Machine) -> int:
    return run.per_device_train_batch_size * run.gradient_accumulation_steps * machine.world


def _tokens(run: RunConfig, steps: int | None, machine: Machine, length: int) -> int | None:
    return None if steps is None else steps * _batch(run, machine) * length


def _asks_base(run: RunConfig) -> bool:
    """Whether the bias model takes a pass of the base over the training set."""
    return run.bias_model is not None and hasattr(blocks.table_of("bias_model")[run.bias_model["name"]], "asked")
