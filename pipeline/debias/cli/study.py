"""The verb for methods on one testbed over seeds, whose finished runs are kept in a file."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from debias.cli.judge import closings
from debias.cli.printing import AsJson, print_table
from debias.errors import InputError

if TYPE_CHECKING:
    from debias.sweep.grid import PlannedRun
    from debias.sweep.runner import Judge
    from debias.sweep.study import Keeper


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(study)


def study(
    files: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="The study's YAML file, or several.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Make the runs that are not kept yet, in this folder.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm's runs; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Methods by testbeds as a page, of one study or several."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="The tables, as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Methods on one testbed over seeds: make the runs that are missing, and say what each method closes of the gap.

    Finished runs are kept in a file beside STUDY (its name ends in .jsonl) without their weights, and are not made
    again. The same command goes on where it stopped. Without -o nothing is run: what is kept is shown. Several studies
    are laid side by side: what each method closes on each testbed, what it loses where nothing misleads, and its cost.
    """
    if len(files) > 1 or page is not None:
        if out is not None or arm or dry_run:
            raise InputError("-o, --arm and --dry-run are of one study, and without --page; leave them out")
        _side_by_side(files, page, markdown, as_json)
        return
    (file,) = files
    _one(file, out, arm or [], jobs, dry_run, markdown, as_json)


def _one(
    file: Path, out: Path | None, arm: list[str], jobs: int, dry_run: bool, markdown: Path | None, as_json: bool
) -> None:
    from debias.sweep.study import Keeper, kept_beside, plan_study, read_study, suites_of
    from debias_eval.judging.missing import Missing

    planned = read_study(file)
    judge = Missing(suites_of(planned, file), planned.limit)
    versions = {one.name: one.version for one in judge.suites.values()}
    keeper = Keeper(kept_beside(file), versions, planned.limit, judge.of_its_rows)
    runs = plan_study(planned, file, out or Path(), arm)
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
        held = _unpacked(keeper, plan_study(planned, file, out or Path()), Path(place))
        try:
            closings([str(held)], planned.floor, planned.ceiling, planned.group, markdown, as_json, arms=True)
        except InputError as error:
            if out is None:
                raise
            sys.stderr.write(f"all runs that were asked for are kept; no table yet: {error}\n")


def _unpacked(keeper: "Keeper", runs: "Sequence[PlannedRun]", place: Path) -> Path:
    """The kept runs of the study as it is now, laid below `place`."""
    held = place.resolve() / keeper.path.stem
    held.mkdir()
    if others := keeper.unpack(runs, held):
        sys.stderr.write(f"left out of {keeper.path}, not of the study as it is now: {', '.join(others)}\n")
    return held


def _side_by_side(files: "Sequence[Path]", page: Path | None, markdown: Path | None, as_json: bool) -> None:
    from debias.runs.outputs import check_files
    from debias.runs.whole import write_or_say
    from debias_eval.comparing.testbeds import read_testbed
    from debias_eval.reporting import testbeds as shown

    check_files({name: path for name, path in (("--page", page), ("--markdown", markdown)) if path})
    with tempfile.TemporaryDirectory(prefix="debias-kept-") as place:
        beds = [read_testbed(_bed(file, Path(place) / str(i))) for i, file in enumerate(files)]
    if page:
        typer.echo(shown.write_testbeds(beds, page))
    if markdown:
        write_or_say(markdown, shown.markdown_of(beds).encode())
    if as_json:
        typer.echo(json.dumps(shown.as_dict(beds), indent=2, allow_nan=False))
    elif not page:
        for table in shown.tables_of(beds):
            print_table(table)
        typer.echo("\n".join([*shown.findings(beds), *shown.notes_of(beds)]))


def _bed(file: Path, place: Path) -> Any:
    """A study as a testbed, its kept runs unpacked below `place`."""
    from debias.sweep.study import Keeper, kept_beside, plan_study, read_study, suites_of
    from debias_eval.comparing.testbeds import Bed
    from debias_eval.judging.missing import Missing

    study = read_study(file)
    judge = Missing(suites_of(study, file), study.limit)
    versions = {one.name: one.version for one in judge.suites.values()}
    suites = [*versions]
    if study.floor is None or study.ceiling is None or not suites:
        raise InputError(f"{file}: no gap to lay beside another: it needs suites, and a floor and a ceiling")
    clean, _, group = (study.clean or "").partition("/")
    if clean and clean not in suites:
        raise InputError(f"{file}: clean is {study.clean!r}, on no suite of the study; they are {', '.join(suites)}")
    place.mkdir()
    keeper = Keeper(kept_beside(file), versions, study.limit, judge.of_its_rows)
    folder = _unpacked(keeper, plan_study(study, file, Path()), place)
    if not any(folder.iterdir()):
        raise InputError(f"{keeper.path} keeps no run of the study yet; make them with `debias study {file} -o FOLDER`")
    where = (study.floor, study.ceiling, suites[0], study.group)
    return Bed(study.name, folder, tuple(study.arms), *where, (clean, group or "all") if clean else None)


def _make(left: "Sequence[PlannedRun]", out: Path, judge: "Judge", jobs: int, keeper: "Keeper") -> None:
    from debias.runs.outputs import check_output
    from debias.sweep.runner import Sweep

    check_output(out)
    work = Sweep(left, out, judge, jobs, done=keeper.add)
    work.run()
    if work.failed:
        sys.stderr.write("".join(f"failed: {name}: {why}\n" for name, why in work.failed.items()))
        raise typer.Exit(1)
