"""Idioms of other loops around `attach`: wrappers before and after it, Accelerate's accumulate(), compiling."""

import pytest
import torch
from accelerate import Accelerator
from gradient_checks import mlp_loss, text_loss, weights_for
from tiny_models import Mlp, bert, bert_lora, rows, text_batch
from torch import nn

from debias.engines import attach, not_head
from debias.engines.parameters import chosen_by
from debias.engines.wrapping import own_names
from debias.methods import L2SP, Edge, MainOnly

torch.set_num_threads(1)

PARTS = [(0, 3), (3, 8), (8, 10)]


@pytest.fixture
def accelerator():
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True, gradient_accumulation_steps=len(PARTS))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batch_of(samples=10, seed=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(samples, 5, generator=generator),
        "labels": torch.randint(0, 3, (samples,), generator=generator),
    }


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def feed(hook, model, batch, weight_B, parts, after=lambda: None):
    """One micro-batch after the other; `after` each of them."""
    for start, stop in parts:
        part, w = rows(batch, start, stop), weight_B[start:stop]
        hook.backward(mlp_loss(model, part), w, again=lambda p=part, v=w: (mlp_loss(model, p), v))
        after()


def trained_at_once(steps=2):
    model = Mlp()
    hook = attach(model, sgd(model), Edge(), max_grad_norm=0.5)
    for step in range(steps):
        feed(hook, model, batch_of(seed=step), weights_for(10, seed=step), [(0, 10)])
        hook.step()
    return model


def assert_same(model, other):
    for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name


# --- Accelerate


@pytest.mark.parametrize("gradients", ["single_pass", "shared_forward", "two_pass"])
def test_a_step_in_every_micro_batch_of_accumulate(accelerator, gradients):
    """Equal to one large batch: unequal micro-batches, clipping, two steps, and zero_grad beside it as in the docs."""
    model = Mlp()
    wrapped, optimizer = accelerator.prepare(model, sgd(model))
    hook = attach(wrapped, optimizer, Edge(), gradients, max_grad_norm=0.5)
    reports = []
    for step in range(2):
        for start, stop in PARTS:
            with accelerator.accumulate(wrapped):
                feed(hook, wrapped, batch_of(seed=step), weights_for(10, seed=step), [(start, stop)])
                reports.append(hook.step())
                optimizer.zero_grad()
    assert [report is None for report in reports] == [True, True, False] * 2
    assert reports[-1].samples == 10
    assert_same(model, trained_at_once())


def test_accumulate_with_an_optimizer_that_was_not_prepared(accelerator):
    model = Mlp()
    hook = attach(model, sgd(model), Edge())
    with accelerator.accumulate(model):
        feed(hook, model, batch_of(), weights_for(10), PARTS[:1])
        with pytest.raises(RuntimeError, match=r"accumulate\(\).*did not prepare.*prepared optimizer"):
            hook.step()


@pytest.mark.parametrize("prepared", [True, False])
def test_combine_in_the_middle_of_accumulate(accelerator, prepared):
    model = Mlp()
    optimizer = accelerator.prepare(sgd(model)) if prepared else None
    hook = attach(model, optimizer, Edge())
    with accelerator.accumulate(model):
        feed(hook, model, batch_of(), weights_for(10), PARTS[:1])
        with pytest.raises(RuntimeError, match=r"accumulate\(\).*sync_gradients"):
            hook.combine()


def test_a_loss_scaler_of_accelerate(accelerator):
    model = Mlp()
    optimizer = accelerator.prepare(sgd(model))
    optimizer.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match=r"loss scaler \(fp16\)"):
        attach(model, optimizer, Edge())


# --- wrappers after attach


def flattened(model):
    """As FSDP leaves a model: one flat parameter in the place of all."""
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for module in [model.first, model.second, model.classifier]:
        for name in list(module._parameters):
            del module._parameters[name]
    model._flat_param = flat
    return flat.sum().expand(10), "FSDP"


def adapted(model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(target_modules=["second"], r=2))
    return mlp_loss(model, batch_of()), "an adapter was added"


def replaced(model):
    model.second = nn.Linear(7, 7)
    return mlp_loss(model, batch_of()), "second.weight is no longer a parameter.*its layers were replaced"


def nested(model):
    model.inner = nn.Sequential(model.second)
    del model.second
    hidden = torch.tanh(model.inner(torch.tanh(model.first(batch_of()["x"]))))
    return model.classifier(hidden).logsumexp(1), "second.weight is now inner.0.weight: the model was wrapped"


@pytest.mark.parametrize("change", [flattened, adapted, replaced, nested])
def test_what_was_done_to_a_model_after_attach_is_named(change):
    model = Mlp()
    hook = attach(model, sgd(model), Edge())
    loss_B, words = change(model)
    with pytest.raises(RuntimeError, match=words):
        hook.backward(loss_B, weights_for(10))


def test_replicas_of_data_parallel_are_named():
    model = Mlp()
    with pytest.raises(ValueError, match=r"DataParallel is not supported.*torchrun"):
        attach(nn.DataParallel(model), sgd(model), Edge())
    attach(model, sgd(model), Edge())
    replica = model._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="wrapped in DataParallel after"):
        replica(batch_of()["x"])


# --- adapters of other kinds


def other_adapter(kind):
    import peft

    torch.manual_seed(1)
    settings = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    model = peft.get_peft_model(bert(), getattr(peft, f"{kind}Config")(r=4, **settings)).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", ["Lily", "LoHa"])
def test_an_adapter_of_a_kind_that_is_not_known_is_named_and_exact(kind, caplog):
    """Against autograd of each sample's loss in the one batch: in Lily's layers samples mix."""
    model, batch, weight_B = other_adapter(kind), text_batch(6), weights_for(6)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=rf"(?i)'single_pass' may not be exact here: .*{kind}"):
        attach(model, optimizer, Edge(), "single_pass")
    with caplog.at_level("WARNING"):
        hook = attach(model, optimizer, Edge())
    assert f"kind that is not known ({kind.lower()}" in caplog.text
    hook.backward(text_loss(model, batch), weight_B)
    got = {name: gradient.clone() for name, gradient in hook.source.bias.items()}
    parameters = list(hook.selected.values())
    loss_B = text_loss(model, batch)
    rows_of = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in loss_B]
    for i, name in enumerate(hook.selected):
        want = sum(w * row[i] for w, row in zip(weight_B.tolist(), rows_of, strict=True))
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-5)


# --- compiling


@pytest.fixture
def compiling(compiles):
    """torch's own defaults before and after; buffers are given away where batch sizes change."""
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=True):
        yield lambda model: torch.compile(model, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "gradients"),
    [
        ("before", "shared_forward"),
        ("used before", "shared_forward"),
        ("after", "shared_forward"),
        ("after", "single_pass"),
    ],
)
def test_a_compiled_model(compiling, when, gradients):
    """Two backward passes through one compiled graph, for batches of several sizes."""
    model = Mlp()
    run = model if when == "after" else compiling(model)
    if when == "used before":
        for samples in (3, 4):
            mlp_loss(run, batch_of(samples)).sum().backward()
        model.zero_grad()
    wanted = "auto" if when != "after" else gradients
    hook = attach(run, sgd(model), Edge(), wanted, max_grad_norm=0.5)
    assert hook.gradients == gradients
    parts = [(0, 10)] if gradients == "single_pass" else PARTS
    run = compiling(model) if when == "after" else run
    for step in range(2):
        feed(hook, run, batch_of(seed=step), weights_for(10, seed=step), parts)
        hook.step()
    assert_same(model, trained_at_once())


# --- what is in a model


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("rule", [Edge(), MainOnly()], ids=repr)
def test_sparse_embeddings(kind, rule):
    model = nn.Sequential(nn.ModuleDict({"words": kind(11, 5, sparse=True)}), Mlp())
    with pytest.raises(ValueError, match=rf"0\.words is an {kind.__name__} with sparse=True.*set sparse=False"):
        attach(model, sgd(model), rule)
    model[0].requires_grad_(False)
    attach(model, sgd(model[1]), rule).detach()


def heads():
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    classes = {
        "sequence": AutoModelForSequenceClassification,
        "token": AutoModelForTokenClassification,
        "lm": AutoModelForCausalLM,
    }

    def build(kind, family, **sizes):
        return classes[kind].from_config(AutoConfig.for_model(family, vocab_size=31, num_labels=3, **sizes))

    return build


SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("kind", "family", "sizes", "backbone"),
    [
        ("sequence", "distilbert", {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}, "distilbert."),
        ("sequence", "deberta-v2", SMALL, "deberta."),
        ("sequence", "xlnet", {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}, "transformer."),
        ("sequence", "xlm", {"emb_dim": 8, "n_layers": 1, "n_heads": 2}, "transformer."),
        ("sequence", "bert", SMALL, "bert."),
        ("token", "electra", {**SMALL, "embedding_size": 8}, "electra."),
        ("lm", "gpt2", {"n_embd": 8, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False}, ""),
    ],
)
def test_layers_of_a_head_follow_main_however_they_are_called(kind, family, sizes, backbone):
    model = heads()(kind, family, **sizes)
    want = {name for name, _ in model.named_parameters() if name.startswith(backbone)}
    assert set(chosen_by(not_head, model)) == want
    wrapped = nn.ModuleDict({"module": model})  # as DistributedDataParallel names them
    assert set(chosen_by(not_head, wrapped)) == {f"module.{name}" for name in want}


def test_what_was_drawn_at_random_is_the_head_where_it_is_known():
    """A checkpoint that has the pooler: only what it lacks is fresh; and an adapter on it is part of it."""
    model = bert()
    model.fresh_modules = ["classifier", "bert.pooler.dense"]
    assert not any("pooler" in name for name in chosen_by(not_head, model))
    model.fresh_modules = ["classifier"]
    assert "bert.pooler.dense.weight" in chosen_by(not_head, model)
    adapted_model = bert_lora()
    before = chosen_by(not_head, adapted_model)
    adapted_model.base_model.model.fresh_modules = ["bert.pooler.dense"]
    gone = set(before) - set(chosen_by(not_head, adapted_model))
    assert {name.split(".")[-3] for name in gone} == {"lora_A", "lora_B"}
    assert all("pooler" in name for name in gone)


def test_a_head_that_unfreezes_follows_main_as_it_did():
    """What `select` takes is asked of the same names at attach and later."""
    model = heads()("sequence", "distilbert", dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    model.pre_classifier.requires_grad_(False)
    hook = attach(model, sgd(model), Edge(), "shared_forward")
    model.pre_classifier.requires_grad_(True)
    batch = text_batch(4)
    batch["input_ids"] = batch["input_ids"] % 31
    hook.backward(text_loss(model, batch), weights_for(4))
    hook.step()


class _FabricModule(nn.Module):
    """Called as Lightning Fabric's wrapper is."""

    def __init__(self, inside):
        super().__init__()
        self._forward_module = inside

    def forward(self, *inputs):
        return self._forward_module(*inputs)


class OptimizedModule(_FabricModule):
    """Called as the wrapper of torch.compile is."""

    def __init__(self, inside):
        nn.Module.__init__(self)
        self._orig_mod = inside

    def forward(self, *inputs):
        return self._orig_mod(*inputs)


class Holder(nn.Module):
    """A model that calls what it holds `module`, as DistributedDataParallel does."""

    def __init__(self, inside):
        super().__init__()
        self.module = inside

    def forward(self, *inputs):
        return self.module(*inputs)


WRAPPED = {
    "Fabric": _FabricModule,
    "compiled": OptimizedModule,
    "both": lambda model: _FabricModule(OptimizedModule(model)),
}


def built():
    model = Mlp()
    model.second = OptimizedModule(model.second)  # a layer that was compiled alone
    return Holder(model)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_parameters_have_the_models_own_names_whatever_wraps_it(wrap):
    whole = wrap(built())
    want = [f"module.{name}" for name, _ in Mlp().named_parameters()]
    assert list(map(own_names(whole), dict(whole.named_parameters()))) == want
    asked = []
    chosen_by(lambda name, parameter: asked.append(name) or True, whole)
    assert asked == want


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_what_a_rule_keeps_goes_from_one_wrapper_to_another(wrap):
    """Also of states that older versions saved, with the wrapper's name in it."""
    bare, wrapped = Mlp(), wrap(Mlp())
    hook = attach(bare, sgd(bare), L2SP())
    state = hook.state_dict()
    other = attach(wrapped, sgd(wrapped), L2SP())
    assert other.state_dict().keys() == state.keys()
    other.load_state_dict(state)
    older = {f"_forward_module.module.{key}" if "/" in key else key: value for key, value in state.items()}
    other.load_state_dict(older)
    whole = [(name, own_names(wrapped)(name)) for name, _ in wrapped.named_parameters()]
    full = {own: name for name, own in whole}  # as the wrapped model calls them
    other.load_state_dict(
        {"/".join([full.get(key.split("/")[0], key), *key.split("/")[1:]]): v for key, v in state.items()}
    )
    hook.load_state_dict(other.state_dict())
