"""A served model as a predictor. Shapes: N examples, C labels, K prompts that say nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from debias.config.run import RunConfig
from debias.data.examples import Example
from debias.data.prompt import Prompt
from debias.data.shots import Shown
from debias.errors import InputError
from debias.served.asking import Asking
from debias.served.client import Client
from debias.served.kept import FILE, Kept
from debias.served.questions import Questions, Texts, Tokens

if TYPE_CHECKING:  # the room of models here loads torch, and asking a server needs none
    from debias.inference.answer_scores import Scoring


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked. `tokenizer`: the served model's, by folder or hub id; prompts are then tokens."""

    url: str
    tokenizer: str | None = None
    concurrency: int = 8
    timeout: float = 120.0


class ServedPredictor:
    """Scores labels with a model that another process serves, as `debias.inference.predictor` does with one here."""

    def __init__(self, config: RunConfig, asking: Asking, questions: Questions, scoring: "Scoring") -> None:
        assert config.prompt is not None
        self.config = config
        self.asking = asking
        self.questions = questions
        self.scoring = scoring
        self._prior_C: np.ndarray | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels, in the order of its scores."""
        return self.config.data.labels

    @property
    def text_fields(self) -> tuple[str, ...]:
        """The texts the model reads, in order."""
        return self.config.data.text_fields

    @property
    def description(self) -> dict[str, Any]:
        """How labels were scored, for the results; who served them is in the folder's run.json."""
        served = "tokens" if isinstance(self.questions, Tokens) else "text"
        told = {"how": "answers", "normalize": self.scoring.normalize, "calibrate": self.scoring.calibrate}
        return {**told, "served": served}

    def connect(self) -> None:
        """Ask one question before anything is written; InputError where the server is not there or cannot answer."""
        template = self.config.prompt.template  # type: ignore[union-attr]
        self.asking.connect(self.questions.of(template.format(**{name: name for name in self.text_fields}))[0])

    def label_scores(self, examples: Sequence[Example], batch_size: int | None = None) -> np.ndarray:
        """Log-likelihood of each label, [N, C] float64; `batch_size` is the server's affair.

        InputError for what the server cannot answer, Unreachable where it fails as a whole.
        """
        if not examples:
            return np.empty((0, len(self.labels)))
        scores_NC = self._scores(self._filled(examples))
        if self.scoring.calibrate == "none":
            return scores_NC
        if self._prior_C is None:
            template = self.config.prompt.template  # type: ignore[union-attr]
            self._prior_C = self.scoring.prior(self._scores(self.scoring.prior_texts(template, self.text_fields)))
        return scores_NC - self._prior_C

    @property
    def prompt_limits(self) -> tuple[int, int] | None:
        """The tokens that a prompt may have, and what it may have with an answer; None where the server cuts texts."""
        return self.questions.limits if isinstance(self.questions, Tokens) else None

    def prompt_lengths(self, examples: Sequence[Example]) -> list[int]:
        """How many tokens the prompt of each example has, whole."""
        assert isinstance(self.questions, Tokens)
        return [len(self.questions.prompt.ids_of_text(text)) for text in self._filled(examples)]

    def _filled(self, examples: Sequence[Example]) -> list[str]:
        template = self.config.prompt.template  # type: ignore[union-attr]
        return [template.format(**dict(zip(self.text_fields, one.texts, strict=True))) for one in examples]

    def _scores(self, texts: Sequence[str]) -> np.ndarray:
        """After filled templates, normalised, [N, C]."""
        answered = self.asking.answers([one for text in texts for one in self.questions.of(text)])
        shape = (len(texts), len(self.labels))
        log_p_NC = np.array([one.log_p for one in answered]).reshape(shape)
        tokens_NC = np.array([one.tokens for one in answered]).reshape(shape)
        return log_p_NC / self.scoring.lengths(self.questions.answers, tokens_NC)


def load_served(
    config: RunConfig, endpoint: Endpoint, folder: Path, scoring: "Scoring", shown: Shown | None = None
) -> ServedPredictor:
    """The predictor of a served model; `folder` keeps its answers. InputError for what does not fit together.

    `shown`: examples in context.
    """
    check_asked(config, endpoint)
    client = Client(endpoint.url, timeout=endpoint.timeout)
    if shown is not None:
        config = shown.before(config, _tokens(shown.text(config), endpoint.tokenizer))
    questions = _questions(config, endpoint.tokenizer)
    asking = Asking(client, config.model, Kept(folder / FILE), endpoint.concurrency)
    return ServedPredictor(config, asking, questions, scoring)


def _tokens(text: str, tokenizer: str | None) -> int:
    if tokenizer is None:  # the server cuts texts into tokens, and nothing is cut off here
        return 0
    from debias.models.load import load_tokenizer

    return len(load_tokenizer(tokenizer, "causal_lm")(text, add_special_tokens=False)["input_ids"])


def check_asked(config: RunConfig, endpoint: Endpoint) -> None:
    """InputError where a served model cannot be asked in this way."""
    if config.head != "causal_lm" or config.prompt is None:
        raise InputError("prompt: a served model answers in words; give a file with template and verbalizers")
    if config.prompt.chat and endpoint.tokenizer is None:
        raise InputError("prompt.chat: the chat template is the tokenizer's; give --tokenizer, the served model's own")


def _questions(config: RunConfig, tokenizer: str | None) -> Questions:
    asked = config.prompt
    assert asked is not None
    answers = [asked.verbalizers[label] for label in config.data.labels]
    if tokenizer is None:
        return Texts(asked.template, answers, config.data.text_fields)
    from debias.models.load import load_tokenizer

    words = load_tokenizer(tokenizer, "causal_lm")
    return Tokens(Prompt(words, asked.template, answers, config.data.text_fields, chat=asked.chat), config.max_length)
