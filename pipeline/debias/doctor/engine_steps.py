"""Steps of a tiny model as `debias train` takes them, watched: `python -m debias.doctor.engine_steps [zero2]`.

An engine that steps at every backward pass, or on the wrong one of two gradients, trains something else and says
nothing; an adapter that is attached and not used trains nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from debias.doctor.check import Check, bad, fine
from debias.ranks.garbage import loading

if TYPE_CHECKING:
    from debias.engines.hf_trainer import DebiasTrainer

NAME = "engine steps"
PATIENCE = 180  # seconds for a process that imports everything
STEPS, MICRO_BATCHES = 2, 2
TOKENS, ROWS, LABELS = 6, 8, 3
# Of a launcher that started this process: nothing of it must reach the one that is started here.
LAUNCHER = ("TORCHELASTIC", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_")
AS_IT_SHOULD = {"between": [False] * STEPS * (MICRO_BATCHES - 1), "at_boundary": [True] * STEPS, "logits": True}


def watched(deepspeed: str | None = None) -> Check:
    """The optimizer steps once for two micro-batches, and the adapter changes the logits; in a process of its own."""
    engine = "torch" if deepspeed is None else f"DeepSpeed {deepspeed}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
    command = [sys.executable, "-m", "debias.doctor.engine_steps", *([deepspeed] if deepspeed else [])]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return bad(NAME, f"{engine}: no end within {PATIENCE} s", "see `debias doctor` for build locks, and try again")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        return bad(NAME, f"{engine}: {lines[-1][:200]}", f"run python -m debias.doctor.engine_steps {deepspeed or ''}")
    return judge(json.loads(done.stdout.splitlines()[-1]), engine)


def judge(seen: dict[str, Any], engine: str) -> Check:
    """What the steps of that engine come to."""
    same_versions = "install the versions that the line `versions` asks for; this engine would train something else"
    if any(seen["between"]):
        return bad(NAME, f"{engine}: the weights change between two micro-batches of one step", same_versions)
    if not all(seen["at_boundary"]) or len(seen["at_boundary"]) != STEPS:
        steps = sum(seen["at_boundary"])
        return bad(NAME, f"{engine}: {steps} optimizer steps where {STEPS} were to be", same_versions)
    if not seen["logits"]:
        return bad(NAME, f"{engine}: the trained adapter does not change the logits", same_versions)
    return fine(NAME, f"{engine}: one for {MICRO_BATCHES} micro-batches, and the adapter changes the logits")


def observe(deepspeed: str | None, folder: str) -> dict[str, Any]:
    """Whether what trains changed after each micro-batch within a step, after each step; and the logits in the end."""
    with loading():
        import torch
        from transformers import TrainerCallback

    rows, model = _rows(), _model()
    before = _logits(model, rows)  # here: stage 3 shards the model as soon as there is a trainer
    trainer = _trainer(model, rows, deepspeed, folder)
    seen: dict[str, Any] = {"between": [], "at_boundary": []}
    last = _weights(trainer)

    def look(where: str) -> None:
        nonlocal last
        now = _weights(trainer)
        seen[where].append(any(not torch.equal(now[name], last[name]) for name in now))
        last = now

    class Watch(TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            look("between")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            look("at_boundary")

    trainer.add_callback(Watch())
    trainer.train()
    after = torch.as_tensor(trainer.predict(rows).predictions)
    return {**seen, "logits": not torch.allclose(before.log_softmax(-1), after.log_softmax(-1), atol=1e-6)}


def _logits(model: Any, rows: Any) -> Any:
    import torch

    ids = torch.tensor([row["input_ids"] for row in rows])
    with torch.no_grad():
        return model.eval()(input_ids=ids.to(model.device)).logits.float().cpu()


def _weights(trainer: "DebiasTrainer") -> dict[str, Any]:
    """Copies of what trains, whole wherever an engine keeps it."""
    state = trainer.trained_state()
    if state is None:
        state = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    return {name.removeprefix("module."): value.detach().float().cpu().clone() for name, value in state.items()}


def _trainer(model: Any, rows: Any, deepspeed: str | None, folder: str) -> "DebiasTrainer":
    from transformers import default_data_collator

    from debias.building.arguments import training_arguments
    from debias.config.run import RunConfig
    from debias.engines.hf_trainer import DebiasTrainer
    from debias.methods import Edge
    from debias.readouts import Classification

    run = {
        "model": "tiny",
        "data": {"train": "generated"},
        "output_dir": folder,
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS // STEPS // MICRO_BATCHES,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "deepspeed": deepspeed,
    }
    arguments = training_arguments(RunConfig.model_validate(run))
    return DebiasTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=default_data_collator,
        rule=Edge(),
        readout=Classification(),
    )


def _rows() -> list[dict[str, Any]]:
    import torch

    ids = torch.randint(1, 20, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"input_ids": row, "labels": index % LABELS} for index, row in enumerate(ids)]


def _model() -> Any:
    """A Llama of a thousand weights, of which only LoRA matrices train: a head of its own would change the logits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        num_labels=LABELS,
        initializer_range=0.5,
    )
    return get_peft_model(LlamaForSequenceClassification(config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def main() -> None:
    """What `observe` saw, as JSON on the last line."""
    with tempfile.TemporaryDirectory() as folder:
        seen = observe(sys.argv[1] if len(sys.argv) > 1 else None, folder)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
