"""Checkpoints of the Trainer: there whole or not at all, and under DeepSpeed for any number of ranks to go on from."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from debias.engines.parameters import whole_shape
from debias.engines.step_counts import StepCounts
from debias.losses import LearningLoss
from debias.methods import Rule
from debias.runs.damage import check_files, check_shapes, damaged, reading
from debias.runs.learned import StopWhenLearned
from debias.runs.names import checkpoint_at, checkpoints, step_of
from debias.runs.whole import check_tensors, saving

if TYPE_CHECKING:
    from debias.engines.torch_engine import TorchHook
    from debias.engines.zero.hook import ZeroHook

STAGING = ".saving"
LOSS_STATE = "loss_state.pt"  # of a checkpoint: what the loss has learned
# In a checkpoint, whole: what the rule remembers, where the weights started, and a mask that was chosen once.
RULE_STATE = "rule_state.safetensors"


def as_judged(optimizer: Any) -> None:
    """A schedule-free optimizer trains at other weights than those it is judged by, between which it moves the model
    when it is told to (Defazio et al., The Road Less Scheduled, NeurIPS 2024); others have no such mode.
    """
    if callable(getattr(optimizer, "eval", None)):
        optimizer.eval()


class CheckpointingTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints hold what a loss and a rule have learned, and survive a full disk."""

    rule: Rule
    loss: LearningLoss
    hook: "TorchHook | ZeroHook | None"
    interrupted: bool
    step_counts: StepCounts

    def check_checkpoint(self, checkpoint: Path) -> None:
        """InputError (a ValueError) in one line for a checkpoint that cannot be gone on from; no tensor is read."""
        needed = [SCHEDULER_NAME] if self.is_deepspeed_enabled else [OPTIMIZER_NAME, SCHEDULER_NAME]
        check_files(checkpoint, [] if self.args.save_only_model else needed)
        shapes = {name: whole_shape(p) for name, p in self.model.named_parameters()}
        if not hasattr(self.model, "peft_config"):
            check_shapes(checkpoint, shapes)
            return
        from peft import get_peft_model_state_dict

        # VeRA saves buffers, which each of its layers has under a name of its own.
        shapes |= {name: held.shape for name, held in self.model.named_buffers(remove_duplicate=False)}
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        with contextlib.suppress(KeyError):  # a kind of adapter that keeps what is no parameter
            saved = get_peft_model_state_dict(self.model, state_dict=state)
            check_shapes(checkpoint, {name: tensor.shape for name, tensor in saved.items()}, whole=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with reading(Path(resume_from_checkpoint), "the model's file"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with reading(Path(checkpoint), f"{OPTIMIZER_NAME} or {SCHEDULER_NAME}"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if odd := _moment_of_another_shape(self.optimizer):
            raise damaged(Path(checkpoint), f"{OPTIMIZER_NAME} is of other parameters: {odd}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or ""), "the state of random numbers (rng_state)"):
            super()._load_rng_state(checkpoint)

    # Under DeepSpeed: weights and optimizer state whole, for any number of ranks to go on from.

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        self.step_counts = StepCounts.of(None if resume_from_checkpoint is None else Path(resume_from_checkpoint))
        if resume_from_checkpoint is not None and self.loss.learns:
            with reading(Path(resume_from_checkpoint), LOSS_STATE):
                self.loss.load_state_dict(torch.load(Path(resume_from_checkpoint) / LOSS_STATE))
        self._resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            from debias.engines.zero.state import load_state

            self.step_counts.skipped = load_state(self.deepspeed, Path(resume_from_checkpoint))
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        self._find_best()
        return found

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        as_judged(self.optimizer)  # before the best checkpoint is loaded, whose weights it would move
        if self.interrupted:
            # Or the Trainer would load the best checkpoint and delete the newest, which is there to be resumed.
            self.state.best_model_checkpoint = None
        else:
            self._find_best()  # the first rank alone saw the checkpoint being moved to its place
        self._sum_losses()
        done: TrainOutput = super()._finalize_training(*args, **kwargs)
        return done._replace(training_loss=self.step_counts.mean_loss)

    def _sum_losses(self) -> None:
        """Collective."""
        counts, world = self.step_counts, self.args.world_size
        counts.summed = counts.losses
        if world > 1:
            counts.summed = float(self._over_ranks(torch.tensor([counts.losses], dtype=torch.float64))) / world

    def _over_ranks(self, sums: Tensor) -> Tensor:
        whole: Tensor = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
        return whole

    def _joined(self, rows: Tensor) -> Tensor:
        padded = self.accelerator.pad_across_processes(rows.to(self.args.device), pad_index=-1)
        whole: Tensor = self.accelerator.gather(padded).cpu()
        return whole[whole[:, 0] >= 0]

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        before = self._globalstep_last_logged
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if self._globalstep_last_logged != before:
            tr_loss.zero_()  # the Trainer takes it from itself, which of one NaN makes NaN ever after

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log; `train_loss` is the mean over the steps that were taken."""
        if "train_loss" in logs:
            logs["train_loss"] = self.step_counts.mean_loss
        super().log(logs, start_time)

    def _done(self, checkpoint: Path) -> TrainOutput | None:
        """A checkpoint of the last step, loaded: the Trainer would take a step more before it looks at max_steps, or
        callbacks at their history.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        stops = [one for one in self.callback_handler.callbacks if isinstance(one, StopWhenLearned)]
        if not 0 < self.args.max_steps <= state.global_step and not any(one.had_learned(state) for one in stops):
            return None
        self.step_counts = StepCounts.of(checkpoint)
        self.state = state
        self.state.init_training_references(self, state.max_steps, state.num_train_epochs, None)  # which rank this is
        self._load_callback_state()
        if self.args.auto_find_batch_size and state.train_batch_size is not None:
            self._train_batch_size = state.train_batch_size
        self._find_best()
        kept = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(kept or str(checkpoint))
        for tell in (self.callback_handler.on_train_begin, self.callback_handler.on_train_end):
            tell(self.args, self.state, self.control)  # nothing is left that what they answer could change
        return TrainOutput(state.global_step, float("nan"), {})

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
        if self.args.should_save and self.loss.learns:
            torch.save(self.loss.state_dict(), Path(output_dir) / LOSS_STATE)
        if self.hook is not None and self.hook.remembers:
            state = self.hook.state_dict()  # collective under DeepSpeed
            if self.args.should_save:
                Path(output_dir).mkdir(parents=True, exist_ok=True)
                save_file(state, str(Path(output_dir) / RULE_STATE))
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
        if not self.args.should_save:  # every rank comes here, and one writes
            return
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
            as_judged(self.optimizer)
            self._sum_losses()
            with saving():
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    for folder in (run / STAGING).iterdir():
                        self.step_counts.write(folder)
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
            _forget_older(run, target, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _name_best(self, run: Path, folder: Path) -> None:
        """The Trainer looked for the best checkpoint where this one is being written; it is, or will be, in the run."""
        best = checkpoint_at(run, self.state.best_global_step)
        if self.state.best_global_step and (best.exists() or best.name == folder.name):
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))


def rule_state_in(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """What a rule of that name, a mask or a projection goes on from; ValueError where another one saved it."""
    if not (checkpoint / RULE_STATE).exists():
        raise ValueError(f"{checkpoint}: there is no {RULE_STATE}, which {name} goes on from: another rule saved it")
    with reading(checkpoint, RULE_STATE):
        return load_file(str(checkpoint / RULE_STATE))


def _moment_of_another_shape(optimizer: Any) -> str | None:
    """What torch's own optimizers keep of a parameter has its shape; loading does not look."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's
    if not type(optimizer).__module__.startswith("torch.optim"):
        return None
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name, held in optimizer.state.get(p, {}).items():
                if isinstance(held, Tensor) and held.ndim and held.shape != p.shape:
                    return f"{name} has shape {list(held.shape)}, its parameter {list(p.shape)}"
    return None


def _forget_older(run: Path, saved: Path, limit: int | None, best: str | None) -> None:
    """Delete checkpoints until `limit` are left, the oldest first; as the Trainer does, neither `saved` nor the best.

    What has a later step than `saved` is of another training in this folder, so it is older than all of this one.
    """
    if limit is None or limit <= 0:
        return
    stay = {saved.name} if best is None else {saved.name, Path(best).name}
    there = checkpoints(run)
    others = sorted((one for one in there if one.name not in stay), key=lambda one: step_of(one) < step_of(saved))
    room = max(0, limit - (len(there) - len(others)))
    for folder in others[: max(0, len(others) - room)]:
        shutil.rmtree(folder, ignore_errors=True)
