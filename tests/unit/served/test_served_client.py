"""What is tried again and what is not, and that the key goes to the endpoint alone."""

import email.utils
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from completions_server import breaks_off, drops, says, send, sleeps

from debias.errors import InputError, Unreachable
from debias.served.client import TRIES, Client, Refusal, base_url, key_from, message_of, seconds_of

SECRET = "sk-none-must-see-this"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    for name in ("DEBIAS_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def answering(*faults: Any) -> Iterator[tuple[str, list[Any]]]:
    """A server that meets the first requests with `faults`, and every later one with an empty object."""
    waiting, seen = list(faults), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.headers.get("Authorization"), time.monotonic()))
            self.rfile.read(int(self.headers["Content-Length"]))
            if waiting:
                waiting.pop(0)(self)
            else:
                send(self, 200, b"{}", {})

        do_GET = do_POST

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", seen
    finally:
        http.shutdown()
        http.server_close()


def client(url: str, **settings: Any) -> Client:
    return Client(url, **{"timeout": 0.2, "first_pause": 0.001, **settings})


PASSING = {
    "500s": [says(500), says(503), says(502)],
    "429": [says(429, Retry_After="0")],
    "dropped": [drops, drops],
    "cut short": [breaks_off],
    "slow": [sleeps],
    "of a proxy": [says(524)],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(faults: list[Any]) -> None:
    with answering(*faults) as (url, seen):
        assert client(url).complete({}) == {}
    assert len(seen) == len(faults) + 1


def test_a_pause_is_as_long_as_was_asked_for() -> None:
    with answering(says(429, Retry_After="1")) as (url, seen):
        client(url).complete({})
    assert seen[1][1] - seen[0][1] >= 0.95


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (says(503, "loading the model"), "answered 503: loading the model"),
        (drops, "the connection was dropped"),
        (sleeps, r"no answer within 0.05 s"),
    ],
)
def test_what_does_not_pass_is_one_line(fault: Any, message: str) -> None:
    with answering(*[fault] * TRIES) as (url, seen), pytest.raises(Unreachable, match=message) as raised:
        client(url, timeout=0.05).complete({})
    assert len(seen) == TRIES
    assert str(raised.value).startswith(f"endpoint: {url}: ")
    assert f"({TRIES} times)" in str(raised.value)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 501])
def test_a_lasting_no_is_not_tried_again(status: int) -> None:
    with answering(says(status, "no")) as (url, seen), pytest.raises(Refusal) as raised:
        client(url).complete({})
    assert (raised.value.status, raised.value.said, len(seen)) == (status, "no", 1)


def test_a_server_that_was_never_there_and_one_that_went_away() -> None:
    with answering() as (url, _):
        one = client(url)
        one.complete({})
    with pytest.raises(Unreachable, match=r"connection refused \(8 times\); what was answered is kept"):
        one.complete({})
    with pytest.raises(Unreachable, match=rf"endpoint: {url}: connection refused; is the server up\?"):
        client(url).complete({})


def test_a_page_is_no_answer() -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, b"<html>Welcome</html>", {})

    with answering(page) as (url, _), pytest.raises(Unreachable, match="no completions server: it answered '<html>"):
        client(url).complete({})


def test_the_key_goes_to_the_endpoint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with answering() as (elsewhere, seen_elsewhere):
        points = says(307, Location=f"{elsewhere}/v1/completions?key={SECRET}")
        with answering(points, points) as (url, seen), pytest.raises(Refusal, match="give that address") as raised:
            client(url).complete({})
    assert (seen[0][0], seen_elsewhere) == (f"Bearer {SECRET}", [])
    assert SECRET not in str(raised.value)
    assert "***" in str(raised.value)


def test_the_key_is_blotted_out_of_what_a_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBIAS_API_KEY", f" {SECRET}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    told = f"wrong key {SECRET}"
    with answering(says(401, told)) as (url, seen), pytest.raises(Refusal, match=r"wrong key \*\*\*$"):
        client(url).complete({})
    assert seen[0][0] == f"Bearer {SECRET}"
    with answering(*[says(500, told)] * TRIES) as (url, _), pytest.raises(Unreachable) as raised:
        client(url).complete({})
    assert SECRET not in str(raised.value)
    with (
        answering(lambda handler: send(handler, 200, told.encode(), {})) as (url, _),
        pytest.raises(Unreachable) as bad,
    ):
        client(url).complete({})
    assert SECRET not in str(bad.value)


def test_keys_that_no_header_carries() -> None:
    for key in ("two words", "schl\u00fcssel", "a\nb"):
        with pytest.raises(InputError, match="OPENAI_API_KEY holds a space") as raised:
            key_from({"OPENAI_API_KEY": key})
        assert key not in str(raised.value)
    assert key_from({"DEBIAS_API_KEY": " ", "OPENAI_API_KEY": ""}) is None


@pytest.mark.parametrize("given", ["http://h:8000", "h:8000", "http://h:8000/v1/", "http://h:8000/v1/completions"])
def test_addresses(given: str) -> None:
    assert base_url(given) == "http://h:8000"
    assert base_url("https://h/some/path/v1") == "https://h/some/path"


@pytest.mark.parametrize(
    "given", ["", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://h/a b", "http://[::1", "http://h\u00f6"]
)
def test_addresses_that_are_none(given: str) -> None:
    with pytest.raises(InputError, match="is no address of a server, such as http://localhost:8000"):
        base_url(given)


@pytest.mark.parametrize("given", [f"https://me:{SECRET}@h", f"https://h/v1?api_key={SECRET}", f"https://h#{SECRET}"])
def test_a_secret_in_an_address(given: str) -> None:
    with pytest.raises(InputError, match="a key in DEBIAS_API_KEY or OPENAI_API_KEY, not in the address") as raised:
        base_url(given)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), 0.0, -1.0, 1e300])
def test_silence_of_no_length(given: float) -> None:
    with pytest.raises(InputError, match=r"timeout is .*, expected seconds"):
        Client("http://h", timeout=given)


def test_what_bodies_of_errors_say() -> None:
    said = {"error": {"message": "a\n b"}}, {"message": "a b"}, {"detail": "a b"}, {"error": "a b"}
    assert {message_of(json.dumps(one).encode()) for one in said} == {"a b"} == {message_of(b"a  b\n")}
    assert "max_tokens" in message_of(b'{"detail": [{"loc": ["body", "max_tokens"], "msg": "at least 1"}]}')


def test_pauses_that_are_asked_for() -> None:
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert [seconds_of(one) for one in ("7", "-3", None, "soon")] == [7.0, 0.0, None, None]
    assert 25 < (seconds_of(later) or 0) <= 30
