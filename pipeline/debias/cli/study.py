"""The verb for methods on one testbed over seeds, whose finished runs are kept in a file."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from debias.cli.judge import closings
from debias.cli.printing import AsJson
from debias.errors import InputError

if TYPE_CHECKING:
    from debias.sweep.grid import PlannedRun
    from debias.sweep.runner import Judge
    from debias.sweep.study import Keeper


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(study)


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study's YAML file.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Make the runs that are not kept yet, in this folder.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm's runs; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="The tables, as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Methods on one testbed over seeds: make the runs that are missing, and say what each method closes of the gap.

    Finished runs are kept in a file beside STUDY (its name ends in .jsonl) without their weights, and are not made
    again. The same command goes on where it stopped. Without -o nothing is run: what is kept is shown.
    """
    from debias.sweep.study import Keeper, kept_beside, plan_study, read_study
    from debias_eval.judging.missing import Missing

    planned = read_study(file)
    judge = Missing(planned.suites, planned.limit)
    keeper = Keeper(kept_beside(file), {name: suite.version for name, suite in judge.suites.items()}, planned.limit)
    runs = plan_study(planned, file, out or Path(), arm or ())
    left = [run for run in runs if not keeper.holds(run)]
    if dry_run:
        typer.echo(f"{len(runs) - len(left)} of {len(runs)} runs are kept in {keeper.path}")
        for run in left:
            typer.echo(f"to do: {run.name}")
        return
    if out is not None:
        _make(left, out, judge, jobs, keeper)
    elif len(left) == len(runs):
        raise InputError(f"{keeper.path} keeps no run of the study yet; give -o FOLDER to make them")
    if planned.floor is None or planned.ceiling is None:
        return
    with tempfile.TemporaryDirectory(prefix="debias-kept-") as place:
        held = Path(place).resolve() / keeper.path.stem
        others = keeper.unpack(plan_study(planned, file, out or Path()), held)
        if others:
            sys.stderr.write(f"left out of {keeper.path}, not of the study as it is now: {', '.join(others)}\n")
        closings([str(held)], planned.floor, planned.ceiling, planned.group, markdown, as_json, arms=True)


def _make(left: "Sequence[PlannedRun]", out: Path, judge: "Judge", jobs: int, keeper: "Keeper") -> None:
    from debias.runs.outputs import check_output
    from debias.sweep.runner import Sweep

    check_output(out)
    work = Sweep(left, out, judge, jobs, done=keeper.add)
    work.run()
    if work.failed:
        sys.stderr.write("".join(f"failed: {name}: {why}\n" for name, why in work.failed.items()))
        raise typer.Exit(1)
