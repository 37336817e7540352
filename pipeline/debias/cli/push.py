"""The verb that uploads what a run trained."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from debias.cli.printing import AsJson


def add_to(app: typer.Typer) -> None:
    """Give the command line the verb of this file."""
    app.command()(push)


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    repo: Annotated[str, typer.Option("--repo", help="OWNER/NAME on the model hub; made where it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that others cannot see.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes, and ask nobody.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a run's adapter, tokenizer, labels and card to a model hub; the token is that of `hf auth login`."""
    from debias.push.private import shown, shown_base
    from debias.push.pushing import push as pushed
    from debias.push.pushing import uploads
    from debias_eval.reporting.card import text_for
    from debias_eval.results.runs import read_runs

    (found,) = read_runs([run])
    model = str(found.config.get("model", "an unrecorded base model"))
    config = {**shown(found.config), "model": shown_base(model)[0]}
    text, by_hand = text_for(dataclasses.replace(found, config=config))
    done = pushed(uploads(found.path, model, text, by_hand=by_hand), repo, private=private, dry_run=dry_run)
    typer.echo(json.dumps(dataclasses.asdict(done), indent=2) if as_json else "\n".join(done.lines))
