"""Causal models that answer: read at answer positions only. Shapes: B samples, T tokens, C labels, V vocabulary.

Only positions that predict an answer token go through the language-model head (`logits_to_keep`), so there is never a
[B, T, V] tensor: with a vocabulary of 150,000 that tensor is what runs a 24 GB card out of memory. Long answers go
through it in chunks. A packed batch of R rows has its samples one after another in a row, `sample_index` [R, T] tells
them apart (-1: no sample), and `position_ids` start again at each, by which they are told apart where it is missing.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from debias.readouts.chunks import causal_forward, token_losses
from debias.readouts.hidden import hearing, means_of, means_of_packed
from debias.readouts.packed import refuse_packed, sample_index_of
from debias.readouts.prompts import attention_of, ends_of_prompts, prompts_alone, with_answer
from debias.readouts.said import Said, check_labels, fact, inputs_and_facts


class Answers:
    """The readout of a causal model with one answer (verbalizer) for each label.

    Training batches hold prompt and answer in `input_ids` [B, T] and the fact `answer_mask` [B, T] (true at answer
    tokens), or several samples in a row; scoring batches hold prompts, or rows in the form of training's, whose answer
    is cut off. Padding may stand on either side. Without an `attention_mask` every token counts. `verbalizer_ids` has
    the answer tokens of each label; training alone needs none.

    `probability`: a sample's p is the product over its answer tokens, or their per-token geometric mean.
    `mean_over`: the denominator of both gradients counts samples or answer tokens. `chunk`: answer positions whose
    logits may exist at a time, all rows together; None: all.
    """

    def __init__(
        self,
        verbalizer_ids: Sequence[Sequence[int]] = (),
        probability: Literal["product", "geometric_mean"] = "product",
        mean_over: Literal["samples", "tokens"] = "samples",
        chunk: int | None = None,
    ) -> None:
        self.verbalizer_ids = [list(ids) for ids in verbalizer_ids]
        self.probability = probability
        self.mean_over = mean_over
        self.chunk = chunk

    def said(
        self, model: nn.Module, batch: Mapping[str, Any], *, every_label: bool = False, hidden: bool = False
    ) -> Said:
        """Log-likelihood summed over each sample's answer tokens, [B], and in packed rows which sample a token is of.

        `every_label` needs answers of one token each, whose log-probabilities lie in the logits that are there anyway;
        ValueError for longer ones.
        """
        inputs, facts = inputs_and_facts(batch)
        others = self._tokens_of_labels() if every_label else None
        mask_BT, sample_BT = fact(facts, "answer_mask", self), facts.get("sample_index")
        if sample_BT is None:
            sample_BT = sample_index_of(inputs, mask_BT)
        with hearing(model, wanted=hidden) as heard:
            if sample_BT is None:
                log_p_BN = _padded(model, inputs, mask_BT, others, self.chunk)
                tokens_B = mask_BT.sum(dim=1)
            else:
                log_p_BN = _packed(model, inputs, mask_BT, sample_BT, others, self.chunk)
                tokens_B = torch.bincount(sample_BT[mask_BT.bool()], minlength=len(log_p_BN))
        if every_label and "labels" in facts:
            check_labels(facts["labels"], log_p_BN[:, 1:])
        log_p_B = log_p_BN[:, 0]
        confidence_B = log_p_B.detach() / (tokens_B if self.probability == "geometric_mean" else 1)
        count = int(tokens_B.sum()) if self.mean_over == "tokens" else log_p_B.numel()
        hidden_BH = _of_prompts(heard[0], inputs, mask_BT, sample_BT) if heard else None
        return Said(log_p_B, confidence_B, count, log_p_BN[:, 1:] if every_label else None, hidden_BH, None, sample_BT)

    def check_every_label(self) -> None:
        """ValueError unless each answer is one token."""
        self._tokens_of_labels()

    def _tokens_of_labels(self) -> list[int]:
        longest = max((len(ids) for ids in self.verbalizer_ids), default=0)
        if longest > 1:
            raise ValueError(
                f"a loss that reads every label needs answers of one token each, the longest here has {longest}; choose"
                " verbalizers of one token, such as ' A', ' B', ' C'"
            )
        return [ids[0] for ids in self.verbalizer_ids]

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-likelihood of each label's answer after the prompt, [B, C] float32 (not normalised over labels).

        Prompts may be padded on either side. Where rows hold an answer, `answer_mask` tells it, and it is cut off.
        """
        inputs, facts = inputs_and_facts(batch)
        refuse_packed(inputs)
        if not self.verbalizer_ids:
            raise ValueError("readout Answers was made without verbalizer_ids, which labels are scored by")
        ends_B = ends_of_prompts(inputs, facts.get("answer_mask"))
        if any(len(ids) != 1 for ids in self.verbalizer_ids):
            return torch.stack([self._score(model, inputs, ids, ends_B) for ids in self.verbalizer_ids], dim=1)
        # One answer token each: a single forward pass of the prompt scores every label.
        tokens = [ids[0] for ids in self.verbalizer_ids]
        if ends_B is not None:
            return _after(model, prompts_alone(inputs, ends_B), ends_B, tokens, self.chunk)
        logits_BV = model(**with_positions(model, inputs), logits_to_keep=1).logits[:, -1].float()
        return torch.log_softmax(logits_BV, dim=-1)[:, tokens]

    def _score(self, model: nn.Module, inputs: dict[str, Any], answer: list[int], ends_B: Tensor | None) -> Tensor:
        return answer_log_likelihood(model, *with_answer(inputs, answer, ends_B), self.chunk)


def answer_log_likelihood(
    model: nn.Module,
    inputs: dict[str, Any],
    answer_mask_BT: Tensor,
    chunk: int | None = None,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Sum over answer tokens of log p(token | what precedes it), [B] float32; logits of `chunk` positions at a time.

    `sample_index` is the sample of each token, where rows hold several (packing): `debias.readouts.sample_index_of`.
    Raises ValueError when an answer starts at the first position, where nothing predicts it, or is absent, and for rows
    of several samples without it.
    """
    if sample_index is not None:
        return _packed(model, inputs, answer_mask_BT, sample_index, None, chunk)[:, 0]
    if sample_index_of(inputs, answer_mask_BT) is not None:
        raise ValueError(
            "position_ids start again within a row, which holds several samples: read them with"
            " debias.readouts.Answers, or give sample_index (debias.readouts.sample_index_of), to hook.backward too"
        )
    return _padded(model, inputs, answer_mask_BT, None, chunk)[:, 0]


def _padded(
    model: nn.Module, inputs: dict[str, Any], mask_BT: Tensor, others: Sequence[int] | None, chunk: int | None
) -> Tensor:
    """[B, 1 + C]: each sample's own answer, and the tokens of `others` in the places of its tokens."""
    if bool(mask_BT[:, 0].any()) or not bool(mask_BT.any(dim=1).all()):
        raise ValueError("answer_mask: every row needs an answer token, and none at position 0")
    # A position is kept if it predicts an answer token in any row: with left padding these are the last few.
    keep_K = mask_BT[:, 1:].any(dim=0).nonzero().squeeze(1)
    given = without_cache(model, with_positions(model, inputs))
    # Counted from the end: a learned prompt stands before the tokens, and its places count too.
    from_end_K = keep_K - mask_BT.shape[1]
    log_p_BKN = said_at(model, given, from_end_K, inputs["input_ids"][:, keep_K + 1], others, chunk)
    return (log_p_BKN * mask_BT[:, keep_K + 1].unsqueeze(2)).sum(dim=1)


def _after(
    model: nn.Module, inputs: dict[str, Any], ends_B: Tensor, tokens: Sequence[int], chunk: int | None
) -> Tensor:
    """Log-probability of each of `tokens` behind the position `ends_B` of its row, [B, C]."""
    keep_K, place_B = ends_B.unique(return_inverse=True)
    ids_BT = inputs["input_ids"]
    given = without_cache(model, with_positions(model, inputs))
    log_p_BKN = said_at(model, given, keep_K - ids_BT.shape[1], ids_BT[:, keep_K], tokens, chunk)
    return log_p_BKN[torch.arange(len(ids_BT), device=ids_BT.device), place_B, 1:]


def _packed(
    model: nn.Module,
    inputs: dict[str, Any],
    answer_mask_RT: Tensor,
    sample_RT: Tensor,
    others: Sequence[int] | None,
    chunk: int | None,
) -> Tensor:
    """`_padded` of samples packed in rows; `sample_RT` is the sample of each token.

    `inputs` hold `position_ids` that start again at each sample, and no attention mask: transformers then lets no
    sample attend to another. Raises ValueError when a sample has no answer token, or one at its first position.
    """
    mask_RT = answer_mask_RT.bool()
    keep_K = mask_RT[:, 1:].any(dim=0).nonzero().squeeze(1)
    marked_RK = mask_RT[:, keep_K + 1]
    before_M, sample_M = sample_RT[:, keep_K][marked_RK], sample_RT[:, keep_K + 1][marked_RK]
    samples = int(sample_RT.max()) + 1
    answered = torch.bincount(sample_M.clamp(min=0), minlength=samples)
    astray = mask_RT[:, 0].any() | (before_M != sample_M).any() | (sample_M < 0).any()
    if bool(astray) or not samples or not bool(answered.all()):
        raise ValueError("answer_mask: every sample needs an answer token, and none at its first position")
    # With a cache, even an empty one, transformers does not look for where positions start again.
    given = without_cache(model, inputs)
    log_p_RKN = said_at(model, given, keep_K, inputs["input_ids"][:, keep_K + 1], others, chunk)
    return log_p_RKN.new_zeros(samples, log_p_RKN.shape[2]).index_add(0, sample_M, log_p_RKN[marked_RK])


def _of_prompts(hidden_BTH: Tensor, inputs: dict[str, Any], mask_BT: Tensor, sample_BT: Tensor | None) -> Tensor:
    """Hidden states averaged over what stands before the answer, [B, H]: an answer would tell its own label."""
    answered_BT = mask_BT.long().cumsum(dim=1)
    if sample_BT is None:
        return means_of(hidden_BTH, attention_of(inputs).bool() & (answered_BT == 0))
    before_BT, sample = answered_BT - mask_BT.long(), sample_BT.clamp(min=0)
    least = before_BT.new_full((int(sample.max()) + 1,), before_BT.numel())
    start_BT = least.scatter_reduce(0, sample[sample_BT >= 0], before_BT[sample_BT >= 0], "amin")[sample]
    return means_of_packed(hidden_BTH, (sample_BT >= 0) & (answered_BT == start_BT), sample_BT)


def said_at(
    model: nn.Module,
    given: Mapping[str, Any],
    keep_K: Tensor,
    targets_BK: Tensor,
    others: Sequence[int] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Log-probabilities at the positions `keep_K` of the tokens `targets_BK` and of each of `others`, [B, K, 1 + C]."""
    wanted_BKN = targets_BK.unsqueeze(2)
    if others is not None:
        others_C = torch.tensor(list(others), device=targets_BK.device)
        wanted_BKN = torch.cat([wanted_BKN, others_C.expand(*targets_BK.shape, -1)], dim=2)
    return -token_losses(model, given, keep_K, wanted_BKN, chunk)


def with_positions(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` with `position_ids` that start at each row's first real token, so that left padding changes nothing.

    They begin where the model's own do: RoBERTa's kin count from behind their padding's, and pass over padding tokens.
    """
    if "position_ids" in inputs:
        return inputs
    mask_BT = attention_of(inputs)
    if mask_BT.ndim != 2:
        raise ValueError(f"attention_mask is {list(mask_BT.shape)}: positions are read off [B, T]; give position_ids")
    padding = _padding_position(model)
    if padding is None:
        return {**inputs, "position_ids": (mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)}
    counted_BT = mask_BT.bool()
    if "input_ids" in inputs:
        counted_BT = counted_BT & (inputs["input_ids"] != padding)
    return {**inputs, "position_ids": counted_BT.long().cumsum(dim=1) * counted_BT + padding}


def _padding_position(model: nn.Module) -> int | None:
    """The position of padding, behind which those of a model's tokens begin; None where they begin at 0."""
    causal, _ = causal_forward(model)
    backbone = getattr(causal, getattr(causal, "base_model_prefix", ""), None)
    embeddings = getattr(backbone, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    padding = getattr(embeddings, "padding_idx", None)
    if padding is None:
        raise ValueError(f"{type(causal).__name__} makes positions in a way that is not known here; give position_ids")
    return int(padding)


def without_cache(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` that ask for no keys and values to be kept: nothing reads them again, and keeping them copies them.

    Some families (Granite's experts) hand `use_cache` on to their backbone without naming it.
    """
    causal, parameters = causal_forward(model)
    named = "use_cache" in parameters
    if causal is not None and any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        named |= any("use_cache" in inspect.signature(type(part).forward).parameters for part in causal.modules())
    return {**inputs, "use_cache": False} if named else inputs


def packed_logits(model: nn.Module, ids_RT: Tensor, positions_RT: Tensor | None) -> Tensor:
    """Logits [R, T, V] of rows that hold several samples, asked for as training asks for them.

    Without positions: of rows of one sample, at the model's own.
    """
    given = {"input_ids": ids_RT} if positions_RT is None else {"input_ids": ids_RT, "position_ids": positions_RT}
    inputs = without_cache(model, given)
    logits_RTV: Tensor = model(**inputs, logits_to_keep=torch.arange(ids_RT.shape[1], device=ids_RT.device)).logits
    return logits_RTV
