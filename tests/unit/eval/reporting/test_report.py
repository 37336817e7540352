import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from debias.errors import InputError
from debias_eval.reporting.report import write_report
from debias_eval.reporting.reproduce import duration
from debias_eval.reporting.tables import terminal_table

CONFLICT = {"bias-aligned": 99, "bias-conflicting": 20}
BETTER = {"bias-aligned": 95, "bias-conflicting": 60}
HOSTILE = """<script>alert(1)</script>"'{{7*7}}{%x%}&amp;</style>[bold]\x1b[31m"""


class Page(HTMLParser):
    """Checks that tags nest, and keeps the text and the tags."""

    VOID = ("meta", "line", "rect", "circle", "path", "polyline", "br")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def page(runs, tmp_path) -> Page:
    return Page(write_report(runs, tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def spaced(text: str) -> str:
    return " ".join(text.split())


def test_the_page_holds_what_was_measured(make_run, tmp_path):
    runs = [
        make_run("b", "edge", suites={"s": BETTER, "plain": {"x": 50}}),
        make_run("a", "erm", suites={"s": CONFLICT}),
    ]
    seen = page(runs, tmp_path)
    text = spaced(seen.text)
    assert (
        "On s, where the shortcut gives a wrong answer, edge is right on 60.0 % and erm on 20.0 %: 40.0 points more, "
        "difference ["
    ) in text
    assert "No claim that edge or erm is better." in text
    assert "erm has 1 seed, fewer than 5" in text
    assert "1 seed each; 95 % intervals over test examples" in text
    assert "plain has no numbers for erm" in text
    assert "59.5 [52.6–66.1]" in text  # erm, Wilson of 119 of 200
    assert "always the most frequent label" in text
    assert "What it is." in text
    assert "1 min 15 s" in text
    assert "How far from erm" in text
    assert "+40.0" in text
    assert "4 tensors, 4,096 values" in text
    assert seen.tags.count("figure") == 5  # three curves, two reliability diagrams


def test_the_page_needs_nothing_but_itself(make_run, tmp_path):
    seen = page([make_run("a", suites={"s": CONFLICT})], tmp_path)
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    links = [value for name, value in seen.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert links == [link for link in links if link.startswith("#")]
    html = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"url\(|@import|https?://", html)
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_hostile_text_is_text(make_run, put, tmp_path):
    run = make_run("x" + HOSTILE.replace("/", "-"), suites={"s": CONFLICT})
    put(run, "t", {HOSTILE: 50}, description=HOSTILE, labels={HOSTILE: {"n": 100, "predicted": 100}})
    (run / "run.json").write_text(
        json.dumps(
            {"status": HOSTILE, "commit": HOSTILE, "versions": {HOSTILE: HOSTILE}, "gradients": [HOSTILE], "seed": {}}
        )
    )
    (run / "config.yaml").write_text(json.dumps({"method": {"name": HOSTILE}, HOSTILE: HOSTILE}))
    other = make_run("y", "erm", suites={"s": CONFLICT})
    seen = page([run, other], tmp_path)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "script" not in seen.tags
    assert "<script" not in html
    assert html.count("</style>") == 1
    assert "{{7*7}}" in seen.text
    assert "<script>alert(1)</script>" in seen.text
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    shown = table_text([run, other])
    assert "\x1b" not in shown
    assert "[bold]" in shown


def table_text(runs) -> str:
    console = Console(width=300, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_table(runs))
    return capture.get()


def test_terminal_table_has_the_same_rows(make_run):
    runs = [make_run("a", "erm", suites={"s": CONFLICT}), make_run("b", "edge", suites={"s": BETTER})]
    lines = table_text(runs).splitlines()
    erm = next(line for line in lines if " erm " in line)
    assert "59.5 [52.6–66.1]" in erm
    assert "20.0 [13.3–28.9]" in erm
    assert "79.0" in erm
    assert "bias-conflicting" in erm
    assert any("100.0" in line and "always the most frequent label" in line for line in lines)
    assert "one training seed" in " ".join(lines[-2:])


def only_judged(run):
    """As `debias eval --model` leaves a folder: results, and whose they are."""
    (run / "config.yaml").unlink()
    (run / "run.json").write_text(json.dumps({"judged": {"model": "some/model"}}))
    return run


def test_what_was_only_judged_has_no_training_seed(make_run, tmp_path):
    judged = only_judged(make_run("base", suites={"s": CONFLICT}))
    trained = [make_run(f"edge{seed}", seed=seed, suites={"s": BETTER}) for seed in range(2)]
    alone, one, several = (table_text([judged, *more]) for more in ([], trained[:1], trained))
    assert "(only judged: nothing was trained)" in " ".join(alone.split())
    assert "seed" not in alone
    assert "(one training seed). Only judged, not trained: base" in " ".join(one.split())
    assert "Only judged, not trained: base (interval of the test examples)" in " ".join(several.split())
    alone, one = (spaced(page([judged, *more], tmp_path).text) for more in ([], trained[:1]))
    assert "One method, only judged: there is nothing here to compare it with" in alone
    assert "1 seed" not in alone
    assert "base has 1 seed" not in one
    assert "base was only judged, not trained here" in one
    assert "base: only judged, edge: 1 seed" in one
    assert "one seed each" not in one


def test_a_subset_is_said_everywhere(make_run, put, tmp_path):
    runs = [make_run("a", "erm"), make_run("b", "edge")]
    for run in runs:
        put(run, "s", CONFLICT, available=9000, limit=200)
    text = spaced(page(runs, tmp_path).text)
    assert "200 of 9,000 examples" in text
    assert "s was judged on a random subset (200 of 9,000 examples)" in text
    assert "debias eval a --suite s --limit 200" in text
    assert "200 of 9,000" in table_text(runs)


@pytest.mark.parametrize(("digest", "why"), [(None, "does not say which"), ("other", "not the same examples")])
def test_different_examples_are_not_compared(make_run, put, tmp_path, digest, why):
    runs = [make_run("a", "erm", suites={"s": CONFLICT}), make_run("b", "edge")]
    put(runs[1], "s", BETTER, examples_sha256=digest)
    text = spaced(page(runs, tmp_path).text)
    assert "The methods here were not compared." in text
    assert why in text
    assert "How far from" not in text
    assert "Not here: s was not judged on the same examples" in text


def test_seeds_are_one_method(make_run, tmp_path):
    runs = [
        make_run(
            f"{method}{seed}", method, seed, {"s": groups | {"bias-conflicting": groups["bias-conflicting"] + seed}}
        )
        for method, groups in (("edge", BETTER), ("erm", CONFLICT))
        for seed in (0, 1, 2)
    ]
    text = spaced(page(runs, tmp_path).text)
    assert "6 runs, 2 methods, 1 suite" in text
    assert ("edge is right on 61.0 % and erm on 21.0 %: 40.0 points more, difference [") in text
    assert "3 seeds each; 95 % intervals over seeds and examples" in text
    assert "21.0 → " not in text
    assert "99.0 → 21.0" in text
    assert "Every run by itself" in text
    assert "Student's t" in table_text(runs)


def test_one_seed_against_three_allows_no_claim(make_run, tmp_path):
    runs = [make_run("a", "erm", 0, {"s": CONFLICT})]
    runs += [make_run(f"e{seed}", "edge", seed, {"s": BETTER}) for seed in (0, 1, 2)]
    text = spaced(page(runs, tmp_path).text)
    assert "No claim that edge or erm is better." in text
    assert "erm: 1 seed, edge: 3 seeds" in text


def test_no_difference_is_said(make_run, tmp_path):
    runs = [make_run("a", "erm", suites={"s": CONFLICT}), make_run("b", "edge", suites={"s": CONFLICT})]
    assert "and erm on 20.0 %: no difference" in spaced(page(runs, tmp_path).text)


def test_each_method_is_compared_with_the_first(make_run, tmp_path):
    runs = [make_run(name, name, suites={"s": CONFLICT}) for name in ("erm", "edge")]
    runs.append(make_run("pcgrad", "pcgrad", suites={"s": BETTER}))
    text = spaced(page(runs, tmp_path).text)
    assert "No claim that edge or erm is better. No claim that pcgrad or erm is better." in text
    assert "pcgrad is right on 60.0 % and erm on 20.0 %" in text


def test_one_run_alone(make_run, tmp_path):
    text = spaced(page([make_run("a", suites={"s": CONFLICT})], tmp_path).text)
    assert "edge is right on 20.0 % [13.3–28.9]." in text
    assert "there is nothing here to compare it with" in text


def test_what_is_missing_is_said(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    (run / "run.json").write_text("{}")
    text = spaced(page([run], tmp_path).text)
    for said in ("No run here has been evaluated yet", "bare has no config.yaml", "bare has no metrics.jsonl"):
        assert said in text
    assert "Logged by no run here: Training loss, Cosine of the two gradients, Removed share." in text
    assert list(terminal_table([run]).rows) == []


@pytest.mark.parametrize(
    "info",
    [
        {"method": "erm", "acts_on": 3, "versions": [], "seconds": "long", "steps": None, "commit": None},
        {"method": {"name": None}, "seconds": -1, "status": None, "seed": [1], "train_examples": True},
    ],
)
def test_values_of_any_type_are_shown_or_unknown(make_run, tmp_path, info):
    run = make_run("a", suites={"s": CONFLICT})
    (run / "run.json").write_text(json.dumps(info))
    (run / "metrics.jsonl").write_text(
        '{"step": "x", "loss": []}\n[]\n{"loss": 1}\n{"step": 1, "loss": NaN}\n{"step": 2, "lo'
    )
    text = spaced(page([run], tmp_path).text)
    assert "metrics.jsonl has 2 unreadable lines, left out" in text
    assert "unknown" in text


def test_an_unfinished_run_is_marked(make_run, tmp_path):
    run = make_run("a", suites={"s": CONFLICT})
    (run / "run.json").write_text('{"status": "stopped"}')
    assert "a has the status 'stopped': its numbers are not those of a finished run" in spaced(
        page([run], tmp_path).text
    )


@pytest.mark.parametrize("file", ["eval/s.json", "run.json", "config.yaml"])
def test_a_damaged_file_stops_the_report_and_nothing_is_written(make_run, tmp_path, file):
    run = make_run("a", suites={"s": CONFLICT})
    (run / file).write_text("[")
    with pytest.raises(InputError, match=re.escape(file)):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_folders_that_are_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: not a run folder"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(InputError, match="no such run folder"):
        write_report([tmp_path / "absent"], tmp_path / "r.html")
    with pytest.raises(InputError, match="no run folder given"):
        write_report([], tmp_path / "r.html")


def test_the_output_must_be_a_file(make_run, tmp_path):
    with pytest.raises(InputError, match="is a folder, expected the name of an HTML file"):
        write_report([make_run("a")], tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (7300, "2 h 1 min"), (None, "unknown"), (float("nan"), "unknown")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_labels_and_groups_alike_have_columns_where_they_are_not_accuracy(make_run, put, tmp_path):
    """In the terminal, on the page and in Markdown; not for groups of one size, nor of results of an older version."""
    equal = make_run("equal", "erm", suites={"s": {"a": 80, "b": 40}})
    assert "groups alike" not in table_text([equal])
    unequal = make_run("unequal", "erm")
    path = put(unequal, "s", {"a": 80, "b": 40})
    known = json.loads(path.read_text())
    known |= {"balanced_accuracy": {"n": 200, "accuracy": 0.71, "ci95": [0.65, 0.77]}}
    path.write_text(json.dumps(known))
    text = table_text([unequal])
    assert "labels alike %" in text
    assert "71.0" in text
    assert "Labels alike: balanced accuracy, the mean of the labels' accuracies." in " ".join(text.split())
    assert "71.0 [65.0–77.0]" in spaced(page([unequal], tmp_path).text)
    picked = "Worst group: picked by its own result, of which neither the number nor its interval knows"
    assert picked in " ".join(text.split())
    assert picked in page([unequal], tmp_path).text
    del known["balanced_accuracy"], known["adjusted_accuracy"]
    path.write_text(json.dumps(known))
    assert "alike" not in table_text([unequal])
    both = table_text([unequal, equal])
    assert "alike" not in both
