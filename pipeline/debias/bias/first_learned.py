"""What the base model learns first: the run's own model, stopped early, as the bias model.

Early steps of training fit what is easy (Utama et al., EMNLP 2020; Liu et al., ICML 2021); nobody has to know what.
Shapes: N examples, C labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from debias.bias.base import AskedBase, BaseBiasModel, Floats, averaged, floored, folds_of, labels_of
from debias.bias.calibration import out_of_fold
from debias.config.run import LATER
from debias.data.examples import Example

# A stage trains plainly, and is judged at its end alone: what the run says of these is not the stage's.
PLAIN: dict[str, Any] = {
    **{"method": "erm", "gradients": "auto", "loss": "cross_entropy", "order": "shuffled", "debias_head": False},
    **{"bias_model": None, "bias_weight": "self", "groups": None, "first_stage": None, "selection": "last"},
    **{"eval_strategy": "no", "eval_steps": None, "report_to": "none"},
    **{"lr_scheduler_type": "linear", "warmup_steps": 0.1, "weight_decay": 0.0, "num_train_epochs": 1.0},
    **{"head_dropout": 0.0, **dict.fromkeys(LATER)},
}

LOOK_EVERY = 5  # steps between two looks at the loss, where it says when to stop


@dataclass(frozen=True)
class EarlyModels(BaseBiasModel):
    """Runs of the base with a small LoRA adapter, one for each fold, stopped early and asked about it."""

    steps: int = 100
    folds: int = 2
    learning_rate: float = 5e-4
    lora_r: int = 8
    calibrated: bool = True
    # Not in what is said of it: the runs that it asks say it, and answers of versions without it are still answers.
    bf16: bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("steps", "lora_r"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0")
        if self.folds < 1:
            raise ValueError(f"folds is {self.folds}, expected 1 (judges what it is trained on) or more")

    def own_settings(self) -> dict[str, Any]:
        """What its runs do otherwise than a plain run of so many steps; nothing of most."""
        return {}

    def stages(self, run: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """What the run of each fold does otherwise than `run`."""
        if run["data"]["leave_out"] is not None:
            raise ValueError("data.leave_out: the bias model's runs leave out folds of their own; remove it")
        own: dict[str, Any] = {"max_steps": self.steps, "learning_rate": self.learning_rate, "stop_when_learned": None}
        own |= self.own_settings()
        if self.bf16 is not None:
            own["bf16"] = self.bf16
        if not run["data"]["text_fields"]:
            own["adapter"] = run["adapter"]
        else:
            lora = run["adapter"]["type"] == "lora"
            own |= {"adapter": run["adapter"] if lora else "lora", "lora_r": self.lora_r, "lora_dropout": 0.0}
            own["lora_alpha"] = 2.0 * self.lora_r
        return tuple({**PLAIN, **own, "data": self._without(fold, run)} for fold in range(self.folds))

    def _without(self, fold: int, run: Mapping[str, Any]) -> dict[str, Any]:
        left_out = {"fold": fold, "folds": self.folds, "seed": run["seed"]} if self.folds > 1 else None
        return {**run["data"], "validation": None, "leave_out": left_out}

    def asked(
        self, examples: Sequence[Example], labels: int, seed: int, base: AskedBase, others: Sequence[Example] = ()
    ) -> Floats:
        fold_N = folds_of(examples, self.folds, seed)
        p_NC = np.full((len(examples), labels), 1 / labels)
        of_others = []
        for fold in range(self.folds):
            judged = np.flatnonzero(fold_N == fold)
            said = base.after_stage(fold, [*(examples[int(place)] for place in judged), *others])
            p_NC[judged] = np.exp(said[: len(judged)])
            of_others.append(floored(np.exp(said[len(judged) :])))
        p_NC = np.concatenate([p_NC, averaged(of_others, len(others), labels)])
        return out_of_fold(p_NC, labels_of(examples), calibrated=self.calibrated)


@dataclass(frozen=True)
class FirstLearned(EarlyModels):
    """The run's base with a small LoRA adapter of its own, trained plainly for `steps` and asked out of fold.

    The data is cut into `folds` (equal texts share one). For each a model is trained on the others, a run of its own in
    `RUN/stages/bias_1` and so on, and judges that fold; the answers are floored, and kept (`calibrated`: by one
    temperature for all). No label of a group is needed, nor an idea of what the shortcut is.

    `steps` is 100 by default, of as many samples as the run's own: 3,200 at 32 a step, about the 2,000 examples of
    Utama et al. On SNLI with a planted cue the model is then exactly the cue (right wherever the cue is, wrong wherever
    it misleads), and further steps learn the task as well, which would then be corrected away. `learning_rate` and
    `lora_r` are the adapter's own (scaling 2), for the run may train something else. Pictures keep the run's adapter.

    `stop_at`: a share, such as 0.2. Each model then stops as soon as its training loss has fallen by so much of the
    entropy of the labels, and at `steps` at the latest. The loss on training data tells, without a group and without a
    test set; but how much of the entropy the shortcut explains has to be guessed.

    `folds: 1` trains one model, on all of the data, and asks it of all: half the training, and no second model. What it
    was trained on, `steps` times the samples of a step, it then judges itself, each seen once (more is refused).

    `bf16`: the bias model's runs and its judging in 16 bits, whatever the run itself computes in; null: as the run. It
    is what the bias model costs, and hardly what it says: on SST-2 with a planted cue probabilities moved by 0.002 on
    average and by 0.02 at most. Only where the machine multiplies 16-bit numbers itself.

    Needs training data whose shortcut is easier than its task. Costs `folds` short runs and one forward pass over the
    training data, almost all of it the base's own arithmetic. Fails where honest signal is as easy as the shortcut
    (overlap and generic words on natural SNLI), or where `steps` suffice for the task as well: on SST-2 with a planted
    cue 100 do, and full correction then cost a quarter of the accuracy on clean data (two seeds). With `stop_at: 0.2`
    it stopped after 40 to 45 steps there, and five seeds closed the whole gap that the cue makes (BENCHMARKS.md). Where
    there is no shortcut, what is learned first is the task: full correction cost ten points there. The accuracy on
    validation data shows the damage; an earlier stop, or a smaller `tau`, then take less away. And it failed on
    Colored MNIST, where the shortcut explains 94 % of the entropy and not 19 % as on that SST-2: correction did harm
    there with `stop_at: 0.2`, and after 100 steps (five seeds; BENCHMARKS.md). With `tau: 0.5` SST-2
    without a cue was as good as plain training (five seeds): where nothing is known of the data, begin with that.

    Source: Utama et al., Towards Debiasing NLU Models from Unknown Biases, EMNLP 2020, arXiv 2009.12303; the early stop
    of Liu et al., ICML 2021, arXiv 2107.09044; the cross-fitting is ours.
    """

    name: ClassVar[str] = "first_learned"
    stop_at: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_at is not None and not 0 < self.stop_at < 1:
            raise ValueError(f"stop_at is {self.stop_at}, expected a share between 0 and 1")
        if self.stop_at is not None and self.steps <= LOOK_EVERY:
            raise ValueError(f"steps is {self.steps}; with stop_at, which looks every {LOOK_EVERY}, expected more")

    def own_settings(self) -> dict[str, Any]:
        """Where it stops, and how often it looks whether it does."""
        if self.stop_at is None:
            return {}
        return {"stop_when_learned": self.stop_at, "logging_steps": LOOK_EVERY, "loss_mean": "samples"}
