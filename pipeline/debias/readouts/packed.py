"""Which sample each token is of, where a row holds several. Shapes: R rows, T tokens, B samples.

Packing and padding-free collators (TRL's, transformers' DataCollatorWithFlattening) put samples one after another in a
row, whose `position_ids` start again at each.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What collators say of rows with several samples, in the place of position_ids or beside them.
ALSO_SAY = ("cu_seq_lens_q", "seq_idx")


def sample_index_of(inputs: Mapping[str, Any], answer_mask_RT: Tensor) -> Tensor | None:
    """The sample of each token, int64 [R, T], -1 in a stretch without an answer token; None: each row is one sample.

    A row's stretches begin where its `position_ids` start again: where they fall, and, without an attention mask, where
    they do not go on by one, as transformers itself tells samples apart. Padding has no answer, wherever it stands and
    whatever its positions are. ValueError where a batch says by other keys alone that its rows hold several samples.
    """
    found = _stretches(inputs)
    if found is None:
        return None
    starts_RT, _ = found
    stretch_RT = starts_RT.flatten().cumsum(0).view_as(starts_RT) - 1
    answered = torch.bincount(stretch_RT[answer_mask_RT.bool()], minlength=int(stretch_RT[-1, -1]) + 1) > 0
    heads_RT = starts_RT & answered[stretch_RT]
    if int(heads_RT.sum(dim=1).max()) < 2:
        return None
    numbers = torch.where(answered, answered.cumsum(0) - 1, -1)
    return numbers[stretch_RT]


def refuse_packed(inputs: Mapping[str, Any]) -> None:
    """ValueError where a row of prompts holds several of them: of a row the last one alone would be answered."""
    found = _stretches(inputs)
    if found is None:
        return
    starts_RT, goes_on_RT = found
    mask_RT = inputs.get("attention_mask")
    if mask_RT is not None and mask_RT.ndim == 2:
        real_RT, number_RT = mask_RT.bool(), starts_RT.cumsum(dim=1)
        first_R1 = number_RT.gather(1, real_RT.long().argmax(dim=1, keepdim=True))
        several = (number_RT * real_RT).amax(dim=1) > first_R1.squeeze(1)
    else:  # positions that stand still are padding
        several = (starts_RT & goes_on_RT).sum(dim=1) > 1
    if bool(several.any()):
        raise ValueError(
            "position_ids start again within a row of prompts: labels are scored after the last token of a row; give"
            " one prompt a row"
        )


def _stretches(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Where a stretch of positions begins, bool [R, T], as at each row's first token, and where the next goes on by
    one. None without positions.
    """
    positions = inputs.get("position_ids")
    if positions is None:
        if others := [key for key in ALSO_SAY if inputs.get(key) is not None]:
            raise ValueError(f"{others[0]} is given without position_ids, by which a row's samples are told apart here")
        return None
    if positions.ndim == 3:  # text, or time, before height and width: they stand still or go on within a sample
        positions = positions[0]
    step_RT = positions.diff(dim=1)
    alone = positions is inputs["position_ids"] and inputs.get("attention_mask") is None
    starts_RT = step_RT != 1 if alone else step_RT < 0
    edge_R1 = torch.ones_like(positions[:, :1], dtype=torch.bool)
    return torch.cat([edge_R1, starts_RT], dim=1), torch.cat([step_RT == 1, ~edge_R1], dim=1)
