"""Who says what is easy: a bias model a file; and the weight that is made of what it says.

A new bias model is one file, one line in `BIAS_MODELS` and one row in tests/unit/bias/test_bias_models.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.bias.artifacts import Artifacts
from debias.bias.base import BiasModel
from debias.bias.bias_experts import BiasExperts
from debias.bias.column import ColumnWeight
from debias.bias.embedding import Embedding
from debias.bias.first_learned import FirstLearned
from debias.bias.given import Given
from debias.bias.groups import Groups
from debias.bias.lexical import Lexical
from debias.bias.own import SelfWeight
from debias.bias.partial_input import PartialInput
from debias.bias.product import Product
from debias.bias.weights import BiasWeightSource, ModelWeight, balanced_weight, confidence_weight, gce_weight
from debias.config.blocks import make

BIAS_MODELS: dict[str, type[BiasModel]] = {
    model.name: model
    for model in (
        PartialInput,
        Lexical,
        Artifacts,
        Groups,
        Given,
        Product,
        FirstLearned,
        BiasExperts,
        Embedding,
    )
}


def make_bias_model(block: str | Mapping[str, Any]) -> BiasModel:
    """The bias model of a `bias_model:` block. ValueError names a wrong setting."""
    return make("bias_model", BIAS_MODELS, block)


__all__ = [
    "BIAS_MODELS",
    "Artifacts",
    "BiasExperts",
    "BiasModel",
    "BiasWeightSource",
    "ColumnWeight",
    "Embedding",
    "FirstLearned",
    "ModelWeight",
    "PartialInput",
    "SelfWeight",
    "balanced_weight",
    "confidence_weight",
    "gce_weight",
    "make_bias_model",
]
