"""Every label's log-likelihood from one forward pass: prompts and answers as trees of tokens.

A row of a batch is a tree: prompts that begin alike share the nodes of their beginning, the labels' answers share their
prompt, and a node attends to its ancestors alone (the attention of Medusa and SpecInfer, here for scoring). The last
token of an answer predicts nothing that is asked for and has no node. What all rows begin with, the head, is computed
once and its keys and values are given to each batch. Shapes: B rows, T nodes, K kept nodes, P tokens of the head, S
answer tokens, V vocabulary.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from debias.data.prompt import common_prefix

Ids = Sequence[int]


@dataclass(frozen=True)
class AnswerTree:
    """The answers of all labels below one prompt.

    `tokens` and `parents` are its nodes (parent -1: the prompt's last token). Answer token s, `target_S[s]`, belongs to
    label `label_S[s]` and is predicted at node `source_S[s]` (-1 as above).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    source_S: tuple[int, ...]
    target_S: tuple[int, ...]
    label_S: tuple[int, ...]
    labels: int

    @property
    def kept(self) -> int:
        """Nodes whose logits are needed, for one prompt."""
        return 1 + len(self.tokens)


def answer_tree(answers: Sequence[Ids]) -> AnswerTree:
    """The tree of `answers`, each of at least one token."""
    nodes: dict[tuple[int, int], int] = {}
    sources, targets, labels = [], [], []
    for label, answer in enumerate(answers):
        node = -1
        for k, token in enumerate(answer):
            sources.append(node)
            targets.append(token)
            labels.append(label)
            if k < len(answer) - 1:
                node = nodes.setdefault((node, token), len(nodes))
    tokens = tuple(token for _, token in nodes)
    parents = tuple(parent for parent, _ in nodes)
    return AnswerTree(tokens, parents, tuple(sources), tuple(targets), tuple(labels), len(answers))


@dataclass
class Row:
    """Prompts below the head as one tree: `parents` are indices into `tokens` (-1: the head).

    `last[i]` is the node at which prompt `prompts[i]` ends.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)

    def shares(self, ids: Ids) -> int:
        """How many of the first tokens of `ids` the row's last prompt has too."""
        return common_prefix(self._ids, ids)

    def add(self, prompt: int, ids: Ids) -> None:
        """Hang another prompt into the tree; rows are filled in sorted order, so the last one shares most."""
        shared = self.shares(ids)
        path = self._path[:shared]
        for depth in range(shared, len(ids)):
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.tokens))
            self.tokens.append(ids[depth])
            self.depths.append(depth)
        self.prompts.append(prompt)
        self.last.append(path[-1])
        self._path, self._ids = path, list(ids)


def plant_rows(prompts: Sequence[Ids], *, worth: int, longest: int) -> list[Row]:
    """Distinct prompts, each of a token or more, as rows.

    A prompt joins the row before it if that spares `worth` tokens or more and leaves the row at most `longest` nodes.
    """
    rows: list[Row] = []
    for index in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        ids = prompts[index]
        shared = rows[-1].shares(ids) if rows else 0
        if not rows or shared < worth or len(rows[-1].tokens) + len(ids) - shared > longest:
            rows.append(Row())
        rows[-1].add(index, ids)
    return rows


@dataclass(frozen=True)
class Forest:
    """Rows as tensors: nodes padded on the left, those whose logits are needed last."""

    ids_BT: Tensor
    depths_BT: Tensor
    parents_BT: Tensor  # column of the parent; a root and padding name themselves
    kept: int
    row_N: Tensor  # where each prompt's kept nodes are: row, and the first of their columns among the kept
    first_N: Tensor
    prompt_N: Tensor


def forest(rows: Sequence[Row], tree: AnswerTree) -> Forest:
    """The rows with the answers below each prompt."""
    laid = [_lay_out(row, tree) for row in rows]
    width = max(len(tokens) for tokens, _, _ in laid)
    most = max(len(row.prompts) for row in rows) * tree.kept
    ids, depths, parents, places = [], [], [], []
    for index, (row, (tokens, below, depth)) in enumerate(zip(rows, laid, strict=True)):
        pad = width - len(tokens)
        ids.append([0] * pad + tokens)
        depths.append([0] * pad + depth)
        parents.append([*range(pad), *(pad + (node if parent < 0 else parent) for node, parent in enumerate(below))])
        first = most - len(row.prompts) * tree.kept
        places += [(index, first + k * tree.kept, prompt) for k, prompt in enumerate(row.prompts)]
    row_N, first_N, prompt_N = torch.tensor(places).unbind(dim=1)
    return Forest(torch.tensor(ids), torch.tensor(depths), torch.tensor(parents), most, row_N, first_N, prompt_N)


def _lay_out(row: Row, tree: AnswerTree) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and depths in the order of the columns: what is only passed through, then the kept nodes."""
    ends = set(row.last)
    order = [node for node in range(len(row.tokens)) if node not in ends]
    column = {node: place for place, node in enumerate(order)}
    for k, node in enumerate(row.last):
        column[node] = len(order) + k * tree.kept
    tokens = [row.tokens[node] for node in order]
    parents = [column.get(row.parents[node], -1) for node in order]
    depths = [row.depths[node] for node in order]
    for node in row.last:
        tokens += [row.tokens[node], *tree.tokens]
        parents += [column.get(row.parents[node], -1), *(column[node] + 1 + parent for parent in tree.parents)]
        start = len(depths)
        depths.append(row.depths[node])
        for parent in tree.parents:
            depths.append(depths[start + 1 + parent] + 1)
    return tokens, parents, depths


def ancestors(parents_BT: Tensor) -> Tensor:
    """Which nodes are ancestors of which, or the node itself: [B, T, T] bool, row node, column ancestor."""
    width = parents_BT.shape[1]
    reach_BTT = torch.eye(width, dtype=torch.bool, device=parents_BT.device).repeat(parents_BT.shape[0], 1, 1)
    jump_BT, step = parents_BT, 1
    while step < width:  # each round doubles how far up is seen
        reach_BTT |= reach_BTT.gather(1, jump_BT.unsqueeze(2).expand(-1, -1, width))
        jump_BT = jump_BT.gather(1, jump_BT)
        step *= 2
    return reach_BTT


class TreeScorer:
    """Scores rows with a causal model that takes a 4-dimensional attention mask and positions.

    `head`: tokens that stand before every row. `additive`: the mask as 0 and minus infinity, which eager attention
    adds, in place of bool.
    """

    def __init__(self, model: nn.Module, tree: AnswerTree, head: Ids, *, additive: bool) -> None:
        self.model = model
        self.tree = tree
        self.head = list(head)
        self.additive = additive
        self._device = next(model.parameters()).device
        self._cache = self._head_cache() if self.head else None

    def _head_cache(self) -> Any:
        ids = torch.tensor([self.head], device=self._device)
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1)[self._cache_name()]

    def _cache_name(self) -> str:
        """transformers renamed the argument and the output in 5.22, and warns at the old name."""
        inner = getattr(self.model, "get_base_model", lambda: self.model)()
        return "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"

    def scores(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The rows' prompts [N] int64 and log p(answer | prompt) of each label, [N, C] float32, on the CPU."""
        grown = forest(rows, self.tree)
        logits_BKV = self._logits(grown)
        norm_BK = logits_BKV.logsumexp(dim=-1)
        source_S, target_S, label_S = (
            torch.tensor(part, device=self._device)
            for part in (self.tree.source_S, self.tree.target_S, self.tree.label_S)
        )
        row_N1 = grown.row_N.to(self._device).unsqueeze(1)
        column_NS = grown.first_N.to(self._device).unsqueeze(1) + 1 + source_S
        log_p_NS = logits_BKV[row_N1, column_NS, target_S] - norm_BK[row_N1, column_NS]
        scores_NC = log_p_NS.new_zeros((len(log_p_NS), self.tree.labels)).index_add_(1, label_S, log_p_NS)
        return grown.prompt_N, scores_NC.cpu()

    def _logits(self, grown: Forest) -> Tensor:
        rows, width = grown.ids_BT.shape
        mask_BTT = ancestors(grown.parents_BT.to(self._device))
        options: dict[str, Any] = {"use_cache": False}
        if self._cache is not None:
            cache = copy.deepcopy(self._cache)  # the forward pass appends to it
            cache.batch_repeat_interleave(rows)
            options = {"use_cache": True, self._cache_name(): cache}
            mask_BTT = torch.cat([mask_BTT.new_ones(rows, width, len(self.head)), mask_BTT], dim=2)
        logits_BKV = self.model(
            input_ids=grown.ids_BT.to(self._device),
            attention_mask=self._mask(mask_BTT.unsqueeze(1)),
            position_ids=grown.depths_BT.to(self._device) + len(self.head),
            logits_to_keep=grown.kept,
            **options,
        ).logits
        return logits_BKV[:, -grown.kept :].float()  # a forward that does not heed logits_to_keep gives all of them

    def _mask(self, mask_B1TS: Tensor) -> Tensor:
        if not self.additive:
            return mask_B1TS
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        return torch.zeros_like(mask_B1TS, dtype=dtype).masked_fill_(~mask_B1TS, torch.finfo(dtype).min)
