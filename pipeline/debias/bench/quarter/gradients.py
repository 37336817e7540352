"""Part 1: both gradients from one backward pass against two passes, for every family, number format and base."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from debias.adapters import experts
from debias.bench.quarter import tiny
from debias.bench.quarter.session import Item, Session

# Relative error of the update: of float32, and where products are rounded to bfloat16. There a mixture sends a token
# to another expert where two of them nearly tie, and one of 144 tokens is a large share of a tiny batch.
TOLERANCE, TOLERANCE_HALF, TOLERANCE_ROUTED = 1e-5, 3e-2, 0.15


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """Families in float32 first; then bf16, nf4, checkpointing."""
    kinds = [("fp32", False), ("bf16", False), ("nf4", False), ("fp32", True), ("bf16", True), ("nf4", True)]
    families = tiny.FAMILIES if not session.rehearse else ("bert", "qwen3_moe")
    for kind, checkpointing in kinds if not session.rehearse else [("fp32", False), ("bf16", True)]:
        for family in families:
            title = f"{family}, {kind}{', checkpointing' if checkpointing else ''}"
            yield title, functools.partial(compare, family, kind, checkpointing, session.device)
    for family in tiny.MIXTURES:
        if family in families:
            yield f"{family}, bf16, grouped products against a loop", functools.partial(grouped, family, session.device)


def compare(family: str, kind: str, checkpointing: bool, device: str) -> dict[str, Any]:
    """The error of `single_pass` against `two_pass`, and the sizes of what was compared."""
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    model = tiny.build(family, device, dtype=dtype, four_bit=kind == "nf4", checkpointing=checkpointing)
    readout, batch = tiny.batch_for(family, device)
    autocast = None if kind == "fp32" else torch.bfloat16
    two, single = (tiny.update_of(model, readout, batch, way, autocast) for way in ("two_pass", "single_pass"))
    half = TOLERANCE_ROUTED if family in tiny.MIXTURES else TOLERANCE_HALF
    return judged(tiny.error_of(single, two), TOLERANCE if kind == "fp32" else half)


def grouped(family: str, device: str) -> dict[str, Any]:
    """Fused experts by torch's grouped product against one product for each expert."""
    model = tiny.build(family, device, dtype=torch.bfloat16)
    readout, batch = tiny.batch_for(family, device)
    taken: list[bool] = []
    kernel_takes = experts._kernel_takes

    def watched(*args: Any) -> bool:
        taken.append(kernel_takes(*args))
        return taken[-1]

    with tiny.replaced(experts, "_kernel_takes", watched):
        by_kernel = tiny.update_of(model, readout, batch, "single_pass", torch.bfloat16)
    with tiny.replaced(experts, "_kernel_takes", lambda *_: False):
        by_loop = tiny.update_of(model, readout, batch, "single_pass", torch.bfloat16)
    found = judged(tiny.error_of(by_kernel, by_loop), TOLERANCE_HALF)
    return {**found, "ok": found["ok"] and any(taken), "grouped_products": sum(taken)}


def judged(error: float, most: float) -> dict[str, Any]:
    """An error with its bar; not a number is over every bar."""
    return {"relative_error": error, "at_most": most, "ok": error <= most}
