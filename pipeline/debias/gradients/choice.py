"""Which way to two gradients: decided here, once, for the engines, the Trainer, the plan and the settings."""

from collections.abc import Callable
from dataclasses import dataclass

WAYS = ("single_pass", "shared_forward", "two_pass")

# single_pass keeps a whole float32 bias gradient on every rank: nothing for adapters, too much for a model that is
# sharded because it does not fit. Above both of these, `auto` takes two_pass at stages 2 and 3.
LARGEST_LOCAL_SHARE = 0.1
LARGEST_LOCAL_BYTES = 1 << 30


@dataclass(frozen=True)
class Choice:
    """The way that is taken (`plain`: an ordinary backward pass), and why `auto` does not take single_pass."""

    name: str
    why: str | None = None


def choose(
    asked: str,
    refusal: Callable[[], str | None] = lambda: None,
    *,
    uses_bias: bool = True,
    stage: int = 0,
    selected: int = 0,
    whole: int = 0,
    compiled: bool = False,
) -> Choice:
    """The way to two gradients that `asked` (`auto`, or one of WAYS) comes to.

    `refusal`: why single_pass would not be exact, asked where that matters. `stage`: of ZeRO; `selected` of `whole`
    elements train with two gradients. Raises ValueError for an unknown way, and for one that is asked for and would be
    wrong, with the reason.
    """
    if asked not in ("auto", *WAYS):
        raise ValueError(f"gradients is {asked!r}, not one of auto, {', '.join(WAYS)}")
    if compiled and asked == "single_pass":
        raise ValueError(
            "torch_compile goes with gradients auto, shared_forward or two_pass: single_pass leaves the bias gradient"
            " beside the graph, where compiled code leaves nothing"
        )
    if stage == 3 and asked == "shared_forward":
        raise ValueError(
            "gradients 'shared_forward' is not safe at stage 3: DeepSpeed gathers the weights for one backward pass of"
            " a forward, the second would use empty ones; use auto or two_pass"
        )
    if not uses_bias:
        return Choice("plain")
    if asked == "single_pass" and (reason := refusal()):
        raise ValueError(f"gradients 'single_pass' is not exact here: {reason}; use auto or shared_forward")
    return Choice(asked) if asked != "auto" else _auto(refusal, stage, selected, whole)


def _auto(refusal: Callable[[], str | None], stage: int, selected: int, whole: int) -> Choice:
    share = selected / whole if whole else 0.0
    if stage >= 2 and share > LARGEST_LOCAL_SHARE and 4 * selected > LARGEST_LOCAL_BYTES:
        return Choice(
            "two_pass",
            f"single_pass would keep a float32 gradient of {100 * share:.0f} % of the model on every rank",
        )
    if reason := refusal():
        return Choice(slower(stage), f"single_pass is not exact here: {reason}")
    return Choice("single_pass")


def slower(stage: int) -> str:
    """What takes the place of single_pass: exact for any model, at any stage of ZeRO."""
    return "two_pass" if stage == 3 else "shared_forward"
