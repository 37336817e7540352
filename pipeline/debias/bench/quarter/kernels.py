"""Part 5: attention by each kernel of sdpa, samples packed in one row, and compiled layers."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from debias.bench.quarter import tiny
from debias.bench.quarter.gradients import TOLERANCE, TOLERANCE_HALF, judged
from debias.bench.quarter.session import Item, Session
from debias.data.packing import PackingCollator
from debias.models.compiling import compile_layers

PACKED = ("llama", "qwen3", "qwen3_moe", "llama4_text", "gemma3_text")


class _Pads:
    """What a collator asks of a tokenizer."""

    pad_token_id = 0
    padding_side = "left"


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """Kernels, packing for each family, compiling last: it takes longest."""
    yield (
        "flash kernel, full rows, bf16",
        functools.partial(attention, SDPBackend.FLASH_ATTENTION, False, session.device),
    )
    if not session.rehearse:
        for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            title = f"{kernel.name.lower()}, padded rows, bf16"
            yield title, functools.partial(attention, kernel, True, session.device)
    for family in PACKED[1:2] if session.rehearse else PACKED:
        yield f"packed, {family}, fp32", functools.partial(packed, family, torch.float32, session.device)
    if session.rehearse:
        yield "compiled layers", lambda: {"not_run": "compiling takes a minute and a C++ compiler on a CPU"}
        return
    yield "packed, qwen3, bf16", functools.partial(packed, "qwen3", torch.bfloat16, session.device)
    for way in ("shared_forward", "two_pass"):
        yield f"compiled layers, {way}, bf16", functools.partial(compiled, way, session.device)


def attention(kernel: Any, padded: bool, device: str) -> dict[str, Any]:
    """The update of `single_pass` with this kernel alone against plain products."""
    model = tiny.build("qwen3", device, dtype=torch.bfloat16)
    readout, batch = tiny.batch_for("qwen3", device, padded=padded)
    updates = []
    for one in (SDPBackend.MATH, kernel):
        try:
            with sdpa_kernel([one]):
                updates.append(tiny.update_of(model, readout, batch, "single_pass", torch.bfloat16))
        except RuntimeError as error:
            if "available kernel" in str(error) and kernel is not SDPBackend.FLASH_ATTENTION:
                return {"not_run": "this kernel takes no such inputs here"}
            raise
    want, got = updates
    return judged(tiny.error_of(got, want), TOLERANCE_HALF)


def packed(family: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The update of samples in one row against the same samples padded."""
    model = tiny.build(family, device, dtype=dtype)
    readout, batch = tiny.batch_for(family, device)
    samples = []
    for ids_T, mask_T, answer_T in zip(*batch.values(), strict=True):
        kept = mask_T.bool()
        tokens = {"input_ids": ids_T[kept].tolist(), "answer_mask": answer_T[kept].tolist()}
        samples.append({"tokens": tokens, "facts": {}})
    one_row = PackingCollator(_Pads())(samples)
    flat = {**one_row["inputs"], **one_row["facts"]}
    row = {name: tensor.to(device) for name, tensor in flat.items()}
    autocast = None if dtype == torch.float32 else dtype
    got, want = (tiny.update_of(model, readout, one, "single_pass", autocast) for one in (row, batch))
    return judged(tiny.error_of(got, want), TOLERANCE if autocast is None else TOLERANCE_HALF)


def compiled(way: str, device: str) -> dict[str, Any]:
    """The update with compiled layers against the same without; seconds of the first step and of the next."""
    readout, batch = tiny.batch_for("qwen3", device)
    model = tiny.build("qwen3", device, dtype=torch.bfloat16)
    want = tiny.update_of(model, readout, batch, way, torch.bfloat16)
    compile_layers(model)
    seconds, got = [], want
    for _ in range(2):
        start = time.perf_counter()
        got = tiny.update_of(model, readout, batch, way, torch.bfloat16)
        seconds.append(time.perf_counter() - start)
    found = judged(tiny.error_of(got, want), TOLERANCE_HALF)
    return {**found, "first_seconds": seconds[0], "next_seconds": seconds[1]}
