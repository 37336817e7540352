"""debias.config.run: what a user writes, what comes of it, and what is said about what is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from debias.config import blocks
from debias.config.elsewhere import ALSO_CALLED
from debias.config.reading import apply_overrides, dump_config, key_names, load_config, parse, read_yaml
from debias.config.run import BiasWeight, RunConfig
from debias.errors import InputError

RECIPES = Path(__file__).parents[3] / "launch" / "recipes"
MINIMAL: dict[str, Any] = {"model": "m", "data": {"train": "generated"}, "output_dir": "out"}
EDGE = {"name": "edge", "alpha": 1.0, "projection": "published"}
PROMPT = {
    "template": "{premise} {hypothesis}",
    "verbalizers": {"entailment": " a", "neutral": " b", "contradiction": " c"},
}
CAUSAL = {**MINIMAL, "head": "causal_lm", "prompt": PROMPT}


def write(folder: Path, values: Any, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


def complaint(settings: dict[str, Any], *overrides: str) -> str:
    """The one line about settings that are wrong."""
    with pytest.raises(InputError) as caught:
        parse(RunConfig, apply_overrides(settings, overrides), where="run.yaml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("run.yaml: ")
    return line


def accepted(settings: dict[str, Any], *overrides: str) -> RunConfig:
    return parse(RunConfig, apply_overrides(settings, overrides), where="run.yaml")


def test_a_block_that_is_given_after_a_setting_in_it_is_refused():
    for overrides in (["loss.tau=0.5", "loss=focal"], ["a.b.c=1", "x=2", "a.b=3"], ["a.b.c=1", "a=3"]):
        with pytest.raises(InputError, match=r"takes the place of the block in which \S+ was set; give \S+ first$"):
            apply_overrides({}, overrides)
    found = apply_overrides({}, ["loss=focal", "loss.gamma=0.5", "loss.gamma=1", "losses=2"])
    assert found == {"loss": {"name": "focal", "gamma": 1}, "losses": 2}


# Unknown keys.


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("learning_rat=1e-3", "learning_rat", "did you mean learning_rate?"),
        ("data.planted_bias.prevalance=0.3", "data.planted_bias.prevalance", "data.planted_bias.prevalence?"),
        ("data.train.sorce=x", "data.train.sorce", "data.train.source"),
        ("targts=[q]", "targts", "adapter.targets?"),
        ("alhpa=2", "alhpa", "method.alpha or loss.alpha?"),
        ("adapter.lora_r=4", "adapter.lora_r", "did you mean lora_r?"),
        ("prevalence=0.3", "prevalence", "data.planted_bias.prevalence?"),
        ("verbalizers={}", "verbalizers", "prompt.verbalizers?"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, key: str, nearest: str) -> None:
    line = complaint(MINIMAL, override)
    assert f"{key}: unknown key" in line
    assert nearest in line


def test_unknown_key_like_no_other_gets_no_guess() -> None:
    assert complaint(MINIMAL, "xyzzy=1") == "run.yaml: xyzzy: unknown key"


def test_unknown_key_is_named_before_the_missing_one_it_causes() -> None:
    line = complaint({"mdel": "m", "data": {"train": "generated"}, "output_dir": "o"})
    assert line == "run.yaml: mdel: unknown key; did you mean model?"


def test_every_accepted_key_is_known_to_the_search() -> None:
    names = set(key_names(RunConfig))
    assert {"lora_r", "data.train.source", "data.validation.source", "prompt.chat", "bias_weight.column"} <= names


# Wrong types and values.


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("lora_r=[1]", ("lora_r", "integer", "[1]")),
        ("lora_r=1.5", ("lora_r", "integer", "1.5")),
        ("lora_r=true", ("lora_r", "expected a number", "True")),
        ("learning_rate=yes", ("learning_rate", "expected a number", "True")),
        ("data.planted_bias.prevalence=true", ("data.planted_bias.prevalence", "expected a number")),
        ("data.train.limit=true", ("data.train.limit", "expected a number")),
        ("learning_rate=fast", ("learning_rate", "number", "'fast'")),
        ("learning_rate=.inf", ("learning_rate", "finite")),
        ("learning_rate=.nan", ("learning_rate", "nan")),
        ("learning_rate=0", ("learning_rate", "greater than 0")),
        ("lora_dropout=1", ("lora_dropout", "less than 1")),
        ("seed=-1", ("seed", "greater than or equal to 0")),
        ("seed=4294967296", ("seed", "less than")),
        ("max_steps=0", ("max_steps is 0", "-1")),
        ("max_steps=-5", ("max_steps", "-5")),
        ("gradient_accumulation_steps=0", ("gradient_accumulation_steps", "got 0")),
        ("bf16=maybe", ("bf16", "boolean", "'maybe'")),
        ("head=regression", ("head", "'classification', 'causal_lm' or 'image_classification'", "'regression'")),
        ("gradients=three_pass", ("gradients", "'two_pass'", "'three_pass'")),
        ("save_strategy=often", ("save_strategy", "'epoch'", "'often'")),
        ("eval_strategy=steps", ("eval_strategy is 'steps'", "data.validation")),
        ("adapter.targets=5", ("adapter.targets", "auto, all-linear or a list", "is 5")),
        ("adapter.targets=[]", ("adapter.targets is []", "auto, all-linear or a list")),
        ("adapter.targets=[1]", ("adapter.targets", "[1]")),
        ("adapter={type: full, targets: [query]}", ("adapter.targets: full has no such setting",)),
        ("report_to=5", ("report_to", "tensorboard", "got 5")),
        ("report_to=[1]", ("report_to", "[1]")),
        ("model=''", ("model", "at least 1 character")),
        ("model=12", ("model", "string", "got 12")),
        ("model=", ("model", "string", "None")),
        ("data=", ("data", "expected a block of settings", "None")),
        ("data.train=", ("data.train", "expected a block of settings", "None")),
        ("data.planted_bias=true", ("data.planted_bias", "expected a block of settings", "True")),
        ("data.planted_bias.cue=''", ("data.planted_bias.cue",)),
        ("data.planted_bias.label=maybe", ("planted_bias.label is 'maybe'", "neutral")),
        ("data.planted_bias.field=text", ("planted_bias.field is 'text'", "premise")),
        ("data.text_fields=[]", ("data.text_fields",)),
        ("data.text_fields=premise", ("data.text_fields", "a list", "'premise'")),
        ("data.text_fields=[premise, premise]", ("text_fields holds a name twice",)),
        ("data.labels=[a]", ("data.labels",)),
        ("data.labels=[a, a]", ("labels holds a name twice",)),
        ("data.labels=[yes, no]", ("data.labels", "quotes")),
        ("data.label_map={x: unsure}", ("label_map sends 'x' to 'unsure'",)),
        ("bias_weight=file", ("bias_weight", "column must be given")),
        ("bias_weight.column=w", ("bias_weight", "column must be given")),
        ("bias_weight={source: file, column: w, q: 0.5}", ("bias_weight", "q has no effect")),
        ("bias_weight.q=0", ("bias_weight.q", "greater than 0")),
        ("prompt.template=hello", ("prompt.verbalizers: missing",)),
        ("loss_mean=tokens", ("loss_mean", "causal_lm")),
        ("answer_probability=geometric_mean", ("answer_probability", "causal_lm")),
        ("method=5", ("method", "5")),
    ],
)
def test_bad_value_is_one_line_with_field_and_value(override: str, parts: tuple[str, ...]) -> None:
    line = complaint(MINIMAL, override)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("key", ["model", "data", "output_dir"])
def test_what_has_no_default_must_be_given(key: str) -> None:
    line = complaint({name: value for name, value in MINIMAL.items() if name != key})
    assert line == f"run.yaml: {key}: missing, and it has no default"


def test_source_must_be_given() -> None:
    assert "data.train.source: missing" in complaint(MINIMAL, "data.train={limit: 3}")


# Values that are right although YAML makes them look wrong.


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("1E-4", 1e-4), ("0.001", 1e-3), ("1", 1.0)]
)
def test_learning_rate_in_every_notation(text: str, value: float, tmp_path: Path) -> None:
    assert accepted(MINIMAL, f"learning_rate={text}").learning_rate == value
    path = write(tmp_path, f"model: m\noutput_dir: o\ndata: {{train: generated}}\nlearning_rate: {text}\n")
    assert load_config(path).learning_rate == value


def test_a_bare_no_is_the_word() -> None:
    config = accepted(MINIMAL, "eval_strategy=no", "save_strategy=no")
    assert (config.eval_strategy, config.save_strategy) == ("no", "no")


def test_integer_labels_are_their_digits() -> None:
    config = accepted(MINIMAL, "data.label_map={0: entailment, 1: neutral, 2: contradiction}")
    assert config.data.label_map == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert accepted(MINIMAL, "data.labels=[0, 1]").data.labels == ("0", "1")


def test_short_forms_of_blocks() -> None:
    config = accepted({**MINIMAL, "method": "erm", "adapter": "full", "bias_weight": "self"})
    assert config.method == {"name": "erm"}
    assert config.adapter == {"type": "full"}
    assert config.bias_weight == BiasWeight()
    assert config.data.train.source == "generated"


# Files.


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.yaml: no such file$"):
        load_config(tmp_path / "nope.yaml")


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "list"), ("hello\n", "str"), ("", "NoneType"), ("3\n", "int")]
)
def test_not_a_mapping(text: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"holds {kind}, expected a mapping"):
        load_config(write(tmp_path, text))


def test_a_key_that_is_written_twice(tmp_path):
    text = "seed: 1\nlora_r: 2\ndata: {train: generated, train: x.csv}\nseed: 3\n"
    with pytest.raises(InputError, match=r"the key 'seed' is there twice"):
        read_yaml(write(tmp_path, text))
    with pytest.raises(InputError, match="the key 'train' is there twice"):
        read_yaml(write(tmp_path, text.replace("seed: 3", "")))
    assert read_yaml(write(tmp_path, "a: &x {b: 1}\nc: {<<: *x, b: 2}\n"))["c"] == {"b": 2}


def test_settings_nested_without_end(tmp_path):
    with pytest.raises(InputError, match=r"run\.yaml: nested too deeply for a file of settings$"):
        read_yaml(write(tmp_path, "a: " + "[" * 1000 + "]" * 1000))


@pytest.mark.parametrize("key", ["lora_r", "max_length", "per_device_train_batch_size", "max_steps"])
def test_counts_have_an_end(key):
    assert f"{key}: input should be less than or equal to {2**31 - 1}" in complaint(MINIMAL, f"{key}={10**20}")


def test_what_may_be_a_flag_or_a_word_is_named_by_its_key():
    assert complaint(MINIMAL, "resume=perhaps").startswith("run.yaml: resume: ")


@pytest.mark.parametrize("text", ["a: [1\n", "a: b: c\n", "\tx: 1\n", "a: !!python/object:os.system {}\n"])
def test_broken_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not valid YAML") as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(path)


# extends


def test_extends_merges_blocks_and_the_child_wins(tmp_path: Path) -> None:
    write(tmp_path, {**MINIMAL, "lora_r": 4, "data": {"train": {"source": "generated", "limit": 9}}}, "parent.yaml")
    child = write(tmp_path, {"extends": "parent.yaml", "lora_alpha": 7, "data": {"train": {"limit": 5}}})
    config = load_config(child)
    assert (config.lora_r, config.lora_alpha) == (4, 7)
    assert (config.data.train.source, config.data.train.limit) == ("generated", 5)


def test_extends_over_two_generations_and_folders(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path, {**MINIMAL, "seed": 1, "lora_r": 3}, "base/grand.yaml")
    write(tmp_path, {"extends": "grand.yaml", "seed": 2}, "base/parent.yaml")
    config = load_config(write(tmp_path, {"extends": "base/parent.yaml"}))
    assert (config.seed, config.lora_r) == (2, 3)


def test_extends_a_short_block_is_replaced_and_not_merged(tmp_path: Path) -> None:
    write(tmp_path, {**MINIMAL, "method": {"name": "pcgrad", "keep": "main"}}, "parent.yaml")
    assert load_config(write(tmp_path, {"extends": "parent.yaml", "method": "erm"})).method == {"name": "erm"}


def test_extends_a_missing_parent_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope\.yaml: no such file"):
        load_config(write(tmp_path, {"extends": "nope.yaml"}))


@pytest.mark.parametrize("parent", [["a.yaml"], 5, None, {"a": 1}])
def test_extends_takes_one_name(parent: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"extends is .*expected the name of one file"):
        load_config(write(tmp_path, {"extends": parent, **MINIMAL}))


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, {"extends": "b.yaml"}, "a.yaml")
    write(tmp_path, {"extends": "a.yaml"}, "b.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_config(write(tmp_path, {"extends": "run.yaml"}))


# key=value


def test_overrides_reach_into_blocks() -> None:
    config = accepted(MINIMAL, "data.train.limit=7", "data.planted_bias.cue=??", "lora_r=2", "data.labels=[a, neutral]")
    assert config.data.train == config.data.train.model_copy(update={"source": "generated", "limit": 7})
    assert config.data.planted_bias is not None
    assert config.data.planted_bias.cue == "??"
    assert config.data.labels == ("a", "neutral")


def test_override_replaces_a_block_by_a_short_one() -> None:
    settings = {**MINIMAL, "method": {"name": "edge", "alpha": 0.5}}
    assert accepted(settings, "method=erm").method == {"name": "erm"}


def test_override_reaches_into_a_short_block() -> None:
    assert accepted({**MINIMAL, "method": "edge"}, "method.alpha=0.5").method == EDGE | {"alpha": 0.5}


def test_override_reaches_into_an_empty_block() -> None:
    settings = {**MINIMAL, "data": {"train": "generated", "validation": None, "planted_bias": None}}
    config = accepted(settings, "data.validation.source=generated", "data.planted_bias.cue=x")
    assert config.data.validation is not None
    assert config.data.planted_bias is not None


def test_later_override_wins_and_nothing_leaks_into_the_input() -> None:
    settings = {**MINIMAL}
    assert accepted(settings, "lora_r=2", "lora_r=3", "data.train.seed=1").lora_r == 3
    assert settings == MINIMAL
    assert MINIMAL["data"] == {"train": "generated"}


def test_value_may_hold_an_equals_sign() -> None:
    assert accepted(MINIMAL, "output_dir=runs/a=b").output_dir == "runs/a=b"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora_r", "expected key=value"),
        ("=3", "expected key=value"),
        ("lora_r=[1", "not valid YAML; quote it"),
        ("lora_r.x=3", "lora_r is 8, not a block"),
        ("data.labels.0=x", "not a block"),
    ],
)
def test_bad_override(override: str, says: str) -> None:
    settings = {**MINIMAL, "lora_r": 8, "data": {"train": "generated", "labels": ["a", "b"]}}
    with pytest.raises(InputError, match=says) as caught:
        apply_overrides(settings, [override])
    assert repr(override) in str(caught.value)


# Prompts.


def test_causal_needs_a_prompt() -> None:
    assert "prompt is missing" in complaint({**MINIMAL, "head": "causal_lm"})


def test_a_prompt_needs_a_causal_head() -> None:
    assert "prompt goes with head 'causal_lm'" in complaint({**CAUSAL, "head": "classification"})


def test_every_label_has_an_answer() -> None:
    line = complaint({**CAUSAL, "prompt": {**PROMPT, "verbalizers": {"entailment": " a", "neutral": " b"}}})
    assert "no answer for ['contradiction']" in line


def test_no_answer_without_its_label() -> None:
    line = complaint({**CAUSAL, "prompt": {**PROMPT, "verbalizers": {**PROMPT["verbalizers"], "other": " d"}}})
    assert "['other']" in line


def test_template_uses_every_field() -> None:
    assert "does not use {hypothesis}" in complaint({**CAUSAL, "prompt": {**PROMPT, "template": "{premise}"}})


def test_verbalizer_keeps_its_space() -> None:
    config = accepted(CAUSAL)
    assert config.prompt is not None
    assert config.prompt.verbalizers["neutral"] == " b"


# There and back.


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("learning_rate=1e-5", "data.planted_bias.cue='!!'", "method={name: edge, alpha: 0.5}"),
        ("adapter.targets=[query, value]", "report_to=[tensorboard]", "data.label_map={0: neutral}"),
        ("bias_weight={source: file, column: w}", "data.validation={source: a.csv}", "eval_strategy=steps"),
        ("data.labels=['no', 'yes']", "data.id_field=", "output_dir='a: b'"),
    ],
)
def test_dumped_config_loads_as_the_same(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = accepted(MINIMAL, *overrides)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_dumped_prompt_loads_as_the_same(tmp_path: Path) -> None:
    prompt = {**PROMPT, "template": "{premise}\nQ: {hypothesis} {{x}} ünï\nA:"}
    config = accepted({**CAUSAL, "prompt": prompt, "loss_mean": "tokens"})
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe)
    assert config.output_dir.endswith(recipe.stem)
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_there_are_recipes() -> None:
    assert len(list(RECIPES.glob("*.yaml"))) >= 3


def test_reading_a_config_does_not_wait_for_torch() -> None:
    code = "import sys, debias.config, debias.cli.app; sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_override_that_is_nested_too_deep_is_one_line():
    with pytest.raises(InputError, match="the value is not valid YAML; quote it") as caught:
        apply_overrides({}, ["model=" + "[" * 1000])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ALSO_CALLED)
def test_what_a_setting_is_called_elsewhere(name):
    """An edit distance would name another setting: `alpha` is not `lora_alpha`."""
    wanted = ALSO_CALLED[name]
    assert wanted in {*key_names(RunConfig), *blocks.setting_names()}
    with pytest.raises(InputError, match=f"{name}: unknown key; did you mean {wanted}\\?"):
        parse(RunConfig, {"model": "x", "output_dir": "y", "data": {"train": "generated"}, name: 1}, "f")


def test_sharpness_is_of_the_run_alone_and_refused_where_it_cannot_be():
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "sharpness": "sam"}
    run = RunConfig.model_validate({**values, "bias_model": "first_learned", "first_stage": {}})
    assert run.sharpness == {"name": "sam", "rho": 0.05}
    assert run.method_parts()["sharpness"] == run.sharpness
    assert [stage.sharpness for stage in (run.stage_before(), *run.bias_stages())] == [None, None, None]
    again = RunConfig.model_validate({**values, "first_stage": {"settings": {"sharpness": "asam"}}})
    assert again.stage_before().sharpness == {"name": "asam", "rho": 0.5, "eta": 0.01}
    assert "sharpness" not in RunConfig.model_validate({**values, "sharpness": None}).method_parts()
    for more, message in (
        (
            {"deepspeed": "zero2"},
            "sharpness does not go with deepspeed: it moves weights within a step",
        ),
        (
            {"router_aux_loss_coef": 0.01},
            "sharpness does not go with router_aux_loss_coef: a loss of the batch has",
        ),
        ({"loss": "coral"}, "sharpness does not go with loss coral: its statistics of the step are those at the"),
        ({"sharpness": {"name": "sam", "rho": "much"}}, "sharpness.rho is 'much', expected a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            parse(RunConfig, {**values, **more}, "f")
    before = RunConfig.model_validate({**values, "loss": {"name": "coral", "memory": 0.9}})
    assert before.sharpness == run.sharpness


def test_smoothness_is_of_the_run_alone_and_refused_where_it_cannot_be():
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "smoothness": "r3f"}
    run = RunConfig.model_validate({**values, "bias_model": "first_learned", "first_stage": {}})
    assert run.smoothness == {"name": "r3f", "strength": 1.0, "masks": "own", "noise": 1e-5, "kind": "uniform"}
    assert run.method_parts()["smoothness"] == run.smoothness
    assert [stage.smoothness for stage in (run.stage_before(), *run.bias_stages())] == [None, None, None]
    for key, value in (
        ("deepspeed", "zero2"),
        ("router_aux_loss_coef", 0.01),
        ("bf16", True),
        ("stop_when_learned", 0.5),
    ):
        with pytest.raises(InputError, match=f"smoothness does not go with {key}: "):
            parse(RunConfig, {**values, key: value}, "f")


def test_a_gradient_mask_is_of_the_run_alone_and_refused_where_it_cannot_be():
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "gradient_mask": "saft"}
    run = RunConfig.model_validate({**values, "bias_model": "first_learned", "first_stage": {}, "max_steps": 2})
    assert run.gradient_mask == {"name": "saft", "share": 0.001, "scope": "model", "steps": 1}
    assert run.method_parts()["gradient_mask"] == run.gradient_mask
    assert [stage.gradient_mask for stage in (run.stage_before(), *run.bias_stages())] == [None, None, None]
    assert "gradient_mask" not in RunConfig.model_validate({**values, "gradient_mask": None}).method_parts()
    for more, says in (
        ({"optim": "schedule_free_adamw"}, "optim schedule_free_adamw: it puts elements back after each step"),
        ({"max_steps": 1}, "max_steps 1: of its first 1 steps none trains"),
        ({"max_steps": 4, "gradient_mask": {"name": "saft", "steps": 5}}, "max_steps 4: of its first 5 steps none"),
    ):
        with pytest.raises(InputError, match=f"gradient_mask does not go with {says}"):
            parse(RunConfig, {**values, **more}, "f")
    for more in ({"optim": "schedule_free_adamw"}, {"max_steps": 1}):
        parse(RunConfig, {**values, **more, "gradient_mask": "gmt"}, "f")


def test_a_weight_penalty_is_of_the_run_alone_and_refused_where_it_cannot_be():
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "weight_penalty": "pego"}
    run = RunConfig.model_validate({**values, "bias_model": "first_learned", "first_stage": {}})
    assert run.weight_penalty == {"name": "pego", "strength": 0.001, "adapters": 4}
    assert run.method_parts()["weight_penalty"] == run.weight_penalty
    assert [stage.weight_penalty for stage in (run.stage_before(), *run.bias_stages())] == [None, None, None]
    assert "weight_penalty" not in RunConfig.model_validate({**values, "weight_penalty": None}).method_parts()
    for key, value in (("deepspeed", "zero2"), ("load_in_4bit", True)):
        with pytest.raises(InputError, match=f"weight_penalty does not go with {key}: it reads"):
            parse(RunConfig, {**values, key: value}, "f")


def test_a_weight_projection_is_of_the_run_alone_and_refused_where_it_cannot_be():
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "weight_projection": "spd"}
    run = RunConfig.model_validate({**values, "bias_model": "first_learned", "first_stage": {}})
    assert run.weight_projection == {"name": "spd", "strength": 1.0, "towards": "start"}
    assert run.method_parts()["weight_projection"] == run.weight_projection
    assert [stage.weight_projection for stage in (run.stage_before(), *run.bias_stages())] == [None, None, None]
    assert "weight_projection" not in RunConfig.model_validate({**values, "weight_projection": None}).method_parts()
    with pytest.raises(InputError, match=r"weight_projection does not go with optim schedule_free_adamw: it moves"):
        parse(RunConfig, {**values, "optim": "schedule_free_adamw"}, "f")
    parse(RunConfig, {**values, "deepspeed": "zero2", "gradient_mask": "saft"}, "f")


def test_head_dropout_is_of_the_run_alone():
    """A run before the run trains plainly; its own settings may give it dropout of its own."""
    values = {"model": "m", "data": {"train": "t.jsonl"}, "output_dir": "o", "head_dropout": 0.9}

    def before(**settings):
        return RunConfig.model_validate({**values, "first_stage": {"settings": settings}}).stage_before()

    assert before().head_dropout == 0.0
    assert before(head_dropout=0.5).head_dropout == 0.5
    asking = RunConfig.model_validate({**values, "bias_model": "first_learned"})
    assert [stage.head_dropout for stage in asking.bias_stages()] == [0.0, 0.0]
