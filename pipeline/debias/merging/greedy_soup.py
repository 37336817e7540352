"""The greedy soup (Wortsman et al., ICML 2022, arXiv 2203.05482): an average of those models that help it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.merging.edits import Edit, HeldOut, LowRank, Tried
from debias.merging.soup import Soup, check_rank


@dataclass(frozen=True)
class GreedySoup(Edit):
    """The average of those adapters, best first, that do not make the accuracy on validation data smaller (Recipe 1).

    Adapters are sorted by their accuracy on the validation rows of their runs; the first is in, and each of the others
    stays in if the uniform soup with it is at least as good there as without it. These rows are a choice's own: what is
    claimed of the result is judged on a suite, which never takes part. `rank`: at most so many singular directions are
    kept, in the candidates too.

    Needs adapters that may be averaged (`soup`), and of the run of each its settings, which name the same
    `data.validation`. Costs `2 N - 1` passes over those rows for N adapters, each with the base loaded anew. Fails
    where validation data have the shortcut of the training data: what leans on it most is best there. Accuracy over
    pseudo groups would not, and is not offered here.

    Source: Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482, Recipe 1.
    """

    name: ClassVar[str] = "greedy_soup"
    takes_several: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    rank: int | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def check(self, adapters: int) -> None:
        """ValueError unless there is something to choose from."""
        if adapters < 2:
            raise ValueError(f"greedy_soup chooses among two adapters or more, {adapters} given")

    def choose(self, adapters: int, held_out: HeldOut) -> list[Tried]:
        """Best first; of equals the one that was given first."""
        alone = [held_out([member]) for member in range(adapters)]
        kept: list[int] = []
        best, tried = float("-inf"), []
        for member in sorted(range(adapters), key=lambda one: -alone[one]):
            together = held_out([*kept, member]) if kept else alone[member]
            if together >= best:
                best, kept = together, [*kept, member]
            tried.append(Tried(member, alone[member], together, kept=kept[-1] == member))
        return tried

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The average of those chosen."""
        return Soup(rank=self.rank).change(changes)

    def whole(self, tensors: Sequence[Tensor]) -> Tensor:
        """The average of those chosen."""
        return Soup().whole(tensors)
