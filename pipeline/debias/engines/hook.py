"""What every hook has, wherever its engine keeps gradients."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from debias.engines.step import StepReport
from debias.gradients import GradientSource
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

    @property
    def gradients(self) -> str:
        """The name of the way to two gradients in use."""
        return self.source.name

    @property
    def selected(self) -> Mapping[str, nn.Parameter]:
        """The parameters the rule acts on, by name."""
        return self.source.selected
