"""Our numbers beside SpuCo's, on Colored MNIST: its trainers on the data, network and steps of a study's kept runs.

`python eval/spuco_check.py` prints the table of what `spuco_check.jsonl` holds beside `studies/colored_mnist.jsonl`;
`python eval/spuco_check.py FILE` first trains what FILE lacks, with SpuCo (`pip install spuco 'scikit-learn<1.8'`: its
DFR asks liblinear for more than two classes), and adds it to FILE.

A seed is what it is in the study: which pictures wear a wrong colour, and the perceptron's first weights; the order of
the batches is SpuCo's. Optimizer, learning rate, clipping, batch and steps are those of the kept run. Nothing of SpuCo
is changed but this: its loaders start no processes, and its DFR may draw from a set, which Python refuses since 3.11.

Shapes: N pictures, C labels, D columns of the last hidden layer, S seeds.
"""

import contextlib
import functools
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import t as student
from torch import Tensor, nn

from debias.bias.base import floored
from debias.building.examples import training_examples
from debias.config.data import PlantedColor
from debias.config.places import resolve_paths
from debias.config.reading import parse
from debias.config.run import RunConfig
from debias.data.examples import Example, labels_of
from debias.data.painted import paint
from debias.data.planted import CONFLICTING
from debias.data.sources import load_examples
from debias.errors import InputError
from debias.merging.dfr_last_layer import DFRLastLayer
from debias.merging.edits import LastLayer
from debias.models.source import resolve_model
from debias.models.vision import load_image_model
from debias.runs.kept import kept, result_of
from debias.runs.records import append_record, read_records
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.suite import load_suite

HERE = Path(__file__).parent
FIGURES, STUDY, SUITE = HERE / "spuco_check.jsonl", HERE / "studies" / "colored_mnist.jsonl", "colored_mnist"
SEEDS = range(5)
FIRST_STAGE, TIMES = 100, 6  # of JTT, as the study's arm `jtt` has them
HELD_OUT = 2000  # pictures that DFR is fitted to, half of them in a wrong colour, which no network of it has seen
EIIL_STEPS, EIIL_RATE = 1000, 0.01  # from weights around 0 that move by up to 0.01 a step
MOST_CLUSTERS = 5  # that SPARE tries, as the study's arm `spare` does


@dataclass(frozen=True)
class Row:
    """A line of the table: what SpuCo trains, and what of ours it is held against, an arm or another row's figures."""

    name: str
    told: str
    ours: str


ROWS = (
    Row("erm", "`ERM`", "erm"),
    Row("group_balanced", "`GroupBalanceBatchERM`", "resampled_groups"),
    Row("group_dro", "`GroupDRO`", "group_dro"),
    Row("group_dro", "`GroupDRO`", "group_dro_resampled"),
    Row("group_dro_shuffled", "its loss, every picture once an epoch", "group_dro"),
    Row("jtt", "`JTTInference`, `CustomSampleERM`", "jtt"),
    Row("eiil", "`EIIL`, `GroupBalanceBatchERM`", "eiil_resampled"),
    Row("spare", "`SpareInference`, `SpareTrain`", "spare"),
    Row("spare_floored", "the same, told probabilities as ours is", "spare"),
    Row("dfr", "`DFR`", "dfr_last_layer"),
)

OWN = ("dfr_last_layer",)  # made here of the same network, for the study has no edits
NAMES = {"right": "aligned", "wrong": "conflicting"}
Right = dict[str, float]  # shares of right answers where the colour is `right` and where it is `wrong`


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Examples as SpuCo has a data set: pictures [3, H, W] of 0 to 1, labels, and `group_partition` of the two groups.

    With `by_label` groups are pairs of label and colour, as SpuCo's own data sets have them.
    """

    def __init__(self, examples: Sequence[Example], *, by_label: bool = False) -> None:
        self.image_N = torch.from_numpy(np.stack([example.image for example in examples]))
        self.labels: list[int] = labels_of(examples).tolist()
        self.wrong_N = np.array([example.group == CONFLICTING for example in examples])
        keys = [(label if by_label else 0, int(wrong)) for label, wrong in zip(self.labels, self.wrong_N, strict=True)]
        self.group_partition = {key: [place for place, own in enumerate(keys) if own == key] for key in sorted({*keys})}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.image_N[place] / 255, self.labels[place]


class Enough(Exception):
    """The last step was taken."""


class Steps(torch.optim.AdamW):
    """The optimizer of a run: gradients clipped before a step, and an end in the middle of an epoch."""

    def __init__(self, model: nn.Module, config: RunConfig, steps: int) -> None:
        super().__init__(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.clip, self.left, self.model = config.max_grad_norm, steps, model

    def step(self, closure: Any = None) -> None:
        """One step; Enough after the last."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        super().step()
        self.left -= 1
        if self.left == 0:
            raise Enough


class Hidden(nn.Module):
    """The perceptron without its head."""

    def __init__(self, perceptron: Any) -> None:
        super().__init__()
        self.layers = perceptron.layers

    def forward(self, picture_N: Tensor) -> Tensor:
        """Last hidden states [N, D]."""
        hidden = picture_N.flatten(1)
        for layer in self.layers.values():
            hidden = torch.relu(layer(hidden))
        return hidden


class Trainers:
    """SpuCo's trainers, on the data and with the settings of one kept run of plain training."""

    def __init__(self, spuco: Any, config: RunConfig) -> None:
        self.spuco, self.config = spuco, config
        self.test = Pictures(suite_examples(load_suite(SUITE)))
        spuco.set_seed(config.seed)

    @functools.cached_property
    def train(self) -> Pictures:
        """The training pictures, in the colours that they had in the kept run."""
        return Pictures(training_examples(self.config, None))

    def network(self) -> Any:
        """SpuCo's model with the first weights of the kept run."""
        labels = self.config.data.labels
        ours, _ = load_image_model(resolve_model(self.config.model), labels, {}, self.config.seed)
        model = self.spuco.SpuCoModel(Hidden(ours), ours.classifier.in_features, len(labels))
        model.classifier.load_state_dict(ours.classifier.state_dict())
        return model

    def trained(self, trainer: Callable[..., Any], steps: int | None = None, trainset: Any = None, **more: Any) -> Any:
        """A model as one of SpuCo's trainers leaves it after so many steps, by default the run's."""
        model, steps = self.network(), steps or self.config.max_steps
        settings = {"batch_size": self.config.per_device_train_batch_size, "num_epochs": steps, **more}
        made = trainer(
            model=model, trainset=trainset or self.train, optimizer=Steps(model, self.config, steps), **settings
        )
        with contextlib.suppress(Enough):
            made.train()
        return model

    def erm(self) -> Right:
        return self.judged(self.trained(self.spuco.ERM))

    def group_balanced(self) -> Right:
        return self.judged(self.of_groups(self.train.group_partition))

    def of_groups(self, groups: Mapping[Any, list[int]]) -> Any:
        """A model trained on batches in which these groups are alike."""
        return self.trained(self.spuco.GroupBalanceBatchERM, group_partition=groups)

    def labelled(self) -> Any:
        """The training pictures with their groups."""
        return self.spuco.GroupLabeledDatasetWrapper(self.train, self.train.group_partition)

    def group_dro(self) -> Right:
        return self.judged(self.trained(self.spuco.GroupDRO, trainset=self.labelled()))

    def group_dro_shuffled(self) -> Right:
        """Its loss on batches in which groups are as frequent as they are."""

        def made(**settings: Any) -> Any:
            inner = self.spuco.GroupDRO(**settings).trainer
            places = self.spuco.CustomIndicesSampler(list(range(len(self.train))), shuffle=True)
            inner.trainloader = InProcess(inner.trainset, batch_size=inner.batch_size, sampler=places)
            return SimpleNamespace(train=lambda: inner.train(settings["num_epochs"]))

        return self.judged(self.trained(made, trainset=self.labelled()))

    @functools.cached_property
    def said(self) -> Tensor:
        """Logits [N, C] of the training pictures by plain training that ends early."""
        return of_all(self.trained(self.spuco.ERM, FIRST_STAGE).eval(), self.train)

    def jtt(self) -> Right:
        guessed = self.said.argmax(dim=1).tolist()
        groups = self.spuco.JTTInference(predictions=guessed, class_labels=self.train.labels).infer_groups()
        seen = groups[0, 0] + TIMES * groups[0, 1]
        return self.judged(self.trained(self.spuco.CustomSampleERM, indices=seen))

    def eiil(self) -> Right:
        asked = self.spuco.EIIL(self.said, self.train.labels, num_steps=EIIL_STEPS, lr=EIIL_RATE)
        return self.judged(self.of_groups(asked.infer_groups()))

    def spare(self) -> Right:
        return self.of_clusters(self.said)

    def spare_floored(self) -> Right:
        """Of log-probabilities as a run keeps them, none far below the others, less their mean."""
        log_p_NC = torch.from_numpy(floored(torch.softmax(self.said.double(), dim=1).numpy()))
        return self.of_clusters(log_p_NC - log_p_NC.mean(dim=1, keepdim=True))

    def of_clusters(self, logit_NC: Tensor) -> Right:
        """SPARE, of the clusters that it finds in these."""
        asked = self.spuco.SpareInference(logit_NC, self.train.labels, max_clusters=MOST_CLUSTERS)
        with contextlib.redirect_stdout(sys.stderr):
            groups = asked.infer_groups()
        powers = asked.sampling_powers
        return self.judged(self.trained(self.spuco.SpareTrain, group_partition=groups, sampling_powers=powers))

    @functools.cached_property
    def for_dfr(self) -> tuple[Any, Pictures]:
        """A model trained plainly on all pictures but some, and these, of which each group has half."""
        data, seed = self.config.data, self.config.seed
        assert data.planted_color is not None
        examples = load_examples(data.train, data)
        order_N = np.random.default_rng([seed, 0xDF]).permutation(len(examples))
        held_out, seen = ([examples[place] for place in part] for part in np.split(order_N, [HELD_OUT]))
        evenly, labels = PlantedColor(strength=0.5, seed=data.planted_color.seed + 1), len(data.labels)
        model = self.trained(self.spuco.ERM, trainset=Pictures(paint(seen, data.planted_color, labels)))
        return model.eval(), Pictures(paint(held_out, evenly, labels), by_label=True)

    def dfr_before(self) -> Right:
        """Of the model whose last layer DFR replaces."""
        return self.judged(self.for_dfr[0])

    def dfr(self) -> Right:
        """SpuCo's last layer: columns scaled by the pictures it is fitted to, else its defaults."""
        model, held_out = self.for_dfr
        labelled = self.spuco.GroupLabeledDatasetWrapper(held_out, held_out.group_partition)
        made = self.spuco.DFR(labelled, model, data_for_scaler=held_out)
        made.train()
        _, weight_CD, bias_C, scaler = made.linear_model
        hidden_ND = scaler.transform(of_all(model.backbone, self.test).numpy())
        return self.shares(torch.from_numpy(hidden_ND @ weight_CD.T + bias_C))

    def dfr_last_layer(self) -> Right:
        """Ours, of the same model and fitted to the same pictures."""
        model, held_out = self.for_dfr
        head, group_N = model.classifier, torch.from_numpy(held_out.wrong_N).long()
        weights = (head.weight.detach().double(), head.bias.detach().double())
        last = LastLayer(of_all(model.backbone, held_out).double(), torch.tensor(held_out.labels), *weights, group_N)
        made = DFRLastLayer(seed=self.config.seed).retrained(last)
        assert made.bias_C is not None
        return self.shares(of_all(model.backbone, self.test).double() @ made.weight_CD.T + made.bias_C)

    def judged(self, model: Any) -> Right:
        """What a model gets right of the suite."""
        return self.shares(of_all(model.eval(), self.test))

    def shares(self, logit_NC: Tensor) -> Right:
        """What these logits get right of the suite."""
        right_N = logit_NC.argmax(dim=1).numpy() == np.array(self.test.labels)
        wrong_N = self.test.wrong_N
        return {"right": float(right_N[~wrong_N].mean()), "wrong": float(right_N[wrong_N].mean())}


@torch.no_grad()
def of_all(model: Any, pictures: Pictures) -> Tensor:
    """What a module says of each picture."""
    return torch.cat([model(image_B / 255) for image_B in pictures.image_N.split(1000)])


class InProcess(torch.utils.data.DataLoader[Any]):
    """A loader that starts no processes, whatever it is asked for."""

    def __init__(self, *given: Any, num_workers: int = 0, pin_memory: bool = False, **more: Any) -> None:
        super().__init__(*given, **more)


def load_spuco() -> Any:
    """The names of SpuCo that are used here; InputError in one line where it is not there."""
    try:
        from spuco import group_inference, last_layer_retrain, robust_train
        from spuco.datasets import GroupLabeledDatasetWrapper
        from spuco.last_layer_retrain import dfr
        from spuco.models import SpuCoModel
        from spuco.utils import CustomIndicesSampler, misc, set_seed, trainer
    except ImportError as error:
        raise InputError(f"SpuCo cannot be imported ({error}): pip install spuco 'scikit-learn<1.8'") from None
    for module in (trainer, misc, dfr):
        module.DataLoader = InProcess
    dfr.random = SimpleNamespace(seed=random.seed, sample=lambda held, count: random.sample(sorted(held), count))
    own = {one.__name__: one for one in (GroupLabeledDatasetWrapper, SpuCoModel, CustomIndicesSampler, set_seed)}
    return SimpleNamespace(**vars(robust_train) | vars(group_inference) | vars(last_layer_retrain) | own)


def plain_run(seed: int) -> RunConfig:
    """The settings of the study's plain run of this seed."""
    run = f"erm/default/seed{seed}"
    if (found := next((record for record in kept(STUDY) if record["run"] == run), None)) is None:
        raise InputError(f"{STUDY}: {run} is not among the kept runs")
    config = parse(RunConfig, yaml.safe_load(found["files"]["config.yaml"]), where=run)
    return resolve_paths(config, HERE.parent / "launch" / "recipes")


def made(file: Path) -> dict[str, dict[int, Right]]:
    """The figures in a file, by method and seed."""
    found: dict[str, dict[int, Right]] = {}
    for record in read_records(file)[0]:
        found.setdefault(record["method"], {})[record["seed"]] = {key: record[key] for key in ("right", "wrong")}
    return found


def make_missing(file: Path) -> None:
    """Train what the file lacks, seed by seed, each figure written down as it is made."""
    methods = dict.fromkeys([*(row.name for row in ROWS), "dfr_before", *OWN])
    for seed in SEEDS:
        there = made(file)
        missing = [name for name in methods if seed not in there.get(name, {})]
        if not missing:
            continue
        trainers = Trainers(load_spuco(), plain_run(seed))
        for name in missing:
            shares = getattr(trainers, name)()
            append_record(file, {"event": "spuco", "method": name, "seed": seed, **shares})
            sys.stderr.write(f"{name}, seed {seed}: {json.dumps(shares)}\n")


def ours_beside(theirs: Mapping[str, dict[int, Right]]) -> dict[str, dict[int, Right]]:
    """What SpuCo's figures are held against: the study's arms, and of the same file what is ours."""
    return of_arms() | {name: theirs[name] for name in OWN if name in theirs}


def of_arms() -> dict[str, dict[int, Right]]:
    """The study's kept figures, by arm and seed."""
    found: dict[str, dict[int, Right]] = {}
    for record in kept(STUDY):
        if groups := result_of(record, SUITE).get("groups"):
            arm, _, seed = record["run"].split("/")
            shares = {key: groups[f"bias-{name}"]["accuracy"] for key, name in NAMES.items()}
            found.setdefault(arm, {})[int(seed.removeprefix("seed"))] = shares
    return found


def paired(theirs_S: Sequence[float], ours_S: Sequence[float]) -> tuple[float, float, float]:
    """The mean of `theirs - ours` over seeds, and Student's interval of 95 %; ValueError for less than two seeds."""
    apart_S = np.asarray(theirs_S) - np.asarray(ours_S)
    if len(apart_S) < 2:
        raise ValueError(f"{len(apart_S)} seeds; an interval needs two")
    mean, half = float(apart_S.mean()), float(student.ppf(0.975, len(apart_S) - 1) * apart_S.std(ddof=1))
    half /= len(apart_S) ** 0.5
    return mean, mean - half, mean + half


def lines(theirs: Mapping[str, Mapping[int, Right]], ours: Mapping[str, Mapping[int, Right]]) -> Iterator[str]:
    """The table, in percent, of the seeds that both sides have; rows with less than two are left out."""
    yield "| SpuCo | ours | seeds | colour wrong: SpuCo | ours | difference | colour right: SpuCo | ours | difference |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in ROWS:
        one, other = theirs.get(row.name, {}), ours.get(row.ours, {})
        seeds = sorted(one.keys() & other.keys())
        if len(seeds) < 2:
            continue
        cells = [row.told, f"`{row.ours}`", str(len(seeds))]
        for key in ("wrong", "right"):
            both = [[100 * side[seed][key] for seed in seeds] for side in (one, other)]
            mean, low, high = paired(*both)
            cells += [*(f"{np.mean(side):.1f}" for side in both), f"{mean:+.1f} [{low:.1f}, {high:.1f}]"]
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table; 1, in one line, where something that it needs is not there."""
    file = Path(sys.argv[1]) if sys.argv[1:] else FIGURES
    try:
        if sys.argv[1:]:
            make_missing(file)
        theirs = made(file)
        sys.stdout.write("\n".join(lines(theirs, ours_beside(theirs))) + "\n")
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
