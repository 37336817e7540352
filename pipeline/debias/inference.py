"""A trained run as a predictor: base model, adapter, labels. Shapes: N examples, C labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debias.checkpoint import ADAPTER, CONFIG, MODEL
from debias.config import RunConfig, load_config
from debias.data.encode import Collator
from debias.data.examples import Example
from debias.errors import InputError
from debias.models.load import load_tokenizer
from debias.setup_run import Task, base_model, build_task, check_length


class Predictor:
    """Scores labels with the model of a run."""

    def __init__(self, model: Any, task: Task, config: RunConfig) -> None:
        self.model = model
        self.task = task
        self.config = config

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels, in the order of its scores."""
        return self.config.data.labels

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The texts the model reads, in order."""
        return self.config.data.text_fields

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> np.ndarray:
        """Log-likelihood of each label, [N, C] float64, in the order of `examples`."""
        encoded = self.task.encode(list(examples), with_answer=False).features
        collate = Collator(self.task.tokenizer)
        # Longest first: little padding, and a batch that is too large fails at once.
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        size = batch_size or self.config.per_device_eval_batch_size
        scores_NC = np.empty((len(encoded), len(self.labels)))
        device = next(self.model.parameters()).device
        self.model.eval()
        # As in training: a bf16 base, and autocast for what trained in float32.
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16)
        with torch.inference_mode(), bf16:
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                batch = {key: value.to(device) for key, value in collate([encoded[i] for i in chosen]).items()}
                scores_NC[chosen] = self.task.objective.label_scores(self.model, batch).double().cpu().numpy()
        return scores_NC


def load_run(run: Path) -> Predictor:
    """The predictor of a finished run's folder. InputError when the folder holds no trained model."""
    run = Path(run)
    if not (run / CONFIG).exists():
        raise InputError(f"{run}: holds no {CONFIG}; give the folder of a run")
    config = load_config(run / CONFIG)
    trained = [run / name for name in (ADAPTER, MODEL) if (run / name).is_dir()]
    if not trained:
        raise InputError(f"{run}: holds no {ADAPTER}/ or {MODEL}/; the run has not finished")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load_trained(config, trained[0])
    check_length(config, model)
    if not config.load_in_4bit:
        model = model.to(device)
    return Predictor(model, build_task(config, load_tokenizer(config.model, config.head)), config)


def _load_trained(config: RunConfig, folder: Path) -> Any:
    if folder.name == MODEL:
        return base_model(config, str(folder))
    from peft import PeftModel

    base = base_model(config, config.model)
    for name in base.fresh_modules:  # trained and saved in float32, whatever the base's dtype
        base.get_submodule(name).float()
    return PeftModel.from_pretrained(base, str(folder))
