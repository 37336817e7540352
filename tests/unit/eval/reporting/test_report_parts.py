"""The report's pieces by themselves: geometry against plain arithmetic, tables read back by a parser of Markdown."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from simulated_runs import simulate

from debias.config.reading import read_yaml
from debias.errors import InputError
from debias_eval.comparing.compare import Comparison, Difference, headline
from debias_eval.comparing.flips import SHOWN, flip_page
from debias_eval.reading.collection import Pairing
from debias_eval.reporting.card import write_cards
from debias_eval.reporting.figures import forest, pooled, reliability, scatter, stars
from debias_eval.reporting.heatmaps import blocks_of, group_map, layer_maps
from debias_eval.reporting.report import comparisons_of, grids, render, write_latex, write_markdown
from debias_eval.reporting.reproduce import commands, what_was_run
from debias_eval.reporting.tables import Cell, Grid, latex, latex_text, markdown, markdown_text
from debias_eval.reporting.using import fenced
from debias_eval.reporting.verdict import verdict
from debias_eval.results.files import Bin
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import read_runs
from debias_eval.results.summary import Estimate, floors, judge_text, suite_notes, table

HOSTILE = "a|b_c%d&e$f\\g\nh#i{j}~k^l<m>*n*`o`[p](q)!"


def difference(suite="s", measure="accuracy", low=0.05, high=0.15, p=0.001, primary=True, **more) -> Difference:
    middle = (low + high) / 2
    return Difference(
        suite, measure, 0.5, 0.5 + middle, middle, low, high, p, p, "test", 100, None, "", primary, **more
    )


def pair(*differences, objections=(), second="edge") -> Comparison:
    return Comparison("erm", second, (5, 5), differences, "words", objections)


def methods_of(*runs):
    return group_runs(read_runs(runs))


def test_the_forest_has_one_axis_that_holds_zero():
    one = forest(
        [pair(difference("b", low=0.1, high=0.3), difference("a", low=-0.05, high=0.01, p=0.4))], [], ["a", "b"]
    )
    assert [suite for suite, _ in one.suites] == ["a", "b"]
    texts = [tick.text for tick in one.ticks]
    low, high = (float(texts[i].replace("−", "-")) for i in (0, -1))
    assert low <= -5 <= 30 <= high
    assert one.zero == pytest.approx(100 * -low / (high - low), abs=0.01)
    (_, ((_, (mark,)),)), (_, ((_, (other,)),)) = one.suites
    assert other.at == pytest.approx(100 * (20 - low) / (high - low), abs=0.01)
    assert (mark.clear, mark.stars, mark.p) == (False, "", "p = 0.40")
    assert (other.clear, other.stars, other.text, other.range) == (True, "**", "+20.0", "[10.0, 30.0]")
    assert forest([pair()], [], []) is None


@pytest.mark.parametrize(("p", "mark"), [(None, ""), (0.05, ""), (0.049, "*"), (0.0099, "**"), (0.0009, "***")])
def test_stars(p, mark):
    assert stars(p) == mark


def test_p_values_of_several_methods_are_adjusted_together(monkeypatch):
    given = {
        "edge": pair(difference(p=0.02), difference("t", p=0.04)),
        "pcgrad": pair(difference(p=0.01), second="pcgrad"),
    }
    monkeypatch.setattr("debias_eval.reporting.report.compare", lambda first, second: given[second.name])
    methods = [type("M", (), {"name": name, "seeds": 1}) for name in ("erm", "edge", "pcgrad")]
    edge, pcgrad = comparisons_of(methods)
    # Holm by hand: 0.01 x 3, 0.02 x 2, then the largest at least as large.
    assert [one.p_holm for one in (*pcgrad.differences, *edge.differences)] == pytest.approx([0.03, 0.04, 0.04])


def test_methods_that_cannot_be_compared_say_why(make_run):
    methods = methods_of(make_run("a", "erm", suites={"s": {"x": 5}}), make_run("b", "edge", suites={"t": {"x": 5}}))
    (one,) = comparisons_of(methods)
    assert one.differences == ()
    assert "nothing to compare" in one.objections[0]
    assert "nothing to compare" in render([run for method in methods for run in method.runs])


@pytest.mark.parametrize(
    ("differences", "objections", "words"),
    [
        ([difference()], (), "edge is better than erm on 1 of 1 suite."),
        (
            [difference(), difference("t", low=-0.2, high=-0.1)],
            (),
            "edge is better than erm on 1 of 2 suites and worse on 1.",
        ),
        ([difference(low=-0.2, high=-0.1)], (), "erm is better than edge on 1 of 1 suite."),
        ([difference(p=0.2)], (), "No clear difference between edge and erm on 1 suite."),
        ([difference(), difference(measure="gap", primary=False)], (), "edge is better than erm on 1 of 1 suite."),
        ([difference()], ("2 seeds",), "No claim that edge or erm is better."),
    ],
)
def test_the_headline_claims_no_more_than_the_tests(differences, objections, words):
    assert headline("erm", "edge", differences, objections) == words


def test_every_objection_is_named(make_run):
    rows = table(methods_of(make_run("a", suites={"s": {"x": 5}})))
    told = verdict(rows, [pair(difference(), objections=("too few seeds", "oracle selection"))])
    assert told.objections == ("too few seeds", "oracle selection")
    assert told.headline.startswith("No claim")


def test_scatter_panels_need_both_suites_and_a_line_needs_three_baselines(make_run):
    pairings = [Pairing("p", "nli", "id", ("ood", "absent"))]
    runs = [make_run(f"e{i}", "erm", i, {"id": {"x": 60 + 5 * i}, "ood": {"x": 40 + 4 * i}}) for i in range(3)]
    runs.append(make_run("d", "edge", 0, {"id": {"x": 65}, "ood": {"x": 64}}))
    (panel,) = scatter(methods_of(*runs), pairings)
    assert (panel.x_name, panel.y_name, len(panel.spots)) == ("id", "ood", 4)
    assert panel.line
    ((name, _, above),) = panel.above
    assert name == "edge"
    assert float(above) == pytest.approx(20, abs=0.25)  # 44 % is on the baselines' line, up to the logit's curvature
    for i in range(3):  # plain, on other data: a line of its own, which says nothing of edge
        other = make_run(f"o{i}", "erm", i, {"id": {"x": 60 + 5 * i}, "ood": {"x": 60 + 4 * i}})
        told = other / "config.yaml"
        told.write_text(yaml.safe_dump(read_yaml(told) | {"data": {"train": "elsewhere.jsonl"}}))
        runs.append(other)
    (beside,) = scatter(methods_of(*runs), pairings)
    assert len(beside.spots) == 7
    assert [(name, value) for name, _, value in beside.above] == [("edge", above)]
    assert beside.line
    (bare,) = scatter(methods_of(*runs[2:4]), pairings)
    assert (bare.line, bare.above) == ("", ())


def test_panels_show_the_seeds_that_tables_have(make_run, put):
    runs = [make_run(f"edge{i}", seed=i, suites={"id": {"x": 60 + i}, "ood": {"x": 40 + i}}) for i in range(3)]
    pairings = [Pairing("p", "nli", "id", ("ood",))]
    assert [len(panel.spots) for panel in scatter(methods_of(*runs), pairings)] == [3]
    put(runs[1], "ood", {"x": 90}, examples_sha256="other")
    (panel,) = scatter(methods_of(*runs), pairings)
    assert [spot.run for spot in panel.spots] == ["edge0", "edge2"]
    put(runs[0], "id", {"x": 90}, judge={"normalize": "tokens"})
    (panel,) = scatter(methods_of(*runs), pairings)
    assert [spot.run for spot in panel.spots] == ["edge2"]


@pytest.fixture
def beside_a_line(make_run):
    """The panel of three plain runs and one with edge, whose data has `settings` more, and of `first` before it."""

    runs = [make_run(f"e{i}", "erm", i, {"id": {"x": 60 + 5 * i}, "ood": {"x": 40 + 4 * i}}) for i in range(3)]
    edge = make_run("d", "edge", 0, {"id": {"x": 65}, "ood": {"x": 64}})
    plain = read_yaml(edge / "config.yaml")

    def panel(settings, *first):
        (edge / "config.yaml").write_text(yaml.safe_dump(plain | {"data": plain["data"] | settings}))
        return scatter(methods_of(*runs, *first, edge), [Pairing("p", "nli", "id", ("ood",))])[0]

    return panel


@pytest.mark.parametrize(
    "settings",
    [
        {"group_field": "kind"},
        {"id_field": "number"},
        {"label_map": {"0": "entailment"}},
        {"labels": ["neutral", "entailment", "contradiction"]},
        {"validation": "v.jsonl"},
    ],
)
def test_settings_that_change_no_row_leave_the_line(beside_a_line, settings):
    plain, panel = beside_a_line({}), beside_a_line(settings)
    assert panel.line == plain.line != ""
    assert [name for name, *_ in panel.above] == ["edge"]
    assert panel.above == plain.above


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"source": "t.jsonl", "limit": 50}},
        {"train": {"source": "t.jsonl", "split": "half"}},
        {"planted_bias": {}},
        {"leave_out": {"fold": 0}},
        {"text_fields": ["hypothesis"]},
        {"labels": ["neutral", "other"]},
    ],
)
def test_settings_that_change_rows_are_another_line(beside_a_line, settings):
    panel = beside_a_line(settings)
    assert (panel.line, panel.above) == ("", ())


def test_a_model_that_was_only_judged_is_measured_by_the_line_shown(beside_a_line, make_run):
    judged = make_run("j", "edge", 0, {"id": {"x": 65}, "ood": {"x": 54}})
    (judged / "config.yaml").unlink()
    (judged / "run.json").write_text(json.dumps({"judged": {"model": "hub/model"}}))
    panel = beside_a_line({}, judged)
    assert panel.line == beside_a_line({}).line != ""
    assert [float(value) for *_, value in panel.above] == pytest.approx([10, 20], abs=0.25)
    other = beside_a_line({"train": {"source": "t.jsonl", "limit": 50}}, judged)
    assert other.above == ()  # the line shown is that of edge's data, on which nothing plain was trained


def test_reliability_pools_seeds_by_size():
    first = [Bin(low=0.5, high=1, n=10, confidence=0.6, accuracy=1.0), Bin(low=0, high=0.5, n=0)]
    second = [Bin(low=0.5, high=1, n=30, confidence=0.8, accuracy=0.6)]
    assert pooled([first, second]) == [(40, pytest.approx(0.75), pytest.approx(0.7))]
    assert reliability("s", []) is None


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (["A=x/y", "A=z", "B=x", "B=y"], [("A", ["x/y", "z"]), ("B", ["x", "y"])]),
        (["a/b/x", "a/b/y"], [("a/b", ["x", "y"])]),
        (["x", "y", "a/z"], [("", ["x", "y", "a/z"])]),
        (["a/", "a/b", "a/c"], [("", ["a/", "a/b", "a/c"])]),
    ],
)
def test_groups_share_the_name_of_their_block(names, blocks):
    found = blocks_of(names)
    assert [(title, [short for short, _ in part]) for title, part in found] == blocks
    assert [name for _, part in found for _, name in part] == names


def test_many_groups_become_a_map_with_every_group_once(make_run):
    groups = {f"g/{i:02}": i for i in range(77)}
    rows = table(methods_of(make_run("a", suites={"s": groups})))
    found = group_map("s", rows, 0.9)
    cells = {short: cell for _, part in found.blocks for short, (cell,) in part}
    assert len(cells) == 77 == sum(len(part) for _, part in found.blocks)
    assert max(len(part) for _, part in found.blocks) <= 20
    assert (found.middle, found.middle_name) == (0.5, "guessing evenly")  # two labels
    assert (cells["00"].side, cells["00"].tint, cells["00"].text) == ("under", 100, "0.0")
    assert (cells["50"].side, cells["50"].tint) == ("over", 0)
    assert (cells["75"].side, cells["75"].tint) == ("over", 50)
    assert group_map("s", table(methods_of(make_run("b", suites={"s": {"x": 1}}))), None) is None


def test_layers_are_drawn_in_their_order_and_bad_values_left_out(make_run):
    run = make_run("a")
    lines = [{"step": i, "removed_share_by_layer": {"10": 0.1 * i, "9": 0.5, "head": None}} for i in (1, 2, 3)]
    lines += [
        {"step": 4, "removed_share_by_layer": "nonsense"},
        {"step": 5, "removed_share_by_layer": {"9": float("nan")}},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = layer_maps(methods_of(run), "removed_share_by_layer", "Removed", diverging=False)
    assert [name for name, _ in found.layers] == ["10", "9"]
    assert [cell.text for cell in found.layers[0][1]] == ["0.10", "0.20", "0.30"]
    assert [cell.tint for cell in found.layers[0][1]] == [20, 40, 60]
    assert (found.steps, found.high) == ((1, 2, 3), "0.5")
    assert layer_maps(methods_of(run), "cosine_by_layer", "Cosine", diverging=True) == []


def test_flips_are_counted_and_drawn_the_same_each_time(make_run):
    methods = methods_of(make_run("a", "erm", suites={"s": {"x": 50}}), make_run("b", "edge", suites={"s": {"x": 70}}))
    page = flip_page(methods)
    (one,) = page.suites
    assert (one.both, one.fixed, one.broken, one.neither) == (50, 20, 0, 30)
    (better, fixed), (worse, broken) = one.examples
    assert (better, len(fixed), worse, broken) == ("b", SHOWN, "a", ())
    assert all(flip.first[0] != flip.gold == flip.second[0] for flip in fixed)
    assert flip_page(methods) == page
    assert flip_page(methods[:1]) is None


def test_runs_without_predictions_are_left_out_by_name(make_run):
    runs = [make_run("a", "erm", suites={"s": {"x": 50}}), make_run("b", "edge", suites={"s": {"x": 70}})]
    (runs[0] / "eval" / "s.predictions.jsonl.gz").unlink()
    page = flip_page(methods_of(*runs))
    assert (page.suites, page.left_out) == ((), ("s has no predictions file in one of the two runs",))
    assert "Not here: s has no predictions file" in render(read_runs(runs))


def test_an_oracle_is_flagged_in_every_table(make_run):
    run, other = make_run("a", "edge", suites={"s": {"x": 5}}), make_run("b", "erm", suites={"s": {"x": 4}})
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"selection": "oracle"}))
    runs = read_runs([run, other])
    page = render(runs)
    for body in re.findall(r'<table class="(?:results|facts)">.*?</table>', page, re.S):
        assert "oracle" in body or "SHA-256" in body
    for text in (markdown(grids(runs)), latex(grids(runs))):
        assert "edge (oracle selection)" in text.replace("\\", "")
    (path, _), *_ = write_cards([_with_adapter(run)])
    assert "oracle" in path.read_text()


def test_a_subset_is_one_that_was_drawn_and_names_who_was_judged_on_it(make_run, put):
    """Rows left out for overlap make fewer of them, and nobody drew those that are left."""
    whole, drawn, clean, unmoved = runs = [make_run(name, f"{name}") for name in ("erm", "edge", "pcgrad", "cagrad")]
    put(whole, "s", {"x": 70}, available=100)
    put(drawn, "s", {"x": 70}, available=900, limit=100)
    left_out = {"available": 105, "overlap": {"rows": 5, "excluded": True}}
    put(clean, "s", {"x": 70}, **left_out)
    put(unmoved, "s", {"x": 70}, **left_out, limit=500)  # a limit above all that there are draws nothing
    methods = methods_of(*runs)
    rows = table(methods)
    subset, *others = suite_notes(rows, methods)
    assert subset.startswith("was judged on a random subset (100 of 900 examples: edge): compare")
    assert others == ["has 5 examples whose text is also in the training data, left out: pcgrad, cagrad."]
    assert "Judged on a subset (100 of 900 examples: edge)." in verdict(rows).headline
    alone = [one for one in rows if not one.drawn]
    assert len(alone) == 3
    assert "subset" not in " ".join([*suite_notes(alone, methods), verdict(alone).headline])


def _with_adapter(run):
    (run / "adapter").mkdir(exist_ok=True)
    return run


def test_floors_and_notes_are_in_every_kind_of_table(make_run, put, tmp_path):
    run = make_run("a")
    partial = {"n": 100, "accuracy": 0.61, "ci95": [0.51, 0.7], "fields": ["hypothesis"], "how": "TF-IDF"}
    put(run, "s", {"x": 70}, partial_input=partial, overlap={"rows": 7, "excluded": False}, available=900, limit=100)
    rows = table(methods_of(run))
    assert [floor.text() for floor in floors(rows)] == ["100.0", "61.0 [51.0–70.0]"]
    assert suite_notes(rows, [rows[0].method]) == [
        "was judged on a random subset (100 of 900 examples): compare its numbers with no full run.",
        "has 7 examples whose text is also in the training data, counted in: edge.",
    ]
    pages = [render(read_runs([run])), write_markdown([run], tmp_path / "t.md").read_text()]
    pages += [write_latex([run], tmp_path / "t.tex").read_text(), write_cards([_with_adapter(run)])[0][0].read_text()]
    for page in pages:
        for said in ("only the hypothesis", "61.0", "most frequent label", "random subset", "in the training data"):
            assert said in page


def test_an_adapter_that_changes_nothing_is_named(make_run, put):
    run = make_run("a")
    put(run, "s", {"x": 70}, judge={"how": "classification", "adapter_changes_logits": False, "load_in_4bit": True})
    (row,) = table(methods_of(run))
    assert suite_notes([row], [row.method]) == ["was judged with an adapter that changes no answer's score: edge."]
    assert judge_text(row.results[0].judge) == "classification, load in 4bit"


def test_commands_repeat_what_was_asked_for(make_run, put):
    run = make_run("a b'c")
    put(run, "s", {"x": 70}, available=900, limit=100, limit_seed=3, judge={"normalize": "tokens", "calibrate": "none"})
    put(run, "t", {"x": 70}, overlap={"rows": 0, "excluded": True})
    train, *evals = commands(read_runs([run])[0])
    assert shlex.split(train) == ["debias", "train", "a b'c/config.yaml", 'output_dir="a b\'c-again"']
    asked = {tuple(shlex.split(line)) for line in evals}
    assert asked == {
        ("debias", "eval", "a b'c", "--suite", "s", "--limit", "100", "--seed", "3", "--normalize", "tokens"),
        ("debias", "eval", "a b'c", "--suite", "t", "--overlap", "exclude"),
    }


def test_seeds_share_one_config_and_say_what_differs(make_run):
    told = what_was_run(methods_of(make_run("a", seed=0), make_run("b", seed=7)))
    ((first, text, others),) = told["configs"]
    assert (first, yaml.safe_load(text)["seed"]) == ("a", 0)
    ((other, changed),) = others
    assert other == "b"
    assert "seed=7" in changed


def cells_of(text: str) -> list[str]:
    """The text of a Markdown table's cells, as a parser reads them."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    found = []
    for i, token in enumerate(tokens):
        if token.type in ("td_open", "th_open"):
            children = tokens[i + 1].children
            assert {child.type for child in children} <= {"text", "text_special"}, children
            found.append("".join(child.content for child in children))
    return found


def test_markdown_cells_hold_exactly_the_text():
    grid = Grid("t", ("x", "y"), (((Cell(HOSTILE, name=True), Cell("5.0 [1.0–9.0]", "**")),),), (HOSTILE,))
    text = markdown([grid])
    assert cells_of(text) == ["x", "y", " ".join(HOSTILE.split()), "5.0 [1.0–9.0]**"]
    assert "\\|" in text


def test_latex_holds_no_live_character():
    text = latex_text(HOSTILE)
    assert re.search(r"(?<!\\)[&%$#_]", text) is None
    assert "\n" not in text
    assert latex_text("a\\b") == "a\\textbackslash{}b"
    assert latex_text("−1.0 [a]") == "$-$1.0 {[}a{]}"
    table_ = latex([Grid("t", ("x", "y"), (((Cell(HOSTILE, name=True), Cell("1", "*")),), ((Cell("b"),),)))])
    assert table_.count("\\toprule") == table_.count("\\bottomrule") == 1
    assert table_.count("\\midrule") == 2
    assert all(line.count(" & ") == 1 for line in table_.splitlines() if line.endswith("\\\\"))
    assert "1$^{*}$" in table_


def test_latex_names_a_suite_once_and_lets_names_run_on():
    suite, floor, blank = Cell("s", name=True), Cell("the floor", name=True), Cell("")
    lines = ((suite, Cell("a", name=True), Cell("5"), Cell("1.0")), (suite, floor, blank, Cell("2.0")))
    rows = [line for line in latex([Grid("t", ("S", "M", "N", "A"), (lines,))]).splitlines() if line.endswith("\\\\")]
    assert rows[1:] == ["s & a & 5 & 1.0 \\\\", " & \\multicolumn{2}{l}{the floor} & 2.0 \\\\"]


def test_a_long_grid_is_several_latex_tables_without_loss():
    blocks = tuple(((Cell(f"s{i}", name=True), Cell(str(i))),) * 5 for i in range(20))
    text = latex([Grid("t", ("x", "y"), blocks, ("the note",))])
    assert text.count("\\begin{table}") == text.count("\\caption{t (") == 3
    assert [text.count(f" & {i} ") for i in range(20)] == [5] * 20
    assert text.count("the note") == 1
    assert text.index("s19") < text.index("the note")


@pytest.mark.slow
def test_latex_compiles_and_fits_the_page(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (Debian: texlive-latex-recommended)")
    runs = read_runs(simulate(tmp_path / "runs", seeds=2))
    hostile = Grid(HOSTILE, ("x", "y"), (((Cell(HOSTILE, name=True), Cell("[1.0–9.0]", "**")),),), (HOSTILE,))
    (tmp_path / "t.tex").write_text(latex([*grids(runs), hostile]), encoding="utf-8")
    (tmp_path / "doc.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\usepackage[T1]{fontenc}"
        "\\begin{document}\\input{t}\\end{document}"
    )
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "doc.tex"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Float too large" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("Overfull")] == []


def test_a_card_is_valid_and_rewritten_until_it_is_edited(make_run):
    run = _with_adapter(make_run("a", suites={"s": {"bias-aligned": 90, "bias-conflicting": 40}}))
    ((path, said),) = write_cards([run])
    text = path.read_text()
    assert (path, said) == (run / "adapter" / "README.md", "")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"base_model": "m", "library_name": "peft", "tags": ["debias", "edge", "lora"]}
    for section in ("## Training", "## Results", "## Limits", "## Use", "## Reproduce", "debias train a/config.yaml"):
        assert section in body
    assert "One training seed" in body
    assert "Not clearly above a floor on s" in body  # every gold label is the same one: the floor is 100 %
    assert write_cards([run]) == [(path, "")]
    assert path.read_text() == text
    path.write_text(text.replace("One training seed", "Some seeds"))
    ((_, said),) = write_cards([run])
    assert said.startswith("kept as it is: it was edited by hand")
    assert "Some seeds" in path.read_text()
    assert write_cards([run], force=True) == [(path, "")]
    assert path.read_text() == text


def test_other_cards(make_run):
    run = _with_adapter(make_run("a"))
    card = run / "adapter" / "README.md"
    card.write_text("# Mine\n")
    assert write_cards([run])[0][1].startswith("kept")
    card.write_text("---\nlibrary_name: peft\n---\n# Model Card for Model ID\n" + "[More Information Needed]\n" * 30)
    assert write_cards([run])[0][1] == ""  # PEFT's template, nothing filled in
    assert "Not evaluated yet" in card.read_text()
    card.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        write_cards([run])
    assert write_cards([make_run("b")])[0][1] == "no card: it has no adapter/ or model/ folder"


def test_a_code_block_cannot_be_left():
    assert fenced("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"


def test_hostile_names_in_all_files(make_run, tmp_path):
    run = _with_adapter(make_run("x|y", suites={"s": {"g": 5}}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"method": {"name": HOSTILE}, "model": "---\nx: y"}))
    assert " ".join(HOSTILE.split()) in cells_of(write_markdown([run], tmp_path / "t.md").read_text())
    write_latex([run], tmp_path / "t.tex")
    ((path, _),) = write_cards([run])
    front = path.read_text().split("---\n", 1)[1].split("\n---\n")[0]
    assert yaml.safe_load(front)["base_model"] == "---\nx: y"
    assert markdown_text("<b>\n|") == "&lt;b&gt; \\|"


def test_a_folder_of_runs_stands_for_its_runs(tmp_path):
    runs = simulate(tmp_path / "grid", seeds=2, suites=("wanli",), n=40)
    (tmp_path / "grid" / "notes").mkdir()
    assert [run.name for run in read_runs([tmp_path / "grid"])] == sorted(run.name for run in runs)
    assert len(read_runs([tmp_path / "grid", runs[0]])) == len(runs)


def test_old_results_files_still_make_a_page(make_run, tmp_path):
    run = make_run("a")
    (run / "eval").mkdir()
    old = {"n": 10, "accuracy": 0.5, "ci95": [0.2, 0.8], "suite": "s", "version": 1, "ece": 0.1}
    (run / "eval" / "s.json").write_text(json.dumps(old))
    page = render(read_runs([run, make_run("b", "erm")]))
    assert "50.0" in page
    row = table(methods_of(run))[0]
    assert (row.majority, row.partial, row.consistency, row.gap) == (None, None, None, None)
    assert row.accuracy == replace(Estimate(0.5, 0.2, 0.8, 1))


def test_a_run_of_an_older_version_is_the_same_method(tmp_path):
    """Its config.yaml lacks the settings that came later."""
    import tiny_runs

    from debias.config.reading import dump_config

    for seed in range(2):
        config = tiny_runs.config_for(Path("m"), tmp_path / f"run{seed}", seed=seed)
        (tmp_path / f"run{seed}").mkdir()
        (tmp_path / f"run{seed}" / "config.yaml").write_text(dump_config(config))
    older = tmp_path / "run0" / "config.yaml"
    lines = older.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("packing:", "ddp_timeout:", "attn_implementation:"))]
    assert len(kept) == len(lines) - 3
    older.write_text("".join(kept))
    (method,) = group_runs(read_runs([tmp_path]))
    assert method.seeds == 2
    older.write_text("".join(kept) + "packing: true\n")
    assert len(group_runs(read_runs([tmp_path]))) == 2
