"""Paths as a shell would write them out: `~`, `$NAME` and `${NAME}`, in settings and on the command line alike."""

import os
import re

from debias.errors import InputError

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(path: str) -> str:
    """The path written out; one that is there as it stands is left as it is.

    InputError for a variable that is not set, and for the home of somebody who is not known here: a folder called
    `$SCRATCH` would be made otherwise.
    """
    if not path.startswith("~") and "$" not in path:
        return path
    if os.path.lexists(path):
        return path
    whole = os.path.expanduser(VARIABLE.sub(lambda found: _value(path, found[1] or found[2]), path))
    if whole.startswith("~"):
        raise InputError(f"{path!r}: no such user here; write the folder out")
    return whole


def _value(path: str, name: str) -> str:
    if name.isdigit():
        return f"${name}"  # no variable of anybody's
    if not os.environ.get(name):
        raise InputError(f"{path!r}: the variable {name} is not set; set it, or write the folder out")
    return os.environ[name]


def expanded_words(words: list[str]) -> list[str]:
    """The words of a command with their paths written out; `key=value` is a setting, whose reader does it itself."""
    found = []
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--") and equals and "=" not in value:
            found.append(f"{option}={expanded(value)}")
        else:
            found.append(word if equals else expanded(word))
    return found
