"""What two gradients cost: each way to them against plain LoRA, interleaved in one process, in CPU time."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debias.adapters.lora import add_lora
from debias.bias.weights import gce_weight
from debias.config.data import Strict
from debias.engines import attach
from debias.engines.nearby import Nearby
from debias.errors import InputError
from debias.losses.logit_correction import LogitCorrection
from debias.methods import Edge, MainOnly, Rule
from debias.models.load import load_model
from debias.models.quantized import prepare_quantized
from debias.models.source import resolve_model
from debias.readouts import Answers, Classification, Said
from debias.sharpness import SAM
from debias.smoothness import SMART

# `plain` is PEFT and autograd alone, `erm` plain training of ours; `single_pass` and the next two are one backward pass
# each, `sam` is plain training with a second pass, `smart` with a step up to a second answer.
EDGE_WAYS = ("two_pass", "shared_forward", "single_pass")
BASES = ("plain", "erm")
WAYS = (*BASES, "published", *EDGE_WAYS, "logit_correction", "balanced_edge", "sam", "smart")


class Setting(Strict):
    """One benchmark: a model with LoRA on all its linear layers, and a batch of random tokens."""

    model: str = "package:minilm"
    batch: int = 64
    length: int = 64
    lora_r: int = 8
    load_in_4bit: bool = False
    bf16: bool = False
    rounds: int = 7
    threads: int = 1
    seed: int = 0
    ways: tuple[str, ...] = WAYS  # beside plain and erm, which each stands beside


def setting_for(model: str, **changes: Any) -> Setting:
    """The sizes at which a model is usually reported: MiniLM classifies 64 x 64 tokens, the rest answer 8 x 64."""
    encoder = model == "package:minilm"
    sizes = {"batch": 64, "lora_r": 8} if encoder else {"batch": 8, "lora_r": 16}
    return Setting(model=model, **{**sizes, **{key: value for key, value in changes.items() if value is not None}})


def bench_step(setting: Setting, memory: bool = True) -> dict[str, Any]:
    """Seconds of CPU time a step for each way (median), its ratio to plain (median of interleaved pairs), its error to
    two_pass, and peak memory, each from a process of its own.
    """
    torch.set_num_threads(setting.threads)
    ways = _ways(setting)
    steps = {way: _step_of(way, *_model_and_batch(setting)) for way in ways}
    for step in steps.values():
        step()
    took: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(setting.rounds):
        for way in ways[len(BASES) :] or ways[:1]:
            # Each way right beside plain steps of its own, before them or after them in turn: a shared machine drifts.
            order = list(dict.fromkeys((*BASES, way)))
            seconds = {name: _cpu_seconds(steps[name]) for name in (order if turn % 2 == 0 else order[::-1])}
            for name in order:
                took[name].append(seconds)
    del steps
    rows = {way: _row(way, took[way]) for way in ways}
    for way, error in _errors(setting).items():
        rows[way]["error_to_two_pass"] = error
    if memory:
        peaks = {way: _peak_in_own_process(setting, way) for way in ways}
        for way in ways:
            rows[way]["peak_mb"] = round(peaks[way] / 2**20, 1)
            rows[way]["peak_ratio"] = round(peaks[way] / peaks["plain"], 4)
    return {"setting": setting.model_dump(), "torch": torch.__version__, "ways": rows}


def _ways(setting: Setting) -> list[str]:
    """Those asked for, plain and erm before them; InputError for one that there is not."""
    if odd := [way for way in setting.ways if way not in WAYS]:
        raise InputError(f"--way {odd[0]}: there is no such way; there are {', '.join(WAYS)}")
    return [way for way in WAYS if way in (*BASES, *setting.ways)]


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_step` returned."""
    from rich.table import Table

    setting = result["setting"]
    numeric = f"{'4-bit ' if setting['load_in_4bit'] else ''}{'bf16' if setting['bf16'] else 'fp32'}"
    table = Table(
        title=f"{setting['model']}: {setting['batch']} x {setting['length']} tokens, LoRA r={setting['lora_r']}, "
        f"{numeric}, {setting['threads']} thread(s), {setting['rounds']} interleaved rounds"
    )
    ratios = ("x plain", "min .. max", "x erm", "peak memory x plain")
    for heading in ("way", "CPU s / step", *ratios, "error to two_pass"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, row in result["ways"].items():
        spread = f"{row['ratio_min']:.2f} .. {row['ratio_max']:.2f}"
        error = f"{row['error_to_two_pass']:.1e}" if "error_to_two_pass" in row else "-"
        peak = f"{row['peak_ratio']:.3f}" if "peak_ratio" in row else "-"
        speed = f"{row['ratio']:.2f}", spread, f"{row['ratio_to_erm']:.2f}"
        table.add_row(way, f"{row['cpu_seconds']:.3f}", *speed, peak, error)
    return table


def _cpu_seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _row(way: str, took: list[dict[str, float]]) -> dict[str, Any]:
    ratios = {base: [seconds[way] / seconds[base] for seconds in took] for base in BASES}
    return {
        "cpu_seconds": round(statistics.median(seconds[way] for seconds in took), 4),
        "ratio": round(statistics.median(ratios["plain"]), 3),
        "ratio_min": round(min(ratios["plain"]), 3),
        "ratio_max": round(max(ratios["plain"]), 3),
        "ratio_to_erm": round(statistics.median(ratios["erm"]), 3),
    }


def _model_and_batch(setting: Setting) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    torch.manual_seed(setting.seed)
    source = resolve_model(setting.model)
    classify = not any("CausalLM" in name for name in source.config.architectures or [])
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    model = load_model(
        source,
        "classification" if classify else "causal_lm",
        ["a", "b", "c"],
        dtype=dtype,
        load_in_4bit=setting.load_in_4bit,
    )
    if setting.load_in_4bit:
        model = prepare_quantized(model)
    model = add_lora(model, r=setting.lora_r, alpha=16, dropout=0.0, targets="auto", classification=classify).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # off its zero start, where lora_A has no gradient at all
            nn.init.normal_(parameter, std=0.01)
    if setting.bf16:  # as the Trainer has it: a head is in float32
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    if next(model.parameters()).device.type != "cpu":
        raise InputError("bench step measures CPU time, and this model went to a GPU: set CUDA_VISIBLE_DEVICES=''")
    ids_BT = torch.randint(5, source.config.vocab_size, (setting.batch, setting.length))
    batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    if classify:
        return model, Classification(), {**batch, "labels": torch.randint(0, 3, (setting.batch,))}
    answer_mask = torch.zeros_like(ids_BT, dtype=torch.bool)
    answer_mask[:, -2:] = True
    return model, Answers([[5], [6], [7]]), {**batch, "answer_mask": answer_mask}


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def _step_of(way: str, model: nn.Module, readout: Any, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One optimizer step of that way, ready to be called again and again."""
    optimizer = _optimizer(model)
    if way == "plain":
        return lambda: _plain_step(model, optimizer, lambda: readout.said(model, batch))
    if way == "published":
        return lambda: published_step(model, optimizer, lambda: readout.said(model, batch))
    source, sharpness = way if way in EDGE_WAYS else "single_pass", SAM() if way == "sam" else None
    hook = attach(model, optimizer, _rule_of(way), source, verify=False, sharpness=sharpness)
    corrected = way in ("logit_correction", "balanced_edge")
    nearby = Nearby(model, readout, SMART()) if way == "smart" else None
    facts = _told(batch) if corrected else {}

    def forward() -> tuple[Tensor, Tensor]:
        if nearby is not None:
            said, term_B = nearby.said(model, batch)
            return term_B - said.log_p_B, gce_weight(said.log_p_B)
        said = readout.said(model, batch, every_label=corrected)
        if not corrected:
            return -said.log_p_B, gce_weight(said.log_p_B)
        # Balanced EDGE: its weight is the bias model's probability of the right label.
        right_B = facts["bias_log_p"].gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        return LogitCorrection()(said, facts, torch.empty(0)), right_B.exp()

    def step() -> None:
        hook.backward(*forward(), again=forward)
        hook.step()

    return step


def _rule_of(way: str) -> Rule:
    if way in ("erm", "logit_correction", "sam", "smart"):
        return MainOnly()
    return Edge(projection="tensor") if way == "balanced_edge" else Edge()


def _told(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The labels of three that a batch has or that are drawn, and what a bias model might say of them."""
    samples = len(batch["input_ids"])
    labels_B = batch["labels"] if "labels" in batch else torch.randint(0, 3, (samples,))
    return {"labels": labels_B, "bias_log_p": torch.log_softmax(torch.randn(samples, 3), dim=1)}


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable[[], Said]) -> None:
    (-forward().log_p_B).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def published_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable[[], Said], alpha: float = 1.0
) -> None:
    """The procedure of EDGE's published code, for its cost: three forward passes, two backward, a loop over rows."""
    forward()  # its first forward serves the log alone
    (-forward().log_p_B).mean().backward()
    main = _lora_gradients(model)
    optimizer.zero_grad()
    said = forward()
    (gce_weight(said.log_p_B) * -said.log_p_B).mean().backward()
    bias = _lora_gradients(model)
    for name, parameter in model.named_parameters():
        if name in main:
            parameter.grad = torch.stack(list(_published_rows(main[name], bias[name], alpha)))
    optimizer.step()
    optimizer.zero_grad()


def _lora_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if "lora" in n and p.grad is not None}


def _published_rows(main_OI: Tensor, bias_OI: Tensor, alpha: float) -> Iterator[Tensor]:
    shared_OI = main_OI / main_OI.norm() + bias_OI / bias_OI.norm()
    for main_I, bias_I, shared_I in zip(main_OI, bias_OI, shared_OI, strict=True):
        exclusive_I = bias_I - torch.dot(bias_I, shared_I) * shared_I
        yield main_I - alpha * exclusive_I


def _errors(setting: Setting) -> dict[str, float]:
    """Relative error, over all adapter tensors at once, of each way's update against two_pass on the same weights."""
    model, readout, batch = _model_and_batch(setting)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # two forward passes would draw two masks
    # Random weights: an untrained model's own are so small that bias would vanish and any error with it.
    weight_B = torch.rand(setting.batch)
    updates = {}
    for way in dict.fromkeys(("two_pass", *(way for way in _ways(setting) if way in EDGE_WAYS))):
        hook = attach(model, None, Edge(), way, verify=False)

        def forward() -> tuple[Tensor, Tensor]:
            return -readout.said(model, batch).log_p_B, weight_B

        hook.backward(*forward(), again=forward)
        hook.combine()
        updates[way] = torch.cat([p.grad.flatten().double() for p in hook.selected.values() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        hook.detach()
    oracle = updates["two_pass"]
    errors = {way: float((update - oracle).norm() / oracle.norm()) for way, update in updates.items()}
    return {way: errors[way] for way in _ways(setting) if way in errors}


def _peak_in_own_process(setting: Setting, way: str) -> int:
    """Peak resident bytes of three steps in a fresh process."""
    code = "import sys; from debias.bench.step import print_peak; print_peak(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, setting.model_dump_json(), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def print_peak(setting_json: str, way: str) -> None:
    """Run three steps of one way and print the process's peak resident size in bytes (for a child process)."""
    setting = Setting.model_validate_json(setting_json)
    torch.set_num_threads(setting.threads)
    step = _step_of(way, *_model_and_batch(setting))
    for _ in range(3):
        step()
    sys.stdout.write(f"{_peak_resident()}\n")


def _peak_resident() -> int:
    """Peak resident bytes of this program. Not ru_maxrss, which on Linux starts at the parent's size."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
