"""Folders that travel with the package: inside it in a wheel, beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped_folders(name: str) -> list[Path]:
    """Where the folder `name` (`recipes`, `templates`, `ds_configs`) may lie, the first that is there first."""
    checkout = PACKAGE.parents[1]
    places = (PACKAGE / name, checkout / name, checkout / "launch" / name)
    return [place for place in places if place.is_dir()]
