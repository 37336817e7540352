"""Programs that stand in pipeline/README.md, run on tiny models, and what they must come to.

The oracle: every sample's gradient by itself, sums in float64, the rule in plain Python floats (tests/numerics), then
torch's own clipping and optimizer. It shares nothing with debias but the model.
"""

import copy
import os
import re
import runpy
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_runs import tokenizer

ROOT = Path(__file__).parents[1]
edge = runpy.run_path(str(ROOT / "tests" / "numerics" / "oracle.py"))["edge"]

WORDS = 1000


def programs():
    page = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
    section = page.partition("\n## Beside the loops people have\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def program_of(word):
    (found,) = [code for code in programs() if word in code]
    return found


def tiny(head):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if head == "causal_lm":
        words = len(tokenizer(causal=True))
        config = AutoConfig.for_model("llama", vocab_size=words, num_key_value_heads=1, initializer_range=0.2, **sizes)
        return AutoModelForCausalLM.from_config(config).train()
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    config = AutoConfig.for_model("bert", vocab_size=WORDS, num_labels=2, **sizes, **quiet)
    return AutoModelForSequenceClassification.from_config(config).train()


def runner(monkeypatch, tmp_path, capsys):
    """A function that runs a program on a tiny model: its names, and the model as it was before the first step."""
    import debias.adapters.lora
    import debias.models.load

    starts, add_lora = [], debias.adapters.lora.add_lora

    def with_lora(*args, **settings):
        model = add_lora(*args, **settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros would leave nothing for lora_A in a first step
                torch.nn.init.normal_(parameter, std=0.2)
        starts.append(copy.deepcopy(model))
        return model

    monkeypatch.setattr(os, "environ", os.environ.copy())
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(key, value)
    monkeypatch.setattr(debias.models.load, "load_model", lambda name, head, labels: tiny(head))
    monkeypatch.setattr(debias.models.load, "load_tokenizer", lambda name, head: padded_tokenizer())
    monkeypatch.setattr(debias.adapters.lora, "add_lora", with_lora)
    monkeypatch.chdir(tmp_path)

    def ran(code):
        names = {}
        try:
            exec(compile(code, "README.md", "exec"), names)
        finally:
            if dist.is_initialized() and "init_device_mesh" in code and os.environ["WORLD_SIZE"] == "1":
                dist.destroy_process_group()
        printed = capsys.readouterr().out.splitlines()[-1].split()
        assert len([float(number) for number in printed]) == 2
        return names, starts[0]

    return ran


def padded_tokenizer():
    words = tokenizer(causal=True)
    words.pad_token = words.eos_token
    return words


def to_rows(gradient):
    return gradient.reshape(1, -1).tolist() if gradient.dim() < 2 else gradient.flatten(1).tolist()


def oracle_step(model, optimizer, losses):
    """One step from `(loss, weight, share of the denominator)` of each sample, functions of the model."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    main, bias, count = ({name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()} for _ in "mbc")
    count = 0
    for loss_of in losses:
        loss, weight, share = loss_of(model)
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                main[name] += gradient.double()
                bias[name] += weight * gradient.double()
        count += share
    for name, p in trained.items():
        update = main[name] / count
        if "lora_" in name:
            update = torch.tensor(edge(to_rows(update), to_rows(bias[name] / count))[0]).reshape(p.shape)
        p.grad = update.to(p.dtype)
    torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def sentence(ids, label):
    def loss_of(model):
        log_p = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=0)[label]
        return -log_p, 0.7 * float(log_p.detach().exp()) ** 0.7, 1

    return loss_of


def answer(row):
    """An answer's loss is summed over its tokens, its weight of their geometric mean."""
    ids, mask = torch.tensor(row["input_ids"]), torch.tensor(row["labels"]) != -100

    def loss_of(model):
        log_p_TV = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=1)
        places = mask.nonzero().flatten()
        log_p = log_p_TV[places - 1, ids[places]]
        return -log_p.sum(), 0.7 * float(log_p.detach().mean().exp()) ** 0.7, len(places)

    return loss_of


def expected(start, steps, decay):
    model = start.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=decay)
    for losses in steps:
        oracle_step(model, optimizer, losses)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_trained(model, start, steps, decay=0.01):
    got = {name.removeprefix("_forward_module."): p.detach() for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in start.named_parameters()}
    want = expected(start, steps, decay)
    assert len(want) > 10
    for name, tensor in want.items():
        mine = got[name].full_tensor() if hasattr(got[name], "full_tensor") else got[name]
        assert float((mine - tensor).abs().max()) <= 1e-5, name
        assert float((tensor - before[name]).abs().max()) > 1e-4, name


def in_steps(rows, size):
    samples = [sentence(row["input_ids"], int(row["labels"])) for row in rows]
    return [samples[first : first + size] for first in range(0, len(samples), size)]
