"""A plugin of pytest: what says `from transformers import Trainer` gets DebiasTrainer with the plain rule.

`run_trainer_suite.py` hands it to transformers' own tests. A model with a head of classes is read as users have it
read; any other model (regression, language models, a tuple of its own) by `ItsOwnLoss`, so that all but the loss and
the predictions is our trainer's.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.trainer_pt_utils import find_batch_size

from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.trainer_evaluation import EvaluatingTrainer
from debias.losses import Classification
from debias.methods import MainOnly
from debias.readouts import Said, inputs_and_facts


class ItsOwnLoss:
    """The mean that a model makes of a batch, as the loss of each of its samples: no two gradients come of that."""

    def said(self, model: nn.Module, batch: Mapping[str, Any], *, every_label: bool = False) -> Said:
        """Minus the model's loss, for every sample alike."""
        inputs, facts = inputs_and_facts(batch)
        answer = model(**{**inputs, **facts})
        loss = answer["loss"] if isinstance(answer, Mapping) else answer[0]
        samples = find_batch_size(dict(batch)) or 1
        log_p_B = -loss.float().expand(samples)
        return Said(log_p_B, log_p_B.detach(), samples)

    def check_every_label(self) -> None:
        """ValueError: there are no labels."""
        raise ValueError("the model's own loss is of no labels")

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Never asked: the Trainer predicts."""
        raise NotImplementedError


class InItsPlace(DebiasTrainer):
    """Takes what Trainer takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs.get("model", args[0] if args else None)
        has_head = type(model).__name__.endswith("ForSequenceClassification")
        readout: Any = Classification() if has_head else ItsOwnLoss()
        super().__init__(*args, **{"rule": MainOnly(), "readout": readout, **kwargs})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Without the two figures that are never the same twice: tests compare whole histories."""
        super().log(logs, *args, **kwargs)
        for line in (logs, *self.state.log_history[-1:]):
            for figure in ("samples_per_second", "peak_memory_mb"):
                line.pop(figure, None)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Of a model without a head of classes, as the Trainer does it."""
        if isinstance(self.readout, ItsOwnLoss):
            return super(EvaluatingTrainer, self).prediction_step(*args, **kwargs)
        return super().prediction_step(*args, **kwargs)


def pytest_load_initial_conftests() -> None:
    """Before the suite is loaded."""
    # Not by `import transformers`: it makes a module anew while it is loaded.
    for module in ("transformers", "transformers.trainer"):
        vars(sys.modules[module])["Trainer"] = InItsPlace
