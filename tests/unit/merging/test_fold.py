"""debias.merging.fold: a dense model that says what the adapter on its base says, or nothing at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_runs
import torch
import yaml
from typer.testing import CliRunner

from debias.building.model import build_model
from debias.cli.app import app
from debias.config.reading import dump_config
from debias.errors import InputError
from debias.inference.loading import load_run
from debias.merging import fold
from debias.merging.fold import compare, merge_run, prompts
from debias.models.load import load_model, load_tokenizer
from debias.runs.names import MERGED

CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
# name of the run: family, changes of its settings
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {"load_in_4bit": True}),
    "qwen3_moe": ("qwen3_moe", {"adapter": {"type": "lora", "experts_r": 2}}),
    "llama4": ("llama4_text", {"adapter": {"type": "lora", "experts_r": 2}}),
    "gemma3": ("gemma3_text", {}),
    "classifier": ("qwen3_moe", {"head": "classification", "prompt": None}),
    "bert": ("bert", {"head": "classification", "prompt": None}),
    "dora": ("llama", {"adapter": "dora"}),
    "dora_classifier": ("bert", {"head": "classification", "prompt": None, "adapter": "dora"}),
    "beft": (
        "bert",
        {"head": "classification", "prompt": None, "adapter": {"type": "beft", "targets": ["query", "value"]}},
    ),
}


def save_base(family: str, folder: Path) -> Path:
    if family == "bert":
        return tiny_runs.save_bert(folder)
    words = tiny_runs.tokenizer(causal=True)
    words.chat_template = CHAT
    words.save_pretrained(folder)
    model = tiny_models.family(family, vocab_size=len(words), bos_token_id=4, eos_token_id=5)
    model.save_pretrained(folder)
    return folder


def save_run(base: Path, run: Path, **changes: Any) -> Path:
    """The folder of a run whose adapter is off its start, as if it had been trained."""
    given = {"head": "causal_lm", "prompt": tiny_runs.PROMPT, "lora_r": 3, "lora_alpha": 6, **changes}
    config = tiny_runs.config_for(base, run, **given)
    model = build_model(config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2 if "lora_" in name else 0.5)
    model.save_pretrained(run / "adapter")
    (run / "config.yaml").write_text(dump_config(config))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, found, bases = tmp_path_factory.mktemp("runs"), {}, {}
    for name, (family, changes) in RUNS.items():
        base = bases.setdefault(family, place / f"base_{family}")
        if not base.exists():
            save_base(family, base)
        found[name] = save_run(base, place / name, **changes)
    return found


def ids() -> torch.Tensor:
    return torch.randint(6, 40, (3, 9), generator=torch.Generator().manual_seed(3))


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids()).logits.float()


def adapter_says(run: Path, head: str) -> torch.Tensor:
    """PEFT's own words: the adapter on a base that this file loads."""
    from peft import PeftModel

    settings = yaml.safe_load((run / "config.yaml").read_text())
    base = load_model(settings["model"], head, settings["data"]["labels"])
    return says(PeftModel.from_pretrained(base, run / "adapter"))


@pytest.mark.parametrize("name", RUNS)
def test_the_merged_model_is_the_adapter_on_its_base(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    head = RUNS[name][1].get("head", "causal_lm")
    merged = merge_run(runs[name], tmp_path / "dense", dtype="float32")
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    dense = kind.from_pretrained(tmp_path / "dense")
    wanted = adapter_says(runs[name], head)
    assert torch.allclose(says(dense), wanted, atol=1e-4 * float(wanted.abs().max()))
    assert not any("lora" in path for path, _ in dense.named_parameters())
    assert {p.dtype for p in dense.parameters()} == {torch.float32}
    assert merged.difference <= merged.tolerance < merged.effect
    assert merged.agreeing == 1
    if head == "classification":
        assert list(dense.config.id2label.values()) == ["entailment", "neutral", "contradiction"]
    if RUNS[name][0] != "bert":
        assert AutoTokenizer.from_pretrained(tmp_path / "dense").chat_template == CHAT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


SHARED = {
    "head": {"target_modules": ["v_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "layers": {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]},
}


@pytest.mark.parametrize("name", SHARED)
def test_nothing_is_folded_into_a_tensor_that_another_module_has(name: str, tmp_path: Path) -> None:
    """Tied embeddings of which one is adapted, and layers that are one layer twice."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_runs.save_llama(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.2)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        dump_config(tiny_runs.config_for(base, run, head="causal_lm", prompt=tiny_runs.PROMPT))
    )
    torch.manual_seed(0)
    config = LoraConfig(r=3, task_type="CAUSAL_LM", **SHARED[name])  # type: ignore[arg-type]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    tiny_models.randomize_lora(model)
    model.save_pretrained(run / "adapter")
    wanted = says(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter"))
    merge_run(run, tmp_path / "dense", dtype="float32")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.allclose(says(dense), wanted, atol=1e-4 * float(wanted.abs().max()))
    assert dense.config.tie_word_embeddings is (name == "layers")
    assert dense.config.num_hidden_layers == (3 if name == "layers" else 2)


@pytest.mark.parametrize("name", ["qwen3_moe", "llama4"])
def test_fused_experts_are_folded_and_routers_left(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    merge_run(runs[name], tmp_path / "dense", dtype="float32")
    dense = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "dense").named_parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(runs[name].parent / f"base_{RUNS[name][0]}").named_parameters())
    changed = {path.split(".")[-1] for path in base if not torch.equal(base[path], dense[path])}
    assert {path.split(".")[-1] for path in base if "experts" in path and "shared" not in path} <= changed | {"weight"}
    stacks = [path for path in base if base[path].ndim == 3]
    assert stacks
    assert all(bool((base[path] != dense[path]).flatten(1).any(1).all()) for path in stacks)  # every expert of each
    routers = [path for path in base if ".gate.weight" in path or ".router.weight" in path]
    assert routers
    assert all(torch.equal(base[path], dense[path]) for path in routers)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "classifier"])
def test_16_bits(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """A 4-bit run's default; a mixture of experts asked for by name."""
    merged = merge_run(runs[name], tmp_path / "dense", dtype=None if name == "qwen3" else "bfloat16")
    assert (merged.dtype, merged.scale) == ("bfloat16", 1.0)
    assert merged.agreeing >= (1 if name == "qwen3" else 0.5)
    settings = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"
    assert "quantization_config" not in settings


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "classifier"])
def test_scale(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The weights lie on the line from the base to the merged model; a trained head stays."""
    from safetensors.torch import load_file

    whole, part, none = (
        merge_run(runs[name], tmp_path / str(scale), scale=scale, dtype="float32") for scale in (1.0, 0.25, 0.0)
    )
    one, quarter, zero = (load_file(f"{merged.folder}/model.safetensors") for merged in (whole, part, none))
    assert (part.scale, none.effect) == (0.25, 0)
    for key in one:
        assert torch.allclose(quarter[key], zero[key] + 0.25 * (one[key] - zero[key]), atol=1e-6)
    moved = {key for key in one if not torch.equal(one[key], zero[key])}
    assert any("q_proj" in key for key in moved)
    assert not any("score" in key or "lm_head" in key for key in moved)


def test_another_adapter(runs: dict[str, Path], tmp_path: Path) -> None:
    run = save_run(runs["llama"].parent / "base_llama", tmp_path / "run")
    (run / "adapter").rename(run / "checkpoint-3")
    with pytest.raises(InputError, match=r"adapter: .*/adapter holds no adapter_config.json; .* has checkpoint-3$"):
        merge_run(run, tmp_path / "dense")
    merged = merge_run(run, tmp_path / "dense", adapter="checkpoint-3")
    assert merged.adapter.endswith("run/checkpoint-3")
    by_path = merge_run(run, tmp_path / "too", adapter=str(runs["llama"] / "adapter"))
    assert by_path.adapter == str(runs["llama"] / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "llama4_text"])
def test_a_run_that_was_trained(runs: dict[str, Path], family: str, tmp_path: Path) -> None:
    """Through `train`, whose adapters on experts are routed token by token; scored as the run is scored."""
    from debias.data import load_examples
    from debias.inference.loading import load_run
    from debias.train import train

    settings: dict[str, Any] = {"head": "causal_lm", "prompt": tiny_runs.PROMPT, "gradient_checkpointing": True}
    config = tiny_runs.config_for(
        runs["llama"].parent / f"base_{family}", tmp_path / "run", adapter={"type": "lora", "experts_r": 2}, **settings
    )
    run = train(config)
    merged = merge_run(run, tmp_path / "dense")
    assert merged.effect > 100 * merged.difference
    examples = load_examples(config.data.train, config.data)[:6]
    ours = load_run(run).label_scores(examples)
    predictor = load_run(run)
    predictor.model = load_model(str(tmp_path / "dense"), "causal_lm", config.data.labels)
    assert not hasattr(predictor.model, "peft_config")
    theirs = type(predictor)(predictor.model, predictor.task, config, predictor.scoring).label_scores(examples)
    assert abs(ours - theirs).max() < 1e-4 * abs(ours).max()


# What cannot be merged.


def bad_inputs(tmp_path: Path) -> list[tuple[dict[str, Any], str]]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("kept")
    (tmp_path / "file").write_text("")
    out = {"out": tmp_path / "dense"}
    return [
        ({**out, "run": tmp_path / "nowhere"}, "holds no config.yaml; give the folder of a run"),
        ({**out, "dtype": "float8"}, "dtype is 'float8', not one of float32, bfloat16, float16"),
        ({**out, "scale": -0.5}, "scale is -0.5, expected a number of 0 or more"),
        ({**out, "scale": float("nan")}, "scale is nan"),
        ({**out, "adapter": "nope"}, "nope holds no adapter_config.json; .* has adapter$"),
        ({"out": tmp_path / "full"}, "is not empty; choose another folder, or give --overwrite"),
        ({"out": tmp_path / "file"}, "is a file, expected a folder"),
        ({"out": tmp_path / "file" / "below" / "it"}, "/file: is a file, expected a folder"),
    ]


@pytest.mark.parametrize("case", range(8))
def test_bad_input(runs: dict[str, Path], case: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is said before the model is loaded, which may take long."""
    monkeypatch.setattr(fold, "load_model", None)
    given, message = bad_inputs(tmp_path)[case]
    with pytest.raises(InputError, match=message) as caught:
        merge_run(**{"run": runs["llama"], **given})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "full" / "thing").read_text() == "kept"
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("place", [".", "adapter", ".."])
def test_the_run_is_never_overwritten(runs: dict[str, Path], place: str) -> None:
    with pytest.raises(InputError, match="which is read here; choose another folder"):
        merge_run(runs["llama"], runs["llama"] / place, overwrite=True)
    assert (runs["llama"] / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"), [("dora", "is DoRA: its magnitudes stay"), ("beft", "has no LoRA layers")]
)
def test_what_scale_cannot_be(runs: dict[str, Path], name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"scale is 0.5, but .*{message}"):
        merge_run(runs[name], tmp_path / "dense", scale=0.5)
    assert not (tmp_path / "dense").exists()


def test_biases_that_the_base_has_no_place_for(runs: dict[str, Path], tmp_path: Path) -> None:
    run = save_run(runs["llama"].parent / "base_llama", tmp_path / "run", adapter="beft")
    with pytest.raises(InputError, match="adapter cannot be merged: Base layer has no bias"):
        merge_run(run, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_bias": True}, "cannot be merged: Impossible to merge LoRA with `lora_bias=True`"),
        ({"alora_invocation_tokens": [7, 8]}, "cannot be merged: aLoRA does not support safe merging"),
    ],
    ids=["a bias", "aLoRA"],
)
def test_what_peft_cannot_merge(
    runs: dict[str, Path],
    tmp_path: Path,
    settings: dict[str, Any],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_model(str(runs["llama"].parent / "base_llama"), "causal_lm", ())
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings))
    tiny_models.randomized(adapted).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=message) as told:
        merge_run(runs["llama"], tmp_path / "dense", adapter=str(tmp_path / "adapter"))
    assert "\n" not in str(told.value)
    assert "changes nothing" not in caplog.text
    assert not (tmp_path / "dense").exists()


def test_single_tokens_are_among_what_is_compared(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of random ones an adapter of one token seldom changes any, and it was called idle."""
    from peft import TrainableTokensConfig, get_peft_model

    base = load_model(str(runs["llama"].parent / "base_llama"), "causal_lm", ())
    given = TrainableTokensConfig(token_indices=[5], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    tiny_models.randomized(get_peft_model(base, given)).save_pretrained(tmp_path / "adapter")
    merged = merge_run(runs["llama"], tmp_path / "dense", adapter=str(tmp_path / "adapter"))
    assert merged.effect > 0.01
    assert "changes nothing" not in caplog.text


def test_a_base_that_is_quantized_by_its_own_configuration(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    own = runs["llama"].parent / "base_llama"
    load_model(str(own), "causal_lm", (), load_in_4bit=True).save_pretrained(tmp_path / "base")
    load_tokenizer(str(own), "causal_lm").save_pretrained(tmp_path / "base")
    run = shutil.copytree(runs["llama"], tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "model": str(tmp_path / "base")}))
    with pytest.raises(InputError, match="is quantized by its own configuration, and no adapter is merged"):
        merge_run(run, tmp_path / "dense")


def test_runs_without_an_adapter(runs: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_runs.config_for(tmp_path, tmp_path / "run", adapter="full")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(InputError, match=r"adapter.type is 'full': .*model is a dense model already"):
        merge_run(tmp_path, tmp_path / "dense")


def test_an_adapter_that_no_weight_can_take_in(runs: dict[str, Path], tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = load_model(str(runs["llama"].parent / "base_llama"), "causal_lm", ())
    given = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(base, given).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match="is of kind PROMPT_TUNING, which no weight can take in"):
        merge_run(runs["llama"], tmp_path / "dense", adapter=str(tmp_path / "prompt"))


def test_an_adapter_of_another_model(runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights that fit nowhere are refused; where all fit, the adapter's own word for its base is left."""
    with pytest.raises(InputError, match=r"trained on another model: LlamaForCausalLM has no place for its weights"):
        merge_run(runs["llama"], tmp_path / "dense", adapter=str(runs["qwen3_moe"] / "adapter"))
    assert not (tmp_path / "dense").exists()
    file = runs["llama"] / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "adapter_model.safetensors").symlink_to(runs["llama"] / "adapter" / "adapter_model.safetensors")
    (copy / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/mistral"}))
    merge_run(runs["llama"], tmp_path / "dense", adapter=str(copy))
    assert "WARNING: the adapter was trained on /gone/mistral and is put on " in caplog.text


def test_an_adapter_that_is_not_finite(runs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = save_run(runs["llama"].parent / "base_llama", tmp_path / "run")
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="cannot be merged: NaNs detected"):
        merge_run(run, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_does_not_agree_is_not_published(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """A writer that keeps the base's experts, as if the adapter had never reached them; the folder there stays."""
    experts = {
        path: parameter
        for path, parameter in load_model(
            str(runs["llama"].parent / "base_qwen3_moe"), "causal_lm", ()
        ).named_parameters()
        if parameter.ndim == 3
    }
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "old").write_text("kept")
    usual = fold.reload

    def lossy(*given: Any) -> Any:
        model = usual(*given)
        for path, parameter in experts.items():
            model.get_parameter(path).data.copy_(parameter.data)
        return model

    monkeypatch.setattr(fold, "reload", lossy)
    with pytest.raises(InputError, match=r"logits differ from the adapter's by up to .*; nothing is published"):
        merge_run(runs["qwen3_moe"], tmp_path / "dense", overwrite=True, dtype=dtype)
    assert experts
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    assert (tmp_path / "dense" / "old").read_text() == "kept"


def test_labels_that_were_turned_by_hand(runs: dict[str, Path], tmp_path: Path) -> None:
    """The names beside an adapter are those of its outputs: settings in another order would name them wrongly."""
    run = shutil.copytree(runs["bert"], tmp_path / "run")
    own = ["neutral", "entailment", "contradiction"]
    (run / "adapter" / "labels.json").write_text(json.dumps({"id2label": dict(enumerate(own))}))
    said = r"config.yaml: data.labels is \['entailment', .*labels.json has \['neutral', "
    with pytest.raises(InputError, match=said):
        merge_run(run, tmp_path / "dense")
    with pytest.raises(InputError, match=said):
        load_run(run)
    text = (run / "config.yaml").read_text()
    settings = yaml.safe_load(text)
    settings["data"]["labels"] = own
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert load_run(run).labels == tuple(own)
    # Of a causal model the names are another head's, which its base may have had.
    causal = shutil.copytree(runs["llama"], tmp_path / "causal")
    (causal / "adapter" / "labels.json").write_text(json.dumps({"id2label": {0: "NEGATIVE", 1: "POSITIVE"}}))
    assert load_run(causal).labels == ("entailment", "neutral", "contradiction")
    assert merge_run(causal, tmp_path / "merged").difference < 1


def test_overwrite_replaces_all(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "old").write_text("goes")
    merge_run(runs["llama"], tmp_path / "dense", overwrite=True)
    assert not (tmp_path / "dense" / "old").exists()
    assert (tmp_path / "dense" / MERGED).is_file()


def test_an_idle_adapter_is_said(runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    merge_run(runs["llama"], tmp_path / "dense", scale=0.0)
    assert "the adapter changes nothing" in caplog.text


# The pieces.


def test_compare() -> None:
    wanted = torch.tensor([[[1.0, -100.0], [2.0, 3.0]]])
    assert compare(wanted, wanted, "float32")["difference"] == 0
    off = wanted.clone()
    off[0, 1, 1] += 0.009
    assert compare(off, wanted, "float32")["difference"] == pytest.approx(0.009, rel=1e-3)
    off[0, 1, 1] += 0.002
    with pytest.raises(InputError, match=r"50% of tokens are within 0.01"):
        compare(off, wanted, "float32")
    with pytest.raises(InputError, match="nothing is published"):
        compare(off * float("nan"), wanted, "bfloat16")
    off[0, 0, 0] = 1.001
    off[0, 1, 1] = 50.0  # a token that went to another expert
    assert compare(off, wanted, "bfloat16", sparse=True)["agreeing"] == 0.5
    for given in ({"dtype": "bfloat16"}, {"dtype": "float32", "sparse": True}):
        with pytest.raises(InputError):
            compare(off, wanted, **given)


def test_prompts_are_ordinary_words() -> None:
    words = tiny_runs.tokenizer(causal=False)
    drawn = prompts(words, 30)
    assert drawn.shape == (4, 16)
    assert int(drawn.max()) < 30
    assert not set(drawn.flatten().tolist()) & set(words.all_special_ids)


def test_the_verb(runs: dict[str, Path], tmp_path: Path) -> None:
    call = ["merge", str(runs["llama"]), "-o", str(tmp_path / "dense"), "--scale", "0.5"]
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0
    assert "merged in float32; logits differ from the adapter's by at most" in first.stdout
    again = CliRunner().invoke(app, [*call, "--overwrite", "--json"])
    assert json.loads(again.stdout)["scale"] == 0.5
    refused = CliRunner().invoke(app, call)
    assert isinstance(refused.exception, InputError)
