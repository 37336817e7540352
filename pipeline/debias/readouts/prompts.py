"""Where the prompts of a batch end, and answers laid behind them. Shapes: B rows, T tokens, A tokens of an answer.

Rows may be padded on either side, and may hold the right answer too, as those that are trained on do: labels are scored
after the prompt all the same. A row stays where it is, and what follows its prompt is masked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def attention_of(inputs: Mapping[str, Any]) -> Tensor:
    """The attention mask; ones where none is given, as transformers reads it."""
    given: Tensor | None = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if given is None else given


def ends_of_prompts(inputs: Mapping[str, Any], answer_mask_BT: Tensor | None) -> Tensor | None:
    """The position of each prompt's last token, int64 [B]; None: the last column, in every row.

    Raises ValueError for rows of which it cannot be told, and for a prompt without a token.
    """
    answered = answer_mask_BT is not None and bool(answer_mask_BT.any())
    real_BT = inputs.get("attention_mask")
    if not answered and (real_BT is None or real_BT.ndim != 2 or bool(real_BT[:, -1].all())):
        return None
    real_BT = attention_of(inputs).bool()
    if real_BT.ndim != 2:
        raise ValueError(
            f"attention_mask is {list(real_BT.shape)}: where a prompt ends before its answer is read off [B, T]"
        )
    places_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    if answered and answer_mask_BT is not None:
        real_BT = real_BT & (places_T < _first_of_answers(answer_mask_BT.bool(), places_T).unsqueeze(1))
    if not bool(real_BT.any(dim=1).all()):
        raise ValueError("attention_mask: a row of prompts has no token before which there is no answer")
    return (real_BT * places_T).amax(dim=1)


def _first_of_answers(mask_BT: Tensor, places_T: Tensor) -> Tensor:
    count_B = mask_BT.sum(dim=1)
    first_B, last_B = mask_BT.long().argmax(dim=1), (mask_BT * places_T).amax(dim=1)
    if not bool(count_B.all()):
        raise ValueError(
            f"answer_mask marks an answer in {int((count_B > 0).sum())} of {len(mask_BT)} rows: where the prompts of"
            " the others end cannot be told; mark each row's answer, or give prompts alone"
        )
    if bool((last_B - first_B + 1 != count_B).any()):
        raise ValueError(
            "answer_mask marks several stretches of a row: after which of them labels are scored cannot be told; give"
            " one prompt a row"
        )
    return first_B


def prompts_alone(inputs: Mapping[str, Any], ends_B: Tensor) -> dict[str, Any]:
    """`inputs` with all that follows `ends_B` masked."""
    mask_BT = attention_of(inputs)
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return {**inputs, "attention_mask": mask_BT * (places_T <= ends_B.unsqueeze(1))}


def with_answer(
    inputs: Mapping[str, Any], answer: Sequence[int], ends_B: Tensor | None
) -> tuple[dict[str, Any], Tensor]:
    """Tokens, mask and positions of each row with `answer` behind its prompt, and where that is, bool [B, T + A]."""
    ids_BT, mask_BT = inputs["input_ids"], attention_of(inputs)
    answer_A = torch.tensor(list(answer), device=ids_BT.device)
    if ends_B is None:
        ends_B = torch.full_like(ids_BT[:, 0], ids_BT.shape[1] - 1)
    else:
        mask_BT = prompts_alone(inputs, ends_B)["attention_mask"]
    steps_A = torch.arange(1, len(answer_A) + 1, device=ids_BT.device)
    places_BA = ends_B.unsqueeze(1) + steps_A
    extended = {
        "input_ids": _laid(ids_BT, places_BA, answer_A.expand_as(places_BA)),
        "attention_mask": _laid(mask_BT, places_BA, torch.ones_like(places_BA)),
    }
    if (given_BT := inputs.get("position_ids")) is not None:  # [B, T], or one for each axis of a picture
        last = given_BT.gather(-1, ends_B.expand(given_BT.shape[:-1]).unsqueeze(-1))
        extended["position_ids"] = _laid(given_BT, places_BA.expand(*given_BT.shape[:-1], -1), last + steps_A)
    answer_mask = _laid(torch.zeros_like(ids_BT), places_BA, torch.ones_like(places_BA)).bool()
    return extended, answer_mask


def _laid(given: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """`given` with room for `values` at `places` along the last dimension."""
    room = torch.nn.functional.pad(given, (0, values.shape[-1]))
    return room.scatter(-1, places, values.to(room.dtype))
