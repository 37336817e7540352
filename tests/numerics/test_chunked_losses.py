"""The head and cross-entropy in chunks of positions: equal to the whole, in less memory."""

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from debias.gradients import MicroBatch, make_source
from debias.losses import Answers, SelfWeight
from debias.readouts import chunks, inputs_and_facts

torch.set_num_threads(1)


def batch_of_long_answers(samples: int = 3, tokens: int = 24, vocabulary: int = 61) -> dict[str, torch.Tensor]:
    """Left-padded, with answers of 3 to 20 tokens."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, vocabulary, (samples, tokens), generator=generator)
    mask = (torch.arange(tokens) >= torch.tensor([[0], [3], [15]])[:samples]).long()
    answer_mask = torch.arange(tokens) >= tokens - torch.tensor([[20], [11], [3]])[:samples]
    return {"input_ids": ids * mask, "attention_mask": mask, "answer_mask": answer_mask}


def gradients(model: Any, batch: Any, chunk: int | None, way: str = "shared_forward") -> dict[str, torch.Tensor]:
    """Losses and both gradients of everything that trains."""
    model.zero_grad()
    selected = {name: p for name, p in model.named_parameters() if p.requires_grad}
    source = make_source(way, model, selected)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        said = Answers([[5]], chunk=chunk).said(model, batch)
        return -said.log_p_B, SelfWeight()(said, inputs_and_facts(batch)[1])

    loss_B, weight_B = forward()
    source.backward(MicroBatch(loss_B, weight_B, again=forward))
    found = {"loss": loss_B.detach(), "weight": weight_B}
    found |= {f"bias {name}": source.bias[name].clone() for name in selected}
    found |= {f"main {name}": p.grad.clone() for name, p in selected.items()}
    source.detach()
    return found


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float = 2e-6) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        # Relative to the tensor's largest element: sums over chunks are sums in another order.
        error = float((got[name] - value).abs().max() / value.abs().max())
        assert error < tolerance, f"{name}: {error}"


@pytest.fixture(scope="module", params=["llama", "gpt2 (tied head)", "gemma (soft-capped)", "moe", "llama4"])
def whole(request: pytest.FixtureRequest) -> Any:
    """Everything trains, the head too."""
    made = {
        "llama": tiny_models.llama,
        "gpt2 (tied head)": tiny_models.gpt2,
        "gemma (soft-capped)": lambda: tiny_models.gemma3(final_logit_softcapping=2.0),
        "moe": tiny_models.qwen3_moe,
        "llama4": tiny_models.llama4,
    }
    return made[request.param]()


@pytest.mark.parametrize("chunk", [1, 7, 20, 59])
def test_losses_and_gradients_are_those_of_one_piece(whole: Any, chunk: int) -> None:
    batch = batch_of_long_answers()
    assert_same(gradients(whole, batch, chunk), gradients(whole, batch, None))


@pytest.mark.parametrize("way", ["two_pass", "single_pass"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=["layers", "head too"])
def test_adapters_on_layers_and_head(way: str, targets: Any) -> None:
    """single_pass sees the head once for each chunk, samples first: both gradients of its adapter add up."""
    model = tiny_models.with_lora(tiny_models.llama(), task_type="CAUSAL_LM", target_modules=targets)
    batch = batch_of_long_answers()
    assert_same(gradients(model, batch, 6, way), gradients(model, batch, None, "shared_forward"))


def test_with_activation_checkpointing_of_the_layers() -> None:
    batch = batch_of_long_answers()
    model = tiny_models.with_lora(tiny_models.llama(), task_type="CAUSAL_LM")
    want = gradients(model, batch, None)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(model, batch, 6), want)


def test_under_autocast_of_the_outer_forward_alone() -> None:
    """As accelerate wraps it: the chunks are computed outside, and must be computed alike."""
    model = tiny_models.llama()
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(*args, **kwargs)

    outer = nn.Module()
    outer.model = model
    outer.forward = forward
    batch = batch_of_long_answers()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert_same(gradients(outer, batch, 6), gradients(outer, batch, None), tolerance=2e-2)
    assert set(seen) == {torch.bfloat16}


def test_a_head_that_reads_a_number_of_its_backbone() -> None:
    """Falcon-H1's multiplies logits by one that lies there."""
    model = tiny_models.llama()

    class OfItsBackbone(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, logits_to_keep: Any = 0, **given: Any) -> Any:
            made = super().forward(*args, logits_to_keep=logits_to_keep, **given)
            made.logits = made.logits * self.model.lm_head_multiplier
            return made

    model.__class__ = OfItsBackbone
    model.model.lm_head_multiplier = 0.5
    batch = batch_of_long_answers()
    assert_same(gradients(model, batch, 7), gradients(model, batch, None))
    assert "lm_head_multiplier" not in model.model.state_dict()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_models.llama()
    backbone, hooks = model.model, len(model.model._forward_hooks)
    (-Answers([[5]], chunk=4).said(model, batch_of_long_answers()).log_p_B).sum().backward()
    assert model.model is backbone
    assert len(backbone._forward_hooks) == hooks


def test_scores_of_long_answers_in_chunks() -> None:
    model = tiny_models.llama().eval()
    batch = batch_of_long_answers()
    prompts = {key: batch[key] for key in ("input_ids", "attention_mask")}
    answers = [[5, 6, 7, 8, 9], [9, 1]]
    with torch.no_grad():
        torch.testing.assert_close(
            Answers(answers, chunk=3).label_scores(model, prompts), Answers(answers).label_scores(model, prompts)
        )


def test_more_chunks_than_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank may need more of them than there are positions here: some chunks are then empty."""
    model = tiny_models.with_lora(tiny_models.llama(), task_type="CAUSAL_LM")
    batch = batch_of_long_answers()
    want = gradients(model, batch, None)
    calls = []
    model.base_model.model.lm_head.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[1]))
    monkeypatch.setattr(chunks, "_agreed", lambda model, pieces, device: 23)
    assert_same(gradients(model, batch, 6), want)
    assert calls[:23] == [1] * 20 + [0] * 3


@pytest.mark.parametrize(("chunk", "widths"), [(3, [1] * 20), (8, [2] * 10), (9, [3] * 6 + [2]), (60, [20])])
def test_no_chunk_is_larger_than_asked_for(chunk: int, widths: list[int]) -> None:
    model, seen = tiny_models.llama(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    Answers([[5]], chunk=chunk).said(model, batch_of_long_answers())
    assert seen == widths


class Bare(nn.Module):
    """Speaks as a causal model does, and is none of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_models.llama()

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, logits_to_keep: Any) -> Any:
        logits = self.inner.lm_head.weight[:, :16].T[input_ids[:, logits_to_keep] % 16]
        return type("Output", (), {"logits": logits})


def test_a_model_of_another_make_is_refused_only_where_chunks_are_needed() -> None:
    model = Bare()
    model.inner = nn.ModuleDict({"lm_head": nn.Linear(16, 61)})
    batch = batch_of_long_answers()
    assert Answers([[5]], chunk=60).said(model, batch).log_p_B.shape == (3,)
    with pytest.raises(ValueError, match="loss_chunk_size: Bare holds no causal model of transformers"):
        Answers([[5]], chunk=59).said(model, batch)


def largest_saved(model: Any, batch: Any, chunk: int | None) -> int:
    """Elements of the largest tensor that the graph of the loss keeps, parameters aside."""
    parameters = {p.data_ptr() for p in model.parameters()}
    sizes = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Answers([[5]], chunk=chunk).said(model, batch)
    return max(sizes)


def test_memory_does_not_grow_with_vocabulary_times_answers() -> None:
    vocabulary, tokens, chunk = 150_000, 65, 8
    model = tiny_models.llama(vocab_size=vocabulary, layers=1)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, vocabulary, (1, tokens), generator=generator)
    answer_mask = torch.arange(tokens).unsqueeze(0) >= 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "answer_mask": answer_mask}
    assert largest_saved(model, batch, None) == 64 * vocabulary
    assert largest_saved(model, batch, chunk) == chunk * vocabulary


class Heedless(nn.Module):
    """A model of somebody's own, whose forward swallows what it does not know; it may leave positions out."""

    def __init__(self, missing: int = 0) -> None:
        super().__init__()
        self.inner, self.missing = tiny_models.llama(), missing

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **rest: Any) -> Any:
        whole = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=rest["position_ids"])
        whole.logits = whole.logits[:, self.missing :]
        return whole


@pytest.mark.parametrize("every_label", [False, True])
@pytest.mark.parametrize("chunk", [None, 7])
def test_logits_of_all_positions_are_read_where_they_were_asked_for(every_label: bool, chunk: int | None) -> None:
    batch, answers = batch_of_long_answers(), Answers([[5], [9]], chunk=chunk)
    ours, theirs = (answers.said(model, batch, every_label=every_label) for model in (Heedless(), tiny_models.llama()))
    assert torch.allclose(ours.log_p_B, theirs.log_p_B, rtol=1e-5)
    if every_label:
        assert torch.allclose(ours.log_p_BC, theirs.log_p_BC, rtol=1e-5)
    with pytest.raises(ValueError, match=r"logits of 23 positions of 24; \d+ were asked for \(logits_to_keep\)"):
        answers.said(Heedless(missing=1), batch, every_label=every_label)
