"""What of a text is about this machine: paths, which a stranger can neither use nor should know."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# A path from the root or from a home, of two parts at least, that is not inside a longer word, an address or a regex.
LOCAL = re.compile(
    r"(?<![\w./:~\\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;:(){}\[\]<>|*]+[/\\])+[^\s/\\'\"`,;:(){}\[\]<>|*]*"
)
# Where a loader keeps the place it read from.
PLACES = ("base_model_name_or_path", "_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")


def is_local(value: str) -> bool:
    """Whether a setting is a path of this machine: absolute, or from a home."""
    return value.startswith(("/", "~")) or re.match(r"[A-Za-z]:[/\\]", value) is not None


def shown_base(name: str) -> tuple[str, bool]:
    """What a base model is called elsewhere, and whether that is an id on the hub: of a local folder its name alone."""
    if is_local(name) or name.startswith(".") or Path(name).is_dir():
        return Path(name).name, False
    return name, ":" not in name


def shown(settings: Any) -> Any:
    """Settings of a run as others may read them: of a path of this machine its last part alone."""
    if isinstance(settings, Mapping):
        return {key: shown(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [shown(value) for value in settings]
    return Path(settings).name if isinstance(settings, str) and is_local(settings) else settings


def without_paths(text: str, places: tuple[Path, ...] = ()) -> str:
    """The text with each path of this machine cut down to its last part; `places` are found with spaces in them too."""
    for place in sorted({str(one) for one in places}, key=len, reverse=True):
        text = text.replace(f"{place}{os.sep}", "").replace(place, Path(place).name)
    return LOCAL.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def settings_without_paths(content: bytes, base: str) -> bytes:
    """A JSON file of settings: the base by its name elsewhere, other places left out; bytes that need no change stay.

    ValueError where it is no JSON.
    """
    settings = json.loads(content)
    if not isinstance(settings, dict) or not any(_place(settings, key) for key in PLACES):
        return content
    for key in PLACES:
        if _place(settings, key) and key in ("base_model_name_or_path", "_name_or_path"):
            settings[key] = base
        elif _place(settings, key):
            del settings[key]
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


def _place(settings: dict[str, Any], key: str) -> bool:
    value = settings.get(key)
    return isinstance(value, str) and (is_local(value) or value.startswith(".") or Path(value).exists())


def paths_in_settings(content: bytes) -> Iterator[str]:
    """Paths of this machine that are values in a JSON file."""
    todo = [json.loads(content)]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str) and (found := LOCAL.match(value)) and found[0] == value:
            yield value
