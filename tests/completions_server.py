"""A completions server over a tiny model, in a thread, with the manners of several real ones and faults on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tiny_models import llama

from debias.data import generate

NAME = "tiny/served"
TEMPLATE = "{premise}\nIs it so that {hypothesis}?"
ANSWERS = {"entailment": " yes, it is", "neutral": " maybe", "contradiction": " no"}


def save_model(folder: Path, *, behind: bool = False) -> Path:
    """A Llama of width 16 with a byte-level BPE tokenizer: <s> before a text, and </s> behind it if asked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rows = generate("train", 40, 0)
    corpus = [row["premise"] + "\n" + row["hypothesis"] + "? yes, it is maybe no" for row in rows]
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    inner.train_from_iterator(corpus, trainer)
    single = "<s> $A </s>" if behind else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    words.chat_template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}<s>"
    llama(vocab_size=len(words), max_position_embeddings=256).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


class Server:
    """What the server is and what it has been asked; tests change its manners while it runs.

    `offsets`: `true` (HF's), `summed` (vLLM: of the tokens' texts, special ones too), `none` (SGLang: -1).
    `faults`: for each request of a completion, from the first on, what is done in place of an answer, or None.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.words = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.offsets, self.least, self.names, self.called = "true", 0, [NAME], None
        self.chat_only, self.change = False, lambda reply: reply
        self.faults: list[Callable[[BaseHTTPRequestHandler], None] | None] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busy = self.most_busy = 0

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.chat_only:
            return 404, {"detail": "Not Found"}
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        if body["max_tokens"] < self.least:
            return 400, {"message": f"max_tokens must be at least {self.least}, got {body['max_tokens']}."}
        return 200, self.change(self._reply(body))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            encoded = self.words(prompt, return_offsets_mapping=True)
            ids, text = encoded["input_ids"], prompt
            offsets = [start for start, _ in encoded["offset_mapping"]]
            if ids[-1] == 2:  # a special token behind the text
                offsets[-1] = len(prompt)
        else:
            ids, text, offsets = prompt, self.words.decode(prompt), None
        number = len(ids)
        with self.lock, torch.inference_mode():
            log_p = self.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        if body["max_tokens"]:
            ids = [*ids, int(log_p[-1].argmax())]
            offsets = offsets and [*offsets, len(text)]
        tokens = [self.words.decode([one]) for one in ids]
        if self.offsets == "none":
            offsets = [-1] * len(ids)
        elif self.offsets == "summed" or offsets is None:
            offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        scores = [None, *(float(log_p[i, one]) for i, one in enumerate(ids[1:]))]
        logprobs = {"tokens": tokens, "token_logprobs": scores, "text_offset": offsets, "top_logprobs": None}
        choice = {"index": 0, "text": text + "".join(tokens[number:]), "logprobs": logprobs}
        usage = {"prompt_tokens": number, "completion_tokens": len(ids) - number}
        return {"object": "text_completion", "model": self.called or body["model"], "choices": [choice], "usage": usage}


def says(status: int, said: str = "later", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A fault: this status."""

    def fault(handler: BaseHTTPRequestHandler) -> None:
        send(handler, status, json.dumps({"error": {"message": said}}).encode(), headers)

    return fault


def drops(handler: BaseHTTPRequestHandler) -> None:
    """A fault: the connection is closed without a word."""
    handler.close_connection = True


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    """A fault: a body that ends in the middle."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def sleeps(handler: BaseHTTPRequestHandler) -> None:
    """A fault: nothing is said for as long as the tests' clients wait, and longer."""
    time.sleep(0.6)
    handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = {"data": [{"id": name} for name in server.names]}
            send(self, 200, json.dumps(listed).encode(), {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.keys.add(self.headers.get("Authorization"))
            with server.lock:
                server.asked.append({"path": self.path, **body})
                fault = server.faults.pop(0) if server.faults else None
                server.busy += 1
                server.most_busy = max(server.busy, server.most_busy)
            status, reply = (0, {}) if fault else server.complete(body)
            with server.lock:  # before the client can know, and ask again
                server.busy -= 1
            if fault is not None:
                fault(self)
            else:
                send(self, status, json.dumps(reply).encode(), {})

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr, which tests read."""

    return Handler


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The address at which `server` answers."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
