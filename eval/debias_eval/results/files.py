"""Results on disk: `RUN/eval/NAME.json` and its predictions, written whole or not at all, read back validated."""

import gzip
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from debias.config.regular import check_regular
from debias.data import Example
from debias.errors import InputError
from debias.runs.digests import sha256_of, weights_of_run
from debias.runs.names import EVAL
from debias.runs.whole import filling, write_or_say
from debias_eval.scores.scoring import Judged

Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]


class _Read(BaseModel):
    """Results may carry keys of a later version; those known here must be right, and NaN never is."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Part(_Read):
    """Accuracy on some examples, with its 95 % interval."""

    n: int = Field(ge=1)
    accuracy: Share
    ci95: tuple[Share, Share]

    @model_validator(mode="after")
    def _interval_holds_value(self) -> "Part":
        low, high = self.ci95
        if not low - 1e-9 <= self.accuracy <= high + 1e-9:
            raise ValueError(f"ci95 {list(self.ci95)} does not hold the accuracy {self.accuracy}")
        return self


class Moved(_Read):
    """How far scores move within clusters where they must not, over `n` of these, with its 95 % interval."""

    n: int = Field(ge=1)
    value: Share
    ci95: tuple[Share, Share]

    @model_validator(mode="after")
    def _interval_holds_value(self) -> "Moved":
        low, high = self.ci95
        if not low - 1e-9 <= self.value <= high + 1e-9:
            raise ValueError(f"ci95 {list(self.ci95)} does not hold the value {self.value}")
        return self


class Worst(_Read):
    """The group with the lowest accuracy."""

    name: str
    accuracy: Share


class LabelCount(_Read):
    """How often a label is the right one, and how often the model answers it."""

    n: int = Field(ge=0)
    predicted: int = Field(ge=0)


class Bin(_Read):
    """A bar of a reliability diagram: `n` predictions with a confidence in (low, high], their mean and accuracy."""

    low: Share
    high: Share
    n: int = Field(ge=0)
    confidence: Share | None = None
    accuracy: Share | None = None


class PartialInput(Part):
    """What a classifier reaches that sees only `fields` of each example: a floor, nothing to be praised for."""

    fields: tuple[str, ...]
    how: str = ""


class GapGroups(_Read):
    """The groups whose accuracies the gap is the difference of."""

    aligned: tuple[str, ...]
    conflicting: tuple[str, ...]


class Overlap(_Read):
    """How many of the suite's rows are also in the training data (normalised text), and whether they were left out.

    `chosen_on`: how many are validation rows that a checkpoint, or an edit's choice, was made by.
    """

    rows: int = Field(ge=0)
    excluded: bool = False
    chosen_on: int = Field(0, ge=0)


class Result(Part):
    """One run judged on one suite. `available` counts the suite's examples, so `n` below it means a subset."""

    suite: str
    version: int
    groups: dict[str, Part] = {}
    worst_group: Worst | None = None
    gap: Difference | None = None
    gap_ci95: tuple[Difference, Difference] | None = None
    gap_groups: GapGroups | None = None
    aligned: Part | None = None
    conflicting: Part | None = None
    ece: Share
    brier: float | None = None
    majority_accuracy: Share | None = None
    labels: dict[str, LabelCount] = {}
    available: int | None = None
    limit: int | None = None
    limit_seed: int | None = None
    examples_sha256: str | None = None
    gold_sha256: str | None = None  # of their labels, groups and clusters; results of older versions have none
    description: str = ""
    task: str = ""
    suite_file: str | None = None  # the YAML file of a suite that is not built in
    macro_f1: Share | None = None
    balanced_accuracy: Part | None = None  # every label alike
    adjusted_accuracy: Part | None = None  # every group alike
    clusters: int | None = None  # None: every example stands for itself, and intervals are Wilson's
    consistency: Part | None = None  # share of clusters in which every example is right
    counterfactual_gap: Moved | None = None
    reliability: tuple[Bin, ...] = ()
    partial_input: PartialInput | None = None
    overlap: Overlap | None = None
    judge: dict[str, Any] = {}  # how labels were scored: normalisation, calibration, dtype, check of the adapter
    weights_sha256: str | None = None  # of the run's own model that was judged
    predictions_sha256: str | None = None  # of the file of predictions that these numbers were counted from

    @property
    def limited(self) -> bool:
        return self.available is not None and self.n < self.available

    @model_validator(mode="after")
    def _counts_agree(self) -> "Result":
        for broken in filter(None, (rule(self) for rule in _CONTRADICTIONS)):
            raise ValueError(broken)
        return self


def part_of(result: Result, name: str) -> Part | None:
    """A group by its own name first (a suite may call one of its groups `all`), else `conflicting`, `aligned`,
    `worst_group`, `adjusted`, `balanced` or `all`; None where the result has no such group.
    """
    if name in result.groups:
        return result.groups[name]
    worst = result.groups[result.worst_group.name] if result.worst_group else None
    sides = {"conflicting": result.conflicting, "aligned": result.aligned, "worst_group": worst, "all": result}
    return {**sides, "adjusted": result.adjusted_accuracy, "balanced": result.balanced_accuracy}.get(name)


def _wrong_count(result: Result) -> str | None:
    right = result.accuracy * result.n
    if abs(right - round(right)) > 1e-6 * result.n:
        return f"accuracy {result.accuracy} is no share of {result.n} examples"
    if result.available is not None and result.n > result.available:
        return f"n is {result.n}, but the suite has {result.available} examples available"
    in_groups = sum(part.n for part in result.groups.values())
    return f"groups hold {in_groups} examples, but n is {result.n}" if in_groups > result.n else None


def _wrong_labels(result: Result) -> str | None:
    for name in ("n", "predicted"):
        total = sum(getattr(count, name) for count in result.labels.values())
        if result.labels and total != result.n:
            return f"labels.*.{name} add up to {total}, but n is {result.n}"
    binned = sum(one.n for one in result.reliability)
    return f"reliability counts {binned} examples, but n is {result.n}" if binned not in (0, result.n) else None


def _wrong_groups(result: Result) -> str | None:
    worst = result.worst_group
    if worst and worst.name not in result.groups:
        return f"worst_group is {worst.name!r}, not one of the groups {list(result.groups)}"
    if worst and abs(worst.accuracy - min(part.accuracy for part in result.groups.values())) > 1e-9:
        return f"worst_group has the accuracy {worst.accuracy}, but that is not the lowest among the groups"
    alike, groups = result.adjusted_accuracy, result.groups.values()
    if alike and not (groups and abs(alike.accuracy * len(groups) - sum(part.accuracy for part in groups)) < 1e-6):
        return f"adjusted_accuracy is {alike.accuracy}, but that is not the mean of the groups"
    if result.gap is None or result.aligned is None or result.conflicting is None:
        return None
    if abs(result.gap - (result.aligned.accuracy - result.conflicting.accuracy)) > 1e-9:
        return f"gap is {result.gap}, but aligned - conflicting is not"
    low, high = result.gap_ci95 or (-1.0, 1.0)
    return None if low - 1e-9 <= result.gap <= high + 1e-9 else f"gap_ci95 [{low}, {high}] does not hold {result.gap}"


def _wrong_clusters(result: Result) -> str | None:
    if result.clusters is not None and not 1 <= result.clusters <= result.n:
        return f"clusters is {result.clusters}, but n is {result.n}"
    if result.consistency and (result.clusters is None or result.consistency.n > result.clusters):
        return f"consistency counts {result.consistency.n} clusters, but clusters is {result.clusters}"
    return None


_CONTRADICTIONS = (_wrong_count, _wrong_labels, _wrong_groups, _wrong_clusters)


class Prediction(_Read):
    """One line of the predictions file; `probabilities` has one entry for each label of the suite."""

    id: str
    label: str
    prediction: str
    probabilities: dict[str, Share]
    group: str | None = None
    cluster: str | None = None
    texts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_labels(self) -> "Prediction":
        for name in (self.label, self.prediction):
            if name not in self.probabilities:
                raise ValueError(f"{name!r} is not one of {list(self.probabilities)}")
        return self


def result_path(run: Path, suite: str) -> Path:
    """Where a suite's result lies in a run's folder."""
    return Path(run) / EVAL / f"{suite}.json"


def predictions_path(run: Path, suite: str) -> Path:
    """Where the predictions behind a suite's result lie."""
    return Path(run) / EVAL / f"{suite}.predictions.jsonl.gz"


def write_results(run: Path, result: Mapping[str, Any], examples: Sequence[Example], judged: Judged) -> Path:
    """Write predictions, then the results that vouch for them; returns the results' path.

    Probabilities are kept to 6 significant digits. The same predictions give the same bytes, and the results hold their
    digest. No more than a line is in memory; each file is there whole or as it was.
    """
    path = predictions_path(run, result["suite"])
    try:
        with filling(path) as part:
            digest = _write_predictions(part, examples, judged)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    path = result_path(run, result["suite"])
    vouched = {**result, "predictions_sha256": digest}
    write_or_say(path, (json.dumps(vouched, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def _write_predictions(part: Path, examples: Sequence[Example], judged: Judged) -> str:
    """The digest of what was written."""
    with part.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as lines:
        for i, example in enumerate(examples):
            lines.write(_prediction_line(i, example, judged).encode())
    return sha256_of(part)


def _prediction_line(i: int, example: Example, judged: Judged) -> str:
    probabilities = zip(judged.labels, judged.probabilities_NC[i], strict=True)
    record = {
        "id": example.id,
        "label": judged.labels[judged.gold_N[i]],
        "prediction": judged.labels[judged.prediction_N[i]],
        "probabilities": {name: min(1.0, float(f"{value:.6g}")) for name, value in probabilities},
        "group": example.group,
        "cluster": example.cluster,
        "texts": list(example.texts),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def examples_sha256(examples: Sequence[Example]) -> str:
    """Digest of ids and texts or pictures in order: results with the same digest were judged on the same examples."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, *example.texts]).encode())
        digest.update(b"" if example.image is None else example.image.tobytes())
    return digest.hexdigest()


def gold_sha256(examples: Sequence[Example], labels: Sequence[str]) -> str:
    """Digest of what is known of the examples in order: the right label by its name, the group, the cluster."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([labels[example.label], example.group, example.cluster]).encode())
    return digest.hexdigest()


def unlike(results: Sequence[Result]) -> str | None:
    """Why these results cannot be laid side by side, for they were not counted on the same examples; None if they can.

    Results of versions that kept no digest of labels and groups are taken to have those of the others.
    """
    digests = {result.examples_sha256 for result in results}
    if None in digests:
        return "a result does not say which examples it was judged on"
    if len(digests) > 1:
        sizes = " and ".join(f"{n:,}" for n in sorted({result.n for result in results}))
        return f"not the same examples ({sizes} of them)"
    if len({result.gold_sha256 for result in results} - {None}) > 1:
        return "the same texts with other labels, groups or clusters; judge all runs again"
    return None


def read_result(path: Path) -> Result:
    """A results file, validated; InputError in one line if it is damaged, or of another suite or other weights."""
    check_regular(path)
    try:
        result = Result.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged results: {_why(error)}; run `debias eval` again") from None
    if result.suite != path.stem:
        raise InputError(f"{path}: holds results of the suite {result.suite!r}; run `debias eval` again")
    if result.weights_sha256 is not None and weights_of_run(path.parent.parent) not in (None, result.weights_sha256):
        raise InputError(f"{path}: is of other weights than lie in {path.parent.parent} now; run `debias eval` again")
    return result


def read_results(run: Path) -> dict[str, Result]:
    """Every results file of a run by suite name, sorted; empty if the run was never judged."""
    return {path.stem: read_result(path) for path in sorted((Path(run) / EVAL).glob("*.json"))}


def read_predictions(path: Path, result: Result | None = None) -> list[Prediction]:
    """All of `predictions_of`, in memory."""
    return list(predictions_of(path, result))


def predictions_of(path: Path, result: Result | None = None) -> Iterator[Prediction]:
    """The predictions of one result one by one, validated; InputError with the line number if the file is damaged.

    With `result`, also an InputError, when all were read, if they are not the ones that its numbers were counted from:
    another version of the suite, another model, a file put in their place.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `debias eval` again")
    read = right = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                prediction = Prediction.model_validate_json(line)
                read += 1
                right += prediction.label == prediction.prediction
                yield prediction
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {read + 1}: damaged predictions: {_why(error)}; run `debias eval` again"
        ) from None
    if result is not None:
        _check_belong(path, read, right, result)


def chosen_predictions(path: Path, places: Collection[int]) -> dict[int, Prediction]:
    """Those at these places, 0 the first, of a file that `predictions_of` has read."""
    found: dict[int, Prediction] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for place, line in enumerate(file):
            if place in places:
                found[place] = Prediction.model_validate_json(line)
            if len(found) == len(places):
                break
    return found


def _check_belong(path: Path, read: int, right: int, result: Result) -> None:
    counted = round(result.accuracy * result.n)
    digest = result.predictions_sha256
    if read != result.n:
        broken = f"holds {read} predictions, the results count {result.n}"
    elif right != counted:
        broken = f"holds {right} right answers, the results count {counted}"
    elif digest is not None and sha256_of(path) != digest:
        broken = "is not the file that the results were counted from"
    else:
        return
    where = f"{result.suite} version {result.version}"
    raise InputError(f"{path}: {broken} ({where}); run `debias eval` again")


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    return " ".join(str(error).split())
