"""How examples become tokens, and tokens what a loss reads."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from debias.config.run import RunConfig
from debias.data import Example
from debias.data.encode import Collator, EncodedExamples, encode_for_answers, encode_for_classification
from debias.data.encode_images import ImageCollator, encode_images
from debias.data.packing import PackingCollator, tokens_of_an_epoch
from debias.data.prompt import Prompt
from debias.errors import InputError
from debias.losses import EVERY_LABEL, Loss
from debias.models.load import has_row, load_tokenizer
from debias.models.source import resolve_model
from debias.readouts import Answers, Classification, Readout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """How examples become tokens and tokens become losses; the same for training, evaluation and inference.

    With `pictures`, `tokenizer` is the model's image processor. `pad_id`: what the model takes for padding, where that
    is not the tokenizer's (`padded_for`).
    """

    readout: Readout
    prompt: Prompt | None
    tokenizer: Any
    max_length: int
    pictures: bool = False
    packing: bool = False
    pad_id: int | None = None

    def encode(self, examples: Sequence[Example], *, with_answer: bool, quiet: bool = False) -> EncodedExamples:
        """Token ids of `examples`; a causal model's training examples carry their right answer. What is longer than
        `max_length` is cut, with a warning unless `quiet`.
        """
        if self.pictures:
            return encode_images(examples)
        if self.prompt is None:
            return encode_for_classification(examples, self.tokenizer, self.max_length, quiet=quiet)
        return encode_for_answers(examples, self.prompt, self.max_length, with_answer=with_answer, quiet=quiet)

    @property
    def collate(self) -> Collator | ImageCollator | PackingCollator:
        """What makes a batch of encoded examples."""
        if self.pictures:
            return ImageCollator(self.tokenizer)
        return PackingCollator(self.tokenizer, self.pad_id) if self.packing else Collator(self.tokenizer, self.pad_id)


def build_task(config: RunConfig, tokenizer: Any) -> Task:
    """How the run's model is asked and read."""
    if config.prompt is None or config.head != "causal_lm":
        pictures = config.head == "image_classification"
        return Task(Classification(), None, tokenizer, config.max_length, pictures)
    answers = [config.prompt.verbalizers[label] for label in config.data.labels]
    fields = config.data.text_fields
    prompt = Prompt(
        tokenizer, config.prompt.template, answers, fields, chat=config.prompt.chat, more=config.prompt.more_templates
    )
    readout = Answers(prompt.answer_ids, config.answer_probability, config.loss_mean, config.loss_chunk_size)
    return Task(readout, prompt, tokenizer, config.max_length, packing=config.packing)


def padded_for(task: Task, model: Any) -> Task:
    """The task with batches padded where and with what `model` skips: each example is read as it is alone.

    A classifier finds the last token, and some models their positions, by the id of padding that the model's
    configuration names. Padding comes after the text, where learned positions are what they are without it; before it
    only where a head reads the very last place (XLNet). Causal models are asked after their prompts, padded before
    them. The tokenizer's side is set, which is saved with what is trained.
    """
    if task.pictures:
        return task
    config = model.config.get_text_config()
    pad_id = getattr(config, "pad_token_id", None)
    if not has_row(model, pad_id):  # a causal model: padding is told apart by the attention mask
        pad_id = task.tokenizer.pad_token_id if has_row(model, task.tokenizer.pad_token_id) else 0
    reads_end = task.prompt is not None or any(getattr(m, "summary_type", None) == "last" for m in model.modules())
    task.tokenizer.padding_side = "left" if reads_end else "right"
    return replace(task, pad_id=pad_id)


def check_rows(task: Task, model: Any, encoded: EncodedExamples) -> None:
    """InputError for a token of the examples that the model has no embedding of: one added to its tokenizer alone."""
    if task.pictures or has_row(model, len(task.tokenizer) - 1):
        return
    for features in (encoded.features, *encoded.wordings):
        for feature in features:
            top = max(feature["input_ids"], default=0)
            if not has_row(model, top):
                raise InputError(
                    f"model: it has no embedding of the token {task.tokenizer.convert_ids_to_tokens(top)!r} ({top}),"
                    " which its tokenizer has and the examples hold; save it with resize_token_embeddings, and train on"
                    " that"
                )


def check_answers(config: RunConfig, loss: Loss) -> None:
    """InputError where the loss, or a term beside it, reads every label, and a causal model's answers are longer than a
    token.
    """
    if config.head != "causal_lm" or (EVERY_LABEL not in loss.reads and config.smoothness is None):
        return
    try:
        build_task(config, load_tokenizer(resolve_model(config.model), config.head)).readout.check_every_label()
    except ValueError as error:
        name = None if config.smoothness is None or EVERY_LABEL in loss.reads else config.smoothness["name"]
        raise InputError(f"smoothness {name} is as {error}" if name else str(error)) from None


def say_what_packing_saves(config: RunConfig, encoded: EncodedExamples, world: int) -> None:
    """Log the tokens of an epoch, packed and as they would be padded."""
    samples = config.per_device_train_batch_size
    step = samples * config.gradient_accumulation_steps * world
    by_length = encoded.by_length and not (encoded.order.repeats or encoded.order.in_turn)
    packed, padded = tokens_of_an_epoch(encoded.lengths, samples, step, config.seed, by_length=by_length)
    saved = 1 - packed / padded
    logger.info("packing: %s tokens an epoch in place of %s padded ones (%.1f %% fewer)", packed, padded, 100 * saved)
