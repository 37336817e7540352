"""DeepSpeed configurations: the shipped ones by name, a user's own by file, checked before anything is loaded."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from debias.config.deepspeed_blocks import check_optimizer, check_scheduler
from debias.config.run import RunConfig
from debias.config.shipped import shipped_folders
from debias.errors import InputError

# DeepSpeed itself ignores what it does not know. Names of 0.19.
_TOP = """
train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler fp16 bf16 amp
gradient_clipping gradient_predivide_factor prescale_gradients communication_data_type data_types zero_optimization
zero_allow_untested_optimizer zero_force_ds_cpu_optimizer steps_per_print wall_clock_breakdown dump_state
memory_breakdown activation_checkpointing comms_logger flops_profiler tensorboard wandb csv_monitor checkpoint seed
disable_allgather dataloader_drop_last disable_python_gc log_level compile elasticity timers
"""
TOP_KEYS = frozenset(_TOP.split())
_ZERO = """
stage contiguous_gradients reduce_scatter reduce_bucket_size allgather_partitions allgather_bucket_size
use_multi_rank_bucket_allreduce overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint
offload_param offload_optimizer sub_group_size stage3_prefetch_bucket_size stage3_param_persistence_threshold
stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance
stage3_gather_16bit_weights_on_model_save stage3_module_granularity_threshold stage3_allgather_sequential
stage3_use_all_reduce_for_fetch_params ignore_unused_parameters round_robin_gradients parameter_alignment
zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients
memory_efficient_linear override_module_apply log_trace_cache_warnings enable_sanity_checks leaf_module
pipeline_loading_checkpoint mics_shard_size mics_hierarchical_params_gather zenflow
"""
ZERO_KEYS = frozenset(_ZERO.split())


def shipped() -> dict[str, Path]:
    """The configurations that come with the project, by name."""
    return {path.stem: path for folder in shipped_folders("ds_configs") for path in sorted(folder.glob("*.json"))}


def find(name: str, base: Path | None = None) -> Path:
    """The file of a shipped configuration's name or of a path (beside `base` or in the working directory)."""
    known = shipped()
    if name in known:
        return known[name]
    places = [Path(name).expanduser(), *([base / name] if base is not None else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"deepspeed: {name!r} is no file and not one of {', '.join(known)}{hint}")
    return found.resolve()


def read(path: Path, world: int, micro: int, accumulation: int) -> dict[str, Any]:
    """The configuration in a file; InputError for broken JSON, an unknown key, or batch sizes that do not multiply.

    `micro` samples a rank and `accumulation` micro-batches a step are the run's; what the file says itself must agree.
    The file's `optimizer` and `scheduler` are left out: what they say is the run's (`check_agrees`).
    """
    loaded = _load(path)
    zero = loaded.get("zero_optimization", {})
    _check_supported(path.name, loaded, zero)
    _check_batch(path.name, loaded, world, micro, accumulation)
    kept = {key: value for key, value in loaded.items() if key not in ("optimizer", "scheduler")}
    if zero.get("stage"):
        # DeepSpeed's own default is the weights' precision: in bf16 micro-batches would be summed in bf16.
        kept["data_types"] = {"grad_accum_dtype": "fp32"} | _said(loaded.get("data_types"))
    # DeepSpeed clips at 1.0 where nobody says (0.19.3 and later): here the run does, by its max_grad_norm.
    return {"gradient_clipping": "auto", **kept}


def check_agrees(path: Path, run: RunConfig) -> None:
    """InputError where the file would train with another optimizer, rate or schedule than `run` says, or with two
    optimizers where something follows the steps of one.

    With either block in its file DeepSpeed, or the Trainer for it, makes its own, and reads the run's settings only
    where a value is `auto`.
    """
    loaded = _load(path)
    for key, check in (("optimizer", check_optimizer), ("scheduler", check_scheduler)):
        if loaded.get(key) is not None:
            check(path.name, loaded[key], run)
    ratio = _said(_said(loaded.get("zero_optimization")).get("offload_optimizer")).get("ratio", 1.0)
    for key in ("weight_projection", "gradient_mask"):
        if getattr(run, key) is not None and isinstance(ratio, int | float) and ratio < 1:
            raise InputError(
                f"{key} follows one optimizer, and {path.name} has offload_optimizer.ratio {ratio:g}, which makes two;"
                " set it to 1.0"
            )


def _said(block: Any) -> dict[str, Any]:
    return {key: value for key, value in block.items() if value is not None} if isinstance(block, dict) else {}


def _load(path: Path) -> dict[str, Any]:
    """The settings in a file, with known names alone."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"deepspeed: {path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"deepspeed: {path.name} line {error.lineno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise InputError(f"deepspeed: {path.name}: not valid JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"deepspeed: {path.name} holds {type(loaded).__name__}, expected an object of settings")
    _check_keys(path.name, "", loaded, TOP_KEYS)
    zero = loaded.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise InputError(f"deepspeed: {path.name}: zero_optimization is {zero!r}, expected an object of settings")
    _check_keys(path.name, "zero_optimization.", zero, ZERO_KEYS)
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise InputError(f"deepspeed: {path.name}: zero_optimization.stage is {stage!r}, expected 0, 1, 2 or 3")
    return loaded


def _check_supported(file: str, loaded: Mapping[str, Any], zero: Mapping[str, Any]) -> None:
    """What the hook on the engine would refuse anyway, said before the model is loaded."""
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(key), dict) and zero[key].get("device") == "nvme":
            raise InputError(f"deepspeed: {file}: {key}.device is 'nvme', which is not supported; use cpu")
    kind = loaded.get("optimizer", {})
    kind = str(kind.get("type", "")) if isinstance(kind, dict) else str(kind)
    if kind.lower() in {"muon", "onebitadam", "onebitlamb", "zerooneadam"}:
        raise InputError(f"deepspeed: {file}: optimizer.type is {kind!r}, which is not supported; leave it out")
    for key in ("zenflow", "mics_shard_size", "zero_hpz_partition_size"):
        if zero.get(key) not in (None, False, -1, 0, 1):
            raise InputError(f"deepspeed: {file}: zero_optimization.{key} is not supported; remove it")


def _check_keys(file: str, prefix: str, block: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in block:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"deepspeed: {file}: {prefix}{key} is not a setting that is known here{hint}")


def _check_batch(file: str, loaded: Mapping[str, Any], world: int, micro: int, accumulation: int) -> None:
    own = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    for (key, value), name in zip(own.items(), names, strict=True):
        if loaded.get(key, "auto") not in ("auto", value):
            raise InputError(f"deepspeed: {file}: {key} is {loaded[key]!r}, but the run's {name} is {value}; use auto")
    whole = micro * accumulation * world
    if loaded.get("train_batch_size", "auto") not in ("auto", whole):
        raise InputError(
            f"deepspeed: {file}: train_batch_size is {loaded['train_batch_size']!r}, but {micro} samples x"
            f" {accumulation} micro-batches x {world} ranks are {whole}; use auto"
        )
