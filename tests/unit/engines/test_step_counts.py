"""What a run knows of its steps, also after it was gone on with: which were skipped, and the losses of the others."""

import math
import shutil

import pytest
import torch
from tiny_trainers import Ordered, Words, examples, logged, trainer_of

from debias.engines.step import NonFiniteGradients
from debias.engines.step_counts import STEP_COUNTS
from debias.methods import DiGraP, Edge, MainOnly

torch.set_num_threads(1)
POISON = 0  # a word that no example has


class Poisoned(Words):
    """Says NaN of a text that begins with `POISON`."""

    def forward(self, input_ids, labels=None):
        said = super().forward(input_ids, labels)
        said.logits = said.logits * torch.where(input_ids[:, :1] == POISON, float("nan"), 1.0)
        return said


def trainer(folder, rule, *, steps, bad, limit=10, **changes):
    """A step takes four examples in their order; those of the steps `bad` (from 1) have one that spoils them."""
    rows = examples(4 * 8)
    for step in bad:
        rows[4 * (step - 1)]["input_ids"][0] = POISON
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps}
    more = {"max_nonfinite_steps": limit}
    return trainer_of(folder, model=Poisoned(), rule=rule, data=Ordered(rows), more=more, **saving, **changes)


@pytest.mark.parametrize("rule", [MainOnly(), Edge(), DiGraP()], ids=lambda rule: rule.name)
def test_steps_that_were_skipped_before_count_when_a_run_goes_on(tmp_path, rule):
    whole = trainer(tmp_path / "whole", rule, steps=6, bad=(2, 5))
    whole.train()
    assert [skipped for (skipped,) in logged(whole, "skipped_steps")] == [0, 1, 1, 1, 2, 2]
    for at, left in ((2, 4), (6, 0)):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", tmp_path / f"from_{at}" / f"checkpoint-{at}")
        again = trainer(tmp_path / f"from_{at}", rule, steps=6, bad=(2, 5))
        again.train(resume_from_checkpoint=True)
        assert logged(again, "skipped_steps") == logged(whole, "skipped_steps")
        assert (again.step_counts.skipped, again.step_counts.known, again.hook is None) == (2, True, not left)


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_without_a_loss_is_in_one_log_alone_and_not_in_the_mean(tmp_path, every):
    """Of 7 steps of two micro-batches, the fourth and the fifth skipped; the last is in no log where each has two."""
    given = {"rule": Edge(), "steps": 7, "logging_steps": every, "logging_nan_inf_filter": False}
    given |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    clean = trainer(tmp_path / "clean", bad=(), **{**given, "steps": 3, "logging_steps": 1})
    clean.train()
    whole = trainer(tmp_path / "whole", bad=(4, 5), **given)
    done = whole.train()
    losses = [loss for (loss,) in logged(whole, "loss")]
    if every == 1:
        assert [math.isnan(loss) for loss in losses] == [False] * 3 + [True] * 2 + [False] * 2
        assert losses[:3] == [loss for (loss,) in logged(clean, "loss")]
        finite = losses[:3] + losses[5:]
    else:
        assert [math.isnan(loss) for loss in losses] == [False, True, True]
    if every == 2:
        again = trainer(tmp_path / "one", bad=(4, 5), **{**given, "logging_steps": 1})
        again.train()
        finite = [loss for (loss,) in logged(again, "loss") if not math.isnan(loss)]
    mean = pytest.approx(sum(finite) / 5, rel=1e-6)
    assert (done.training_loss, done.metrics["train_loss"], whole.step_counts.mean_of_all) == (mean, mean, mean)
    again = trainer(tmp_path / "whole", bad=(4, 5), **given)
    part = again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert [loss for (loss,) in logged(again, "loss")] == pytest.approx(losses, nan_ok=True)
    assert part.training_loss == pytest.approx(sum(finite[3:]) / 2, rel=1e-6)
    assert again.step_counts.mean_of_all == mean


@pytest.mark.parametrize("rule", [Edge(), DiGraP()], ids=lambda rule: rule.name)
def test_a_run_survives_no_more_skipped_steps_for_having_been_stopped(tmp_path, rule):
    with pytest.raises(NonFiniteGradients, match="2 steps had non-finite gradients, more than max_nonfinite_steps=1"):
        trainer(tmp_path, rule, steps=6, bad=(2, 4), limit=1).train()
    again = trainer(tmp_path, rule, steps=6, bad=(2, 4), limit=1)
    with pytest.raises(NonFiniteGradients, match="2 steps had non-finite gradients, more than max_nonfinite_steps=1"):
        again.train(resume_from_checkpoint=True)  # at the second step


def test_a_checkpoint_of_before_is_gone_on_from(tmp_path):
    trainer(tmp_path, Edge(), steps=2, bad=()).train()
    (tmp_path / "checkpoint-2" / STEP_COUNTS).unlink()
    for _ in range(2):  # the second time after the last step, from a checkpoint of now
        again = trainer(tmp_path, Edge(), steps=4, bad=())
        again.train(resume_from_checkpoint=True)
        assert (again.state.global_step, again.step_counts.skipped, again.step_counts.known) == (4, 0, False)
        assert again.step_counts.mean_of_all is None
