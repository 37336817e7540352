"""HTTP with the standard library: one body in, one JSON object out, tried again where that helps.

The key comes from the environment alone. It is sent to the endpoint and nowhere else: redirects are not followed, and
it is blotted out of whatever a server says.
"""

import email.utils
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from debias.errors import InputError, Unreachable

KEYS = ("DEBIAS_API_KEY", "OPENAI_API_KEY")  # the first that is set
TRIES = 8  # with the pauses between them a minute, as long as a proxy takes to find its server again
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_ASKED_FOR = 0.5, 32.0, 120.0  # seconds
LONGEST_TIMEOUT = 7 * 86400.0  # seconds
PASSING = (408, 425, 429)  # and those from 500 on, but for:
LASTING = (501, 505)
SHOWN = 300  # characters of what a server says


class Refusal(Exception):
    """A server's lasting no: the status and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status = status
        self.said = said


class Stopped(Exception):
    """Another question has failed, and this one is not asked any more."""


class _Again(Exception):
    """What may be over in a moment; `pause`: the seconds that the server asked for."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The key is for the endpoint that was named, not for where it points."""


class Client:
    """A server's address with what it takes to ask it. Several threads may use one.

    `timeout`: seconds without a byte until a request is tried again. InputError for an address that is none, and for a
    key that no header can carry.
    """

    def __init__(self, url: str, *, timeout: float = 120.0, first_pause: float = FIRST_PAUSE) -> None:
        if not 0 < timeout < LONGEST_TIMEOUT:
            raise InputError(f"timeout is {timeout:g}, expected seconds, more than 0 and less than a week")
        self.url = base_url(url)
        self.timeout = timeout
        self._first_pause = first_pause
        self._key = key_from(os.environ)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._stopped = threading.Event()
        self._reached = False

    @property
    def has_key(self) -> bool:
        """Whether a key is sent along."""
        return self._key is not None

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of `/v1/completions`. Refusal for a lasting no, Unreachable where it stays silent or fails."""
        return self._tried(lambda: self._once("/v1/completions", body))

    def models(self) -> list[str]:
        """The names of the models that are served; none where the server does not say."""
        try:
            listed = self._once("/v1/models", None).get("data")
            return [str(one["id"]) for one in listed] if isinstance(listed, list) else []
        except (Refusal, _Again, InputError, KeyError, TypeError):
            return []

    def stop(self) -> None:
        """End the pauses of all threads; what is not asked yet is not asked any more."""
        self._stopped.set()

    def resume(self) -> None:
        """Ask again after `stop`."""
        self._stopped.clear()

    def _tried(self, once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        fault: Exception | None = None
        for attempt in range(TRIES):
            if self._stopped.is_set():
                raise Stopped
            try:
                answer = once()
            except _Again as again:
                fault = again
                if attempt + 1 < TRIES:
                    self._stopped.wait(self._pause(attempt, again.pause))
            else:
                self._reached = True
                return answer
        raise Unreachable(
            f"endpoint: {self.url}: {fault} ({TRIES} times); what was answered is kept, the same command goes on"
        )

    def _pause(self, attempt: int, asked_for: float | None) -> float:
        if asked_for is not None:
            return min(asked_for, LONGEST_ASKED_FOR)
        # Threads that failed together come back apart.
        return float(min(LONGEST_PAUSE, self._first_pause * 2**attempt) * random.uniform(0.75, 1.25))

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "debias"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                return self._parsed(reply.read())
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise self._of_network(error) from None

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(
                f"endpoint: {self.url} is no completions server: it answered {self.clean(_text(content))[:80]!r}"
            )
        return answer

    def _of_status(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = self.clean(message_of(error.read(65536)))[:SHOWN] or str(error.reason)
        except (OSError, http.client.HTTPException):
            said = str(error.reason)
        if error.code in PASSING or (error.code >= 500 and error.code not in LASTING):
            return _Again(f"answered {error.code}: {said}", seconds_of(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            said = f"points to {self.clean(str(error.headers.get('Location')))}; give that address"
        return Refusal(error.code, said)

    def _of_network(self, error: Exception) -> Exception:
        """A server that never answered is a wrong address; one that has answered before may come back."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return _Again(f"no answer within {self.timeout:g} s")
        words = _network_words(reason)
        lasting = isinstance(reason, ssl.SSLCertVerificationError) or (
            not self._reached and isinstance(reason, ConnectionRefusedError | socket.gaierror)
        )
        return Unreachable(f"endpoint: {self.url}: {words}; is the server up?") if lasting else _Again(words)

    def clean(self, text: str) -> str:
        """A server's words without the key."""
        return text.replace(self._key, "***") if self._key else text


def _network_words(reason: Any) -> str:
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    if isinstance(reason, http.client.IncompleteRead | ConnectionError):  # RemoteDisconnected is a ConnectionError
        return "the connection was dropped"
    return " ".join(str(getattr(reason, "strerror", None) or reason).split())[:SHOWN] or type(reason).__name__


def base_url(url: str) -> str:
    """`http://host:8000` of that, of `http://host:8000/v1` and of the address of its completions."""
    if any(mark in url for mark in "@?#"):  # not repeated: what is beside the address may be a secret
        raise InputError(f"endpoint: give the address alone, and a key in {KEYS[0]} or {KEYS[1]}, not in the address")
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isascii() or any(not c.isprintable() or c.isspace() for c in url):
        raise InputError(f"endpoint: {url!r} is no address of a server, such as http://localhost:8000")
    path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def key_from(environment: Mapping[str, str]) -> str | None:
    """The key, None where there is none; InputError, without it, for one that no header can carry."""
    for name in KEYS:
        key = environment.get(name, "").strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise InputError(f"{name} holds a space or a character that no key has")
        if key:
            return key
    return None


def message_of(content: bytes) -> str:
    """What an error's body says, in one line: OpenAI's, vLLM's and FastAPI's forms, else the text."""
    try:
        told: Any = json.loads(content)
    except (ValueError, RecursionError):
        told = _text(content)
    for key in ("error", "message", "detail"):
        if isinstance(told, dict) and told.get(key):
            told = told[key]
    return " ".join((told if isinstance(told, str) else json.dumps(told)).split())


def _text(content: bytes) -> str:
    return content[:4096].decode("utf-8", "replace")


def seconds_of(retry_after: str | None) -> float | None:
    """Of a `Retry-After`, which is a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(int(retry_after)))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
