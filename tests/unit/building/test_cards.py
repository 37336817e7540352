"""Every method says what it does, needs and costs, where it fails and who wrote it; `debias methods` shows it."""

import json
import re

import pytest
from command_line import Command, command_line

from debias.building.cards import SHELVES, Card, cards, first_sentence, source_in
from debias.config import blocks
from debias.errors import InputError

EVERY = cards()
VENUES = ("CCL", "NeurIPS", "NIPS", "ICLR", "ICML", "ICCV", "CVPR", "ACL", "NAACL", "EMNLP", "*SEM", "TMLR")


@pytest.fixture
def debias(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


def lacks(docstring: str) -> list[str]:
    """What a reader would miss in a row's docstring."""
    said, source = docstring.partition("\nSource:")[0], source_in(docstring)
    lacking = [word for word in ("Needs", "Costs", "Fails") if not re.search(rf"(?:^|[.\n] ?){word}\s", said)]
    if not re.search(r"\b(?:19|20)\d\d\b", source):
        lacking.append("a year")
    if not re.search(r"arXiv\s+\d{4}\.\d{4,5}", source) and not any(f"{venue} " in source for venue in VENUES):
        lacking.append("arXiv or venue")
    return lacking


@pytest.mark.parametrize("card", EVERY, ids=lambda card: card.name)
def test_a_method_says_what_a_reader_asks(card: Card) -> None:
    assert lacks(card.docstring) == []
    assert 10 < len(card.does) < 200
    assert card.does.endswith((".", ":"))


def test_the_checker_sees_what_is_missing() -> None:
    whole = "It works.\n\nNeeds much. Costs little. Fails never.\n\nSource: A and B, A paper, ACL 2020."
    assert lacks(whole) == []
    assert lacks(whole.replace("Costs little. ", "")) == ["Costs"]
    assert lacks(whole.replace("2020", "")) == ["a year"]
    assert lacks(whole.replace("ACL 2020", "2020")) == ["arXiv or venue"]
    assert lacks("It works.") == ["Needs", "Costs", "Fails", "a year", "arXiv or venue"]
    assert lacks("It works.\n\nSource: Needs ACL 2020. Costs. Fails here.") == ["Needs", "Costs", "Fails"]


def test_every_table_that_a_run_names_is_on_a_shelf() -> None:
    shelved = [shelf.rows for shelf in SHELVES]
    for kind in blocks.KINDS:
        assert blocks.table_of(kind) in shelved, kind


def test_how_it_is_asked_for_is_what_a_run_reads() -> None:
    """The line under `use` is a block that its table knows."""
    for card in (card for card in EVERY if ": {" in card.use):
        kind, key, name = re.fullmatch(r"(\w+): \{(\w+): (\w+)\}", card.use).groups()  # type: ignore[union-attr]
        assert blocks.KINDS[kind].key == key
        assert blocks.names_of(blocks.table_of(kind))[name] == card.name


def test_settings_are_the_fields_with_their_defaults() -> None:
    (edge,) = cards("edge")
    assert [(one.name, one.type, one.default) for one in edge.settings] == [
        ("alpha", "float", "1.0"),
        ("projection", "published | row | tensor", "published"),
    ]
    (easy,) = cards("partial_input")
    assert [(one.name, one.type, one.default) for one in easy.settings] == [
        ("fields", "list of str", None),
        ("folds", "int", "5"),
        ("calibrated", "bool", "true"),
    ]
    (soup,) = cards("soup")
    assert [(one.name, one.type, one.default) for one in soup.settings] == [
        ("weights", "list of float | null", "null"),
        ("rank", "int | null", "null"),
    ]


def test_what_else_a_method_is_called_finds_it() -> None:
    assert [card.name for card in cards("main_only")] == ["erm"]
    assert cards("main_only") == cards("erm")


@pytest.mark.parametrize(("name", "hint"), [("egde", "did you mean edge?"), ("zzzzzz", "there are edge, subtract")])
def test_an_unknown_name_is_one_line(debias: Command, name: str, hint: str) -> None:
    said = debias("methods", name)
    assert said.code == 2
    assert said.error.startswith(f"error: no method is called {name!r}; {hint}")
    with pytest.raises(InputError):
        cards(name)


def test_the_verb_lists_all_and_prints_one(debias: Command) -> None:
    listed = debias("methods")
    assert listed.code == 0
    assert all(f" {card.name} " in listed.out for card in EVERY)
    one = debias("methods", "edge")
    assert one.out.startswith("edge: rule\nuse: method: {name: edge}\n  alpha (float): 1.0\n")
    assert all(word in one.out for word in ("Needs", "Costs", "Fails", "Source: Li et al."))
    assert "  fields (list of str): must be given\n" in debias("methods", "partial_input").out
    assert "  no settings\n" in debias("methods", "erm").out


def test_json_has_the_same(debias: Command) -> None:
    told = json.loads(debias("methods", "--json").out)
    assert [one["name"] for one in told] == [card.name for card in EVERY]
    (one,) = json.loads(debias("methods", "main_only", "--json").out)
    assert (one["name"], one["kind"], one["also_called"]) == ("erm", "rule", ["main_only"])
    assert one["docstring"] == cards("erm")[0].docstring


def test_a_sentence_ends_where_it_ends() -> None:
    assert first_sentence("One (eq. 4) is\nhere. Two.\n\nThree.") == "One (eq. 4) is here."
    assert first_sentence("One. `two` is\nhere.") == "One."
    assert source_in("One.\n\nSource: a\nb.\n\nAfter.") == "a b."
    assert source_in("One.") == ""
