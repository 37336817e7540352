"""What every hook has, wherever its engine keeps gradients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines.followers import Followers
from debias.engines.parameters import strangers, whole_shape
from debias.engines.rule_state import MEMORY, RuleState
from debias.engines.step import StepReport
from debias.gradients import Again, GradientSource, MicroBatch, no_grad_weight
from debias.gradients.trials import leaves_of, trainable_of
from debias.methods import Rule


class Hook:
    """The rule, the way to two gradients, and what the last optimizer step did.

    `last` is its report; steps whose update is not finite are skipped on all ranks and counted in `skipped`, those by
    which a `gradient_mask` chooses its elements, and nothing is trained, in `measured`. Set
    `asks_to_stop` on any rank: `stops` is then true on all of them after the same step. A rule that remembers, or looks
    at how far the weights moved since the hook was attached, goes on exactly from `state_dict`.
    """

    def __init__(
        self,
        model: Any,
        state: RuleState,
        source: GradientSource,
        max_nonfinite_steps: int,
        followers: Followers | None = None,
    ) -> None:
        self.model = model
        self._followers = followers or Followers()
        self.rule: Rule = state.rule
        self.state = state
        self.source = source
        self.max_nonfinite_steps = max_nonfinite_steps
        self.skipped = 0
        self.measured = 0
        self.last: StepReport | None = None
        self.asks_to_stop, self.stops = False, False
        self._count = 0.0
        self._met = False  # whether a loss was looked at for parameters that are not the model's
        self._ran = False  # whether there was a backward for this step: its count may be 0 where nothing was answered

    def backward(
        self,
        loss_B: Tensor,
        weight_B: Tensor,
        *,
        count: float | None = None,
        again: Again | None = None,
        sample_index: Tensor | None = None,
        batch_loss: Tensor | None = None,
    ) -> None:
        """Add one micro-batch: `loss_B` [B] (summed over a sample's tokens), `weight_B` [B] its bias weights.

        In the place of `loss.backward()` or DeepSpeed's `engine.backward(loss)`. `count` is the micro-batch's share of
        the denominator (default B samples; give answer tokens for a mean over tokens). `again` is needed by two_pass
        and `sharpness` only: a function that runs a new forward and returns (loss_B, weight_B). `sample_index` [R, T]
        is the sample of each token (-1: padding) of a batch whose rows are not samples. `batch_loss`, a scalar mean
        (the load balancing loss of routers), is added to the loss of main alone. `loss_B[i]` must depend on sample i
        alone: of a loss that mixes samples (in-batch negatives) only shared_forward and two_pass know, by autograd,
        what is whose. Raises ValueError for shapes that do not fit and parameters that are not the model's,
        RuntimeError where the optimizer step that is due was left out or somebody else changed the gradients. Whatever
        it raises, the step begins anew: clear the gradients.
        """
        weight_B = no_grad_weight(weight_B, loss_B)
        count = loss_B.numel() if count is None else count
        # Gradients are sums until all ranks are in: a mean over the micro-batch counts as much as its samples do.
        extra = None if batch_loss is None else batch_loss * count
        self._before_backward()
        try:
            if not self._met:
                self._refuse_strangers(loss_B)
                self._met = True
            self._both(MicroBatch(loss_B, weight_B, again, sample_index, extra))
        except BaseException:
            self._forget()  # or half a pass stays in the bias gradient of a loop that goes on (memory that ran out)
            raise
        self._count += count
        self._ran = True
        self._after_backward()

    def _refuse_strangers(self, loss_B: Tensor) -> None:
        """ValueError where the loss trains parameters of another module, which nobody averages, reduces or clips."""
        own = {id(p) for p in trainable_of(self.model)}
        others = [p for p in leaves_of(loss_B, ()) if isinstance(p, nn.Parameter) and id(p) not in own]
        if others:
            raise ValueError(f"backward: {strangers(others)}")

    def _both(self, batch: MicroBatch) -> None:
        """Both gradients of a micro-batch, where they are taken."""
        self.source.backward(batch)

    def _before_backward(self) -> None:
        """Refuse a micro-batch that comes at the wrong time."""
        raise NotImplementedError

    def _after_backward(self) -> None:
        """Remember what the next call must find."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what was accumulated for this step."""
        raise NotImplementedError

    @property
    def gradients(self) -> str:
        """The name of the way to two gradients in use."""
        return self.source.name

    @property
    def selected(self) -> Mapping[str, nn.Parameter]:
        """The parameters the rule acts on, by name."""
        return self.source.selected

    @property
    def remembers(self) -> str:
        """The name of what goes on exactly from `state_dict` alone; empty where nothing does."""
        return self._followers.remembers if self.rule.is_stateless else self.rule.name

    def state_dict(self) -> dict[str, Tensor]:
        """What the rule keeps between steps, to be saved beside weights and optimizer: whole tensors on the CPU.

        The same on every rank, and for any number of ranks and any ZeRO stage to go on from. By parameter: `NAME/start`
        (the weights when the hook was attached), `NAME/moved_before`, `NAME/memory`, as far as the rule needs them;
        beside them the counts `steps` and `skipped`. Of what trains also `NAME/held_at` of a `weight_projection`, and
        of a `gradient_mask` that is chosen once `NAME/mask`, or `NAME/gradient_sum` until then. Collective under
        DeepSpeed and FSDP.
        """
        state = {"steps": torch.tensor(self.state.steps), "skipped": torch.tensor(self.skipped)}
        state |= self._followers.state(self._saved_name)
        for kind, part in self.state.parts().items():
            state |= {f"{self._saved_name(name)}/{kind}": whole for name, whole in self._whole(part).items()}
        return state | {f"{self._saved_name(name)}/{MEMORY}": t.cpu().clone() for name, t in self.state.memory.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict`, after the weights were loaded; every rank is given all of it.

        Raises ValueError, naming the tensor, where the state is of another rule or of other parameters; nothing has
        changed then.
        """
        ready, state = self._followers.load(state, self._saved_name)
        self._check_state(state)
        for go_on in ready:
            go_on()
        if self._followers.mask is not None:
            self.measured = self._followers.mask.measured
        for kind, part in self.state.parts().items():
            for name, held in part.items():
                held.copy_(self._piece(name, state[f"{self._saved_name(name)}/{kind}"]).view_as(held))
        for name in self.state.memory:
            self.state.memory[name] = state[f"{self._saved_name(name)}/{MEMORY}"].double()
        self.state.steps, self.skipped = int(state["steps"]), int(state["skipped"])

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        shapes: dict[str, torch.Size] = {"steps": torch.Size(), "skipped": torch.Size()}
        for name, parameter in self.selected.items():
            saved, whole = self._saved_name(name), whole_shape(parameter)
            shapes |= {f"{saved}/{kind}": whole for kind in self.state.parts()}
            if self.state.memory:
                shapes[f"{saved}/{MEMORY}"] = torch.Size([self.rule.memory])
        if odd := sorted(state.keys() ^ shapes.keys()):
            where = "the saved state" if odd[0] in state else f"what {self.rule.name} keeps here"
            raise ValueError(f"load_state_dict: {odd[0]} is only in {where} ({len(odd)} tensors differ)")
        for name, shape in shapes.items():
            if state[name].shape != shape:
                raise ValueError(
                    f"load_state_dict: {name} has shape {list(state[name].shape)}, {list(shape)} is wanted"
                )

    def _saved_name(self, name: str) -> str:
        """A parameter's name without what a wrapper puts before it."""
        return name

    def _whole(self, part: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors that are kept where the gradients are, put together from all ranks, on the CPU."""
        raise NotImplementedError

    def _piece(self, name: str, whole: Tensor) -> Tensor:
        """What of a whole tensor is kept on this rank."""
        raise NotImplementedError
