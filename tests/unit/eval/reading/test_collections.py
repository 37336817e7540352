"""Collections, pairings and the verb that lists suites."""

import json
import logging

import pytest
from typer.testing import CliRunner

from debias.cli.app import app
from debias.errors import InputError
from debias_eval.reading.collection import choose, collection_names, members, pairings
from debias_eval.reading.suite import BUILT_IN, available_suites, load_suite


def names(asked: list[str]) -> list[str]:
    return [one.name for one in choose(asked)]


def test_every_member_is_a_suite_once_and_no_name_means_two_things():
    for name in collection_names():
        assert set(members(name)) <= set(available_suites())
        assert len(set(members(name))) == len(members(name)) > 0
        assert name not in available_suites()
    assert {"nli", "fairness", "all", "fact_verification", "paraphrase", "sentiment", "stress"} <= set(
        collection_names()
    )


@pytest.mark.parametrize("task", ["nli", "fact_verification", "paraphrase", "sentiment", "toxicity", "vision"])
def test_a_collection_named_like_a_task_holds_that_task(task):
    assert {load_suite(name).task for name in members(task)} == {task}


def test_every_suite_is_in_a_collection_other_than_all():
    named = {suite for name in collection_names() if name != "all" for suite in members(name)}
    assert set(available_suites()) - named == {"generated", "generated_ood"}
    assert set(members("all")) == set(available_suites())


def test_pairings_are_of_one_task_and_shifted_suites_differ_from_the_first():
    assert {pair.task for pair in pairings()} >= {"nli", "paraphrase", "sentiment", "toxicity"}
    assert len({pair.name for pair in pairings()}) == len(pairings())
    for pair in pairings():
        assert load_suite(pair.id_suite).task == pair.task
        assert all(load_suite(name).task == pair.task for name in pair.ood_suites)
        assert pair.id_suite not in pair.ood_suites


def test_a_collection_becomes_its_suites_each_once(data_folder):
    stress = list(members("stress"))
    assert names(["stress"]) == stress
    path = str(BUILT_IN / "sick" / "suite.yaml")
    assert names(["hans", "stress", "hans", stress[0], path]) == ["hans", *stress, path]
    assert names([]) == []


def test_a_suite_that_is_named_and_collected_counts_as_named(data_folder):
    first, *rest = members("stress")
    by_name = {one.name: one.by_name for one in choose(["stress", first])}
    assert by_name == {first: True, **dict.fromkeys(rest, False)}
    assert {one.name: one.by_name for one in choose([first, "stress"])} == by_name


def test_two_suites_of_one_name_are_refused_and_one_in_two_spellings_is_one(write_suite, tmp_path, monkeypatch):
    """The results of both would lie in one file, the first one's unread."""
    mine = write_suite([])
    (other := tmp_path / "other.yaml").write_text(mine.read_text())
    with pytest.raises(InputError, match=rf"suite mine: {mine} and {other} have one name, and one result"):
        choose([str(mine), str(other)])
    (own := tmp_path / "own.yaml").write_text(mine.read_text().replace('"mine"', '"generated"'))
    for names_, first in ((["generated", str(own)], "the built-in suite and"), (["all", str(own)], "the built-in")):
        with pytest.raises(InputError, match=f"suite generated: {first}"):
            choose(names_)
    assert [one.name for one in choose([str(mine), str(mine.parent) + "/"])] == [str(mine)]
    monkeypatch.chdir(BUILT_IN.parent)
    (one,) = choose(["generated", f"{BUILT_IN.name}/generated/suite.yaml"])
    assert (one.name, one.suite.file) == ("generated", None)


def test_a_collection_leaves_out_what_is_not_here_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    (tmp_path / "cad_nli").mkdir()
    (tmp_path / "cad_nli" / "test.jsonl.gz").write_bytes(b"")
    with caplog.at_level(logging.INFO, "debias_eval"):
        assert names(["nli"]) == ["cad_nli"]
    assert "nli: without snli, " in caplog.text
    assert "name a suite to read it from the hub" in caplog.text
    assert "nli: without hans, " in caplog.text
    assert names(["wanli"]) == ["wanli"]  # named: to be fetched


def test_a_collection_of_which_nothing_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"sentiment: none of its suites has its data here; DEBIAS_DATA"):
        choose(["sentiment"])


@pytest.mark.parametrize(("name", "near"), [("nly", "nli"), ("hanz", "hans"), ("fairnes", "fairness")])
def test_an_unknown_name_gives_the_nearest_and_lists_both_kinds(name, near):
    with pytest.raises(
        InputError, match=rf"unknown suite '{name}'; did you mean {near}\? suites: .*; collections: all, "
    ):
        choose([name])


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["suites", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_verb_lists_suites_with_where_their_data_is(data_folder):
    lines = {line.split("│")[1].strip(): line for line in run().splitlines() if line.startswith("│")}
    assert set(lines) == set(available_suites())
    assert "30,000" in lines["hans"]
    assert "local" in lines["hans"]
    assert "hub: alisawuffles/WANLI" in lines["wanli"]
    assert "generated" in lines["generated"]
    assert "nli: snli, " in run()


def test_the_verb_prints_a_card_and_a_collection(data_folder):
    assert run("cad_nli").startswith("# cad_nli\n")
    assert run("cad_nli").rstrip().endswith("Version 2; data: local.")
    assert [line.split(":")[0] for line in run("stress").splitlines()] == list(members("stress"))


def test_the_verb_gives_json(data_folder):
    every = {one["name"]: one for one in json.loads(run("--json"))}
    assert every["hans"] | {"description": ""} == {
        "name": "hans",
        "version": 2,
        "task": "nli",
        "labels": ["entailment", "not_entailment"],
        "rows": 30000,
        "data": "local",
        "hub": None,
        "description": "",
    }
    assert [one["name"] for one in json.loads(run("hans", "--json"))] == ["hans"]


def test_the_verb_refuses_an_unknown_name():
    done = CliRunner().invoke(app, ["suites", "nope"])
    assert isinstance(done.exception, InputError)


def test_a_suite_of_a_users_own_without_a_card(write_suite):
    path = write_suite([("1", "p", "h", "entailment", None)])
    assert run(str(path)).startswith("# mine\n\nMine.\n")
