"""What `irm`, `coral` and `mmd` stand for, trained in a plain loop with the statistics of the step itself.

In a run each sample's loss is its own, with statistics that were gathered before. This loop has no such bounds:
`python eval/same_step.py [NAME ...]` trains the perceptron of the Colored MNIST study on the same pictures, with the
same first weights, optimizer, steps and strengths, by autograd of the objective as it is written, of all samples
together. `the batch`: of the step's 256 pictures, of which about five wear a wrong colour; `128 of each group`: of as
many of each. Prints what is right where the colour is wrong and right, mean, least and most of five seeds, beside the
study's kept runs. `label_smoothing` has no groups: it is PyTorch's own beside ours. `mmd_features` and `mmd_widths` are
`mmd` with random features in the place of kernels, and with widths of each step, of the batch.

Shapes: B samples, G groups (2), C labels, D hidden columns.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from debias.building.examples import training_examples
from debias.config.run import RunConfig
from debias.losses.mmd import FEATURES, directions, phases
from debias.losses.mmd_step import GAMMAS
from debias.models.source import resolve_model
from debias.models.vision import load_image_model
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.suite import load_suite
from spuco_check import SEEDS, SUITE, Pictures, Right, of_all, of_arms, plain_run

Apart = Callable[[Sequence[Tensor], float], Tensor]
CPU, DTYPE = torch.device("cpu"), torch.float32
EACH = 128
FEWEST = 2  # of a group, or its penalty is left out of the step


def apart_by_moments(hidden_G: Sequence[Tensor]) -> Tensor:
    """CORAL: squared differences of means and of covariances, each a mean over its entries."""
    one_BD, other_BD = hidden_G
    of_means = (one_BD.mean(dim=0) - other_BD.mean(dim=0)).square().mean()
    return of_means + (_covariance(one_BD) - _covariance(other_BD)).square().mean()


def _covariance(hidden_BD: Tensor) -> Tensor:
    off_BD = hidden_BD - hidden_BD.mean(dim=0)
    return off_BD.T @ off_BD / (len(off_BD) - 1)


def apart_by_features(hidden_G: Sequence[Tensor], width: float) -> Tensor:
    """The same of random features, whose products are the kernels on average."""
    means, own = [], []
    for hidden_BD in hidden_G:
        gamma_F = torch.tensor(GAMMAS).repeat_interleave(FEATURES)
        phase_F, direction_DF = phases(FEATURES, CPU, DTYPE), directions(hidden_BD.shape[1], FEATURES, CPU, DTYPE)
        feature_BF = (2 / FEATURES) ** 0.5 * torch.cos(
            hidden_BD @ direction_DF * (2 * gamma_F / width).sqrt() + phase_F
        )
        squares, count = feature_BF.sum(dim=0).square().sum(), len(hidden_BD)
        own.append((squares - feature_BF.square().sum()) / (count * (count - 1)))
        means.append(feature_BF.mean(dim=0))
    return own[0] + own[1] - 2 * (means[0] * means[1]).sum()


def apart_by_kernels(hidden_G: Sequence[Tensor], width: float) -> Tensor:
    """MMD, without bias: pairs of a sample with itself are left out."""
    one_BD, other_BD = hidden_G
    own = [(_kernel(one, one, width).sum() - len(GAMMAS) * len(one)) / (len(one) * (len(one) - 1)) for one in hidden_G]
    return own[0] + own[1] - 2 * _kernel(one_BD, other_BD, width).mean()


def _kernel(one_BD: Tensor, other_BD: Tensor, width: float) -> Tensor:
    return torch.stack([torch.exp(-gamma * _squares(one_BD, other_BD) / width) for gamma in GAMMAS]).sum(dim=0)


def _squares(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """Squared distances [B, B]."""
    products = 2 * one_BD @ other_BD.T
    return (one_BD.square().sum(dim=1, keepdim=True) + other_BD.square().sum(dim=1) - products).clamp(min=0)


def squared_slope(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """IRM: the slope of cross-entropy by a factor on the logits at 1, of one half times that of the other."""
    log_p_BC = log_softmax(logit_BC, dim=1)
    slope_B = (log_p_BC.exp() * log_p_BC).sum(dim=1) - log_p_BC.gather(1, label_B.unsqueeze(1)).squeeze(1)
    return slope_B[::2].mean() * slope_B[1::2].mean()


class Loop:
    """One run of plain Adam on an objective; `even` for statistics of as many samples of each group."""

    def __init__(self, config: RunConfig, train: Pictures, *, even: bool) -> None:
        self.config, self.train, self.even = config, train, even
        self.label_N, self.group_N = torch.tensor(train.labels), torch.from_numpy(train.wrong_N).long()
        self.places_G = [torch.nonzero(self.group_N == group).flatten() for group in (0, 1)]
        source = resolve_model(config.model)
        self.model, _ = load_image_model(source, config.data.labels, {}, config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.done, self.width = 0.0, 0.0

    def run(self, objective: Callable[["Loop", Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Logits of pictures, after the run's steps."""
        config, order_N = self.config, torch.empty(0, dtype=torch.long)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, weight_decay=0.0)
        size = config.per_device_train_batch_size
        for step in range(config.max_steps):
            if len(order_N) < size:
                order_N = torch.randperm(len(self.train), generator=self.generator)
            places_B, order_N = order_N[:size], order_N[size:]
            self.done = step / config.max_steps
            optimizer.zero_grad()
            objective(self, places_B).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            optimizer.step()
        return lambda image_B: self.model(image_B).logits

    def hidden(self, places_B: Tensor) -> Tensor:
        """What the head is given of these pictures, [B, D]."""
        hidden = (self.train.image_N[places_B] / 255).flatten(1)
        for layer in self.model.layers.values():
            hidden = torch.relu(layer(hidden))
        return hidden

    def groups(self, places_B: Tensor) -> list[Tensor]:
        """Of each group the places that a penalty is taken of."""
        if self.even:
            return [own[torch.randint(len(own), (EACH,), generator=self.generator)] for own in self.places_G]
        return [places_B[self.group_N[places_B] == group] for group in (0, 1)]

    def fit(self, places_B: Tensor) -> Tensor:
        """Cross-entropy of these pictures; 0 of none."""
        if not len(places_B):
            return torch.zeros(())
        return cross_entropy(self.model.classifier(self.hidden(places_B)), self.label_N[places_B])


def coral(loop: Loop, places_B: Tensor) -> Tensor:
    hidden_G = [loop.hidden(own) for own in loop.groups(places_B)]
    return loop.fit(places_B) + (apart_by_moments(hidden_G) if min(map(len, hidden_G)) >= FEWEST else 0.0)


def mmd(loop: Loop, places_B: Tensor, apart: Apart = apart_by_kernels, *, anew: bool = False) -> Tensor:
    hidden_G = [loop.hidden(own) for own in loop.groups(places_B)]
    if anew or not loop.width:
        all_BD = loop.hidden(places_B).detach()
        loop.width = float(_squares(all_BD, all_BD).sum()) / (len(all_BD) * (len(all_BD) - 1))
    return loop.fit(places_B) + (apart(hidden_G, loop.width) if min(map(len, hidden_G)) >= FEWEST else 0.0)


def irm_late(loop: Loop, places_B: Tensor) -> Tensor:
    """Strength 1, and 100 after a quarter of the steps; groups count alike."""
    strength, whole = 100.0 if loop.done >= 0.25 else 1.0, torch.zeros(())
    for own in loop.groups(places_B):
        whole = whole + loop.fit(own) / 2
        if len(own) >= FEWEST:
            whole = whole + strength / 2 * squared_slope(loop.model.classifier(loop.hidden(own)), loop.label_N[own])
    return whole


def label_smoothing(loop: Loop, places_B: Tensor) -> Tensor:
    """PyTorch's own, of no group."""
    logit_BC = loop.model.classifier(loop.hidden(places_B))
    return cross_entropy(logit_BC, loop.label_N[places_B], label_smoothing=0.1)


OBJECTIVES = {"irm_late": irm_late, "coral": coral, "mmd": mmd}
OF_THE_BATCH = {
    "mmd_features": functools.partial(mmd, apart=apart_by_features),
    "mmd_widths": functools.partial(mmd, anew=True),
}
OF_NO_GROUP = {"label_smoothing": label_smoothing}


def shares(model: Callable[[Tensor], Tensor], test: Pictures) -> Right:
    """What is right where the colour is right and where it is wrong."""
    right_N = of_all(model, test).argmax(dim=1).numpy() == np.array(test.labels)
    return {"right": float(right_N[~test.wrong_N].mean()), "wrong": float(right_N[test.wrong_N].mean())}


def _told(of_seeds: Sequence[Right]) -> str:
    cells = [[100 * one[key] for one in of_seeds] for key in ("wrong", "right")]
    return " | ".join(f"{np.mean(cell):.1f} ({min(cell):.1f} to {max(cell):.1f})" for cell in cells)


def _arms(name: str) -> list[tuple[str, str]]:
    """Arms of the study, and of what their statistics are."""
    if name in OBJECTIVES:
        return [(f"{name}_before", "the steps before"), (name, "the step")]
    return [(name, "no group")] if name in OF_NO_GROUP else []


def main() -> None:
    """Train and print, a line as soon as it is known."""
    names = sys.argv[1:] or list(OBJECTIVES)
    torch.set_num_threads(1)
    test, kept = Pictures(suite_examples(load_suite(SUITE))), of_arms()
    data = [(config, Pictures(training_examples(config, None))) for config in map(plain_run, SEEDS)]
    sys.stdout.write("| objective | statistics of | colour wrong | colour right |\n|---|---|--:|--:|\n")
    for name in names:
        for arm, ours in _arms(name):
            sys.stdout.write(
                f"| `{name}` | {ours} (the study's runs) | {_told([kept[arm][seed] for seed in SEEDS])} |\n"
            )
        ways = [(False, "no group" if name in OF_NO_GROUP else "the batch")]
        ways += [(True, f"{EACH} of each group")] if name in OBJECTIVES else []
        for even, told in ways:
            objective = (OBJECTIVES | OF_THE_BATCH | OF_NO_GROUP)[name]
            found = [shares(Loop(*one, even=even).run(objective), test) for one in data]
            sys.stdout.write(f"| `{name}` | {told} | {_told(found)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
