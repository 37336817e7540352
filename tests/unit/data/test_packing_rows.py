"""debias.data.packing: rows without padding, and how many tokens that saves."""

from typing import Any

import pytest
import torch
from batches import flat
from batches import rows as rows_of

from debias.data.packing import PackingCollator, tokens_of_an_epoch


class Words:
    pad_token_id = 9
    padding_side = "left"


def feature(*ids: int, label: int = 0, **more: Any) -> dict[str, Any]:
    return {"input_ids": list(ids), "labels": label, "answer_mask": [False] * (len(ids) - 1) + [True], **more}


def test_samples_one_after_another() -> None:
    batch = flat(PackingCollator(Words())(rows_of([feature(5, 6, 7, label=2), feature(1), feature(3, 4, label=1)])))
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 3, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["sample_index"].tolist() == [[0, 0, 0, 1, 2, 2]]
    assert batch["answer_mask"].tolist() == [[False, False, True, True, False, True]]
    assert batch["labels"].tolist() == [2, 0, 1]
    assert "attention_mask" not in batch
    assert {batch[key].dtype for key in ("input_ids", "position_ids", "sample_index")} == {torch.int64}
    assert batch["answer_mask"].dtype == torch.bool


def test_what_a_sample_has_one_of_stays_apart() -> None:
    batch = flat(PackingCollator(Words())(rows_of([feature(5, 6, bias_weight=0.25), feature(1, 2, bias_weight=0.5)])))
    assert batch["bias_weight"].tolist() == [0.25, 0.5]


def test_prompts_to_be_scored_are_padded() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": 2}, {"input_ids": [1], "labels": 0}]
    batch = flat(PackingCollator(Words())(rows_of(rows)))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert "sample_index" not in batch


@pytest.mark.parametrize(
    ("batch_size", "step", "padded"),
    [(1, 1, 16), (2, 2, 21), (5, 5, 35), (1, 5, 16), (2, 4, 21)],
)
def test_tokens_of_an_epoch(batch_size: int, step: int, padded: int) -> None:
    """Sorted by length, in pairs: two rows of 7 (7 and 4), two of 3 (3 and 1), and 1 alone; all at once 5 rows of 7."""
    assert tokens_of_an_epoch([3, 7, 1, 4, 1], batch_size, step, seed=0) == (16, padded)
