"""From log-likelihoods of answers to scores: normalised and calibrated. C labels, K prompts that say nothing."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from debias.errors import InputError

Normalize = Literal["none", "tokens", "characters"]
Calibrate = Literal["none", "contextual", "pmi"]
CONTENT_FREE = ("N/A", "[MASK]", "")  # Zhao et al., ICML 2021


@dataclass(frozen=True)
class Scoring:
    """How answers become scores.

    `normalize`: the sum over an answer's tokens as it is, per token, or per character. `calibrate`: minus the log of
    the mean probability under content-free inputs (contextual calibration, Zhao et al., ICML 2021), or minus the
    answer's log-likelihood after the prompt's last words alone (PMI-DC, Holtzman et al., EMNLP 2021).
    """

    normalize: Normalize = "none"
    calibrate: Calibrate = "none"

    def __post_init__(self) -> None:
        for key, kind in (("normalize", Normalize), ("calibrate", Calibrate)):
            if getattr(self, key) not in get_args(kind):
                raise InputError(f"{key} is {getattr(self, key)!r}, not one of {', '.join(get_args(kind))}")

    def lengths(self, answers: Sequence[str], tokens: np.ndarray) -> np.ndarray:
        """What log-likelihoods are divided by: `tokens` (of each answer, [..., C]), characters [C], or one."""
        if self.normalize == "tokens":
            return tokens.astype(float)
        if self.normalize == "characters":
            return np.array([max(1, len(answer.strip())) for answer in answers], dtype=float)
        return np.ones(len(answers))

    def prior_texts(self, template: str, text_fields: Sequence[str]) -> list[str]:
        """The filled templates whose scores make the prior; InputError where the template leaves nothing to ask."""
        if self.calibrate != "pmi":
            return [template.format(**dict.fromkeys(text_fields, word)) for word in CONTENT_FREE]
        parts = [*string.Formatter().parse(template)]  # {{ and }} are letters there
        last = max((place for place, (_, field, *_) in enumerate(parts) if field is not None), default=-1)
        tail = "".join(text for text, *_ in parts[last + 1 :])
        if not tail.strip():
            raise InputError("calibrate: pmi needs words after the last field of prompt.template; there are none")
        return [tail]

    def prior(self, scores_KC: np.ndarray) -> np.ndarray:
        """What is subtracted from each label's score, [C], of the scores after `prior_texts`."""
        if self.calibrate == "pmi":
            first: np.ndarray = scores_KC[0]
            return first
        log_p_KC = scores_KC - np.logaddexp.reduce(scores_KC, axis=1, keepdims=True)
        mean: np.ndarray = np.logaddexp.reduce(log_p_KC, axis=0) - np.log(len(scores_KC))
        return mean
