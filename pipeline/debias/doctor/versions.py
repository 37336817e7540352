"""Versions known to break together: the bounds of this package and of those it stands on, from their metadata."""

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from debias.doctor.check import Check, bad, fine, warn

SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "bitsandbytes")
# Whose own requirements must hold as well: what one of them wants of another.
CHECKED = (*SHOWN, "tokenizers", "safetensors", "deepspeed", "flash_attn", "torchvision", "lm_eval")
# "": what every run needs. Those of development are no business of a run.
EXTRAS = ("", "deepspeed", "quant", "flash", "eval", "harness", "vision")


def versions() -> list[Check]:
    """A bad line for each requirement that does not hold, or one line with the versions."""
    try:
        found = list(_unmet("debias", EXTRAS))
    except metadata.PackageNotFoundError:
        return [warn("versions", "debias is not installed, so its bounds are not known", "pip install -e .")]
    for name in CHECKED:
        if version_of(name) is not None:
            found += _unmet(name, ("",))
    shown = [f"{name} {version}" for name in SHOWN if (version := version_of(name))]
    return list(dict.fromkeys(found)) or [fine("versions", ", ".join(shown))]


def deepspeed() -> Check:
    """DeepSpeed beside the rest: its engine's private attributes are named as of the version in the bounds."""
    version = version_of("deepspeed")
    if version is None:
        return fine("deepspeed", "not installed (needed for `deepspeed:` alone)")
    wrong = [one for one in _unmet("debias", ("deepspeed",)) if one.found.startswith("deepspeed ")]
    return bad("deepspeed", version, wrong[0].cure) if wrong else fine("deepspeed", version)


def version_of(name: str) -> str | None:
    """The installed version, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(owner: str, extras: tuple[str, ...]) -> Iterator[Check]:
    """What `owner` requires and has not. Only this package's own base requirements can be absent: conda names others'
    otherwise, and extras are a choice."""
    for extra in extras:
        for need in _requirements(owner, extra):
            version = version_of(need.name)
            cure = f"pip install '{need.name}{need.specifier}'"
            if version is None:
                if owner == "debias" and not extra:
                    yield bad("versions", f"{need.name} is not installed", cure)
            elif not need.specifier.contains(version, prereleases=True):
                wanted = owner if owner == "debias" else f"{owner} {version_of(owner)}"
                yield bad("versions", f"{need.name} {version}, but {wanted} needs {need.specifier}", cure)


def _requirements(owner: str, extra: str) -> Iterator[Requirement]:
    for text in metadata.requires(owner) or ():
        need = Requirement(text)
        marked = need.marker is not None and "extra" in str(need.marker)
        if marked == bool(extra) and (need.marker is None or need.marker.evaluate({"extra": extra})):
            yield need
