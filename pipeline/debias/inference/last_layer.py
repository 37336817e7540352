"""What the last layer of a trained classifier is given. Shapes: B samples, T tokens, N rows, C labels, D columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from debias.data import Example
from debias.data.examples import labels_of
from debias.data.facts import facts_of
from debias.errors import InputError
from debias.inference.any_model import Given, load_given
from debias.inference.batches import Scores, budget_for, by_length, join, out_of_memory, score_batches
from debias.inference.held_out import HeldOutAccuracy
from debias.inference.predictor import Predictor
from debias.models.vision import positions_of


@dataclass(frozen=True)
class LastLayerInputs:
    """Of an adapter, what its last layer is given of the validation rows of its run, and their labels and groups; with
    `training` of the rows that the run was trained on.
    """

    held_out: HeldOutAccuracy

    def __call__(
        self, adapter: Path, layer: str, *, training: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """[N, D] float64, [N], and [N] or None where a row has no group; InputError as `HeldOutAccuracy` raises it,
        where the run was trained on most of the rows that it held out, or where no such layer is there.
        """
        rows = self.held_out.training_rows if training else self.held_out.rows_to_fit()
        inputs_ND = inputs_of(load_given(Given(adapter=str(adapter))), rows, layer)
        group_N = facts_of(rows).get("group")
        return inputs_ND, labels_of(rows), None if group_N is None else group_N.numpy()


def inputs_of(predictor: Predictor, examples: Sequence[Example], layer: str) -> np.ndarray:
    """What the linear layer of that name (PEFT's, without its prefixes) is given of each example, [N, D] float64."""
    model = predictor.model.eval()
    last = _layer(model, layer, len(predictor.labels))
    encoded = predictor.task.encode(examples, with_answer=False)
    device = next(model.parameters()).device
    of_picture = positions_of(model.config)
    lengths = [len(feature.get("input_ids", ())) or of_picture for feature in encoded.features]
    batches = by_length(lengths, budget_for(lengths, device.type, join()[1]))

    def compute(batch: Sequence[int]) -> Scores:
        inputs = predictor.task.collate([encoded[place] for place in batch])["inputs"]
        given: list[Tensor] = []
        handle = last.register_forward_hook(lambda _, args, output: given.extend((args[0], output)))
        try:
            logits_BC = model(**{key: value.to(device) for key, value in inputs.items()}).logits
        finally:
            handle.remove()
        return batch, _pooled(given[0], given[1], logits_BC).double().cpu().numpy()

    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=predictor.config.bf16)
    with torch.inference_mode(), bf16:
        try:
            return score_batches(batches, compute, len(encoded), last.in_features)
        except RuntimeError as error:
            raise out_of_memory(error) from error


def _layer(model: Any, name: str, labels: int) -> nn.Linear:
    """The trained copy of a layer, where PEFT keeps two."""
    for path, module in model.named_modules():
        plain = path.replace("modules_to_save.default.", "").replace(".modules_to_save.default", "")
        trained = "modules_to_save" in path
        if isinstance(module, nn.Linear) and trained and plain.endswith(name) and module.out_features == labels:
            return module
    raise InputError(f"adapter: its layer {name} is none that was trained whole and gives {labels} logits")


def _pooled(given: Tensor, output: Tensor, logits_BC: Tensor) -> Tensor:
    """Of a head that is asked at every token, what it was given where the model took its answer from; [B, D]."""
    if given.ndim == 2:
        return given
    taken_BT = (output == logits_BC.unsqueeze(1)).all(dim=-1)
    if not bool(taken_BT.any(dim=1).all()):
        raise InputError("adapter: what its model says is not what its last layer gives of any token")
    # The last of equals: tokens that are alike in everything are given alike.
    places_B = taken_BT.shape[1] - 1 - taken_BT.flip(1).int().argmax(dim=1)
    return given[torch.arange(len(given)), places_B]
