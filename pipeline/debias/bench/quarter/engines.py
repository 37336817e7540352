"""Part 4: the hook on a DeepSpeed engine against the hook in one process, and fp16 with a dynamic loss scale."""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from debias.bench.quarter import tiny
from debias.bench.quarter.gradients import judged
from debias.bench.quarter.session import Item, Session
from debias.bench.zero import SHARDED
from debias.engines import attach
from debias.methods import Edge

STEPS = 4
# float32: rounding alone. Halves round every product and each update.
TOLERANCE, TOLERANCE_HALF = 1e-5, 5e-2
FIRST_SCALE, STEPS_HALF = 28, 20  # 2^28 overflows float16: the scale has to come down first


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """Stage 3 and 2 in float32 by both ways; then bf16 and fp16, which want a GPU."""
    if importlib.util.find_spec("deepspeed") is None:
        yield "deepspeed", lambda: {"not_run": "deepspeed is not installed"}
        return
    stages = (3,) if session.rehearse else (3, 2)
    for stage in stages:
        for way in ("single_pass", "two_pass"):
            title = f"stage {stage}, fp32, {way}, against one process"
            yield title, functools.partial(sharded, stage, way, session.device)
    if session.rehearse:
        yield "fp16, dynamic loss scale", lambda: {"not_run": "DeepSpeed has no fp16 on a CPU"}
    else:
        for stage in stages:
            yield f"stage {stage}, fp16, dynamic loss scale", functools.partial(scaled, stage, session.device)
    if dist.is_initialized():  # at the end alone: DeepSpeed keeps the group that it saw first
        dist.destroy_process_group()


def sharded(stage: int, way: str, device: str) -> dict[str, Any]:
    """How far the adapters are after a few steps from those of one process, relative to how far they moved."""
    start, want = _in_one_process(way, device, STEPS)
    got, _ = _on_an_engine(stage, way, device, STEPS, {})
    return judged(_error(got, want, start), TOLERANCE)


def scaled(stage: int, device: str) -> dict[str, Any]:
    """fp16: steps are skipped until the loss scale fits, and the others go where float32 goes."""
    precision = {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": FIRST_SCALE, "hysteresis": 1}}
    got, skipped = _on_an_engine(stage, "single_pass", device, STEPS_HALF, precision)
    start, want = _in_one_process("single_pass", device, STEPS_HALF - skipped)
    found = judged(_error(got, want, start), TOLERANCE_HALF)
    return {**found, "skipped": skipped, "ok": found["ok"] and 0 < skipped < STEPS_HALF}


def _error(got: Tensor, want: Tensor, start: Tensor) -> float:
    return float((got - want).norm() / (want - start).norm())


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def _adapters(model: Any) -> Tensor:
    return _end_to_end({name: p for name, p in model.named_parameters() if p.requires_grad})


def _end_to_end(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].detach().flatten().double().cpu() for name in sorted(tensors)])


def _forward(model: Any, device: str) -> Callable[[], tuple[Tensor, Tensor]]:
    readout, batch = tiny.batch_for("qwen3", device)
    weight_B = torch.linspace(0.02, 0.7, tiny.SAMPLES, device=device)
    return lambda: (-readout.said(model, batch).log_p_B, weight_B)


def _in_one_process(way: str, device: str, steps: int) -> tuple[Tensor, Tensor]:
    """The adapters before and after."""
    model = tiny.build("qwen3", device)
    start, forward = _adapters(model), _forward(model, device)
    hook = attach(model, _optimizer(model), Edge(), way, verify=False)
    for _ in range(steps):
        hook.backward(*forward(), again=forward)
        hook.step()
    hook.detach()
    return start, _adapters(model)


def _on_an_engine(stage: int, way: str, device: str, steps: int, precision: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The adapters after these steps, and how many of them were skipped."""
    from debias.engines.zero.launch import initialize, open_group
    from debias.engines.zero.state import whole_weights

    if not dist.is_initialized():
        open_group()
    model = tiny.build("qwen3", device)
    config = {
        "train_micro_batch_size_per_gpu": tiny.SAMPLES,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, **(SHARDED if stage == 3 else {})},
        "steps_per_print": 10**9,
        **precision,
    }
    engine = initialize(model, _optimizer(model), config)
    try:
        forward = _forward(engine, device)
        hook = attach(engine, Edge(), gradients=way, verify=False)
        for _ in range(steps):
            hook.backward(*forward(), again=forward)
            engine.step()
        whole = whole_weights(engine)
        return _end_to_end(whole), int(engine.skipped_steps)
    finally:
        engine.destroy()
