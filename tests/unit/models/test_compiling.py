"""debias.models.compiling: layers compiled by themselves, with the gradients of the model as it was."""

from typing import Any

import pytest
import tiny_models
import torch

from debias.errors import InputError
from debias.gradients import MicroBatch, make_source
from debias.gradients.single_pass import refusal
from debias.losses import Answers, SelfWeight
from debias.models.compiling import compile_layers
from debias.readouts import inputs_and_facts

CASES = [("shared_forward", 5), ("shared_forward", 3), ("two_pass", 4)]


def trainable(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def two_gradients(model: Any, way: str, samples: int) -> dict[str, torch.Tensor]:
    """Both gradients of all adapters on a batch of so many samples."""
    model.zero_grad()
    source = make_source(way, model, trainable(model))
    batch = tiny_models.answer_batch(samples=samples, tokens=7 + samples)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        said = Answers([[5]], chunk=4).said(model, batch)
        return -said.log_p_B, SelfWeight()(said, inputs_and_facts(batch)[1])

    source.backward(MicroBatch(*forward(), again=forward))
    found = {f"bias {name}": source.bias[name].clone() for name in source.selected}
    return found | {f"main {name}": p.grad.clone() for name, p in source.selected.items()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, compiles: None) -> Any:
    """Compiled without a C++ compiler; what torch traces and where it gives up is counted."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: compile_module(self, backend="aot_eager", **kw))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._functorch.config.patch(donated_buffer=True):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.slow
def test_both_gradients_are_those_of_the_model_as_it_was(counted: Any) -> None:
    adapters = {"target_modules": ["v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = tiny_models.with_lora(tiny_models.llama(layers=3), **adapters)
    names = list(trainable(model))
    want = [two_gradients(model, way, samples) for way, samples in CASES]
    assert compile_layers(model) == 3
    got = [two_gradients(model, way, samples) for way, samples in CASES]
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert list(trainable(model)) == names
    # The first layer's input has no gradient; all others share one graph, for batches of any shape.
    assert counted["frames"]["ok"] == 2
    assert not counted["graph_break"]


def test_single_pass_is_not_for_compiled_layers(counted: Any) -> None:
    model = tiny_models.with_lora(tiny_models.llama(), task_type="CAUSAL_LM")
    assert refusal(model, trainable(model)) is None
    compile_layers(model)
    reason = str(refusal(model, trainable(model)))
    assert reason == "base_model.model.model.layers.0 is compiled (torch_compile)"
    with pytest.raises(ValueError, match=r"single_pass.*is compiled"):
        make_source("single_pass", model, trainable(model))
    assert make_source("auto", model, trainable(model)).name == "shared_forward"
    whole = torch.compile(tiny_models.llama(), backend="eager")
    assert "_orig_mod is compiled" in str(refusal(whole, trainable(whole)))


def test_what_is_not_compiled() -> None:
    with pytest.raises(InputError, match="torch_compile: layers with fused experts have not been tried"):
        compile_layers(tiny_models.qwen3_moe())
    with pytest.raises(InputError, match="torch_compile: a Mlp does not say what its layers are"):
        compile_layers(tiny_models.Mlp())
