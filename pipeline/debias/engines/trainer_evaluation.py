"""How a DebiasTrainer evaluates and predicts: scores of labels, and the mean loss of right ones.

Shapes: B samples, C labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines.checkpoints import CheckpointingTrainer
from debias.readouts import Answers, Classification, Readout, inputs_and_facts, of_right_label


class EvaluatingTrainer(CheckpointingTrainer):
    """`transformers.Trainer` that asks a readout in the place of the model's own loss."""

    readout: Readout
    _evaluated: list[Tensor] | None = None  # the loss of each sample, while an evaluation runs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Label scores [B, C] and the mean negative log-likelihood of the right labels, where these are known."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores_BC = self.readout.label_scores(model, batch)
        labels_B = inputs_and_facts(batch)[1].get("labels")
        if labels_B is None:
            return (None, None, None) if prediction_loss_only else (None, scores_BC, None)
        loss_B = -self._log_p_of(labels_B, scores_BC, model, batch)
        if self._evaluated is not None:
            self._evaluated.append(self.gather_function(loss_B).float().cpu())
        loss = loss_B.mean()
        return (loss, None, None) if prediction_loss_only else (loss, scores_BC, labels_B)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's, with the mean loss of all samples: over ranks its own has some of the last batch twice."""
        self._evaluated = []
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            losses = torch.cat([torch.empty(0), *self._evaluated]).double()
        finally:
            self._evaluated = None
        finite = losses.isfinite()
        if len(losses):
            kept = losses[finite] if self.args.logging_nan_inf_filter and finite.any() else losses
            output.metrics[f"{metric_key_prefix}_loss"] = kept.mean().item()
        return output

    def _log_p_of(self, labels_B: Tensor, scores_BC: Tensor, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Of each sample's right label; what is right of a readout without classes it says itself."""
        ours = isinstance(self.readout, (Answers, Classification))
        if ours or not (labels_B.is_floating_point() or scores_BC.ndim != 2 or scores_BC.shape[1] < 2):
            return of_right_label(scores_BC, labels_B)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.readout.said(model, batch).log_p_B.float()
