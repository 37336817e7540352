"""Predicted against measured: peak resident memory of real training steps, each case in a process of its own.

Compared is the growth of the process: its peak during three optimizer steps, less its size after everything was
imported and a tiny model of the same kind had taken a step. Freed blocks go back to the system (`MALLOC_...`), so that
resident memory is what lives. The prediction is the plan's, without what it adds for CUDA.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from debias.config.data import Strict
from debias.config.run import RunConfig
from debias.errors import InputError
from debias.plan.planner import Planner
from debias.plan.shapes import find_config
from debias.plan.sheet import Machine
from debias.plan.skeleton import shallow

BOUND = 0.10
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


class Case(Strict):
    """One model, what trains, and a micro-batch of random tokens; `layers` cuts the model, with random weights."""

    model: str
    adapter: str = "lora"
    gradients: str = "single_pass"
    checkpointing: bool = False
    batch: int = 8
    length: int = 64
    layers: int | None = None
    bf16: bool = False

    def run(self) -> RunConfig:
        """As `debias train` would be told."""
        causal = self.model != "package:minilm"
        verbalizers = {"entailment": " Yes", "neutral": " Maybe", "contradiction": " No"}
        prompt = {"template": "{premise} {hypothesis}", "verbalizers": verbalizers}
        values: dict[str, Any] = {"model": self.model, "output_dir": "-", "data": {"train": "generated"}}
        values |= {"head": "causal_lm", "prompt": prompt} if causal else {}
        values |= {"adapter": self.adapter, "gradients": self.gradients, "bf16": self.bf16, "lora_r": 16}
        values |= {"gradient_checkpointing": self.checkpointing, "per_device_train_batch_size": self.batch}
        return RunConfig.model_validate({**values, "max_length": self.length})

    def config(self) -> Any:
        """Of the model, with as many layers as the case says."""
        config = find_config(self.model)
        return config if self.layers is None else shallow(config, self.layers)


# Sizes at which a step takes seconds on one CPU core.
SIZES: dict[str, dict[str, Any]] = {
    "package:minilm": {"batch": 16, "length": 64},
    "package:smollm2": {"batch": 2, "length": 64},
    "Qwen3-0.6B": {"batch": 2, "length": 128, "layers": 3},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"gradients": "two_pass"},
    {"checkpointing": True},
    {"twice": True},
    {"adapter": "full", "gradients": "shared_forward"},
    {"adapter": "full", "gradients": "two_pass"},
    {"adapter": "full", "gradients": "two_pass", "checkpointing": True},
]


def cases(models: Iterable[str]) -> list[Case]:
    """The cases of each model: LoRA and full, ways to two gradients, checkpointing, and twice the micro-batch."""
    found = []
    for model in models:
        if model not in SIZES:
            raise InputError(f"--model: {model!r} is not validated here; there are {', '.join(SIZES)}")
        for variant in VARIANTS:
            size = {**SIZES[model], **{key: value for key, value in variant.items() if key != "twice"}}
            size["batch"] *= 2 if variant.get("twice") else 1
            found.append(Case(model=model, **size))
    return found


def validate(found: Iterable[Case]) -> dict[str, Any]:
    """Predicted and measured bytes of each case, and by how much the prediction is off."""
    rows = []
    for case in found:
        predicted, measured = predict(case), measure(case)
        error = predicted / measured - 1
        row = {"predicted": predicted, "measured": measured, "error": round(error, 4), "within": abs(error) <= BOUND}
        rows.append({"case": case.model_dump(), **row})
    return {"torch": torch.__version__, "bound": BOUND, "rows": rows}


def predict(case: Case) -> int:
    """Bytes that the plan says, without CUDA."""
    planner = Planner(case.run(), Machine(cuda=False))
    planner.config = case.config()
    return planner.memory(case.batch).total


def measure(case: Case) -> int:
    """Growth in bytes of a fresh process that trains."""
    code = "import sys; from debias.bench.plan import print_growth; print_growth(sys.argv[1])"
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, case.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"{case.model}: the measured process failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return int(done.stdout.split()[-1])


def print_growth(case_json: str) -> None:
    """Train three steps and print by how many bytes the process grew (for a child process)."""
    case = Case.model_validate_json(case_json)
    torch.set_num_threads(1)
    small = shallow(find_config(case.model), 1)
    if case.run().head == "causal_lm":
        small.vocab_size = 1000
    _steps(case.model_copy(update={"batch": 2, "length": 16}), small)()
    gc.collect()  # a hook and its gradient source know each other
    before = status_of("VmRSS")
    step = _steps(case, case.config())
    forget_peak()  # of building
    for _ in range(3):
        step()
    sys.stdout.write(f"{status_of('VmHWM') - before}\n")


def _steps(case: Case, config: Any) -> Any:
    """A function that takes one optimizer step of the case, as a run would."""
    from debias.engines import attach
    from debias.losses import LearningLoss, gce_weight, make_loss
    from debias.methods import Edge
    from debias.readouts import inputs_and_facts

    model, run = _model(case, config), case.run()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    hook = attach(model, optimizer, Edge(), case.gradients, verify=False)
    readout, batch = _batch(case, run, config)
    loss = LearningLoss(make_loss(run.loss))

    def forward() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.bf16):
            said = readout.said(model, batch, **loss.asks)
        _, facts = inputs_and_facts(batch)
        return loss(said, facts), gce_weight(said.log_p_B)

    def step() -> None:
        hook.backward(*forward(), again=forward)
        hook.step()

    return step


def _model(case: Case, config: Any) -> Any:
    """With random weights, which take the same memory."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from debias.building.model import adapt, base_dtype

    run = case.run()
    kind: Any = AutoModelForCausalLM if run.head == "causal_lm" else AutoModelForSequenceClassification
    config.num_labels = len(run.data.labels)
    config.pad_token_id = config.pad_token_id or 0
    model = kind.from_config(config, dtype=base_dtype(run), attn_implementation="sdpa", trust_remote_code=False)
    model.fresh_modules = [] if run.head == "causal_lm" else ["classifier"]
    return adapt(run, model.train())


def _batch(case: Case, run: RunConfig, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """Random tokens, one row shorter than the others, and the answers at the positions that the plan counts."""
    from debias.readouts import Answers, Classification

    ids_BT = torch.randint(5, config.vocab_size, (case.batch, case.length))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, : case.length // 4] = 0
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if run.head == "classification":
        return Classification(), {**batch, "labels": torch.zeros(case.batch, dtype=torch.long)}
    answer_mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    answer_mask_BT[:, -Planner(run, Machine(cuda=False)).answer_tokens :] = True
    return Answers([[5], [6], [7]]), {**batch, "answer_mask": answer_mask_BT}


def forget_peak() -> None:
    """Let this process's peak resident size begin anew at what it is."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def status_of(key: str) -> int:
    """Bytes of a line of this process's status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise InputError("bench plan measures resident memory as Linux reports it in /proc/self/status")


def table_of(result: dict[str, Any]) -> Any:
    """A `rich` table of what `validate` returned."""
    from rich.table import Table

    table = Table(title="peak memory of training steps beyond the libraries: predicted against measured")
    for heading in (
        "model",
        "trains",
        "gradients",
        "checkpointing",
        "micro-batch",
        "predicted MB",
        "measured MB",
        "off",
    ):
        table.add_column(heading, justify="right" if heading[:2] in ("mi", "pr", "me", "of") else "left")
    for row in result["rows"]:
        case = Case.model_validate(row["case"])
        model = case.model if case.layers is None else f"{case.model}, {case.layers} layers"
        bytes_ = [f"{row[key] / 1e6:.0f}" for key in ("predicted", "measured")]
        what = [case.adapter, case.gradients, "yes" if case.checkpointing else "no", f"{case.batch} x {case.length}"]
        table.add_row(model, *what, *bytes_, f"{100 * row['error']:+.1f} %")
    return table
