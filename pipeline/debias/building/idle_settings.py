"""Settings that do nothing in the run that they were given to: a setting that is ignored silently is a trap."""

import logging

from debias.adapters import make_adapter
from debias.bias import make_bias_model
from debias.bias.base import BaseBiasModel
from debias.building.schedules import LOOKS_AT_VALIDATION
from debias.config.data import DataConfig, Swap
from debias.config.run import RunConfig
from debias.data.files import kind_of
from debias.data.orders import make_order
from debias.data.resampled import reads_groups
from debias.losses import make_loss
from debias.methods import make_rule
from debias.penalties import make_penalty
from debias.projections import make_projection
from debias.sharpness import make_sharpness
from debias.smoothness import make_smoothness

logger = logging.getLogger(__name__)

LORA = ("lora_r", "lora_alpha", "lora_dropout")


def without_effect(config: RunConfig) -> list[str]:
    """`key=value: why` of each setting that is not at its default and does nothing beside the others."""
    reasons = {
        **_of_adapter(config),
        **_of_strategy(config),
        **_of_method(config),
        **_of_what_is_easy(config),
        **_of_passes(config),
    }
    if config.max_steps > 0:
        reasons["num_train_epochs"] = f"max_steps is {config.max_steps}"
    if config.lr_scheduler_type in ("constant", *LOOKS_AT_VALIDATION):
        reasons["warmup_steps"] = f"lr_scheduler_type is {config.lr_scheduler_type}; constant_with_warmup has one"
    defaults = RunConfig.model_fields
    given = {key: getattr(config, key) for key in reasons}
    found = [f"{key}={given[key]}: {why}" for key, why in reasons.items() if given[key] != defaults[key].default]
    return [*found, *_of_groups(config.data), *_of_files(config.data), *_of_draws(config.data), *_of_swap(config.data)]


def _of_adapter(config: RunConfig) -> dict[str, str]:
    reads = make_adapter(config.adapter).reads
    return {key: f"adapter is {config.adapter['type']}" for key in LORA if key not in reads}


def _of_groups(data: DataConfig) -> list[str]:
    """A planted cue says of each example whether it is aligned with it; what a column said is then gone."""
    cue = next((name for name in ("planted_bias", "planted_color") if getattr(data, name) is not None), None)
    if cue is None or data.group_field is None:
        return []
    return [f"data.group_field={data.group_field}: data.{cue} makes the groups"]


def _of_files(data: DataConfig) -> list[str]:
    sources = {"train": data.train, "validation": data.validation}
    return [
        f"data.{key}.split={source.split}: {source.source} is a file, which has no splits"
        for key, source in sources.items()
        if source is not None and source.split != "train" and kind_of(source.source)
    ]


def _of_draws(data: DataConfig) -> list[str]:
    """A seed of rows of which none is drawn."""
    sources = {"train": data.train, "validation": data.validation}
    return [
        f"data.{key}.seed={source.seed}: it draws the rows of a limit, and data.{key} has none"
        for key, source in sources.items()
        if source is not None and source.seed and source.limit is None and source.source != "generated"
    ]


def _of_swap(data: DataConfig) -> list[str]:
    if data.swap is None or not data.swap.tokens:
        return []
    fields = {name: getattr(data.swap, name) for name in ("spread", "folds", "min_share")}
    given = {name: value for name, value in fields.items() if value != Swap.model_fields[name].default}
    return [f"data.swap.{name}={value}: tokens are given, and none is looked for" for name, value in given.items()]


def _of_strategy(config: RunConfig) -> dict[str, str]:
    found = {}
    if config.eval_strategy == "no":
        found["per_device_eval_batch_size"] = "eval_strategy is no"
    if config.eval_strategy != "steps":
        found["eval_steps"] = f"eval_strategy is {config.eval_strategy}"
    if config.save_strategy != "steps":
        found["save_steps"] = f"save_strategy is {config.save_strategy}"
    if config.save_strategy == "no":
        found["save_total_limit"] = "save_strategy is no"
    return found


def _of_method(config: RunConfig) -> dict[str, str]:
    found, rule = {}, make_rule(config.method)
    if rule.uses_bias:
        if config.gradients in ("shared_forward", "two_pass"):
            found["verify"] = f"gradients is {config.gradients}; single_pass alone proves itself"
        if config.bias_weight.source != "self":
            found["answer_probability"] = (
                f"bias_weight is of {config.bias_weight.source}, not of the model's own answers"
            )
        return found
    why = f"method {config.method['name']} does not look at the bias gradient"
    of_head = ("debias_head",) if rule.is_plain else ()  # any other rule acts on a head or leaves it alone
    return dict.fromkeys(("gradients", "verify", "bias_weight", *of_head, "answer_probability"), why)


def _of_passes(config: RunConfig) -> dict[str, str]:
    sharpness = make_sharpness(config.sharpness)
    smoothness = make_smoothness(config.smoothness)
    penalty = make_penalty(config.weight_penalty)
    projection = make_projection(config.weight_projection)
    found = {}
    if penalty is not None and penalty.strength == 0:
        found["weight_penalty"] = "strength is 0: what it costs is for nothing"
    if projection is not None and projection.strength == 0:
        found["weight_projection"] = "strength is 0: what it costs is for nothing"
    if sharpness is not None and sharpness.rho == 0:
        found["sharpness"] = "rho is 0: gradients are taken at the weights, twice"
    if smoothness is not None and smoothness.strength == 0:
        found["smoothness"] = "strength is 0: what it costs is for nothing"
    return found


def _of_what_is_easy(config: RunConfig) -> dict[str, str]:
    """A bias model that is fitted, or a first stage that is trained, and asked by nobody."""
    stage = config.first_stage
    found = {}
    if config.groups is not None and not reads_inferred_groups(config):
        found["groups"] = "neither the loss nor the order reads groups"
    asked = asks_bias_model(config) or _makes_groups(config)
    why = "neither the loss, the order nor the bias weight reads it (selection pseudo_groups does)"
    if not asked:
        found["bias_model"] = why
    if stage is None:
        return found
    readers = {
        "errors": ("error" in make_order(config.order).reads, "no order reads its errors"),
        "teacher": ("teacher_log_p" in make_loss(config.loss).reads, "no loss reads what it says"),
        "log_p": (asked, why),
    }
    read, why_not = readers[stage.keep]
    return found if read else {**found, "first_stage": why_not}


def asks_bias_model(config: RunConfig) -> bool:
    """Whether the loss, the order, the bias weight, inferred groups or the selection read what a bias model says."""
    weighted = make_rule(config.method).uses_bias and config.bias_weight.source == "bias_model"
    reads = make_loss(config.loss).reads | make_order(config.order).reads
    groups = config.groups is not None and reads_inferred_groups(config)
    return weighted or groups or config.selection == "pseudo_groups" or "bias_log_p" in reads


def reads_inferred_groups(config: RunConfig) -> bool:
    """Whether the loss or the order reads groups, or the weights that come with some that are inferred."""
    order = make_order(config.order)
    return "group" in make_loss(config.loss).reads or reads_groups(order) or "draw_weight" in order.reads


def _makes_groups(config: RunConfig) -> bool:
    """Whether a bias model, or a stage, that costs nothing more is there for the pseudo groups of validation alone."""
    if config.eval_strategy == "no" or not config.has_bias_log_p:
        return False
    return config.bias_model is None or not isinstance(make_bias_model(config.bias_model), BaseBiasModel)


def say_what_has_no_effect(config: RunConfig) -> None:
    """A warning for each setting that does nothing in this run."""
    for said in without_effect(config):
        logger.warning("no effect: %s", said)
