"""Settings are read by libyaml where that reads them as PyYAML's own reader does: same values, same words."""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from debias.config import reading

HERE = Path(__file__).parents[3]
FILES = sorted(file for room in ("launch", "eval", "pipeline") for file in (HERE / room).rglob("*.yaml"))
WORDS = ["a:", "b:", "1", "0x_", "1e3", "2024-13-40", "é", "&a", "*a", "!!str", "---", "...", "<<:", ">-"]
WORDS += list("!-?:[]{},'#|\\~@`\"")
PIECES = [
    *WORDS,
    *(word + " " for word in WORDS),
    *(word + "\n" for word in WORDS),
    " ",
    "\n",
    "\n  ",
    "\n    ",
    " # x",
]
PIECES += ["|\n ", "\t", "\r\n", "\ufeff", "\U0001f600", "\u2028", "\x85", "\x00", "\ud800", "%YAML 1.1\n"]


def said(read, text):
    """The value as Python writes it, or what is wrong with it."""
    try:
        return repr(read(text))
    except yaml.YAMLError as error:
        return f"not valid: {error}"


def slowly(text):
    return yaml.load(text, Loader=reading._Loader)


@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
@example("a:\t1")
@example("a: 1\na: 2")
@example("{true2024a:b!!str ?\n0x1F*a}")
@example("\n\ufeff")
@example("a: !")
@example("? {a: ?b}\n: c")
def test_both_readers_say_the_same(text):
    assert said(reading._load, text) == said(slowly, text)


def test_what_the_project_ships_is_read_the_fast_way(monkeypatch):
    texts = [file.read_text(encoding="utf-8") for file in FILES]
    expected = [slowly(text) for text in texts if "{{" not in text]
    slow = []
    monkeypatch.setattr(
        reading._Loader, "__init__", lambda self, text: slow.append(text) or yaml.SafeLoader.__init__(self, text)
    )
    assert [reading._load(text) for text in texts if "{{" not in text] == expected
    assert len(expected) > 30
    assert len(slow) < len(expected) / 5


@pytest.mark.parametrize("depth", [90, 150, 400])
@pytest.mark.parametrize("form", ["[", "- ", "{a: ", "lines"])
def test_however_deep_a_file_is_it_is_a_value_that_can_be_copied_or_one_line(form, depth):
    opened = "\n".join(" " * at + "a:" for at in range(depth)) if form == "lines" else form * depth + "1"
    text = opened + {"[": "]", "{a: ": "}"}.get(form, "") * depth
    try:
        config = reading.apply_overrides({}, [f"model={text}"])
    except reading.InputError:
        assert depth > 90
    else:
        assert depth < 500
        assert "model" in config
