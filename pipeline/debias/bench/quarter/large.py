"""Part 3: QLoRA of Qwen3-8B's shape, random weights: plain against EDGE, a cap of memory, and what the plan says."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from debias.bench.gpu import GpuSetting, gpu_setting, largest_under_cap, made
from debias.bench.gpu_measure import fits, interleave, random_batch, time_way
from debias.bench.gpu_model import bench_run, shape_config
from debias.bench.gpu_trl import seconds_of_a_step
from debias.bench.quarter.session import Item, Session

WAYS = ("plain", "ours", "single_pass")  # PEFT's plain LoRA, ours, and EDGE
CAP = 24 * 10**9
LONGEST_SEARCH = 40  # micro-batches tried under the cap: more than fit of Qwen3-8B


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """1,024 tokens, 2,048, TRL, the plan, the cap; then without checkpointing. One model for all."""
    setting = _setting(session)
    model = functools.cache(lambda on: made(setting, checkpointing=on)[0])
    lengths = (setting.length, 2 * setting.length)
    for length in lengths:
        yield f"ways, {length} tokens", functools.partial(ways, setting, lambda: model(True), length)
    if importlib.util.find_spec("trl") and not session.rehearse:
        for length in lengths:
            yield f"TRL, {length} tokens", functools.partial(trl, setting, lambda: model(True), length)
    for length in lengths:
        yield f"plan, {length} tokens", functools.partial(planned, setting, length)
    for length in lengths:
        title = f"largest micro-batch under {CAP / 1e9:.0f} GB, {length} tokens"
        yield title, functools.partial(capped, setting, lambda: model(True), length)
    if not session.rehearse:
        model.cache_clear()
        title = f"ways without checkpointing, {setting.length} tokens"
        yield title, functools.partial(ways, setting, lambda: model(False), setting.length)


def _setting(session: Session) -> GpuSetting:
    small = {"shape": "tiny", "device": "cpu", "batch": 1, "length": 8, "lora_r": 2, "rounds": 1, "steps": 1}
    return gpu_setting(**(small if session.rehearse else {"rounds": 2, "steps": 3, "cap": CAP, "seed": session.seed}))


def ways(setting: GpuSetting, model: Callable[[], Any], length: int) -> dict[str, Any]:
    """Tokens a second and peak bytes of each way, each right beside a plain step."""
    found: dict[str, Any] = {}
    batch = random_batch(setting.batch, length, shape_config(setting.shape).vocab_size, setting.torch_device)
    made_model = model()

    def measure() -> None:
        found.update(interleave(lambda way: time_way(way, made_model, batch, setting.steps), setting.rounds, WAYS))

    if not fits(measure):
        return {"fits": False}
    tokens = setting.batch * length
    rows = {way: {**row, "tokens_per_second": tokens / row["seconds"]} for way, row in found.items()}
    return {"fits": True, "micro_batch": setting.batch, **rows}


def trl(setting: GpuSetting, model: Callable[[], Any], length: int) -> dict[str, Any]:
    """Tokens a second of TRL's SFTTrainer on the same model and tokens."""
    batch = random_batch(setting.batch, length, shape_config(setting.shape).vocab_size, setting.torch_device)
    return {"tokens_per_second": setting.batch * length / seconds_of_a_step(model(), batch, setting.steps)}


def planned(setting: GpuSetting, length: int) -> dict[str, Any]:
    """What `debias plan` says of the same run: bytes, and the largest micro-batch under the cap."""
    from debias.plan.planner import make_plan
    from debias.plan.sheet import Machine

    if setting.shape == "tiny":  # no shape that the plan carries
        return {"not_run": "the plan knows no shape called tiny"}
    run = bench_run(setting.shape, checkpointing=True, lora_r=setting.lora_r, length=length)
    run = run.model_copy(update={"per_device_train_batch_size": setting.batch})
    plan = make_plan(run, Machine(gpu_memory=setting.cap), length=length)
    return {"bytes": plan.total, "parts": plan.parts, "largest_micro_batch": plan.largest_micro_batch}


def capped(setting: GpuSetting, model: Callable[[], Any], length: int) -> dict[str, Any]:
    """The largest micro-batch of single_pass that trains under the cap."""
    limit = LONGEST_SEARCH if setting.device == "cuda" else 2
    found = largest_under_cap(setting, model(), length, limit)
    return {"largest_micro_batch": found, "cap": setting.cap, "ok": found >= 1}
