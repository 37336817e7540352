"""What follows a rule in each step: a mask of its update, and what is done to weights after the optimizer's step."""

from collections.abc import Callable, Mapping

from torch import Tensor

from debias.engines.element_mask import ElementMask
from debias.engines.grounds import Ground
from debias.engines.weight_projection import ProjectedSteps
from debias.masks import Mask
from debias.projections import Projection


class Followers:
    """Of a run that has neither, nothing. Raises ValueError for an optimizer whose steps cannot be followed."""

    def __init__(
        self,
        ground: Callable[[], Ground] | None = None,
        gradient_mask: Mask | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.mask: ElementMask | None = None
        self.projected: ProjectedSteps | None = None
        if ground is None or (gradient_mask is None and projection is None):
            return
        found = ground()
        self.mask = None if gradient_mask is None else ElementMask(found, gradient_mask)
        self.projected = None if projection is None else ProjectedSteps(found, projection)
        if self.projected is not None and self.mask is not None:
            # A step is what it leads to once elements are back; what is taken back of it moves them again.
            self.mask.last_too()

    @property
    def remembers(self) -> str:
        """The name of what goes on exactly from its state alone; empty where nothing does."""
        of_mask, projected = "" if self.mask is None else self.mask.remembers, self.projected
        return of_mask or (projected.projection.name if projected is not None and projected.keeps else "")

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for one in (self.projected, self.mask):
            if one is not None:
                one.detach()

    def state(self, saved: Callable[[str], str]) -> dict[str, Tensor]:
        """Of what trains `NAME/held_at` of a `weight_projection`, and of a `gradient_mask` that is chosen once
        `NAME/mask`, or `NAME/gradient_sum` until then. Collective where either is in pieces.
        """
        held = {} if self.projected is None else self.projected.state(saved)
        return held | ({} if self.mask is None else self.mask.state(saved))

    def load(
        self, state: Mapping[str, Tensor], saved: Callable[[str], str]
    ) -> tuple[list[Callable[[], None]], dict[str, Tensor]]:
        """What goes on from `state`, each when it is called, and what of it is not theirs. ValueError, before anything
        has changed, where it is of other parameters.
        """
        left, ready = dict(state), []
        for one in (self.projected, self.mask):
            if one is not None:
                go_on, left = one.load(left, saved)
                ready.append(go_on)
        return ready, left
