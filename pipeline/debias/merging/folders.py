"""Which folders are read and may be written: a run's adapters, and a place for what is made of them."""

from pathlib import Path

from debias.errors import InputError
from debias.runs.names import ADAPTER, CONFIG, METRICS, SUMMARY


def find_adapter(run: Path, name: str | None) -> Path:
    """The folder of an adapter: the run's own, one in the run's folder, or any; InputError that lists the run's."""
    places = [run / (name or ADAPTER), *([Path(name)] if name else [])]
    found = next((place for place in places if (place / "adapter_config.json").is_file()), None)
    if found is None:
        there = sorted(path.parent.name for path in run.glob("*/adapter_config.json"))
        raise InputError(f"adapter: {places[0]} holds no adapter_config.json; {run} has {', '.join(there) or 'none'}")
    return found


def check_place(out: Path, kept: list[Path]) -> None:
    """InputError unless `out` may be a folder: no file on the way, and none of what is read (`kept`) inside."""
    file = next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise InputError(f"{file}: is a file, expected a folder")
    for place in kept:
        if place.exists() and place.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds {place}, which is read here; choose another folder")


def check_out(out: Path, kept: list[Path], overwrite: bool) -> None:
    """As `check_place`, and InputError unless `out` is empty or may be replaced."""
    check_place(out, kept)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: is not empty; choose another folder, or give --overwrite to replace all in it")


def run_around(out: Path) -> Path | None:
    """The run's folder that `out` is or lies in, None where there is none."""
    return next((place for place in (out, *out.parents) if _is_run(place)), None)


def _is_run(place: Path) -> bool:
    """Other projects have a `config.yaml` too; one that was begun has more."""
    return (place / CONFIG).is_file() and any((place / name).exists() for name in (SUMMARY, METRICS, ADAPTER))
