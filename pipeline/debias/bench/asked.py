"""What a bias model's pass of a run's own base over the training set costs, beside a plain epoch on the same rows."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from debias.adapters.lora import add_lora
from debias.bench.data import LABELS, made_rows
from debias.building.task import build_task, padded_for
from debias.config.data import Strict
from debias.config.reading import parse
from debias.config.run import RunConfig
from debias.data import Example
from debias.engines import attach
from debias.inference.loading import load_untrained
from debias.inference.predictor import Predictor
from debias.methods import MainOnly
from debias.models.load import load_model, load_tokenizer
from debias.models.source import resolve_model


class AskedSetting(Strict):
    """Made-up rows of SNLI's length, trained on with LoRA in batches of like length, and asked of the base."""

    model: str = "package:minilm"
    rows: int = Field(640, ge=2)
    batch: int = Field(32, ge=1)
    lora_r: int = Field(8, ge=1)
    rounds: int = Field(3, ge=1)
    threads: int = Field(1, ge=1)


def bench_asked(setting: AskedSetting) -> dict[str, Any]:
    """CPU seconds of the pass and of a plain epoch, tokenizing apart, and their ratio in interleaved pairs.

    The pass is what `bias_model: first_learned` and their kin take: log-probabilities of every label, in batches by a
    budget of tokens. InputError for a model that is not there.
    """
    torch.set_num_threads(setting.threads)
    told = {"model": setting.model, "data": {"train": "generated", "labels": LABELS}, "output_dir": "none"}
    config = parse(RunConfig, {**told, "max_length": 64}, "bench pass")
    examples = [
        Example(str(place), (row["premise"], row["hypothesis"]), LABELS.index(row["label"]))
        for place, row in enumerate(made_rows(setting.rows))
    ]
    ways = {"epoch": _epoch(setting, config, examples), "pass": _pass(config, examples)}
    for way in ways.values():
        way()
    rounds = []
    for turn in range(setting.rounds):
        order = list(ways) if turn % 2 == 0 else list(reversed(ways))
        rounds.append({name: _cpu_seconds(ways[name]) for name in order})
    ratios = [one["pass"] / one["epoch"] for one in rounds]
    return {
        "setting": setting.model_dump(),
        **{f"{name}_seconds": round(statistics.median(one[name] for one in rounds), 3) for name in ways},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `bench_asked` returned."""
    from rich.table import Table

    setting = AskedSetting(**result["setting"])
    table = Table(
        title=f"{setting.model}, {setting.rows} rows, batches of {setting.batch}, {setting.threads} thread(s)"
    )
    for heading in ("plain epoch, CPU s", "the pass, CPU s", "x epoch", "min .. max"):
        table.add_column(heading, justify="right")
    spread = f"{result['ratio_min']:.2f} .. {result['ratio_max']:.2f}"
    seconds = (f"{result[f'{name}_seconds']:.2f}" for name in ("epoch", "pass"))
    table.add_row(*seconds, f"{result['ratio']:.2f}", spread)
    return table


def _cpu_seconds(way: Callable[[], None]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def _epoch(setting: AskedSetting, config: RunConfig, examples: list[Example]) -> Callable[[], None]:
    """A plain epoch of ours: in batches of like length, with an optimizer step for each."""
    source = resolve_model(config.model)
    model = load_model(source, config.head, list(LABELS))
    model = add_lora(model, r=setting.lora_r, alpha=16, dropout=0.0, targets="auto", classification=True).train()
    task = padded_for(build_task(config, load_tokenizer(source, config.head)), model)
    encoded = task.encode(examples, with_answer=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    hook = attach(model, optimizer, MainOnly())

    def epoch() -> None:
        order = list(encoded.sampler(setting.batch, 0))
        for start in range(0, len(order), setting.batch):
            batch = task.collate([encoded[place] for place in order[start : start + setting.batch]])
            said = task.readout.said(model, batch)
            hook.backward(-said.log_p_B, torch.ones_like(said.log_p_B))
            hook.step()

    return epoch


def _pass(config: RunConfig, examples: list[Example]) -> Callable[[], None]:
    predictor: Predictor = load_untrained(config)

    def asked() -> None:
        predictor.forget()
        predictor.label_scores(examples)

    return asked
