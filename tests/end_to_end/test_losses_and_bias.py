"""Every loss of the table and every bias model through whole runs: resumed, over ranks and ZeRO stages, refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import PROMPT, adapter_of, cut_off, largest_difference, save_bert, save_llama, settings_for
from train_many import on_ranks

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.losses import LOGITS, LOSSES
from debias.train import train

STEP = 12  # samples a step, on one rank or two
# Groups that say something: the planted cue makes aligned and conflicting examples.
DATA = {
    "train": {"source": "generated", "limit": 120},
    "planted_bias": {"cue": "!!", "prevalence": 0.5, "strength": 0.6},
}
PARTIAL = {"name": "partial_input", "fields": ["hypothesis"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    save_bert(folder / "bert")
    save_llama(folder / "llama")
    return folder


def settings(place: Path, name: str, world: int = 1, **changes: Any) -> dict[str, Any]:
    batch = {"per_device_train_batch_size": STEP // world, "data": DATA}
    return settings_for(place / "bert", place / name, **{**batch, **changes})


def run(settings: dict[str, Any]) -> Path:
    return train(RunConfig.model_validate(settings))


def learned(checkpoint: Path) -> torch.Tensor:
    memory: torch.Tensor = torch.load(checkpoint / "loss_state.pt")["memory"]
    return memory


def needs_of(name: str) -> dict[str, Any]:
    """What a loss of the table cannot do without."""
    if "bias_log_p" not in LOSSES[name].reads:
        return {}
    pytest.importorskip("sklearn")
    teacher = {"keep": "teacher", "settings": {"max_steps": 2, "save_strategy": "no"}}
    return {"bias_model": PARTIAL} | ({"first_stage": teacher} if "teacher_log_p" in LOSSES[name].reads else {})


# What a loss that learns has to be set to so that four steps teach it something.
LEARN = {"group_dro": {"step_size": 2.0}, "cvar_dro": {"step_size": 2.0}, "gradient_alignment": {"threshold": 0.667}}
MOMENTS = ("bias_covariance", "irm", "coral", "mmd", "pgi")  # of the step itself, or of those before
SHARDED = ("irm", "coral")  # of logits, and of what the head reads: enough of them to try at stage 3
LEARN |= {name: {"memory": 0.9} for name in MOMENTS}


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_that_goes_on_is_the_run_that_was_not_cut(place: Path, name: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "max_steps": 4, **needs_of(name)}
    loss = {"name": name, **LEARN.get(name, {})}
    whole = run(settings(place, f"{name}_whole", loss=loss, **saving))
    cut = cut_off(whole, place / f"{name}_cut")
    run(settings(place, cut.name, loss=loss, resume=True, **saving))
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
    if LOSSES[name].learns:
        assert torch.equal(learned(cut / "checkpoint-4"), learned(whole / "checkpoint-4"))
        assert not torch.equal(learned(whole / "checkpoint-2"), learned(whole / "checkpoint-4"))
    else:
        assert not (whole / "checkpoint-4" / "loss_state.pt").exists()


def test_groups_that_are_drawn_alike_are_not_weighed_again(place: Path) -> None:
    """Group DRO begins with the shares of what its order sees: of the data they are unlike."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "loss": "group_dro"}
    shares = [
        learned(run(settings(place, f"shares_{name}", order=name, **saving)) / "checkpoint-1").chunk(2)[1]
        for name in ("resampled", "shuffled")
    ]
    assert torch.allclose(shares[0], torch.full_like(shares[0], 1 / len(shares[0])), rtol=1e-9)
    assert float(shares[1].max() - shares[1].min()) > 0.05


@pytest.mark.slow
def test_losses_over_ranks_are_those_of_one_process(place: Path) -> None:
    """Group DRO with a step size that makes its weights matter; DDP, and ZeRO where every stage reduces otherwise.

    Plain SGD: Adam makes a step of the rounding of a gradient that is almost zero.
    """
    pytest.importorskip("deepspeed")
    pytest.importorskip("sklearn")
    sgd = {"optim": "sgd", "learning_rate": 0.05}
    shared = {"save_strategy": "steps", "save_steps": 4, "loss": {"name": "group_dro", "step_size": 2.0}, **sgd}
    ways = {"ddp": None, "zero2": "zero2", "zero3": "zero3"}
    half = {"gradient_accumulation_steps": 2}
    runs = [settings(place, name, 4, deepspeed=engine, **shared, **half) for name, engine in ways.items()]
    focal = settings(place, "focal_ddp", 2, loss="focal", **sgd)
    worst = {**shared, "loss": {"name": "cvar_dro", "alpha": 0.5, "step_size": 0.5}}
    mixed = {**shared, "loss": {"name": "learned_mixin", "penalty": 0.1, "step_size": 0.1}, "bias_model": PARTIAL}
    mixes = [settings(place, f"mixed_{name}", 4, deepspeed=ways[name], **mixed, **half) for name in ("ddp", "zero3")]
    more = {
        "ula": {**shared, "loss": {"name": "ula"}, "bias_model": PARTIAL},
        "blind": {**shared, "loss": {"name": "blind", "step_size": 0.5, "gamma": 2.0}},
    }
    more |= {
        "bias_covariance": {**shared, "loss": {"name": "bias_covariance", "strength": 300.0}, "bias_model": PARTIAL},
        "irm": {**shared, "loss": {"name": "irm", "strength": 20.0}},
        "coral": {**shared, "loss": {"name": "coral", "strength": 20.0}},
        "mmd": {**shared, "loss": {"name": "mmd", "strength": 20.0}},
        "pgi": {**shared, "loss": {"name": "pgi", "strength": 20.0}},
    }
    others = [settings(place, f"{name}_ddp", 4, **one, **half) for name, one in more.items()]
    others += [settings(place, f"{name}_zero3", 4, deepspeed="zero3", **more[name], **half) for name in SHARDED]
    on_ranks(2, [*runs, focal, settings(place, "worst_ddp", 4, **worst, **half), *mixes, *others])
    alone, focal_alone = (
        run(settings(place, "alone", **shared)),
        run(settings(place, "focal_alone", loss="focal", **sgd)),
    )
    for name in ways:
        assert largest_difference(adapter_of(place / name), adapter_of(alone)) < 1e-6, name
        torch.testing.assert_close(
            learned(place / name / "checkpoint-4"), learned(alone / "checkpoint-4"), rtol=1e-6, atol=0
        )
    assert largest_difference(adapter_of(place / "focal_ddp"), adapter_of(focal_alone)) < 1e-6
    worst_alone = run(settings(place, "worst_alone", **worst))
    assert largest_difference(adapter_of(place / "worst_ddp"), adapter_of(worst_alone)) < 1e-6
    etas = [float(learned(found / "checkpoint-4")[0]) for found in (place / "worst_ddp", worst_alone)]
    assert etas[0] == pytest.approx(etas[1], rel=1e-12)
    assert etas[0] > 0
    mixed_alone = run(settings(place, "mixed_alone", **mixed))
    for name in ("mixed_ddp", "mixed_zero3"):
        assert largest_difference(adapter_of(place / name), adapter_of(mixed_alone)) < 1e-6, name
        found, want = (learned(run / "checkpoint-4")[:17] for run in (place / name, mixed_alone))  # w [16] and c
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
        assert float(want.abs().min()) > 1e-3
    plain = run(settings(place, "plain", **sgd))
    for name, one in more.items():
        one_process = run(settings(place, f"{name}_alone", **one))
        assert largest_difference(adapter_of(place / f"{name}_ddp"), adapter_of(one_process)) < 1e-6, name
        assert largest_difference(adapter_of(one_process), adapter_of(plain)) > 1e-5, name
        for done in (place / f"{name}_ddp", place / f"{name}_zero3")[: (name in MOMENTS) + (name in SHARDED)]:
            assert largest_difference(adapter_of(done), adapter_of(one_process)) < 1e-6, done.name
            found, want = (learned(run / "checkpoint-4") for run in (done, one_process))
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    for other in (alone, focal_alone, worst_alone):
        assert largest_difference(adapter_of(other), adapter_of(plain)) > 1e-4  # a loss that is ignored would pass all
    assert largest_difference(adapter_of(mixed_alone), adapter_of(plain)) > 1e-5


def test_a_causal_model_takes_every_loss_but_one_that_reads_a_classifiers_logits(place: Path) -> None:
    causal = {"head": "causal_lm", "prompt": PROMPT, "data": DATA}
    for name, loss in LOSSES.items():
        settings = settings_for(place / "llama", place / f"llama_{name}", loss=name, **causal, **needs_of(name))
        if LOGITS in loss.reads:
            with pytest.raises(InputError, match=f"loss {name} reads a classifier's logits, and head is causal_lm"):
                run(settings)
        else:
            assert (run(settings) / "adapter").is_dir()


def test_answers_of_several_tokens_are_refused_with_advice(place: Path) -> None:
    long = {**PROMPT, "verbalizers": {**PROMPT["verbalizers"], "neutral": " maybe no"}}  # type: ignore[dict-item]
    causal = {"head": "causal_lm", "prompt": long, "data": DATA}
    with pytest.raises((InputError, ValueError), match="answers of one token each, the longest here has 2; choose"):
        run(
            settings_for(
                place / "llama", place / "long", loss="logit_correction", **causal, **needs_of("logit_correction")
            )
        )
    assert not (place / "long").exists()


# Bias models.


@pytest.mark.parametrize("form", ["gce", "confidence", "balanced"])
def test_a_bias_model_reaches_the_bias_gradient(place: Path, form: str) -> None:
    pytest.importorskip("sklearn")
    weighted = {"bias_model": PARTIAL, "bias_weight": {"source": "bias_model", "form": form}, "method": "subtract"}
    done = run(settings(place, f"bias_{form}", **weighted))
    with np.load(done / "bias" / "partial_input.npz") as held:
        assert held["log_p"].shape == (120, 3)
        assert np.allclose(np.exp(held["log_p"]).sum(axis=1), 1)
    own = run(settings(place, f"own_{form}", method="subtract"))
    assert largest_difference(adapter_of(done), adapter_of(own)) > 1e-5


def test_what_was_fitted_is_kept_for_the_same_data_alone(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sklearn")
    caplog.set_level(logging.INFO, "debias")
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    weighted = {"bias_model": PARTIAL, "bias_weight": {"source": "bias_model"}}
    run(settings(place, "kept", **weighted, **saving))
    assert "bias model partial_input: fitting on 120 examples" in caplog.text
    assert "out of fold; the most frequent label is" in caplog.text
    caplog.clear()
    run(settings(place, "kept", **weighted, **{**saving, "max_steps": 4, "resume": True}))
    assert "fitting" not in caplog.text
    (place / "kept" / "bias" / "partial_input.npz").write_bytes(b"PK\x03\x04 cut short")
    run(settings(place, "kept", **weighted, **{**saving, "max_steps": 6, "resume": True}))
    assert "bias model partial_input: fitting on 120 examples" in caplog.text


@pytest.mark.slow
def test_ranks_read_what_the_first_one_fitted(place: Path) -> None:
    pytest.importorskip("sklearn")
    weighted = {
        "bias_model": PARTIAL,
        "bias_weight": {"source": "bias_model", "form": "balanced"},
        "method": "subtract",
    }
    on_ranks(2, [settings(place, "bias_two", 2, **weighted)])
    alone = run(settings(place, "bias_one", **weighted))
    assert largest_difference(adapter_of(place / "bias_two"), adapter_of(alone)) < 1e-6


def test_a_bias_model_that_knows_all_stops_a_run_before_it_begins(place: Path) -> None:
    rows = [
        {"premise": f"p{i}", "hypothesis": "h", "label": label, **{f"p{k}": float(k == at) for k in range(3)}}
        for i in range(8)
        for at, label in enumerate(("entailment", "neutral", "contradiction"))
    ]
    (place / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"bias_model": {"name": "column", "columns": ["p0", "p1", "p2"]}, "loss": "logit_correction"}
    with pytest.raises(InputError, match=r"bias_model column: is right on all 24 examples with p of 0\.99 or more"):
        run(settings(place, "knowing", data={"train": str(place / "known.jsonl")}, **told))
    assert not (place / "knowing").exists()


# Refused before anything is written.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "group_dro", "data": {"train": "my.jsonl"}},
            "loss group_dro needs a group of each row; set data.group_field",
        ),
        ({"bias_weight": {"source": "bias_model"}}, "bias_weight.source is 'bias_model', but bias_model is missing"),
        ({"bias_weight": {"source": "self", "form": "balanced"}}, "form has no effect with source 'self'"),
        ({"bias_model": {"name": "partial_input", "fields": ["hypo"]}}, "'hypo' is not one of data.text_fields"),
        ({"bias_model": "partial_input"}, "bias_model.fields: missing, and partial_input has no default for it"),
        (
            {"loss": "confidence_regularization", "bias_model": PARTIAL, "first_stage": {"keep": "errors"}},
            "loss confidence_regularization reads what a teacher says; set first_stage.keep: teacher",
        ),
        ({"loss": "debiased_focal"}, "loss debiased_focal reads a bias model's probabilities, but bias_model is"),
        ({"loss": "afr", "first_stage": {"keep": "teacher"}}, "loss afr reads a bias model's probabilities"),
        ({"loss": {"name": "focal", "gama": 1}}, "loss.gama: focal has no such setting; did you mean gamma?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        run(settings(place, "refused", **changes))
    assert not (place / "refused").exists()


def test_a_row_without_a_group_is_named(place: Path) -> None:
    rows = [
        {"premise": "p", "hypothesis": "h", "label": label, "kind": "a"}
        for label in ("entailment", "neutral", "contradiction")
    ] * 4
    rows[5]["kind"] = None  # type: ignore[assignment]
    (place / "rows.jsonl").write_text("".join(json.dumps({**row, "id": f"r{i}"}) + "\n" for i, row in enumerate(rows)))
    data = {"train": str(place / "rows.jsonl"), "group_field": "kind"}
    with pytest.raises(InputError, match="has no group, and it needs one of each"):
        run(settings(place, "refused", loss="group_dro", data=data))
    assert not (place / "refused").exists()


# How the gradients are made is apart from what the statistics are: one loss both ways.
@pytest.mark.parametrize(("name", "gradients"), [("coral", "two_pass"), *((name, "single_pass") for name in MOMENTS)])
def test_statistics_of_the_step_are_the_same_however_it_is_cut(place: Path, name: str, gradients: str) -> None:
    """Steps of 15 and an incomplete one of 10, in one micro-batch and in several of 3 (the last one of 1)."""
    few = {**DATA, "train": {"source": "generated", "limit": 40}}
    shared: dict[str, Any] = {
        **{"data": few, "max_steps": -1, "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.05},
        **{"method": "subtract", "gradients": gradients, **needs_of(name)},
        "loss": {"name": name, "strength": 50.0},
    }
    runs = [
        run(settings(place, f"{name}_{gradients}_{size}", per_device_train_batch_size=size,
                     gradient_accumulation_steps=15 // size, **shared))
        for size in (15, 3)
    ]  # fmt: skip
    # Without its penalty, not cross-entropy: a loss may count groups alike as well.
    plain = run(settings(place, f"{name}_{gradients}_plain", **{**shared, "loss": {"name": name, "strength": 0.0}},
                         per_device_train_batch_size=15))  # fmt: skip
    whole, cut = runs
    assert largest_difference(adapter_of(cut), adapter_of(whole)) < 2e-6
    assert largest_difference(adapter_of(plain), adapter_of(whole)) > 1e-5


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_with_statistics_of_the_step_goes_on_exactly(place: Path, name: str) -> None:
    """With dropout, whose masks are drawn twice, and from the middle of an epoch."""
    if not (place / "dropout").exists():
        save_bert(place / "dropout", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    asked = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "max_steps": 4, **needs_of(name)}
    asked |= {"loss": name, "lora_dropout": 0.1, "gradient_accumulation_steps": 3}
    of_dropout = {"model": str(place / "dropout")}
    whole = run(settings(place, f"{name}_ahead", 3, **asked) | of_dropout)
    cut = cut_off(whole, place / f"{name}_ahead_cut")
    run(settings(place, cut.name, 3, resume=True, **asked) | of_dropout)
    assert largest_difference(adapter_of(cut), adapter_of(whole)) == 0.0
