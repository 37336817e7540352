"""One thing that was looked at, and how a look that goes wrong becomes a line and not a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from debias.errors import InputError

Severity = Literal["bad", "warn"]


@dataclass(frozen=True)
class Check:
    """What was found under a name, with the cure in one line where it is not `ok`.

    `severity` says what a check that is not ok means: `bad` stops a run or makes it wrong, `warn` makes it slow or may
    stop it later.
    """

    name: str
    ok: bool
    found: str
    cure: str = ""
    severity: Severity = "bad"

    @property
    def stops(self) -> bool:
        """Whether a run must not be started."""
        return not self.ok and self.severity == "bad"

    @property
    def line(self) -> str:
        """For people."""
        word = "ok  " if self.ok else "BAD " if self.stops else "WARN"
        return f"{word} {self.name}: {self.found}{self.cure and f'; cure: {self.cure}'}"


def fine(name: str, found: str) -> Check:
    """Nothing is wrong, or the question does not arise here."""
    return Check(name, True, found)


def bad(name: str, found: str, cure: str) -> Check:
    """A run would stop, hang or be wrong."""
    return Check(name, False, found, cure)


def warn(name: str, found: str, cure: str) -> Check:
    """A run would be slow, or might stop later."""
    return Check(name, False, found, cure, "warn")


def from_error(
    name: str, error: InputError, cure: str = "correct the config, or give the setting as key=value"
) -> Check:
    """The line of an InputError, which mostly ends with its cure behind a semicolon."""
    found, semicolon, advice = str(error).rpartition("; ")
    return bad(name, found, advice) if semicolon else bad(name, advice, cure)


def guarded(name: str, look: Callable[[], Check | Sequence[Check]]) -> list[Check]:
    """What `look` found; an error of any kind is a bad line of that name."""
    try:
        found = look()
    except InputError as error:
        return [from_error(name, error)]
    except Exception as error:  # what a broken installation raises has no limits
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return [bad(name, f"could not be looked at: {type(error).__name__}: {first}", "see the error's own words")]
    return [found] if isinstance(found, Check) else list(found)
