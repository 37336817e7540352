"""Model cards' templates, compiled once a process: of a tiny run that saves, compiling them is a third."""

from functools import lru_cache

from jinja2 import Environment


def compile_once() -> None:
    """Environments that the library shares give the same template for the same text."""
    if not hasattr(Environment.from_string, "cache_info"):
        Environment.from_string = lru_cache(maxsize=256)(Environment.from_string)
