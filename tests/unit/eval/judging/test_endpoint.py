"""A served model is judged as the same model here, through faults and kills; what cannot be is one line."""

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, command_line
from completions_server import ANSWERS, NAME, TEMPLATE, Server, breaks_off, drops, save_model, says, serving, sleeps

from debias.config.prompt_file import how_asked
from debias.data import Example, generate
from debias.errors import InputError, Unreachable
from debias.inference.answer_scores import Scoring
from debias.inference.any_model import Given, load_given
from debias.served.asking import Asking
from debias.served.client import Client
from debias.served.kept import FILE, Kept
from debias.served.predictor import Endpoint, ServedPredictor, load_served

SECRET = "sk-none-must-see-this"
ROWS = [
    Example(str(i), (row["premise"], row["hypothesis"]), 0) for i, row in enumerate(generate("validation", 12, 0))
] + [Example("ugly", ("\u732b \U0001f408 caf\u00e9 {x} <s> 100%", "  A  cat\tsat "), 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[Server, str]]:
    server = Server(folder)
    with serving(server) as url:
        yield server, url


@pytest.fixture
def server(running: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("DEBIAS_API_KEY", SECRET)
    monkeypatch.setattr("debias.served.client.FIRST_PAUSE", 0.001)
    monkeypatch.setattr(Client.__init__, "__kwdefaults__", {"timeout": 120.0, "first_pause": 0.001})
    running[0].reset()
    return running[0]


@pytest.fixture
def url(running: tuple[Server, str], server: Server) -> str:
    return running[1]


def prompt_file(folder: Path, **changes: Any) -> Path:
    path = folder / "prompt.yaml"
    path.write_text(json.dumps({"template": TEMPLATE, "verbalizers": ANSWERS, **changes}))
    return path


def served(url: str, prompt: Path, out: Path, scoring: Scoring | None = None, **endpoint: Any) -> ServedPredictor:
    predictor = load_served(how_asked(prompt, NAME), Endpoint(url, **endpoint), out, scoring or Scoring())
    predictor.connect()
    return predictor


def here(folder: Path, prompt: Path, scoring: Scoring | None = None) -> np.ndarray:
    return load_given(Given(model=str(folder), prompt=prompt), scoring).label_scores(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("offsets", ["true", "summed", "none"])
@pytest.mark.parametrize("least", [0, 1])
def test_a_served_model_scores_as_it_does_here(
    server: Server, url: str, folder: Path, tmp_path: Path, offsets: str, least: int
) -> None:
    server.offsets, server.least = offsets, least
    prompt = prompt_file(tmp_path)
    want = here(folder, prompt)
    for tokenizer in (None, str(folder)):
        got = served(url, prompt, tmp_path / str(tokenizer is None), tokenizer=tokenizer).label_scores(ROWS)
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
    asked = server.asked[-1]
    told = {"echo": True, "logprobs": 1, "max_tokens": least, "temperature": 0, "model": NAME}
    assert {key: asked[key] for key in told} == told
    assert asked["path"] == "/v1/completions"
    assert server.keys == {f"Bearer {SECRET}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scoring", [Scoring("tokens", "contextual"), Scoring("characters"), Scoring("none", "pmi")], ids=str
)
@pytest.mark.parametrize("how", ["text", "tokens", "cut", "chat"])
def test_normalised_and_calibrated_as_here(
    server: Server, url: str, folder: Path, tmp_path: Path, scoring: Scoring, how: str
) -> None:
    changes = {"cut": {"max_length": 24}, "chat": {"chat": True}}.get(how, {})
    prompt = prompt_file(tmp_path, **changes)
    tokenizer = None if how == "text" else str(folder)
    got = served(url, prompt, tmp_path / "out", scoring, tokenizer=tokenizer).label_scores(ROWS)
    np.testing.assert_allclose(got, here(folder, prompt, scoring), atol=1e-5, rtol=0)


def test_a_special_token_behind_a_text_is_no_part_of_an_answer(tmp_path: Path, server: Server) -> None:
    ends = save_model(tmp_path / "ends", behind=True)
    prompt, other = prompt_file(tmp_path), Server(ends)
    want = here(ends, prompt)
    with serving(other) as at:
        for offsets in ("true", "summed", "none"):
            other.offsets = offsets
            got = served(at, prompt, tmp_path / offsets).label_scores(ROWS)
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)


def test_through_faults_and_all_at_once(server: Server, url: str, folder: Path, tmp_path: Path) -> None:
    prompt = prompt_file(tmp_path)
    predictor = served(url, prompt, tmp_path / "out", concurrency=5, timeout=0.4)
    some = [says(500), says(429, Retry_After="0"), drops, None, breaks_off, sleeps, None, says(503), drops, None]
    server.faults = list(some)
    got = predictor.label_scores(ROWS)
    np.testing.assert_allclose(got, here(folder, prompt), atol=1e-5, rtol=0)
    assert not server.faults
    assert 1 < server.most_busy <= 5
    asked = len(server.asked)
    assert asked == 1 + 3 * len(ROWS) + sum(one is not None for one in some)
    np.testing.assert_array_equal(predictor.label_scores(ROWS), got)
    assert len(server.asked) == asked


def test_gone_on_with_after_it_broke_off(server: Server, url: str, folder: Path, tmp_path: Path) -> None:
    prompt, out = prompt_file(tmp_path), tmp_path / "out"
    predictor = served(url, prompt, out, concurrency=3)
    server.faults = [*[None] * 20, *[says(401, f"no {SECRET}")] * 99]
    with pytest.raises(Unreachable, match=rf"{url} refuses the key that was sent \(401: no \*\*\*\)"):
        predictor.label_scores(ROWS)
    lines = (out / FILE).read_text()
    assert lines.count("\n") == 21
    assert SECRET not in lines
    (out / FILE).write_text(lines + '{"key": "cut sho')  # as a kill leaves it
    server.reset()
    got = served(url, prompt, out, concurrency=3).label_scores(ROWS)
    np.testing.assert_allclose(got, here(folder, prompt), atol=1e-5, rtol=0)
    assert len(server.asked) == 1 + 3 * len(ROWS) - 20
    assert len(Kept(out / FILE)._answers) == 1 + 3 * len(ROWS)


@pytest.mark.slow
def test_gone_on_with_after_a_kill(
    server: Server, url: str, tmp_path: Path, write_suite: Callable[..., Path], debias: Command
) -> None:
    """The process is killed outright while questions are under way."""
    told = ["eval", "--endpoint", url, "--model", NAME, "--prompt", prompt_file(tmp_path), "--concurrency", 2]
    told += ["--suite", suite_of(write_suite), "-o", tmp_path / "out"]
    server.faults = [*[None] * 15, *[lambda _: time.sleep(20)] * 2]
    process = subprocess.Popen([sys.executable, "-m", "debias.cli", *map(str, told)])
    until = time.monotonic() + 120
    while len(server.asked) < 17 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = (tmp_path / "out" / FILE).read_text().count("\n")
    assert kept == 15
    server.reset()
    assert debias(*told).code == 0
    assert len(server.asked) == 1 + 3 * len(ROWS) - (kept - 1)


def test_one_bad_question_does_not_end_the_next_suite(server: Server, url: str, tmp_path: Path) -> None:
    predictor = served(url, prompt_file(tmp_path), tmp_path / "out")
    server.faults = [says(400, "This model's maximum context length is 8")]
    with pytest.raises(InputError, match="with --tokenizer, prompts are cut to max_length") as raised:
        predictor.label_scores(ROWS[:1])
    assert not isinstance(raised.value, Unreachable)
    assert predictor.label_scores(ROWS[1:3]).shape == (2, 3)


def test_another_model_behind_the_same_name(server: Server, url: str, tmp_path: Path) -> None:
    prompt, out = prompt_file(tmp_path), tmp_path / "out"
    served(url, prompt, out)

    def worse(reply: dict[str, Any]) -> dict[str, Any]:
        told = reply["choices"][0]["logprobs"]
        told["token_logprobs"] = [one and one - 3 for one in told["token_logprobs"]]
        return reply

    server.change = worse
    with pytest.raises(Unreachable, match=r"says -\S+ where it said -\S+ before; if it serves another model now"):
        served(url, prompt, out)


def bare(reply: dict[str, Any]) -> dict[str, Any]:
    reply["choices"][0] |= {"logprobs": None, "text": " yes"}
    return reply


MANNERS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"names": ["big/one", "two"]}, f"model: URL serves no '{NAME}', but big/one, two"),
    "answers as another": ({"called": "big/one"}, f"model: URL answers as 'big/one', not as '{NAME}'"),
    "chat only": ({"chat_only": True}, r"endpoint: URL has no /v1/completions .*; a chat cannot be judged: .*echo"),
    "no logprobs": ({"change": bare}, r"endpoint: URL gives no log-probabilities of the prompt; .*vLLM and SGLang"),
    "no echo with logprobs": (
        {"faults": [says(400, "Setting 'echo' and 'logprobs' at the same time is not supported")] * 9},
        "endpoint: URL answered 400: Setting 'echo' .* judging needs",
    ),
    "a chat model": (
        {"faults": [says(404, "This is a chat model and not supported in the v1/completions endpoint")] * 9},
        "endpoint: URL has no /v1/completions for this model",
    ),
    "forbidden": ({"faults": [says(403, "go away")] * 9}, "refuses the key that was sent .*go away.*OPENAI_API_KEY"),
    "other": ({"faults": [says(418, "a teapot")] * 9}, "endpoint: URL answered 418: a teapot"),
}


@pytest.mark.parametrize(("manners", "message"), MANNERS.values(), ids=MANNERS)
def test_servers_that_cannot_judge(
    server: Server, url: str, tmp_path: Path, manners: dict[str, Any], message: str
) -> None:
    for name, value in manners.items():
        setattr(server, name, value)
    out = tmp_path / "out"
    with pytest.raises(Unreachable, match=message.replace("URL", url)) as raised:
        served(url, prompt_file(tmp_path), out)
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)
    assert not out.exists()


def test_tokens_where_only_text_is_taken(server: Server, url: str, folder: Path, tmp_path: Path) -> None:
    server.faults = [says(422, "prompt: input should be a valid string")]
    with pytest.raises(Unreachable, match="where it takes no tokens for a prompt, leave --tokenizer out"):
        served(url, prompt_file(tmp_path), tmp_path / "out", tokenizer=str(folder))


@pytest.fixture
def debias(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command_line(monkeypatch, capsys)


def suite_of(write_suite: Callable[..., Path]) -> Path:
    labels = list(ANSWERS)
    rows = [(str(i), *one.texts[:2], labels[i % 3], "ab"[i % 2]) for i, one in enumerate(ROWS)]
    return write_suite(rows, labels=labels, gap={"aligned": ["a"], "conflicting": ["b"]}, group_field="group")


def predictions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(out / "eval" / "mine.predictions.jsonl.gz", "rt")]


def test_the_verb(
    debias: Command, server: Server, url: str, folder: Path, tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    """Results are those of `--model`, reports and comparisons read them, and no file has the key."""
    prompt, mine = prompt_file(tmp_path), suite_of(write_suite)
    how = ("--prompt", prompt, "--suite", mine, "--limit", 9)
    over = ("--endpoint", f"{url}/v1", "--model", NAME, "--concurrency", 3)
    said = debias("eval", *over, *how, "-o", tmp_path / "over", "--json")
    assert said.code == 0, said.err
    assert debias("eval", "--model", folder, *how, "-o", tmp_path / "here").code == 0
    (result,) = json.loads(said.out)
    assert (result["n"], result["judge"]["how"], result["judge"]["served"]) == (9, "answers", "text")
    for got, want in zip(predictions(tmp_path / "over"), predictions(tmp_path / "here"), strict=True):
        probabilities = got.pop("probabilities"), want.pop("probabilities")
        assert got == want
        assert list(probabilities[0].values()) == pytest.approx(list(probabilities[1].values()), abs=1e-5)
    assert not (tmp_path / "over" / FILE).exists()
    page = tmp_path / "page.html"
    said = debias("report", tmp_path / "over", tmp_path / "here", "-o", page)
    assert said.code == 0, said.err
    line = f"debias eval --endpoint {url} --model {NAME} --prompt {prompt} --concurrency 3 -o over --suite {mine}"
    assert line in page.read_text()
    said = debias("card", tmp_path / "over", tmp_path / "here")
    assert said.out.splitlines() == [str(tmp_path / name / "README.md") for name in ("over", "here")]
    card = (tmp_path / "over" / "README.md").read_text()
    assert line in card
    assert f"Results of {NAME}, which a completions server answered for" in card
    assert "Precision: the server's" in card
    assert "answered for" not in (tmp_path / "here" / "README.md").read_text()
    assert debias("compare", tmp_path / "over", tmp_path / "here").code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    again = debias("eval", *over, "--normalize", "tokens", *how, "-o", tmp_path / "over").error
    assert "holds results of another model or setting (normalize)" in again


def test_the_verb_stops_where_the_server_does(
    debias: Command,
    server: Server,
    url: str,
    tmp_path: Path,
    write_suite: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine = suite_of(write_suite)
    told = ("--endpoint", url, "--model", NAME, "--prompt", prompt_file(tmp_path), "--suite", mine)
    server.faults = [*[None] * 11, *[says(500, "out of memory")] * 500]
    error = debias("eval", *told, "--concurrency", 2, "-o", tmp_path / "out").error
    assert f"endpoint: {url}: answered 500: out of memory" in error
    assert "the same command goes on" in error
    server.reset()
    said = debias("eval", *told, "-o", tmp_path / "out")
    assert said.code == 0
    assert "11 answers are kept from before" in caplog.text
    assert len(server.asked) == 1 + 3 * len(ROWS) - 10


WRONG = {
    "an adapter": (("--adapter", "a", "--load-in-4bit"), "--adapter, --load-in-4bit: the server of --endpoint has"),
    "a batch": (("--batch-size", 4), "--batch-size: the server of --endpoint has loaded its model"),
    "no address": (("--endpoint", "nowhere at all"), "endpoint: 'nowhere at all' is no address of a server"),
    "refused": (("--endpoint", "http://127.0.0.1:9"), "endpoint: http://127.0.0.1:9: connection refused; is"),
    "unknown host": (("--endpoint", "http://no.such.host.invalid"), "endpoint: http://no.such.host.invalid: "),
    "no such prompt": (("--prompt", "nothing_like_it"), "no recipe of that name"),
    "a classifier's": (("--prompt", "minilm_generated_erm"), "prompt: a served model answers in words"),
    "no such normalisation": (("--normalize", "words"), "--normalize: 'words' is not one of"),
}


@pytest.mark.parametrize(("extra", "message"), WRONG.values(), ids=WRONG)
def test_what_a_user_can_get_wrong(
    debias: Command, url: str, tmp_path: Path, extra: tuple[Any, ...], message: str, write_suite: Callable[..., Path]
) -> None:
    told = ("--endpoint", url, "--model", NAME, "--prompt", prompt_file(tmp_path), "--suite", suite_of(write_suite))
    assert message in debias("eval", *told, "-o", tmp_path / "out", *extra).error
    assert not (tmp_path / "out").exists()


def test_what_is_missing(debias: Command, url: str, tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    mine, out, prompt = suite_of(write_suite), tmp_path / "out", prompt_file(tmp_path)
    base = ("eval", "--suite", mine)
    assert "--model is missing: the name" in debias(*base, "--endpoint", url, "--prompt", prompt, "-o", out).error
    assert "--prompt is missing: a file" in debias(*base, "--endpoint", url, "--model", NAME, "-o", out).error
    assert "-o is missing" in debias(*base, "--endpoint", url, "--model", NAME, "--prompt", prompt).error
    assert "--concurrency: of --endpoint alone" in debias(*base, "--model", "m", "--concurrency", 2, "-o", out).error
    (tmp_path / "run").mkdir()
    assert "--endpoint: a run has its own" in debias(*base, tmp_path / "run", "--endpoint", url).error
    chat = ("--endpoint", url, "--model", NAME, "--prompt", prompt_file(tmp_path, chat=True), "-o", out)
    assert "prompt.chat: the chat template is the tokenizer's" in debias(*base, *chat).error


def test_each_thread_asks_a_question_of_its_own(server: Server, url: str, tmp_path: Path) -> None:
    """The same question in many rows is asked once."""
    predictor = served(url, prompt_file(tmp_path), tmp_path / "out", concurrency=4)
    got = predictor.label_scores([replace(ROWS[0], id=str(i)) for i in range(8)])
    assert np.ptp(got, axis=0).tolist() == [0.0, 0.0, 0.0]
    assert len(server.asked) == 1 + 3


def test_answers_that_the_disk_does_not_take(url: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    asking = Asking(Client(url), NAME, Kept(tmp_path / "out" / FILE))
    config = how_asked(prompt_file(tmp_path), NAME)
    from debias.served.questions import Texts

    questions = Texts(TEMPLATE, list(ANSWERS.values()), config.data.text_fields)
    with pytest.raises(InputError, match=f"{FILE}: cannot be written"):
        ServedPredictor(config, asking, questions, Scoring()).connect()
