"""Loss, order, bias model and bias weight of a run, and whether the run has what they read."""

from debias.bias import BiasModel, BiasWeightSource, ColumnWeight, ModelWeight, SelfWeight, make_bias_model
from debias.config.run import BiasWeight, RunConfig
from debias.data.order import Order
from debias.data.orders import make_order
from debias.data.resampled import reads_groups
from debias.errors import InputError
from debias.grouping import make_grouping
from debias.losses import EVERY_LABEL, LOGITS, Loss, make_loss


def build_loss(config: RunConfig) -> Loss:
    """The loss of the `loss:` block; InputError where the run has not what it reads."""
    try:
        loss = make_loss(config.loss).for_labels(config.data.labels)
    except ValueError as error:
        told = str(error)
        raise InputError(told if told.startswith("loss") else f"loss.{told}") from None
    if "bias_log_p" in loss.reads and not config.has_bias_log_p:
        raise InputError(f"loss {loss.name} reads a bias model's probabilities, but bias_model is missing; name one")
    if "teacher_log_p" in loss.reads and (config.first_stage is None or config.first_stage.keep != "teacher"):
        raise InputError(f"loss {loss.name} reads what a teacher says; set first_stage.keep: teacher")
    if "group" in loss.reads and not (_has_groups(config) or config.groups):
        raise InputError(f"loss {loss.name} {NO_GROUPS}")
    if LOGITS in loss.reads and config.head == "causal_lm":
        raise InputError(f"loss {loss.name} reads a classifier's logits, and head is causal_lm; another loss is needed")
    if EVERY_LABEL in loss.reads and config.answer_probability != "product":
        raise InputError(
            f"loss {loss.name} reads answers of one token each: answer_probability has no effect; remove it"
        )
    return loss


def build_order(config: RunConfig) -> Order:
    """Which examples make an epoch; InputError where the run has not what that is decided by."""
    order = make_order(config.order)
    if reads_groups(order) and not (_has_groups(config) or config.groups):
        raise InputError(f"order {order.name} {NO_GROUPS}")
    if "draw_weight" in order.reads and not _gives_draw_weight(config):
        raise InputError(f"order {order.name} draws by the clusters of groups spare; set groups: spare")
    if "error" in order.reads and (config.first_stage is None or config.first_stage.keep != "errors"):
        raise InputError(f"order {order.name} sees more of what a first stage got wrong; set first_stage.keep: errors")
    if "bias_log_p" in order.reads and not config.has_bias_log_p:
        raise InputError(f"order {order.name} reads a bias model's probabilities, but bias_model is missing; name one")
    return order


NO_GROUPS = (
    "needs a group of each row; set data.group_field to the column that has it, or let a bias model say them (groups)"
)


def _gives_draw_weight(config: RunConfig) -> bool:
    return config.groups is not None and "draw_weight" in make_grouping(config.groups).gives


def _has_groups(config: RunConfig) -> bool:
    planted = config.data.planted_bias or config.data.planted_color
    return bool(config.data.group_field or planted or config.data.train.source == "generated")


def build_bias_model(config: RunConfig) -> BiasModel | None:
    """The bias model of the `bias_model:` block, if any; InputError where it does not fit the run's data."""
    if config.bias_model is None:
        return None
    model = make_bias_model(config.bias_model)
    try:
        model.check(config.data.text_fields)
    except ValueError as error:
        raise InputError(str(error)) from None
    if model.needs("group") and not _has_groups(config):
        raise InputError(
            f"bias_model {model.name} needs a group of each row; set data.group_field to the column that has it"
        )
    columns, labels = model.p_columns, config.data.labels
    if columns and len(columns) != len(labels):
        raise InputError(
            f"bias_model.columns: {list(columns)} are {len(columns)}, expected one for each of {list(labels)}"
        )
    for stage in config.bias_stages():
        try:
            build_loss(stage)
        except InputError as error:
            raise InputError(f"bias_model {model.name}: {error}") from None
    return model


def build_bias_weight(settings: BiasWeight) -> BiasWeightSource:
    """The source of the `bias_weight:` block."""
    if settings.source == "bias_model":
        return ModelWeight(settings.form, settings.q)
    return ColumnWeight() if settings.source == "file" else SelfWeight(settings.q)
