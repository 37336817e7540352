"""Samples one after another in one row, without padding. Shapes: B samples, T tokens of the row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from debias.data.encode import Batch, Collator, Feature, batch_of
from debias.data.order import LengthBuckets


class PackingCollator:
    """One row [1, T] of a micro-batch of prompts with their answers.

    `position_ids` [1, T] start again at each sample, by which attention tells samples apart; `sample_index` [1, T] is
    the sample of each token. What is one value for a sample (`labels`, `bias_weight`) stays [B]. Prompts without an
    answer, to be scored, are padded: every label's answer is yet to be put behind them.
    """

    def __init__(self, tokenizer: Any, pad_id: int | None = None) -> None:
        self.padded = Collator(tokenizer, pad_id)

    def __call__(self, examples: Sequence[Feature]) -> Batch:
        rows = [example["tokens"] for example in examples]
        if "answer_mask" not in rows[0]:
            return self.padded(examples)
        made = {key: _joined([row[key] for row in rows]) for key in rows[0]}
        lengths = [len(row["input_ids"]) for row in rows]
        made["position_ids"] = _joined([range(length) for length in lengths])
        made["sample_index"] = _joined([[index] * length for index, length in enumerate(lengths)])
        return batch_of(made, examples)


def _joined(rows: Sequence[Sequence[Any]]) -> Tensor:
    return torch.tensor([[value for row in rows for value in row]])


def tokens_of_an_epoch(
    lengths: Sequence[int] | NDArray[np.int32], batch_size: int, step: int, seed: int, *, by_length: bool = True
) -> tuple[int, int]:
    """Tokens of the first epoch, packed and padded to the longest of each micro-batch of `batch_size` samples.

    `step`: samples of an optimizer step, over all micro-batches and ranks. `by_length`: of like length.
    """
    length_N = np.asarray(lengths, dtype=np.int64)
    sampler = LengthBuckets(lengths, step, seed, by_length=by_length)
    order_N = length_N[np.fromiter(sampler, dtype=np.int64, count=len(lengths))]
    starts_K = np.arange(0, len(order_N), batch_size)
    samples_K = np.minimum(batch_size, len(order_N) - starts_K)
    return int(length_N.sum()), int((np.maximum.reduceat(order_N, starts_K) * samples_K).sum())
