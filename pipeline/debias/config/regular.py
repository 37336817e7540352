"""What may be opened: regular files alone. A pipe would be waited for without end, and a device has none."""

import os
import stat

from debias.errors import InputError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular(path: "str | os.PathLike[str]") -> str | None:
    """What a path is that is there and neither a regular file nor a folder; None for all else. Links are followed."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return KINDS.get(stat.S_IFMT(mode))


def check_regular(path: "str | os.PathLike[str]") -> None:
    """InputError for a pipe, a socket or a device."""
    if (kind := irregular(path)) is not None:
        raise InputError(f"{path}: is {kind}, expected a regular file")
