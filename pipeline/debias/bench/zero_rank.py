"""One rank of `debias bench zero`: `torchrun -m debias.bench.zero_rank RESULT SETTING...`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from debias.adapters.lora import add_lora
from debias.bench.traffic import Traffic
from debias.bench.zero import HEAD_DIM, SHARDED, SHARE, ZeroSetting
from debias.engines import attach
from debias.losses import Answers, gce_weight
from debias.methods import Edge
from debias.plan.payload import WAYS
from debias.ranks.garbage import end_unsearched

Step = Callable[[], None]


def measure(setting: ZeroSetting, traffic: Traffic, device: torch.device) -> dict[str, Any]:
    """Traffic of one step of each way on this rank, and `[wall, CPU, plain's wall, plain's CPU]` of each pair."""
    torch.set_num_threads(setting.threads)
    steps = {way: _step_of(way, setting, device) for way in WAYS}
    for step in [*steps.values()] * 2:  # stage 3 learns the order of modules in its first step
        step()
    counted = {}
    for way, step in steps.items():
        traffic.take()
        step()
        counted[way] = traffic.take()
    pairs: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for turn in range(setting.rounds):
        for way in WAYS:
            # Each way right beside a plain step, before it or after it in turn: a shared machine drifts.
            order = ("plain", way) if turn % 2 == 0 else (way, "plain")
            seconds = {name: _seconds(steps[name], device) for name in dict.fromkeys(order)}
            pairs[way].append([*seconds[way], *seconds["plain"]])
    versions = {"torch": torch.__version__, "device": str(device), "deepspeed": sys.modules["deepspeed"].__version__}
    return {"traffic": counted, "pairs": pairs, **versions}


def _seconds(step: Step, device: torch.device) -> tuple[float, float]:
    """Wall time of the slowest rank, CPU time of all ranks together."""
    _wait(device)
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    spent = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64, device=device)
    everyone = [torch.empty_like(spent) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, spent)
    return max(float(one[0]) for one in everyone), sum(float(one[1]) for one in everyone)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step_of(way: str, setting: ZeroSetting, device: torch.device) -> Step:
    """One optimizer step of that way on an engine of its own, ready to be called again and again."""
    from debias.engines.zero.launch import initialize

    torch.manual_seed(setting.seed)
    model = build_model(setting)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    engine = initialize(model, optimizer, _config(setting))
    batch = _batch(setting, device)
    readout = Answers([[5], [6], [7]])

    def forward() -> tuple[Tensor, Tensor]:
        said = readout.said(engine, batch)
        return -said.log_p_B, gce_weight(said.log_p_B)

    if way == "plain":

        def plain() -> None:
            engine.backward(forward()[0].mean())
            engine.step()

        return plain
    hook = attach(engine, Edge(), gradients=way, verify=False)

    def step() -> None:
        hook.backward(*forward(), again=forward)
        engine.step()

    return step


def config_of(setting: ZeroSetting) -> Any:
    """transformers' configuration of the setting's model."""
    from transformers import LlamaConfig, Qwen3Config

    heads = setting.hidden // HEAD_DIM
    return (Qwen3Config if setting.family == "qwen3" else LlamaConfig)(
        hidden_size=setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // SHARE,
        head_dim=HEAD_DIM,
        intermediate_size=setting.mlp,
        vocab_size=setting.vocab,
        tie_word_embeddings=setting.tied,
        use_cache=False,
    )


def build_model(setting: ZeroSetting) -> nn.Module:
    """A random model of the setting's shape, LoRA on all its linear layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(setting), trust_remote_code=False)
    model = add_lora(model, r=setting.lora_r, alpha=16, dropout=0.0, targets="all-linear", classification=False).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # off its zero start, where lora_A has no gradient at all
            nn.init.normal_(parameter, std=0.01)
    return model


def _batch(setting: ZeroSetting, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(setting.seed + dist.get_rank())
    ids_BT = torch.randint(8, setting.vocab, (setting.batch, setting.length), generator=generator)
    answer_mask = torch.zeros_like(ids_BT, dtype=torch.bool)
    answer_mask[:, -2:] = True
    batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "answer_mask": answer_mask}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _config(setting: ZeroSetting) -> dict[str, Any]:
    sharded = SHARDED if setting.stage == 3 else {}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": setting.batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": setting.stage, **sharded},
        "steps_per_print": 10**9,
    }
    if setting.bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def main(out: str, *settings_json: str) -> None:
    """Measure each setting, and let the first rank write the results."""
    from debias.engines.zero.launch import open_group

    end_unsearched()
    traffic = Traffic()
    traffic.install()  # before DeepSpeed takes hold of the functions
    device = open_group()
    results = [measure(ZeroSetting.model_validate_json(one), traffic, device) for one in settings_json]
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
