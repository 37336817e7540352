"""The pages promise nothing that is not there: Python runs, commands parse, settings validate, the tree exists.

Of every page: rows of a table have as many cells as its head (else GitHub shows raw text), and links lead somewhere.
"""

import os
import re
import runpy
import shlex
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from loops_of_others import programs

from debias.building.cards import cards
from debias.config.places import find_recipe
from debias.config.reading import load_config, parse
from debias.config.run import RunConfig
from debias.runs.kept import kept, result_of, unpack
from debias.sweep.study import read_study
from debias_eval.comparing.closing import closings_in
from debias_eval.comparing.testbeds import Bed, read_testbed
from debias_eval.reading.suite import load_suite
from debias_eval.reporting.testbeds import lines_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LONGEST_README, LONGEST_LINE = 150, 200
PAGES = sorted(
    page
    for top in (".", "pipeline", "eval", "launch", "ds_configs", "tests")
    for page in (ROOT / top).glob("*.md" if top == "." else "**/*.md")
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def of_all_pages(language: str) -> list[str]:
    return [block for page in PAGES for block in blocks(language, page.read_text(encoding="utf-8"))]


def settings_blocks() -> list[str]:
    """Blocks of YAML that are a run; the one of a suite is read below."""
    return [text for text in of_all_pages("yaml") if "model" in yaml.safe_load(text)]


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
    assert len(of_all_pages("python")) >= 2
    assert blocks("diff")
    assert blocks("yaml")
    assert len(settings_blocks()) >= 3


def test_a_newcomer_can_read_it():
    lines = README.splitlines()
    assert len(lines) <= LONGEST_README
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


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


@pytest.mark.parametrize("text", settings_blocks())
def test_settings_validate(text):
    assert parse(RunConfig, yaml.safe_load(text), where="page")


def test_the_suite_of_ones_own_is_read(tmp_path):
    (text,) = blocks("yaml", (ROOT / "eval" / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "suite.yaml").write_text(text, encoding="utf-8")
    suite = load_suite(str(tmp_path / "suite.yaml"))
    assert suite.gap.conflicting == ("negated",)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("code", [code for code in of_all_pages("python") if code not in programs()])
def test_python_runs(code, capsys, monkeypatch):
    if "import deepspeed" in code:
        pytest.importorskip("deepspeed")
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what a block sets for its process group ends with it
    exec(compile(code, "page.md", "exec"), {})
    cosine, removed = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert -1 <= cosine <= 1
    assert removed > 0


class Tiny(torch.nn.Module):
    """What the loop of README's diff trains: a layer, and a head that the rule leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(torch.tanh(self.body(inputs))))


def side(diff: str, dropped: str) -> str:
    """A diff without the lines of one side: `+` gives the loop as it was, `-` as it becomes."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith(dropped))


def test_the_diff_of_a_loop_runs_on_both_sides():
    (diff,) = blocks("diff")
    trained = []
    for dropped in "+-":
        torch.manual_seed(0)
        model = Tiny()
        start = model.body.weight.detach().clone()
        batches = [({"inputs": torch.randn(8, 4)}, torch.randint(0, 3, (8,))) for _ in range(3)]
        names: dict[str, Any] = {"torch": torch, "model": model, "batches": batches}
        exec(side(diff, dropped), names | {"cross_entropy": torch.nn.functional.cross_entropy})
        assert (model.body.weight != start).any()
        trained.append(model.body.weight.detach())
    assert (trained[0] != trained[1]).any()


def test_three_lines_of_the_loop_change():
    """Imports aside: one is new, two take the place of others; and a whole program of the pages has their calls."""
    new = [line[1:].strip() for line in blocks("diff")[0].splitlines() if line[:1] == "+" and "import" not in line]
    assert len(new) == 3
    whole = blocks("python", (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8"))[0]
    assert all(
        call in whole for call in ("hook = attach(", "hook.backward(loss_B, gce_weight(-loss_B))", "hook.step()")
    )


def test_the_table_of_methods_is_true():
    rows = re.findall(
        r"^\| (rule|loss|bias model|groups|order of the data|adapter|after training) \| `(\w+)` \|",
        README,
        flags=re.MULTILINE,
    )
    there = {(card.kind.replace("edit", "after training"), card.name) for card in cards()}
    assert len(rows) >= 15
    assert set(rows) <= there


def test_the_picture_is_of_the_measured_table():
    script = runpy.run_path(str(ROOT / "eval" / "shortcut_picture.py"))
    rows = script["study_rows"]((ROOT / "BENCHMARKS.md").read_text(encoding="utf-8"))
    assert len(rows) == 3
    assert (ROOT / "eval" / "shortcut.svg").read_text(encoding="utf-8") == script["draw"](rows)
    (told,) = re.findall(r"!\[(.*?)\]\(eval/shortcut\.svg\)", README)
    figures = [figures[column] for _, figures in rows for column in ("cue right", "cue wrong")]
    assert re.findall(r"\d+\.\d", told) == figures


# Section of BENCHMARKS.md, its study, and of each column of means the suite and the group.
STUDIES = {
    "Planted SST-2": (
        "planted_sst2",
        [("biased_sst2", "bias-aligned"), ("biased_sst2", "bias-conflicting"), ("sst2", None)],
    ),
    "Three epochs: a study": (
        "longer",
        [("biased_sst2", "bias-aligned"), ("biased_sst2", "bias-conflicting"), ("sst2", None)],
    ),
    "Choosing without labels: a study": (
        "choosing",
        [("biased_sst2", "bias-aligned"), ("biased_sst2", "bias-conflicting"), ("sst2", None)],
    ),
    "A causal model on SST-2: a study": (
        "causal_sst2",
        [("biased_sst2", "bias-aligned"), ("biased_sst2", "bias-conflicting"), ("sst2", None)],
    ),
    "Colored MNIST: a study": (
        "colored_mnist",
        [("colored_mnist", "bias-aligned"), ("colored_mnist", "bias-conflicting")],
    ),
    "Planted SNLI: a study": (
        "planted_snli",
        [
            ("biased_snli", "bias-aligned"),
            ("biased_snli", "bias-conflicting"),
            ("snli", None),
            ("snli", "partial_hard"),
            *((suite, None) for suite in ("mnli", "cad_nli", "breaking_nli", "hans")),
        ],
    ),
    "QQP and PAWS: a study": (
        "qqp_paws",
        [("qqp_heldout", None), ("paws_qqp", None), ("paws_qqp", "not_duplicate"), ("paws_qqp", "duplicate")],
    ),
}


def rows_of_study(section: str) -> dict[str, list[str]]:
    """Of the first table of a section, by arm, the cells after it."""
    page = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8").partition(f"\n## {section}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (.+) \|$", page, flags=re.MULTILINE)
    return {arm: cells.split(" | ") for arm, cells in rows}


@pytest.mark.parametrize("section", STUDIES)
def test_the_studys_table_is_of_the_kept_runs(section):
    """Seeds and means over them, of every arm."""
    name, columns = STUDIES[section]
    arms = defaultdict(list)
    for record in kept(ROOT / "eval" / "studies" / f"{name}.jsonl"):
        parts = [(result_of(record, suite), group) for suite, group in columns]
        rates = [100 * (result["groups"][group] if group else result)["accuracy"] for result, group in parts]
        arms[record["run"].partition("/")[0]].append(rates)
    told = rows_of_study(section)
    assert told.keys() == arms.keys()
    for arm, rows in arms.items():
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        assert [float(cell) for cell in told[arm][: 1 + len(means)]] == pytest.approx([len(rows), *means], abs=0.051), (
            arm
        )


def test_what_is_closed_and_what_it_cost_is_what_the_study_prints(tmp_path):
    """The last two cells of a row, and the order of the rows."""
    study = read_study(ROOT / "eval" / "studies" / "colored_mnist.yaml")
    unpack(ROOT / "eval" / "studies" / "colored_mnist.jsonl", tmp_path)
    assert study.floor is not None
    assert study.ceiling is not None
    bed = read_testbed(Bed("bed", tmp_path, tuple(study.arms), study.floor, study.ceiling, study.suites[0]))
    (want,) = [[(line.arm, *line.entries) for line in lines_of([bed])]]
    told = {arm: cells[-2:] for arm, cells in rows_of_study("Colored MNIST: a study").items()}
    shown = {arm: [entry.closed.whole, entry.cost.whole] for arm, entry in want}
    assert [arm for arm in told if arm in shown] == list(shown)
    assert {arm: cells for arm, cells in told.items() if arm in shown} == shown


@pytest.mark.parametrize("study", ["planted_sst2", "planted_snli"])
def test_readmes_results_are_of_the_kept_runs(study, tmp_path):
    """What is closed where the cue misleads, and how far clean accuracy is from that of training without the cue."""
    data = {"planted_sst2": ("SST-2 with a cue", "sst2"), "planted_snli": ("SNLI with a cue", "snli")}
    part = README.partition("\n## Results\n")[2].partition("\n## ")[0]
    told, at = {}, ""
    for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "| `" in line):
        at = cells[0] or at
        if at == data[study][0]:
            told[cells[1].split("`")[1]] = cells[3:]
    assert len(told) >= 2
    unpack(ROOT / "eval" / "studies" / f"{study}.jsonl", tmp_path)
    closed = {
        row.method: row
        for row in closings_in([tmp_path], "erm", "oracle", arms=True).rows
        if row.suite == f"biased_{data[study][1]}"
    }
    for arm, cells in told.items():
        clean = closings_in([tmp_path], "oracle", arm, "all", arms=True).rows
        gap = next(row.closed for row in clean if row.suite == data[study][1])
        assert cells == [shown(closed[arm].closed, 2), shown(gap, 1)], arm


def shown(closed, digits):
    """As README has it: shares of a gap, or points."""
    times, value, between = (
        (1, closed.closed, closed.interval) if digits == 2 else (100, closed.gap, closed.gap_interval)
    )
    value, low, high = (f"{times * one:.{digits}f}" for one in (value, *between))
    return re.sub(r"-(0\.0+)\b(?!\d)", r"\1", f"{value} [{low}, {high}]")


def test_tree_exists():
    (tree,) = (block for block in blocks("text", CONTRIBUTING) if "pipeline/debias/" in block)
    package, rooms = ROOT, set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = package / name if line.startswith("  ") else ROOT / name
        assert folder.exists(), f"the tree names {name}"
        rooms.add(folder)
        package = package if line.startswith("  ") else folder
    for file in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert any(list((ROOT / top).rglob(file)) for top in ("pipeline", "eval")), f"the tree names {file}"
    packages = (ROOT / "pipeline" / "debias", ROOT / "eval" / "debias_eval")
    there = {path for top in packages for path in top.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert there <= rooms


def test_the_sentence_of_rooms_stands_on_both_pages():
    sentence = "A verb's room has the verb's name; a kind of method has a room, a method one file in it;"
    assert sentence in README
    assert sentence in CONTRIBUTING


def test_paths_that_an_addition_costs_exist():
    """Each file, folder and table that the price list names."""
    price = CONTRIBUTING.partition("## The price of an addition")[2]
    tops = (ROOT, ROOT / "pipeline" / "debias", ROOT / "tests" / "unit")
    paths = [path for path in re.findall(r"`([\w/]+(?:/|\.(?:py|md)))`", price) if path not in ("attach.py",)]
    assert len(paths) >= 15
    lost = [path for path in paths if not any((top / path).exists() for top in tops) and path != "CARD.md"]
    assert lost == []


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
