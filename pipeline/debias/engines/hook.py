"""What every hook has, wherever its engine keeps gradients."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from debias.engines.step import StepReport
from debias.gradients import Again, GradientSource
from debias.methods import Rule


class Hook:
    """The rule, the way to two gradients, and what the last optimizer step did.

    `last` is its report; steps whose update is not finite are skipped on all ranks and counted in `skipped`. Set
    `asks_to_stop` on any rank: `stops` is then true on all of them after the same step.
    """

    def __init__(self, model: Any, rule: Rule, source: GradientSource, max_nonfinite_steps: int) -> None:
        self.model = model
        self.rule = rule
        self.source = source
        self.max_nonfinite_steps = max_nonfinite_steps
        self.skipped = 0
        self.last: StepReport | None = None
        self.asks_to_stop, self.stops = False, False
        self._count = 0.0

    def _add(
        self,
        loss_B: Tensor,
        weight_B: Tensor,
        count: float | None,
        again: Again | None,
        sample_index: Tensor | None,
        batch_loss: Tensor | None,
    ) -> None:
        """One micro-batch to what is accumulated; a mean over it counts as much as its samples do."""
        count = loss_B.numel() if count is None else count
        extra = None if batch_loss is None else batch_loss * count
        self.source.backward(loss_B, weight_B, again, sample_index=sample_index, batch_loss=extra)
        self._count += count

    @property
    def gradients(self) -> str:
        """The name of the way to two gradients in use."""
        return self.source.name

    @property
    def selected(self) -> Mapping[str, nn.Parameter]:
        """The parameters the rule acts on, by name."""
        return self.source.selected
