"""The rule and the bias weight of a run."""

from debias.config.run import RunConfig
from debias.losses import BiasWeightSource, ColumnWeight, SelfWeight
from debias.methods import Rule, make_rule


def build_rule(config: RunConfig) -> Rule:
    """The rule of the `method:` block."""
    return make_rule(config.method)


def build_bias_weight(config: RunConfig) -> BiasWeightSource:
    """The source of the `bias_weight:` block."""
    return ColumnWeight() if config.bias_weight.source == "file" else SelfWeight(config.bias_weight.q)
