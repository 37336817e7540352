"""The Hugging Face Trainer with two gradients in each step; everything else is as its users know it."""

import contextlib
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.trainer_utils import get_last_checkpoint

from debias.bias.own import SelfWeight
from debias.bias.weights import BiasWeightSource
from debias.engines.adapter_kinds import way_for
from debias.engines.attaching import attach, refuse_more
from debias.engines.checkpoints import rule_state_in
from debias.engines.look_ahead import Batch, LookAhead, refuse_look_ahead
from debias.engines.nearby import Nearby, is_reentrant, refuse_nearby
from debias.engines.own_terms import OwnTerms, refuse_own_losses
from debias.engines.parameters import Select, chosen_by, not_head
from debias.engines.second_pass import refuse_second_pass
from debias.engines.trainer_arguments import loss_of, one_readout, refuse_arguments, refuse_losses, refuse_precision
from debias.engines.trainer_evaluation import EvaluatingTrainer
from debias.engines.weight_projection import check_projection
from debias.engines.weight_term import WeightTerm
from debias.gradients.choice import choose
from debias.gradients.single_pass import refusal
from debias.losses import LearningLoss, Loss
from debias.losses.learning import Told
from debias.masks import Mask
from debias.methods import Rule
from debias.penalties import Penalty
from debias.projections import Projection
from debias.ranks.stopping import StopRequest
from debias.readouts import DONE, Readout, inputs_and_facts
from debias.readouts.hidden import check_hidden
from debias.readouts.said import KNOWN_FACTS, Said
from debias.runs.environment import peak_memory_mb
from debias.sharpness import Sharpness
from debias.smoothness import Smoothness

if TYPE_CHECKING:
    from debias.engines.torch_engine import TorchHook
    from debias.engines.zero.hook import ZeroHook


FACTORS = frozenset({"ia3_l", "lora_magnitude_vector", "vera_lambda_d"})  # they begin at 1, or at the base's own


class DebiasTrainer(EvaluatingTrainer):
    """`transformers.Trainer` whose update is a rule's combination of the `main` and `bias` gradients.

    `rule`: one of `debias.methods`; `readout`: how the model's answer is read (`Classification()` or `Answers(...)`;
    `objective` is its older name); `loss`: one of `debias.losses`, cross-entropy by default; `bias_weight`: where the
    weights come from; `gradients`, `select`, `verify`, `sharpness`, `weight_penalty`, `weight_projection` and
    `gradient_mask`: as in `debias.attach`; `smoothness`: a term beside the loss, one of `debias.smoothness`. `facts`:
    of the whole training set, or what gives them, for a loss that learns (`LearningLoss`); batches are `{"inputs": ...,
    "facts": ...}`, or one mapping of both. Accumulation, clipping, bf16, checkpoints, `report_to` and evaluation are
    the Trainer's. A checkpoint appears whole or not at all.
    Each of the TrainingArguments is honoured, or a ValueError here that names it (`trainer_arguments`).
    """

    _signature_columns: list[str] | None

    def __init__(
        self,
        *args: Any,
        rule: Rule,
        readout: Readout | None = None,
        objective: Readout | None = None,
        loss: Loss | None = None,
        facts: Told | None = None,
        bias_weight: BiasWeightSource | None = None,
        gradients: str = "auto",
        select: Select = not_head,
        max_nonfinite_steps: int = 10,
        verify: bool = True,
        sharpness: Sharpness | None = None,
        weight_penalty: Penalty | None = None,
        weight_projection: Projection | None = None,
        gradient_mask: Mask | None = None,
        smoothness: Smoothness | None = None,
        stop: StopRequest | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        refuse_arguments(self.args, self.train_dataset)
        refuse_precision(self)
        if self.is_fsdp_enabled:  # by Accelerate's environment too
            raise ValueError("FSDP is not supported: use one process, DistributedDataParallel or DeepSpeed")
        refuse_losses(self)
        self.rule = rule
        self.readout = one_readout(readout, objective)
        refuse_own_losses(self.model, self.readout)
        self._own_terms = self._terms_of(self.model, sharpness)
        self._facts = facts
        self.loss = LearningLoss(loss_of(self.args, loss, self.readout), facts)
        if self.loss.every_label:
            self.readout.check_every_label()
        if "hidden" in self.loss.asks:
            check_hidden(self.model)
        self.bias_weight = bias_weight or SelfWeight()
        self.gradients = gradients
        self.select = select
        self.max_nonfinite_steps = max_nonfinite_steps
        self.verify = verify
        self.sharpness = sharpness
        self.weight_penalty, self.weight_projection = weight_penalty, weight_projection
        self.gradient_mask = gradient_mask
        if smoothness is not None:
            reentrant = is_reentrant(self.model, self.args)
            refuse_nearby(
                smoothness.name, deepspeed=self.is_deepspeed_enabled, bf16=self.args.bf16, reentrant=reentrant
            )
        self._nearby = None if smoothness is None else Nearby(self.model, self.readout, smoothness)
        self._ahead = LookAhead()
        self._check_exact()
        self.stop = stop
        self.interrupted = False
        self.hook: TorchHook | ZeroHook | None = None
        self._since_log = (time.perf_counter(), 0.0)
        self._losses = torch.zeros((), device=self.args.device)  # the sum of this step's, on this rank
        # The loss is already a mean over its micro-batch: the Trainer must not divide it by an item count.
        self.model_accepts_loss_kwargs = False

    def _check_exact(self) -> None:
        """Here, and not in the first step, so that nothing has been written when it raises."""
        if self.sharpness is not None:
            refuse_second_pass(self.sharpness.name, self.model, deepspeed=self.is_deepspeed_enabled)
        if self.is_deepspeed_enabled:
            refuse_more("weights that DeepSpeed holds", None, self.weight_penalty)
        check_projection(self.weight_projection, self.args.optim)
        if self.weight_penalty is not None:
            WeightTerm(self.model, self.weight_penalty)
        if self.loss.ahead:
            refuse_look_ahead(self.loss.loss.name, None if self.sharpness is None else self.sharpness.name)
        selected = chosen_by(self.select, self.model)
        if self.gradients != "auto":  # what auto comes to is said when the model is wrapped
            choose(self.gradients, lambda: refusal(self.model, selected), uses_bias=self.rule.uses_bias)
            if self.rule.uses_bias:
                way_for(self.gradients, self.model, selected)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: two gradients; at the accumulation boundary, the update in their place."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers, as the Trainer itself does
            self.optimizer.train()
        hook = self._attached(model)
        batch = self._prepare_inputs(inputs)
        facts = self._facts_of(batch)
        if self.loss.ahead and self._ahead.look(model, lambda other: self._gather(model, other)):
            self.loss.settle(self._over_ranks, self._joined)

        def forward(*, again: bool = True) -> tuple[Tensor, Tensor, Said]:
            with self.compute_loss_context_manager(), nullcontext() if again else self._as_seen():
                said, more_B = self._said(model, batch)
            if self.loss.ahead and self._ahead.is_one and not again:
                self.loss.gather(said, facts)
                self.loss.settle(self._over_ranks, self._joined)
            loss_B = self.loss(said, facts, counts=not again)
            return loss_B if more_B is None else loss_B + more_B, self.bias_weight(said, facts), said

        loss_B, weight_B, said = forward(again=False)
        count, index_RT = said.count, facts.get("sample_index") if said.sample_index is None else said.sample_index
        del said  # with a graph, which the backward pass is to free
        boundary = self.accelerator.sync_gradients
        if self.is_deepspeed_enabled:
            # As accelerate does, but for its own backward, which steps before the gradients are combined.
            engine: Any = model
            engine.set_gradient_accumulation_boundary(boundary)
        of_batch = self._own_terms.take()
        hook.backward(
            loss_B,
            weight_B,
            count=count,
            again=lambda: forward()[:2],
            sample_index=index_RT,
            batch_loss=of_batch,
        )
        self._count_samples(loss_B.numel())
        self._losses = self._losses + loss_B.detach().sum() + (0.0 if of_batch is None else of_batch.detach() * count)
        if not boundary:
            return torch.zeros_like(self._losses)
        self._combine(hook)
        self._empty_cache()
        return self._mean_loss(hook)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, as the Trainer reads them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._ahead.begin(batches)
        return batches, items

    def _gather(self, model: nn.Module, inputs: Batch) -> None:
        batch = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            said = self.readout.said(model, batch, **self.loss.asks)
        self.loss.gather(said, self._facts_of(batch))

    def _as_seen(self) -> AbstractContextManager[None]:
        return self._ahead.as_seen() if self.loss.ahead else nullcontext()

    def _facts_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {**inputs_and_facts(batch)[1], DONE: self._done_share()}

    def _said(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Said, Tensor | None]:
        """What the model says, and a term that is added to the loss of each sample, if there is one."""
        if self._nearby is None:
            return self.readout.said(model, batch, **self.loss.asks), None
        return self._nearby.said(model, batch, **self.loss.asks)

    def _mean_loss(self, hook: Any) -> Tensor:
        """The loss that is logged: the sum over the step's micro-batches and ranks, by the one count of its gradients.

        The Trainer takes the mean over ranks of what each returns, so this is the rank's part of it times their number.
        """
        mean = self._losses * (self.args.world_size / hook.last.samples)
        self._losses = torch.zeros_like(self._losses)
        if hook.last.finite:
            self.step_counts.taken += 1
            self.step_counts.losses += float(mean)
        return mean

    def _empty_cache(self) -> None:
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def _done_share(self) -> Tensor:
        """Of the optimizer steps of the whole run, those before this one: the same for every micro-batch of a step."""
        return torch.tensor(self.state.global_step / max(1, self.state.max_steps), dtype=torch.float64)

    def _combine(self, hook: Any) -> None:
        hook.asks_to_stop = self.stop is not None and self.stop.asked
        if self.is_deepspeed_enabled:
            hook.step()
        else:
            hook.combine()
        self.step_counts.skipped = hook.skipped
        self.loss.step(self._over_ranks, applied=hook.last is None or hook.last.finite)
        if hook.stops:
            self.interrupted = self.control.should_save = self.control.should_training_stop = True

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self._forget_half_a_step()
        return super()._prepare_for_training(*args, **kwargs)

    def _forget_half_a_step(self) -> None:
        """After memory ran out (`auto_find_batch_size`) the Trainer begins anew, on the weights as they are."""
        self._losses = torch.zeros_like(self._losses)
        if self.hook is not None:
            self._detach()
            self.hook = None
            self.loss = LearningLoss(self.loss.loss, self._facts)
            self.model.zero_grad(set_to_none=True)

    def _set_signature_columns_if_needed(self) -> None:
        """Facts are nothing that a model's forward takes, and are read all the same."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = [*(self._signature_columns or ()), *KNOWN_FACTS]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        super()._track_num_input_tokens(inputs_and_facts(inputs)[0])

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the Trainer counts them, of what the model is given."""
        return int(super().floating_point_ops(inputs_and_facts(inputs)[0]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log with what the last step did to the two gradients."""
        if "loss" in logs and self.hook is not None and self.hook.last is not None:
            logs |= self._step_figures(self.hook)
        super().log(logs, start_time)

    def layer_figures(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """What the last step did in each transformer layer, to go with a log of the training loss; else nothing."""
        done = self.hook.last if self.hook is not None and "loss" in logs else None
        if done is None or not done.removed_share_by_layer:
            return {}
        cosines = {"cosine_by_layer": dict(done.cosine_by_layer)} if self.rule.uses_bias else {}
        return {**cosines, "removed_share_by_layer": dict(done.removed_share_by_layer)}

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As `Trainer.train`; the model is left without hooks."""
        if isinstance(resume_from_checkpoint, os.PathLike):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True  # which the Trainer refuses
        if isinstance(resume_from_checkpoint, str):
            self.check_checkpoint(Path(resume_from_checkpoint))
        if isinstance(resume_from_checkpoint, str) and (done := self._done(Path(resume_from_checkpoint))):
            return done
        self.hook = None  # that of an earlier train() is detached
        if self.model_init is not None:  # the model begins anew, and so does what was learned beside the old one
            self.loss = LearningLoss(self.loss.loss, self._facts)
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
        self._own_terms.end()
        if self.hook is not None:
            self.hook.detach()

    def _terms_of(self, model: nn.Module, sharpness: Sharpness | None) -> OwnTerms:
        return OwnTerms(model, deepspeed=self.is_deepspeed_enabled, sharpness=sharpness.name if sharpness else "")

    def _attached(self, model: nn.Module) -> "TorchHook | ZeroHook":
        # Only now is the model wrapped (DDP, DeepSpeed) as it will be trained.
        if self.hook is None or self.hook.model is not model:
            self._own_terms.end()
            self._own_terms = self._terms_of(model, self.sharpness)  # before the hook, whose way depends on them
            options: Any = {"select": self.select, "max_nonfinite_steps": self.max_nonfinite_steps}
            options |= {"verify": self.verify, "weight_projection": self.weight_projection}
            options["gradient_mask"] = self.gradient_mask
            if self.is_deepspeed_enabled:
                self.hook = attach(model, self.rule, gradients=self.gradients, **options)
            else:
                # The Trainer steps; a rule that remembers asks the optimizer for its learning rate, others follow it.
                asked = self.rule.memory or self.weight_projection or self.gradient_mask
                options |= {"sharpness": self.sharpness, "weight_penalty": self.weight_penalty}
                self.hook = attach(model, self.optimizer if asked else None, self.rule, self.gradients, **options)
            self.hook.skipped = self.step_counts.skipped
            if self._resumed_from is not None and self.hook.remembers:
                self.hook.load_state_dict(rule_state_in(self._resumed_from, self.hook.remembers))
        return self.hook

    def _count_samples(self, samples: int) -> None:
        since, seen = self._since_log
        self._since_log = (since, seen + samples * self.args.world_size)

    def _step_figures(self, hook: Any) -> dict[str, float]:
        since, seen = self._since_log
        now = time.perf_counter()
        self._since_log = (now, 0.0)
        of_bias = ("bias_norm", "cosine") if self.rule.uses_bias else ()
        kept = () if self.rule.is_plain else ("main_norm", *of_bias, "removed_share")
        return {
            **{key: getattr(hook.last, key) for key in kept},
            "skipped_steps": hook.skipped,
            **({"measured_steps": hook.measured} if hook.measured else {}),
            "samples_per_second": round(seen / max(now - since, 1e-9), 3),
            "peak_memory_mb": peak_memory_mb(),
        }

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Without factors of the base, which a pull towards 0 would take apart; all where there is no decay."""
        names = super().get_decay_parameter_names(model)
        return [n for n in names if not self.args.weight_decay or FACTORS.isdisjoint(n.split("."))]

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
