"""Which runs of a sweep were chosen by the test's own answers, as the sweep's records tell."""

from pathlib import Path
from typing import Any

from debias.runs.records import read_records

RECORDS = "records.jsonl"
# A run lies at RECIPE/SETTINGS/seedN below its sweep.
DEPTH = 3


def oracle_choice(run: Path) -> str | None:
    """`oracle (SUITE)` for a run that was last chosen so by `debias select`; None for any other."""
    run = Path(run).resolve()
    for sweep in list(run.parents)[:DEPTH]:
        chosen = [one for one in read_records(sweep / RECORDS)[0] if one["event"] == "selected"]
        mine = [one for one in chosen if str(run.relative_to(sweep)) in _listed(one.get("runs"))]
        if mine:
            return f"oracle ({mine[-1].get('suite')})" if mine[-1].get("rule") == "oracle" else None
    return None


def sweep_of(run: Path) -> Path | None:
    """The nearest folder above a run that keeps a sweep's records; None for a run of no sweep."""
    return next((above for above in list(run.parents)[:DEPTH] if (above / RECORDS).is_file()), None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
