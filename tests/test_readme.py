"""README promises nothing that is not there: Python runs, commands parse, settings validate, the tree exists.

Of every page: rows of a table have as many cells as its head (else GitHub shows raw text), and links lead somewhere.
"""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from debias.config.places import find_recipe
from debias.config.reading import load_config, parse
from debias.config.run import RunConfig
from debias_eval.reading.suite import load_suite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    page
    for top in (".", "pipeline", "eval", "launch", "ds_configs", "tests")
    for page in (ROOT / top).glob("*.md" if top == "." else "**/*.md")
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Of all pages, each once."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        joined = "".join(blocks("bash", text)).replace("\\\n", " ")
        lines = [line.split("#")[0].strip() for line in joined.splitlines()]
        inline = re.findall(r"`((?:debias|make) [^`|]+)`", text)
        found |= {tuple(shlex.split(line)): None for line in [*lines, *inline] if line and "..." not in line}
    return [list(words) for words in found if words]


def test_there_are_commands_to_check():
    assert len(commands()) >= 50
    assert blocks("python")
    assert blocks("yaml")


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_is_real(words, monkeypatch):
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert set(words[1:]) <= targets
        return
    if words[0] == "for" or words[0] != "debias":
        pytest.skip("not one of ours")
    import typer.main

    from debias.cli.app import app

    command = typer.main.get_command(app)
    arguments = words[1:]
    while arguments and hasattr(command, "commands"):
        assert arguments[0] in command.commands, f"no such verb: {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if words[2:] == arguments == []:
        return  # the name of a verb, in a sentence
    context = command.make_context(words[1], arguments)
    if words[1] == "train":
        monkeypatch.chdir(ROOT)
        config = load_config(find_recipe(Path(context.params["config"])), context.params["overrides"] or [])
        assert config.output_dir


@pytest.mark.parametrize("text", blocks("yaml"))
def test_settings_validate(text):
    assert parse(RunConfig, yaml.safe_load(text), where="README")


def test_the_suite_of_ones_own_is_read(tmp_path):
    (text,) = blocks("yaml", (ROOT / "eval" / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "suite.yaml").write_text(text, encoding="utf-8")
    suite = load_suite(str(tmp_path / "suite.yaml"))
    assert suite.gap.conflicting == ("negated",)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, capsys, monkeypatch):
    if "import deepspeed" in code:
        pytest.importorskip("deepspeed")
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what a block sets for its process group ends with it
    exec(compile(code, "README.md", "exec"), {})
    cosine, removed = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert -1 <= cosine <= 1
    assert removed > 0


def test_tree_exists():
    tree = next(block for block in blocks("text") if "pipeline/debias/" in block)
    package = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        folder = package / name if line.startswith("  ") else ROOT / name
        assert folder.exists(), f"README's tree names {name}"
        package = package if line.startswith("  ") else folder
    for file in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert any(list((ROOT / top).rglob(file)) for top in ("pipeline", "eval")), f"README's tree names {file}"


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row.strip().strip("|"))) + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_of_a_table_are_alike(page):
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8") + "\n", flags=re.MULTILINE)
    for table in tables:
        head, ruler, *rows = table.splitlines()
        assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", ruler), f"no ruler under {head}"
        assert {cells(row) for row in (ruler, *rows)} == {cells(head)}, head


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = page.parent / place if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link
