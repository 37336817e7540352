"""What a bias model may ask of a run's own base model, before the run. Shapes: N examples, D hidden units, T tokens."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from debias.building.arguments import forget_accelerate
from debias.config.run import RunConfig
from debias.data.encode import Collator, EncodedExamples
from debias.data.examples import Example
from debias.inference.batches import Scores, budget_for, by_length, join, out_of_memory, score_batches
from debias.inference.loading import load_untrained
from debias.inference.predictor import Predictor
from debias.inference.training_set import log_p_of
from debias.readouts.answers import with_positions

logger = logging.getLogger(__name__)
# Trains a run, relative to a folder; returns the run's folder.
Train = Callable[[RunConfig, Path | None], Path]


@dataclass(frozen=True)
class AskedRun:
    """The base of a run, which trains and answers; the same on all ranks, each of which takes its share.

    `base`: the folder that the run's data paths are relative to.
    """

    config: RunConfig
    base: Path | None
    train: Train

    def hidden(self, layer: float, examples: Sequence[Example]) -> np.ndarray:
        """Hidden states of a layer, averaged over each example's tokens, [N, D] float64."""
        found = hidden_of(load_untrained(self.config), examples, layer)
        _let_go()
        return found

    def after_stage(self, stage: int, examples: Sequence[Example]) -> np.ndarray:
        """Log-probabilities over the labels, [M, C] float64, by the run of that number; trained if it has not been."""
        stages = self.config.bias_stages()
        told = (stage + 1, len(stages), stages[stage].output_dir, len(examples))
        logger.info("the bias model's run %d of %d, %s: it will judge %d examples", *told)
        found = log_p_of(self.train(stages[stage], self.base), examples)
        _let_go()
        return found


def _let_go() -> None:
    """The run itself finds the devices as the first one did."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    forget_accelerate()


def hidden_of(predictor: Predictor, examples: Sequence[Example], layer: float) -> np.ndarray:
    """Hidden states [N, D] float64 of a layer, averaged over the tokens of an example; of a prompt without its answer.

    -1 is the last layer, 0 the embeddings, a fraction so far up. ValueError for a layer that the model has not.
    """
    model = predictor.model
    model.eval()
    encoded = predictor.task.encode(examples, with_answer=False)
    place = _place(layer, int(model.config.get_text_config().num_hidden_layers))
    lengths = [int(length) for length in encoded.lengths]
    device = next(model.parameters()).device
    batches = by_length(lengths, budget_for(lengths, device.type, join()[1]))

    def compute(batch: Sequence[int]) -> Scores:
        return batch, _means(predictor, _inputs(predictor, encoded, batch, device), place)

    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=predictor.config.bf16)
    with torch.inference_mode(), bf16:
        try:
            return score_batches(batches, compute, len(encoded), int(model.config.get_text_config().hidden_size))
        except RuntimeError as error:
            raise out_of_memory(error) from error


def _place(layer: float, layers: int) -> int:
    """Of the layer among the hidden states, the first of which are the embeddings."""
    if layer == -1:
        return layers
    place = round(layer * layers) if 0 < layer < 1 else int(layer)
    if place > layers:
        raise ValueError(f"bias_model.layer is {layer:g}, and the model has {layers} layers")
    return place


def _inputs(predictor: Predictor, encoded: EncodedExamples, batch: Sequence[int], device: Any) -> dict[str, Tensor]:
    made = Collator(predictor.task.tokenizer, predictor.task.pad_id)([encoded[place] for place in batch])["inputs"]
    return {key: value.to(device) for key, value in made.items()}


def _means(predictor: Predictor, inputs: dict[str, Tensor], place: int) -> np.ndarray:
    causal = predictor.config.head == "causal_lm"
    given: dict[str, Any] = with_positions(predictor.model, inputs) if causal else inputs
    # Without the head: of a causal model, no logits that nobody reads.
    hidden_BTD = predictor.model.base_model(**given, output_hidden_states=True).hidden_states[place]
    mask_BT1 = inputs["attention_mask"].unsqueeze(2).to(torch.float64)
    means_BD = (hidden_BTD.double() * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
    return np.asarray(means_BD.cpu().numpy())
