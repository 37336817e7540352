"""The Hugging Face Trainer with two gradients in each step; everything else is as its users know it."""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from debias.engines.attaching import attach
from debias.engines.parameters import Select, chosen_by, not_head, whole_shape
from debias.gradients.choice import choose
from debias.gradients.single_pass import refusal
from debias.losses import BiasWeightSource, Objective, RouterLoss, SelfWeight, router_loss_of
from debias.methods import Rule
from debias.ranks.stopping import StopRequest
from debias.runs.environment import peak_memory_mb
from debias.runs.names import checkpoint_at, checkpoints
from debias.runs.whole import check_tensors, saving

if TYPE_CHECKING:
    from debias.engines.torch_engine import TorchHook
    from debias.engines.zero.hook import ZeroHook

STAGING = ".saving"


class DebiasTrainer(Trainer):
    """`transformers.Trainer` whose update is a rule's combination of the `main` and `bias` gradients.

    `rule`: one of `debias.methods`; `objective`: per-sample losses (`Classification()` or `Answers(...)`);
    `bias_weight`: where the weights come from; `gradients` and `select`: as in `debias.attach`. Accumulation, clipping,
    bf16, checkpoints, `report_to` and evaluation are the Trainer's. A checkpoint appears whole or not at all. Raises
    ValueError for fp16 (its loss scaling hides overflow until after the rule; use bf16 or fp32).
    """

    def __init__(
        self,
        *args: Any,
        rule: Rule,
        objective: Objective,
        bias_weight: BiasWeightSource | None = None,
        gradients: str = "auto",
        select: Select = not_head,
        max_nonfinite_steps: int = 10,
        stop: StopRequest | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.args.fp16:
            raise ValueError("fp16 is not supported: use bf16=true or full precision")
        if self.is_fsdp_enabled:
            raise ValueError("FSDP is not supported: use one process, DistributedDataParallel or DeepSpeed")
        if self.args.n_gpu > 1:
            raise ValueError(f"{self.args.n_gpu} GPUs in one process (DataParallel) are not supported: use torchrun")
        self.rule = rule
        self.objective = objective
        self.bias_weight = bias_weight or SelfWeight()
        self.gradients = gradients
        self.select = select
        self.max_nonfinite_steps = max_nonfinite_steps
        self._check_exact()
        self.stop = stop
        self.interrupted = False
        self.hook: TorchHook | ZeroHook | None = None
        self._router: RouterLoss | None = None
        self._since_log = (time.perf_counter(), 0.0)
        # The loss is already a mean over its micro-batch: the Trainer must not divide it by an item count.
        self.model_accepts_loss_kwargs = False

    def _check_exact(self) -> None:
        """Here, and not in the first step, so that nothing has been written when it raises."""
        selected = chosen_by(self.select, self.model)
        if self.gradients != "auto":  # what auto comes to is said when the model is wrapped
            choose(self.gradients, lambda: refusal(self.model, selected), uses_bias=self.rule.uses_bias)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: two gradients; at the accumulation boundary, the update in their place."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers, as the Trainer itself does
            self.optimizer.train()
        hook = self._attached(model)
        inputs = self._prepare_inputs(inputs)

        def forward() -> tuple[Tensor, Tensor, int]:
            with self.compute_loss_context_manager():
                losses = self.objective.losses(model, inputs)
            return losses.loss_B, self.bias_weight(losses, inputs), losses.count

        loss_B, weight_B, count = forward()
        boundary = self.accelerator.sync_gradients
        if self.is_deepspeed_enabled:
            # As accelerate does, but for its own backward, which steps before the gradients are combined.
            engine: Any = model
            engine.set_gradient_accumulation_boundary(boundary)
        balance = self._router.take() if self._router else None
        hook.backward(
            loss_B,
            weight_B,
            count=count,
            again=lambda: forward()[:2],
            sample_index=inputs.get("sample_index"),
            batch_loss=balance,
        )
        self._count_samples(loss_B.numel())
        if boundary:
            self._combine(hook)
        mean = loss_B.detach().sum() / count + (0.0 if balance is None else balance.detach())
        return mean / self.current_gradient_accumulation_steps

    def _combine(self, hook: Any) -> None:
        hook.asks_to_stop = self.stop is not None and self.stop.asked
        if self.is_deepspeed_enabled:
            hook.step()
        else:
            hook.combine()
        if hook.stops:
            self.interrupted = self.control.should_save = self.control.should_training_stop = True

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Label scores [B, C] and the mean negative log-likelihood of the right labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores_BC = self.objective.label_scores(model, inputs)
        labels_B = inputs["labels"]
        loss = -scores_BC.gather(1, labels_B.unsqueeze(1)).mean()
        return (loss, None, None) if prediction_loss_only else (loss, scores_BC, labels_B)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log with what the last step did to the two gradients."""
        if "loss" in logs and self.hook is not None and self.hook.last is not None:
            logs |= self._step_figures(self.hook)
        super().log(logs, start_time)

    def layer_figures(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """What the last step did in each transformer layer, to go with a log of the training loss; else nothing."""
        done = self.hook.last if self.hook is not None and "loss" in logs else None
        if done is None or not done.cosine_by_layer:
            return {}
        return {
            "cosine_by_layer": dict(done.cosine_by_layer),
            "removed_share_by_layer": dict(done.removed_share_by_layer),
        }

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; the model is left without hooks."""
        if isinstance(resume_from_checkpoint, str) and (done := self._done(Path(resume_from_checkpoint))):
            return done
        self.hook = None  # that of an earlier train() is detached
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:
            # A failed collective leaves an engine that cannot be cleaned: the first error is the one to see.
            with contextlib.suppress(Exception):
                self._detach()
            raise
        self._detach()
        return output

    def _detach(self) -> None:
        if self.hook is not None:
            self.hook.detach()

    def _done(self, checkpoint: Path) -> TrainOutput | None:
        """A checkpoint of the last step, loaded: the Trainer would take a step more before it looks at max_steps."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if not 0 < self.args.max_steps <= state.global_step:
            return None
        self.state = state
        self._find_best()
        kept = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(kept or str(checkpoint))
        return TrainOutput(state.global_step, float("nan"), {})

    def _attached(self, model: nn.Module) -> "TorchHook | ZeroHook":
        # Only now is the model wrapped (DDP, DeepSpeed) as it will be trained.
        if self.hook is None or self.hook.model is not model:
            options: Any = {"select": self.select, "max_nonfinite_steps": self.max_nonfinite_steps}
            if self.is_deepspeed_enabled:
                self.hook = attach(model, self.rule, gradients=self.gradients, **options)
            else:
                self.hook = attach(model, None, self.rule, self.gradients, **options)
            self.hook.skipped = self._skipped_before
            self._router = router_loss_of(model)  # a walk over all modules, so not in each micro-batch
        return self.hook

    def _count_samples(self, samples: int) -> None:
        since, seen = self._since_log
        self._since_log = (since, seen + samples * self.args.world_size)

    def _step_figures(self, hook: Any) -> dict[str, float]:
        since, seen = self._since_log
        now = time.perf_counter()
        self._since_log = (now, 0.0)
        kept = ("main_norm", "bias_norm", "cosine", "removed_share") if self.rule.uses_bias else ()
        return {
            **{key: getattr(hook.last, key) for key in kept},
            "skipped_steps": hook.skipped,
            "samples_per_second": round(seen / max(now - since, 1e-9), 3),
            "peak_memory_mb": peak_memory_mb(),
        }

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Any:
        """A data set that knows its lengths brings its own sampler (buckets of like length)."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if hasattr(dataset, "sampler"):
            # Buckets of a whole optimizer step, so that the same examples make a step however it is split into
            # micro-batches and ranks.
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return dataset.sampler(step, seed)
        return super()._get_train_sampler(train_dataset)

    # Under DeepSpeed: weights and optimizer state whole, for any number of ranks to go on from.

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        self._skipped_before = 0
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            from debias.engines.zero.state import load_state

            self._skipped_before = load_state(self.deepspeed, Path(resume_from_checkpoint))
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        self._find_best()
        return found

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.interrupted:
            # Or the Trainer would load the best checkpoint and delete the newest, which is there to be resumed.
            self.state.best_model_checkpoint = None
        else:
            self._find_best()  # the first rank alone saw the checkpoint being moved to its place
        done: TrainOutput = super()._finalize_training(*args, **kwargs)
        return done

    def _find_best(self) -> None:
        """The best checkpoint where it lies now: a run's folder may have moved since its name was written down."""
        best = checkpoint_at(Path(self.args.output_dir), self.state.best_global_step)
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _load_best_model(self) -> None:
        if not self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        from debias.engines.zero.state import load_state

        load_state(self.deepspeed, Path(str(self.state.best_model_checkpoint)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from debias.engines.zero.state import save_state

        save_state(self.deepspeed, Path(output_dir), self.hook.skipped if self.hook else 0)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; collective under DeepSpeed."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = self.trained_state()
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def trained_state(self) -> dict[str, Tensor] | None:
        """Under DeepSpeed what to save, whole: float32 weights of what trains, or the model where there is no adapter.

        None without DeepSpeed, where the model itself has it. Collective.
        """
        if not self.is_deepspeed_enabled or self.deepspeed is None:
            return None
        from debias.engines.zero.state import whole_weights

        if hasattr(self.model, "peft_config"):
            return whole_weights(self.deepspeed)
        state: dict[str, Tensor] | None = self.accelerator.get_state_dict(self.deepspeed)
        return state

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        trained = (p for p in self.model.parameters() if p.requires_grad)
        check_tensors(Path(output_dir or self.args.output_dir), map(whole_shape, trained))

    # A full disk or a kill while saving must leave the last good checkpoint: write beside it, then rename.

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / STAGING if getattr(self, "_saving", False) else folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        if self.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)  # what a killed run had begun must not be published
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            with saving():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._publish(run)
        finally:
            self._saving = False
            if self.args.should_save:
                shutil.rmtree(run / STAGING, ignore_errors=True)
            self.accelerator.wait_for_everyone()

    def _publish(self, run: Path) -> None:
        for folder in (run / STAGING).iterdir():
            self._name_best(run, folder)
            target = run / folder.name
            if target.exists():  # renamed away, not deleted here: a kill must not leave half of it
                os.replace(target, run / f".old-{folder.name}")
            os.replace(folder, target)
            shutil.rmtree(run / f".old-{folder.name}", ignore_errors=True)
        _forget_older(run, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _name_best(self, run: Path, folder: Path) -> None:
        """The Trainer looked for the best checkpoint where this one is being written; it is, or will be, in the run."""
        best = checkpoint_at(run, self.state.best_global_step)
        if self.state.best_global_step and (best.exists() or best.name == folder.name):
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))


def _forget_older(run: Path, keep: int | None, best: str | None) -> None:
    """Delete all checkpoints but the newest `keep` and, as the Trainer does, the best."""
    if not keep:
        return
    for folder in checkpoints(run)[:-keep]:
        if best is None or folder.name != Path(best).name:
            shutil.rmtree(folder, ignore_errors=True)
