import json
import re
from pathlib import Path

import pytest

from debias.config import deepspeed_file as zero_config
from debias.errors import InputError


@pytest.mark.parametrize("name", sorted(zero_config.shipped()))
def test_what_is_shipped_reads_and_is_explained(name):
    path = zero_config.find(name)
    found = zero_config.read(path, world=8, micro=4, accumulation=2)
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    keys = {*found, *found["zero_optimization"]}
    assert [key for key in keys if f"`{key}`" not in readme] == []
    assert f"`{name}`" in readme


PAGES = sorted(page for page in Path(__file__).parents[3].glob("*/**/*.md") if ".venv" not in page.parts)


@pytest.mark.parametrize("name", sorted(zero_config.shipped()))
def test_what_is_shipped_says_where_it_clips(name):
    """DeepSpeed clips at 1.0 where a file does not say."""
    assert json.loads(zero_config.find(name).read_text(encoding="utf-8"))["gradient_clipping"] == "auto"


def test_configurations_on_the_pages_say_where_they_clip():
    blocks = [(page, block) for page in PAGES for block in re.findall(r"```.*?```", page.read_text("utf-8"), re.DOTALL)]
    shown = [(page, block) for page, block in blocks if "zero_optimization" in block]
    assert shown
    assert [page for page, block in shown if "gradient_clipping" not in block] == []


@pytest.mark.parametrize(("given", "read"), [({}, "auto"), ({"gradient_clipping": 0.0}, 0.0)])
def test_a_file_that_does_not_say_clips_as_the_run_does(given, read, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **given}), encoding="utf-8")
    assert zero_config.read(path, world=1, micro=4, accumulation=1)["gradient_clipping"] == read


def test_there_are_the_six():
    names = {"zero1", "zero2", "zero3", "zero3_offload_optimizer", "zero3_offload_all", "zero3_qlora"}
    assert set(zero_config.shipped()) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: not valid JSON"),
        ("[]", "holds list, expected an object"),
        ({"zero_optimisation": {}}, "zero_optimisation is not a setting.*did you mean zero_optimization"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_sice": 5}}, "did you mean reduce_bucket_size"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4, expected 0, 1, 2 or 3"),
        ({"zero_optimization": 3}, "zero_optimization is 3, expected an object"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offload_param.device is 'nvme', which is not supported; use cpu",
        ),
        ({"optimizer": {"type": "Muon"}}, "optimizer.type is 'Muon', which is not supported"),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zenflow is not supported; remove it"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "zero_hpz_partition_size is not supported"),
        (
            {"train_batch_size": 60},
            "train_batch_size is 60, but 4 samples x 2 micro-batches x 8 ranks are 64; use auto",
        ),
        ({"train_micro_batch_size_per_gpu": 3}, "is 3, but the run's per_device_train_batch_size is 4; use auto"),
        ({"gradient_accumulation_steps": 1}, "is 1, but the run's gradient_accumulation_steps is 2; use auto"),
    ],
)
def test_what_is_wrong_is_one_line(content, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        zero_config.read(path, world=8, micro=4, accumulation=2)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_agrees_is_accepted(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}))
    assert zero_config.read(path, world=8, micro=4, accumulation=2)["train_batch_size"] == 64


RUN = {"model": "x", "output_dir": "y", "data": {"train": "generated"}, "learning_rate": 1e-5, "weight_decay": 0.0}
AUTO = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
DECAY = WARMUP | {"total_num_steps": "auto"}


def _agrees(tmp_path, content, settings=None):
    """The run with that file, resolved as `train`, `plan`, `launch` and `doctor` do, and what the engine is given."""
    from debias.config.places import resolve_paths
    from debias.config.run import RunConfig

    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    resolve_paths(RunConfig.model_validate(RUN | {"deepspeed": str(path)} | (settings or {})), tmp_path)
    return zero_config.read(path, world=1, micro=4, accumulation=1)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}, {}, "optimizer.params.lr is not given"),
        ({"optimizer": {"type": "AdamW"}}, {}, "optimizer.params.lr is not given"),
        ({"optimizer": {"type": "AdamW", "params": AUTO}}, {"optim": "sgd"}, "type is 'AdamW'.* optim is 'sgd'"),
        ({"optimizer": {"type": "Adagrad", "params": AUTO}}, {}, "type is 'Adagrad'.* optim is 'adamw_torch'"),
        ({"optimizer": {"type": "AdamW", "params": AUTO | {"lr": 1e-3}}}, {}, "params.lr is 0.001, which is not"),
        ({"optimizer": {"type": "AdamW", "params": AUTO | {"weight_decay": 0.01}}}, {}, "weight_decay is 0.01"),
        ({"optimizer": {"type": "AdamW", "params": AUTO | {"betas": [0.9, 0.95]}}}, {}, "betas is .0.9, 0.95"),
        ({"optimizer": {"type": "Adam", "params": AUTO | {"adam_w_mode": False}}}, {}, "adam_w_mode is False"),
        ({"optimizer": {"type": "AdamW", "params": AUTO | {"amsgrad": True}}}, {}, "amsgrad is True"),
        ({"optimizer": "AdamW"}, {}, "optimizer.params.lr is not given"),
        ({"scheduler": {"type": "WarmupLR", "params": {}}}, {}, "type is 'WarmupLR'.* is 'linear'"),
        ({"scheduler": {"type": "WarmupLR", "params": WARMUP}}, {}, "type is 'WarmupLR'.* is 'linear'"),
        ({"scheduler": {"type": "OneCycle", "params": {}}}, {}, "type is 'OneCycle'.* is 'linear'"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, {}, "warmup_min_lr is not given"),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": DECAY | {"total_num_steps": 9}}},
            {},
            "total_num_steps is 9",
        ),
        ({"scheduler": {"type": "WarmupDecayLR", "params": DECAY}}, {"warmup_steps": 5}, "warmup_type is not given"),
    ],
)
def test_a_file_with_another_optimizer_or_schedule_than_the_run_is_refused(content, settings, message, tmp_path):
    with pytest.raises(InputError, match=message + ".*the run's optim, learning_rate, .* say it"):
        _agrees(tmp_path, content, settings)


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ({"optimizer": {"type": "AdamW", "params": AUTO}}, {}),
        ({"optimizer": {"type": "Adam", "params": AUTO | {"torch_adam": True}}}, {}),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "weight_decay": 0.0}}}, {}),
        ({"optimizer": {"type": "SGD", "params": {"lr": "auto", "weight_decay": "auto"}}}, {"optim": "sgd"}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": DECAY}}, {}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": DECAY | {"warmup_type": "linear"}}}, {"warmup_steps": 5}),
        ({"scheduler": {"type": "WarmupLR", "params": WARMUP}}, {"lr_scheduler_type": "constant"}),
        ({"optimizer": None, "scheduler": None}, {}),
    ],
)
def test_a_block_that_says_what_the_run_says_leaves_it_to_the_run(content, settings, tmp_path):
    """The engine does not see it: DeepSpeed's own optimizer would decay biases and norms too."""
    assert not {"optimizer", "scheduler"} & set(_agrees(tmp_path, content, settings))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"zero_optimization": {"stage": 1}}, {"grad_accum_dtype": "fp32"}),
        ({"zero_optimization": {"stage": 3}, "data_types": {}}, {"grad_accum_dtype": "fp32"}),
        ({"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": None}}, {"grad_accum_dtype": "fp32"}),
        ({"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "bf16"}}, {"grad_accum_dtype": "bf16"}),
        ({"zero_optimization": {"stage": 0}}, None),  # DeepSpeed has no such sums there
    ],
)
def test_micro_batches_are_summed_in_float32_where_a_file_does_not_say(content, expected, tmp_path):
    assert _agrees(tmp_path, content).get("data_types") == expected


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"'zero33' is no file and not one of .*did you mean zero3"):
        zero_config.find("zero33")
    (tmp_path / "own.json").write_text("{}")
    assert zero_config.find("own.json", tmp_path) == tmp_path / "own.json"


def test_every_key_of_deepspeeds_own_is_known():
    """A new DeepSpeed that adds settings must not make them errors."""
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    fields = config.DeepSpeedZeroConfig.model_fields
    names = {field.alias or name for name, field in fields.items()}
    old = {name for name in names if "cpu_offload" in name or "fp16_weights" in name or name.startswith("legacy")}
    assert names - old - zero_config.ZERO_KEYS <= {"save_muon_momentum_buffer_in_memory"}


def test_shared_forward_at_stage_3_is_refused_before_anything_is_loaded(tmp_path):
    from debias.building.arguments import training_arguments
    from debias.config.run import RunConfig

    run = {"model": "x", "data": {"train": "generated"}, "output_dir": str(tmp_path / "run"), "deepspeed": "zero3"}
    with pytest.raises(InputError, match="shared_forward' is not safe at stage 3"):
        training_arguments(RunConfig.model_validate(run | {"gradients": "shared_forward"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["weight_projection", "gradient_mask"])
def test_two_optimizers_and_what_follows_the_steps_of_one(key, tmp_path):
    """DeepSpeed's partial offload, before anything is loaded; a file that offloads all is taken."""
    follower = {"weight_projection": "spd", "gradient_mask": "saft"}[key]

    def engine(ratio):
        return {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": ratio}}}

    with pytest.raises(
        InputError, match=rf"^{key} follows one optimizer, and mine\.json has offload_optimizer\.ratio 0\.5"
    ):
        _agrees(tmp_path, engine(0.5), {key: follower})
    _agrees(tmp_path, engine(1.0), {key: follower})
    _agrees(tmp_path, engine(0.5), {})
