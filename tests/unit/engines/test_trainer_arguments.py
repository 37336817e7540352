"""DebiasTrainer with the Trainer's arguments: each honoured or refused by name, and figures however a step is cut."""

import dataclasses
from typing import Any

import pytest
import torch
from gradient_checks import by_samples, weights_for
from tiny_models import bert, llama_lora
from tiny_trainers import Counted, Ordered, Words, collate, examples, logged, trainer_of
from transformers import Trainer, TrainingArguments

from debias.adapters import RunFacts, make_adapter
from debias.engines.hf_trainer import DebiasTrainer
from debias.engines.trainer_arguments import OURS, REFUSED, THEIRS
from debias.losses import Answers, Classification, Focal, LabelSmoothing
from debias.methods import DiGraP, Edge, MainOnly

torch.set_num_threads(1)


# --- the table


def test_the_table_knows_every_argument_once() -> None:
    """A new one in transformers fails here: look whether DebiasTrainer honours it, and write it down."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    known = [*THEIRS, *OURS, *REFUSED]
    assert len(known) == len(set(known))
    assert names - set(known) == set()
    # Those of other versions of transformers that may be installed.
    assert set(known) - names <= {"warmup_ratio", "logging_dir"}


WRONG: dict[str, tuple[Any, str]] = {
    "optim": ("adalomo", "optim is 'adalomo': it steps inside the backward pass.*adamw_torch"),
    "average_tokens_across_devices": (False, "average_tokens_across_devices is 'False'.*leave it true"),
    "label_names": (["gold"], "label_names is .*gold.*fact 'labels'"),
    "parallelism_config": (object(), "parallelism_config is .*not supported"),
    "fp16": (True, "fp16 is 'True'.*use bf16"),
    "fsdp": ("full_shard", "fsdp is 'full_shard'.*not supported"),
    "ddp_static_graph": (True, "ddp_static_graph is 'True'.*leave it out"),
    "hub_strategy": ("every_save", "hub_strategy is 'every_save'.*use end"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Any, name: str) -> None:
    value, words = WRONG[name]
    trainer = trainer_of(tmp_path)
    setattr(trainer.args, name, value)
    if name == "hub_strategy":
        trainer.args.push_to_hub, trainer.args.save_strategy = True, "steps"
    from debias.engines.trainer_arguments import refuse_arguments

    with pytest.raises(ValueError, match=words):
        refuse_arguments(trainer.args, None)


class OwnLoss(DebiasTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": {"compute_loss_func": lambda *a, **k: 0}}, "compute_loss_func is given.*loss of each sample"),
        ({"kind": OwnLoss}, r"OwnLoss\.compute_loss is never called"),
        (
            {"label_smoothing_factor": 0.1, "more": {"loss": Focal()}},
            "label_smoothing_factor is 0.1, and the loss focal",
        ),
        (
            {"label_smoothing_factor": 0.1, "model": llama_lora, "more": {"readout": Answers([[5], [6]])}},
            r"label_smoothing_factor is 0.1.*debias\.losses\.LabelSmoothing",
        ),
        ({"data": Ordered(examples()), "train_sampling_strategy": "group_by_length"}, "brings its own sampler"),
    ],
    ids=["loss func", "compute_loss", "smoothing of focal", "smoothing of answers", "sampler"],
)
def test_what_would_be_bypassed_is_refused_when_the_trainer_is_made(tmp_path: Any, changes: Any, words: str) -> None:
    if "model" in changes:
        changes = {**changes, "model": changes["model"]()}
    with pytest.raises(ValueError, match=words):
        trainer_of(tmp_path, **changes)


@pytest.mark.parametrize(("around", "bf16"), [("bf16", False), ("bf16", True), ("no", False), ("no", True)])
def test_another_precision_around_the_trainer(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, around: str, bf16: bool
) -> None:
    """`accelerate launch --mixed_precision`, or a default config of Accelerate's, changes no run without a word."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", around)
    try:
        if around == "no" or bf16:
            assert trainer_of(tmp_path, bf16=bf16).accelerator.mixed_precision == ("bf16" if bf16 else "no")
        else:
            with pytest.raises(ValueError, match=rf"^bf16 is {bf16}, and accelerate's mixed precision is '{around}'"):
                trainer_of(tmp_path, bf16=bf16)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# --- honoured


@pytest.mark.parametrize("kind", ["ia3", "dora", "vera", "lora"])
def test_weight_decay_pulls_no_factor_of_the_base(tmp_path: Any, kind: str) -> None:
    """Without a gradient what (IA)^3, DoRA and VeRA multiply the base by stays, and LoRA's matrices shrink."""
    base = bert()
    base.requires_grad_(False)
    model = make_adapter({"type": kind}).attach(base, RunFacts(True, ("classifier",)))
    trainer = trainer_of(tmp_path, model=model, weight_decay=0.5)
    names = [name for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name]
    factors = [name for name in names if any(part in name for part in ("ia3_l", "magnitude", "lambda_d"))]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in names}
    optimizer = trainer.create_optimizer()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert not set(moved) & set(factors)
    assert bool(factors) == (kind != "lora")
    assert bool(moved) == (kind in ("dora", "lora"))  # VeRA's other vector begins at 0
    # Without decay parameters are grouped as transformers does, and as checkpoints of earlier versions have them.
    plain = trainer_of(tmp_path, kind=Trainer, model=model)
    assert trainer_of(tmp_path, model=model).get_decay_parameter_names(model) == plain.get_decay_parameter_names(model)


@pytest.mark.parametrize(("epsilon", "accumulation"), [(0.0, 1), (0.0, 2), (0.3, 1), (0.3, 2)])
def test_label_smoothing_is_the_trainers(tmp_path: Any, epsilon: float, accumulation: int) -> None:
    """With the plain rule: the same weights and logged losses as Hugging Face's own Trainer."""
    options = {"label_smoothing_factor": epsilon, "gradient_accumulation_steps": accumulation}
    ours, theirs = trainer_of(tmp_path, rule=MainOnly(), **options), trainer_of(tmp_path, kind=Trainer, **options)
    for trainer in (ours, theirs):
        trainer.train()
    want = [pytest.approx(row, rel=1e-5) for row in logged(theirs, "loss", "grad_norm")]
    assert logged(ours, "loss", "grad_norm") == want
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_both_gradients_are_of_the_smoothed_loss() -> None:
    model, batch, weight_B = Words(), collate(examples(6)), weights_for(6)

    def smoothed(model: Any, batch: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=0.2)

    def ours(model: Any, batch: Any) -> torch.Tensor:
        said = Classification().said(model, batch, every_label=True)
        return LabelSmoothing(0.2)(said, {}, torch.zeros(0))

    found, wanted = (by_samples(model, forward, batch, weight_B) for forward in (ours, smoothed))
    for got, want in zip(found, wanted, strict=True):
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_neftune_adds_its_noise_and_takes_its_hook_away(tmp_path: Any) -> None:
    plain, hand = (trainer_of(tmp_path, model=bert()) for _ in range(2))
    noisy = trainer_of(tmp_path, model=bert(), neftune_noise_alpha=5.0)

    def noise(module: Any, inputs: Any, output: Any) -> Any:
        size = 5.0 / (output.size(1) * output.size(2)) ** 0.5
        return output + torch.zeros_like(output).uniform_(-size, size) if module.training else output

    hand.model.get_input_embeddings().register_forward_hook(noise)
    losses = []
    for trainer in (plain, noisy, hand):
        torch.manual_seed(5)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == losses[2] != losses[0]
    assert not noisy.model.get_input_embeddings()._forward_hooks


def test_tokens_seen_are_counted_and_the_cache_is_emptied(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr("debias.engines.hf_trainer.clear_device_cache", lambda: emptied.append(1))

    def split(rows: Any) -> Any:
        batch = collate(rows)
        return {"inputs": {"input_ids": batch["input_ids"]}, "facts": {"labels": batch["labels"]}}

    trainer = trainer_of(
        tmp_path,
        **{"include_num_input_tokens_seen": "all", "torch_empty_cache_steps": 2, "max_steps": 4},
        more={"data_collator": split},
    )
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 4 * 4 * 6
    assert len(emptied) == 2


def test_columns_that_are_facts_stay(tmp_path: Any) -> None:
    trainer = trainer_of(tmp_path)
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "labels", "group", "bias_weight", "index"} <= set(trainer._signature_columns)
    assert "premise" not in trainer._signature_columns


@pytest.mark.slow
def test_compiled_as_a_whole(tmp_path: Any, compiles: None) -> None:
    """`torch_compile`, last batch short: two backward passes through one graph of changing sizes."""
    torch._dynamo.reset()
    options = {"max_steps": -1, "num_train_epochs": 2, "data": examples(10)}
    plain = trainer_of(tmp_path, **options)
    compiled = trainer_of(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", **options)
    for trainer in (plain, compiled):
        trainer.train()
    assert compiled.hook.gradients == "shared_forward"
    for row, other in zip(logged(compiled, "loss", "cosine"), logged(plain, "loss", "cosine"), strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    torch._dynamo.reset()


# --- figures


@pytest.mark.parametrize("readout", [Classification(), Counted()], ids=["samples", "tokens"])
def test_figures_do_not_depend_on_how_a_step_is_cut(tmp_path: Any, readout: Any) -> None:
    """Steps of 12, the last of 4: one micro-batch, two, three (the last step is short), and the loss by hand."""
    keys = ("loss", "grad_norm", "main_norm", "bias_norm", "cosine", "removed_share")
    options = {"max_steps": -1, "num_train_epochs": 1, "data": Ordered(examples(28)), "more": {"readout": readout}}
    found = []
    for size in (12, 6, 4, 3):
        model = Words()
        trainer = trainer_of(
            tmp_path, model=model, per_device_train_batch_size=size, gradient_accumulation_steps=12 // size, **options
        )
        with torch.no_grad():
            said = readout.said(model.train(), collate(examples(28)[:12]))
        trainer.train()
        found.append(logged(trainer, *keys))
        assert found[-1][0][0] == pytest.approx(float(-said.log_p_B.sum() / said.count), rel=1e-5)
    assert len(found[0]) == 3
    for other in found[1:]:
        assert other == [pytest.approx(row, rel=1e-4) for row in found[0]]


@pytest.mark.parametrize("size", [24, 7, 1])
def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(tmp_path: Any, size: int) -> None:
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=size, more={"eval_dataset": examples(24)})
    with torch.no_grad():
        want = -Classification().said(trainer.model.eval(), collate(examples(24))).log_p_B.mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(want), rel=1e-5)


@pytest.mark.parametrize("loss_only", [False, True])
def test_predicting_without_labels(tmp_path: Any, loss_only: bool) -> None:
    trainer = trainer_of(tmp_path, prediction_loss_only=loss_only)
    rows = examples(5)
    want = trainer.predict(rows)
    got = trainer.predict([{"input_ids": row["input_ids"]} for row in rows])
    assert got.label_ids is None
    assert "test_loss" not in got.metrics
    assert "test_loss" in want.metrics
    if not loss_only:
        assert got.predictions.tolist() == want.predictions.tolist()


# --- beginning anew


@pytest.mark.parametrize("rule", [Edge(), DiGraP()], ids=repr)
def test_a_step_that_ran_out_of_memory_is_forgotten(tmp_path: Any, rule: Any) -> None:
    """`auto_find_batch_size`: in the second micro-batch; then as a trainer of the smaller batch from there."""

    class Large(Classification):
        def said(self, model: Any, batch: Any, *, every_label: bool = False) -> Any:
            seen.append(len(batch["labels"]))
            if len(batch["labels"]) > 3 and len(seen) == 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().said(model, batch, every_label=every_label)

    seen: list[int] = []
    options = {"rule": rule, "gradient_accumulation_steps": 2, "data": Ordered(examples())}
    trainer = trainer_of(tmp_path, auto_find_batch_size=True, more={"readout": Large()}, **options)
    trainer.train()
    assert seen == [4, 4, 4, 4, 3, 3, 3, 3]
    # The first attempt took one step; the second begins on its weights.
    before = trainer_of(tmp_path, max_steps=1, **options)
    before.train()
    after = trainer_of(tmp_path, model=before.model, **{"per_device_train_batch_size": 3, **options})
    after.train()
    for mine, other in zip(trainer.model.parameters(), after.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("resume", [True, "path"])
def test_resuming_at_the_last_step_trains_no_further(tmp_path: Any, resume: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = trainer_of(tmp_path, **saving)
    first.train()
    again = trainer_of(tmp_path, model=Words(seed=3), **saving)
    done = again.train(resume_from_checkpoint=True if resume is True else str(tmp_path / "checkpoint-2"))
    assert done.global_step == again.state.global_step == 2
    for mine, other in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer_of(tmp_path / "empty").train(resume_from_checkpoint=True)
