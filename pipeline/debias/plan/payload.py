"""What a step under DeepSpeed sends, by formula: payloads of collectives, and a rank's share of them in bytes.

The payload of a collective is its whole tensor in bytes. The formulas are of DeepSpeed 0.19 with nothing kept between
uses (`stage3_max_live_parameters` and its like 0), without activation checkpointing, with one micro-batch a step;
a test holds them against counted runs. W ranks, N elements; LoRA of rank r on all linear layers but the head.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

WAYS = ("plain", "single_pass", "two_pass")
GRAM_BYTES = 3 * 8  # of a tensor, or of a row that lies on more ranks than one: three float64 sums
LENGTH_BYTES = 2 * 8  # of a tensor: how long the update is, and what was taken away
BIAS_WIDTH = 4  # single_pass keeps its bias gradient in float32, whatever the model is in


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen3 or Llama model, in elements."""

    name: str
    layers: int
    hidden: int
    query: int  # heads x head size
    key_value: int
    mlp: int
    vocab: int
    tied: bool
    head_norm: int = 0  # the head size where queries and keys are normed (Qwen3)

    def linears(self) -> list[tuple[int, int]]:
        """`(inputs, outputs)` of a layer's linear layers: q, k, v, o, gate, up, down."""
        attention = [(self.hidden, self.query), *[(self.hidden, self.key_value)] * 2, (self.query, self.hidden)]
        return [*attention, *[(self.hidden, self.mlp)] * 2, (self.mlp, self.hidden)]

    def parameters(self) -> int:
        """Of the base model."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linears())
        layer = matrices + 2 * self.hidden + 2 * self.head_norm
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)

    def adapters(self, rank: int) -> list[tuple[int, int]]:
        """`(rows, columns)` of a layer's LoRA matrices, A [rank, inputs] and B [outputs, rank] of each linear layer."""
        return [pair for inputs, outputs in self.linears() for pair in ((rank, inputs), (outputs, rank))]

    def adapter_elements(self, rank: int) -> int:
        """Of all layers: what trains."""
        return self.layers * sum(rows * columns for rows, columns in self.adapters(rank))

    def adapter_rows(self, rank: int) -> int:
        """Of all layers: each has its Gram and its coefficients."""
        return self.layers * sum(rows for rows, _ in self.adapters(rank))

    def uses(self, rank: int) -> Iterator[tuple[int, int]]:
        """`(elements, gathers in a forward and backward pass)` of each parameter, base and LoRA, over all layers.

        Backward gathers what it passes: not the embedding, and in the first layer, whose input has no gradient, not the
        norm before attention and not the frozen q, k, v. A tied head is gathered like one of its own.
        """
        both = 2 * self.layers
        for index, (inputs, outputs) in enumerate(self.linears()):
            yield inputs * outputs, both - (index < 3)
        yield from ((rows * columns, both) for rows, columns in self.adapters(rank))
        yield from ((self.hidden, both - 1), (self.hidden, both), (self.hidden, 2))
        yield from [(self.head_norm, both)] * 2
        yield self.vocab * self.hidden, 3


def step_payload(way: str, shape: Shape, *, stage: int, world: int, rank: int = 16, width: int = 2) -> dict[str, int]:
    """Payload in bytes, by kind of collective, of one optimizer step; `width` bytes an element (bf16: 2, float32: 4).

    Without the few scalars of a step: the gradient norm and the overflow flag. A rank that is alone gathers nothing.
    """
    forms: dict[int, Callable[..., dict[str, int]]] = {2: _stage_2, 3: _stage_3}
    payload = forms[stage](way, shape, world, rank, width)
    if way != "plain":
        tensors = shape.layers * len(shape.adapters(rank))
        # Of each tensor: which passes used it, and that squared; single_pass also flags a tap that stayed silent.
        flags = tensors * (3 if way == "single_pass" else 2)
        cut = shape.layers * sum(cut_rows(rows, rows * columns, world) for rows, columns in shape.adapters(rank))
        sums = tensors + (cut if stage == 3 else flat_cuts(world))
        agreed = GRAM_BYTES * sums + LENGTH_BYTES * tensors + 8 * flags
        payload["all_reduce"] = payload.get("all_reduce", 0) + agreed
    return payload


@functools.cache
def cut_rows(rows: int, elements: int, world: int) -> int:
    """How many rows lie on more ranks than one where a tensor is cut into W chunks."""
    columns, chunk = elements // rows, -(-elements // world)
    return len({cut // columns for cut in range(chunk, elements, chunk) if cut % columns})


def flat_cuts(world: int) -> int:
    """How many rows, at most, lie on more ranks than one where all tensors lie end to end and are cut into W parts."""
    return world - 1


def _stage_2(way: str, shape: Shape, world: int, rank: int, width: int) -> dict[str, int]:
    # The gradients of adapters fill one bucket, which DeepSpeed reduces whole (`use_multi_rank_bucket_allreduce`); the
    # flat group is padded so that every rank's stretch has an even number of elements.
    elements = shape.adapter_elements(rank)
    flat = _padded(elements, 2 * world)
    passes = 2 if way == "two_pass" else 1
    payload = {"all_reduce": passes * elements * width}
    if world > 1:
        payload["all_gather"] = flat * width
    if way == "single_pass":
        payload["reduce_scatter"] = flat * BIAS_WIDTH
    return payload


def _stage_3(way: str, shape: Shape, world: int, rank: int, width: int) -> dict[str, int]:
    # Every parameter is cut into W chunks of equal size, the last one padded.
    gathered = sum(times * _padded(elements, world) for elements, times in shape.uses(rank))
    trained = shape.layers * sum(_padded(rows * columns, world) for rows, columns in shape.adapters(rank))
    passes = 2 if way == "two_pass" else 1
    bias = trained * BIAS_WIDTH if way == "single_pass" else 0
    payload = {"reduce_scatter": passes * trained * width + bias}
    if world > 1:
        payload["all_gather"] = passes * gathered * width
    return payload


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def ring_bytes(kind: str, payload: int, world: int) -> float:
    """Bytes that one rank sends for a collective of that payload by the ring algorithm (Thakur et al., IJHPCA 2005)."""
    share = (world - 1) / world
    passes = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
    # Of a broadcast or a reduction to one rank, a rank in the middle of the ring hands on everything once.
    return payload * share * passes[kind] if kind in passes else float(payload if world > 1 else 0)


def sent_bytes(payload: Mapping[str, int], world: int) -> float:
    """Bytes that one rank sends for these payloads, by the ring algorithm."""
    return sum(ring_bytes(kind, whole, world) for kind, whole in payload.items())


# From each model's published config.json.
MODELS = {
    shape.name: shape
    for shape in (
        Shape("Qwen3-0.6B", 28, 1024, 2048, 1024, 3072, vocab=151_936, tied=True, head_norm=128),
        Shape("Qwen3-8B", 36, 4096, 4096, 1024, 12288, vocab=151_936, tied=False, head_norm=128),
        Shape("Qwen3-32B", 64, 5120, 8192, 1024, 25600, vocab=151_936, tied=False, head_norm=128),
        Shape("Llama-3.1-70B", 80, 8192, 8192, 1024, 28672, vocab=128_256, tied=False),
        Shape("Llama-3.1-405B", 126, 16384, 16384, 1024, 53248, vocab=128_256, tied=False),
    )
}
