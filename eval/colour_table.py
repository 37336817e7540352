"""Why logit correction closes nothing of Colored MNIST: a bias model that knows the colour alone, in a plain loop.

`python eval/colour_table.py` trains the perceptron of the Colored MNIST study on the study's pictures (first weights,
optimizer and steps as there), with `log p_b` added to its logits: `p_b` from a table that counts the digits of each
colour, and from two perceptrons of 100 steps that each judge the half they have not seen, which is what `first_learned`
does. Prints what is right where the colour is wrong and right (mean, least and most of five seeds), and what each bias
model says of the training pictures in a wrong colour.

Shapes: N pictures, B of a step, C labels.
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from debias.building.examples import training_examples
from debias.config.run import RunConfig
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.suite import load_suite
from same_step import Loop, shares
from spuco_check import SEEDS, SUITE, Pictures, plain_run

EARLY = 100
FLOOR = 1e-4  # of a probability, as runs have it


def colour_of(train: Pictures, labels: int) -> Tensor:
    """The number of the digit whose colour a picture wears, [N]: by its mean red, green and blue."""
    own_N, right_N = torch.tensor(train.labels), ~torch.from_numpy(train.wrong_N)
    shade_N3 = train.image_N.float().flatten(2).sum(dim=2)
    shade_N3 = shade_N3 / shade_N3.sum(dim=1, keepdim=True)
    of_digit = torch.stack([shade_N3[right_N & (own_N == digit)].mean(dim=0) for digit in range(labels)])
    return torch.cdist(shade_N3, of_digit).argmin(dim=1)


def by_colour(train: Pictures, labels: int) -> Tensor:
    """`log p_b` [N, C]: how often each digit wears a picture's colour."""
    own_N, colour_N = torch.tensor(train.labels), colour_of(train, labels)
    count_CC = torch.zeros(labels, labels).index_put_((colour_N, own_N), torch.ones(len(own_N)), accumulate=True)
    return (count_CC / count_CC.sum(dim=1, keepdim=True)).clamp(min=FLOOR).log()[colour_N]


def first_learned(config: RunConfig, train: Pictures) -> Tensor:
    """`log p_b` [N, C] of two perceptrons after EARLY steps, each of the half it has not seen."""
    generator = torch.Generator().manual_seed(5 + config.seed)
    order_N = torch.randperm(len(train), generator=generator)
    log_p_NC = torch.zeros(len(train), len(config.data.labels))
    for half in (0, 1):
        own, other = order_N[half::2], order_N[1 - half :: 2]
        loop = Loop(config, train, even=False)
        optimizer = torch.optim.AdamW(loop.model.parameters(), lr=config.learning_rate, weight_decay=0.0)
        for _ in range(EARLY):
            places_B = own[torch.randint(len(own), (config.per_device_train_batch_size,), generator=generator)]
            optimizer.zero_grad()
            loop.fit(places_B).backward()
            optimizer.step()
        with torch.no_grad():
            said = [log_softmax(loop.model.classifier(loop.hidden(part)), dim=1) for part in other.split(4096)]
        log_p_NC[other] = torch.cat(said).clamp(min=float(np.log(FLOOR)))
    return log_p_NC


def corrected(log_p_NC: Tensor | None, tau: float) -> Callable[[Loop, Tensor], Tensor]:
    """Cross-entropy of a step with `tau log p_b` added to the logits; without a bias model plain."""

    def objective(loop: Loop, places_B: Tensor) -> Tensor:
        logit_BC = loop.model.classifier(loop.hidden(places_B))
        added_BC = logit_BC if log_p_NC is None else logit_BC + tau * log_p_NC[places_B]
        return cross_entropy(added_BC, loop.label_N[places_B])

    return objective


def main() -> None:
    """Train and print, a line as soon as it is known."""
    torch.set_num_threads(1)
    test = Pictures(suite_examples(load_suite(SUITE)))
    data = [(config, Pictures(training_examples(config, None))) for config in map(plain_run, SEEDS)]
    makers: dict[str, Callable[[RunConfig, Pictures], Tensor] | None] = {
        "none": None,
        "colour": lambda config, train: by_colour(train, len(config.data.labels)),
        "first learned": first_learned,
    }
    sys.stdout.write("| bias model | tau | says the colour | right p | colour wrong | colour right |\n")
    sys.stdout.write("|---|--:|--:|--:|--:|--:|\n")
    for name, make in makers.items():
        answers = [None if make is None else make(*one) for one in data]
        of_wrong = [_of_wrong(*one, log_p) for one, log_p in zip(data, answers, strict=True) if log_p is not None]
        about = [f"{100 * np.mean(cell):.1f}" for cell in zip(*of_wrong, strict=True)] or ["–", "–"]
        for tau in (1.0, 0.5) if make is not None else (0.0,):
            found = [
                shares(Loop(*one, even=False).run(corrected(log_p, tau)), test)
                for one, log_p in zip(data, answers, strict=True)
            ]
            cells = [[100 * one[key] for one in found] for key in ("wrong", "right")]
            told = [f"{np.mean(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells]
            sys.stdout.write(f"| {' | '.join([name, f'{tau:g}', *about, *told])} |\n")
            sys.stdout.flush()


def _of_wrong(config: RunConfig, train: Pictures, log_p_NC: Tensor) -> tuple[float, float]:
    """Of training pictures in a wrong colour: how often the bias model says the colour's digit, and its mean p(y)."""
    wrong_N, colour_N = torch.from_numpy(train.wrong_N), colour_of(train, len(config.data.labels))
    own_N1 = torch.tensor(train.labels).unsqueeze(1)
    says_colour = (log_p_NC.argmax(dim=1) == colour_N)[wrong_N].float().mean()
    return float(says_colour), float(log_p_NC.gather(1, own_N1).exp()[wrong_N].mean())


if __name__ == "__main__":
    main()
