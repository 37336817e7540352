"""Many questions at once: one alone, which shows how the server wants to be asked, then several threads."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from debias.errors import Unreachable
from debias.served.client import Client, Refusal, Stopped
from debias.served.faults import explained, wrong_model
from debias.served.kept import Kept
from debias.served.questions import Question
from debias.served.reading import Answered, NoEcho, read_answer

logger = logging.getLogger(__name__)
PROGRESS_SECONDS = 10.0
# Between two runs of one server: batches of another size round otherwise, in bf16 by tenths. Another model is far off.
SAME, SAME_SHARE = 0.25, 0.02


class Asking:
    """Asks a model's server, `concurrency` questions at a time, and keeps what it says."""

    def __init__(self, client: Client, model: str, kept: Kept, concurrency: int = 8) -> None:
        self.client = client
        self.model = model
        self.kept = kept
        self.concurrency = concurrency
        self._max_tokens = 0  # to generate; some servers want at least one

    def answers(self, questions: Sequence[Question]) -> list[Answered]:
        """The answers in the order of the questions; each distinct one is asked once, and never when it is kept.

        InputError for what no further try would change; what was answered until then is kept.
        """
        keys = [one.key(self.model) for one in questions]
        distinct = dict(zip(keys, questions, strict=True))
        self._ask_all({key: one for key, one in distinct.items() if key not in self.kept})
        return [self.kept[key] for key in keys]

    def connect(self, question: Question) -> None:
        """Ask one question, to find out whether the server answers and what it takes.

        Where its answer is kept, it must still be that: another model behind the same name says otherwise.
        """
        key = question.key(self.model)
        try:
            self._max_tokens = 0
            answered = self._one(question)
        except NoEcho:  # some give nothing at all where nothing is to be generated
            self._max_tokens = 1
            answered = self._one(question)
        if key not in self.kept:
            self.kept.add(key, answered)
            return
        before = self.kept[key].log_p
        if abs(answered.log_p - before) > SAME + SAME_SHARE * abs(before):
            raise Unreachable(
                f"endpoint: {self.client.url} says {answered.log_p:.4g} where it said {before:.4g} before; if it serves"
                f" another model now, delete {self.kept.path} or give another -o"
            )
        logger.info("%d answers are kept from before (%s)", self.kept.found, self.kept.path)

    def _one(self, question: Question) -> Answered:
        reply = self._reply(question)
        if wrong_model(reply.get("model"), self.model):
            raise Unreachable(
                f"model: {self.client.url} answers as {self.client.clean(str(reply['model']))!r}, not as {self.model!r}"
            )
        return read_answer(reply, question, self._max_tokens, self.client.url)

    def _reply(self, question: Question) -> dict[str, Any]:
        try:
            return self.client.complete(self._body(question))
        except Refusal as refusal:
            words = refusal.said.casefold()
            if self._max_tokens == 0 and ("max_tokens" in words or "max tokens" in words):
                self._max_tokens = 1
                return self._reply(question)
            raise explained(refusal, self.client, self.model, question) from None

    def _body(self, question: Question) -> dict[str, Any]:
        told = {"echo": True, "logprobs": 1, "max_tokens": self._max_tokens, "temperature": 0}
        return {"model": self.model, "prompt": question.sent, **told}

    def _ask_all(self, new: dict[str, Question]) -> None:
        started = said = time.monotonic()
        self.client.resume()
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._kept_one, key, one) for key, one in new.items()]
            try:
                for number, done in enumerate(as_completed(waiting), start=1):
                    done.result()
                    if (now := time.monotonic()) - said >= PROGRESS_SECONDS:
                        said = now
                        logger.info("  %d of %d answers, %.0f a second", number, len(new), number / (now - started))
            except BaseException:
                self.client.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _kept_one(self, key: str, question: Question) -> None:
        try:
            self.kept.add(key, self._one(question))
        except Stopped:
            return  # the question that failed says why
