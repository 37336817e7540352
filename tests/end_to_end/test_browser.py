"""The report in a real browser: wide and narrow, light and dark, on paper, with ordinary and with hostile content."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import simulated_runs
import yaml
from simulated_runs import simulate

from debias_eval.comparing.testbeds import Bed, read_testbed
from debias_eval.reporting.report import write_report
from debias_eval.reporting.testbeds import write_testbeds

PROGRAM = browser.installed()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is installed (apt-get install chromium)"
)
LOOKS = [(width, dark) for width in (1280, 400) for dark in (False, True)]
HOSTILE = (
    """<script>document.title='broken'</script><img src=x onerror=alert(1)> "' {{7*7}} {% x %} </style> & \u202e"""
)
LONG = "W" * 150  # a word that no line can hold

# Every piece of text that is drawn, with its box: those of closed details and of the hidden table head are not.
TEXTS = """
(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest('style, title') || !element.checkVisibility()) continue;
    const head = element.closest('thead');
    if (head && getComputedStyle(head).clipPath !== 'none') continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1)
        found.push({text: node.data.trim().slice(0, 40), element,
                    left: box.left, right: box.right, top: box.top, bottom: box.bottom});
  }
  return found;
})()
"""
# Boxes are as high as the font's tallest accents; what a reader sees is the middle half of them.
OVERLAPS = f"""
(() => {{
  const boxes = {TEXTS}.map(b => ({{...b, top: b.top + (b.bottom - b.top) / 4,
                                      bottom: b.bottom - (b.bottom - b.top) / 4}}));
  boxes.sort((a, b) => a.top - b.top);
  const bad = [];
  for (let i = 0; i < boxes.length; i++)
    for (let k = i + 1; k < boxes.length && boxes[k].top < boxes[i].bottom; k++)
      if (boxes[i].left < boxes[k].right - 0.5 && boxes[k].left < boxes[i].right - 0.5)
        bad.push(boxes[i].text + ' / ' + boxes[k].text);
  return bad.slice(0, 20);
}})()
"""
OUTSIDE = f"""
{TEXTS}.filter(b => (b.right > innerWidth + 0.5 || b.left < -0.5) && !b.element.closest('.wide, pre'))
  .map(b => b.text + ' ' + Math.round(b.left) + '..' + Math.round(b.right)).slice(0, 20)
"""
# Contrast as WCAG 2.2 defines it, each colour read off a canvas so that every notation of CSS is understood.
CONTRAST = f"""
(() => {{
  const canvas = document.createElement('canvas').getContext('2d', {{willReadFrequently: true}}), known = new Map();
  const rgba = colour => {{
    if (!known.has(colour)) {{
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      known.set(colour, [...canvas.getImageData(0, 0, 1, 1).data]);
    }}
    return known.get(colour);
  }};
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] / 255 + below[i] * (1 - top[3] / 255));
  const back = element => {{
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 255 || !element.parentElement ? own : over(own, back(element.parentElement));
  }};
  const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => {{
    const v = c[i] / 255;
    return sum + w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }}, 0);
  const seen = new Map();
  for (const {{element, text}} of {TEXTS}) {{
    const behind = back(element), front = light(over(rgba(getComputedStyle(element).color), behind));
    const [low, high] = [front, light(behind)].sort((a, b) => a - b), ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) seen.set(text, ratio.toFixed(2));
  }}
  return [...seen].map(pair => pair.join(' ')).slice(0, 20);
}})()
"""
UNNAMED = """
[...document.querySelectorAll('svg')].filter(svg => !svg.parentElement.closest('svg'))
  .filter(svg => !svg.closest('[aria-hidden]'))
  .filter(svg => !(svg.getAttribute('role') === 'img' && svg.getAttribute('aria-label')))
  .map(svg => svg.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    started = browser.Browser(str(PROGRAM), tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


def hostile_texts(suite: str, n: int) -> list[tuple[str, str]]:
    return [(f"{HOSTILE} {i}", LONG) for i in range(n)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`ordinary`: two methods of three seeds on eight suites; `hostile`: names and texts that want out; `bare`."""
    folder = tmp_path_factory.mktemp("pages")
    ordinary = simulate(folder / "runs", seeds=3, n=240)
    with pytest.MonkeyPatch.context() as patch:
        names = {f"{HOSTILE} {LONG[:90]} {i}".replace("/", "-") for i in range(12)}
        spec = simulated_runs.SUITES["wanli"] | {"groups": tuple(sorted(names)), "labels": (HOSTILE, LONG)}
        patch.setitem(simulated_runs.SUITES, f"x{LONG[:80]}", spec)
        suites = (f"x{LONG[:80]}", "cad_nli")
        hostile = simulate(folder / f"a{LONG[:40]}<b>&\"'", ("erm", "edge", "pcgrad"), 1, suites, 90, hostile_texts)
    for run in hostile:
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(
            yaml.safe_dump(config | {HOSTILE: LONG, "method": {"name": config["method"]["name"] + HOSTILE}})
        )
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(info | {"commit": LONG, "status": HOSTILE, "gradients": HOSTILE}))
    (folder / "bare").mkdir()
    (folder / "bare" / "run.json").write_text("{}")
    runs = {"ordinary": ordinary, "hostile": hostile, "bare": [folder / "bare"]}
    written = {name: write_report(paths, folder / f"{name}.html") for name, paths in runs.items()}
    return written | {"testbeds": write_testbeds(beds_in(folder), folder / "testbeds.html")}


def beds_in(folder: Path) -> list[Any]:
    """Methods of three seeds on one testbed, and some of them with hostile names on another; an arm without a run."""
    sides = {"plain": ("erm", "edge", "pcgrad"), f"<b>{LONG[:60]}": ("erm", "edge", "pcgrad", "subtract")}
    beds = []
    for i, (name, methods) in enumerate(sides.items()):
        place = folder / f"bed{i}"
        for run in simulate(folder / f"of_bed{i}", methods, 3, ("wanli", "cad_nli"), 90):
            arm = run.name.partition("_")[0] + ("" if i == 0 else f"<b>{LONG[:30]}")
            (place / arm / "default").mkdir(parents=True, exist_ok=True)
            run.rename(place / arm / "default" / run.name.partition("_")[2])
        arms = tuple(sorted(path.name for path in place.iterdir()))
        roles = [next(arm for arm in arms if arm.startswith(method)) for method in ("erm", "pcgrad")]
        bed = Bed(name, place, (*arms, HOSTILE), *roles, "wanli", "all", ("cad_nli", "all"))
        beds.append(read_testbed(bed))
    return beds


@pytest.mark.parametrize(("width", "dark"), LOOKS, ids=str)
@pytest.mark.parametrize("name", ["ordinary", "hostile", "bare", "testbeds"])
def test_the_page_can_be_read(chromium, pages, name, width, dark):
    chromium.problems.clear()
    chromium.open(pages[name], width, dark=dark)
    assert chromium.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(OVERLAPS) == []
    assert chromium.evaluate(OUTSIDE) == []
    assert chromium.evaluate(CONTRAST) == []
    assert chromium.evaluate(UNNAMED) == []
    assert chromium.problems == []


def test_a_row_of_the_forest_is_as_high_as_a_line(chromium, pages):
    chromium.open(pages["ordinary"], 1280)
    heights = chromium.evaluate("[...document.querySelectorAll('.rows .mark > svg')].map(one => one.clientHeight)")
    assert len(heights) > 20
    assert 20 < min(heights) <= max(heights) < 45


def test_what_is_folded_up_can_be_read_too(chromium, pages):
    chromium.open(pages["ordinary"], 400)
    chromium.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 400
    assert chromium.evaluate(OVERLAPS) == []
    assert chromium.evaluate(CONTRAST) == []


def test_hostile_content_does_nothing(chromium, pages):
    chromium.problems.clear()
    chromium.open(pages["hostile"], 1280)
    assert chromium.evaluate("document.title").startswith("Evaluation: ")
    assert chromium.evaluate("document.querySelectorAll('script, img, iframe, link').length") == 0
    assert chromium.evaluate("document.body.innerText.includes('{{7*7}}')")
    assert not chromium.evaluate("document.body.innerText.includes('\u202e')")  # turns the direction of a sentence
    assert chromium.problems == []


def test_every_link_leads_somewhere(chromium, pages):
    chromium.open(pages["ordinary"], 1280)
    broken = "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href')))"
    assert chromium.evaluate(f"{broken}.map(a => a.outerHTML)") == []
    assert chromium.evaluate("document.querySelectorAll('nav a').length") == 8


def test_it_prints(chromium, pages):
    chromium.open(pages["ordinary"], 1280, dark=True)
    paper = chromium.pdf()
    assert paper.startswith(b"%PDF-")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 40


def test_the_probes_see_what_they_should(chromium, tmp_path):
    """A probe that finds nothing anywhere would pass everything."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:#fff'><p style='position:absolute;top:9px'>one</p>"
        "<p style='position:absolute;top:12px'>two</p>"
        "<p style='margin-left:3000px;color:#aaa'>far</p><svg></svg><script>nothing()</script>"
    )
    chromium.problems.clear()
    chromium.open(bad, 400)
    assert chromium.evaluate(OVERLAPS) == ["one / two"]
    assert chromium.evaluate(OUTSIDE)[0].startswith("far ")
    assert chromium.evaluate(CONTRAST)[0].startswith("far ")
    assert len(chromium.evaluate(UNNAMED)) == 1
    assert chromium.evaluate("document.documentElement.scrollWidth") > 400
    assert "ReferenceError" in "".join(chromium.problems)
