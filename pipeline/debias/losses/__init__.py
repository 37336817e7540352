"""ROOM 2: what a model said and what is known of the samples, to a loss [B]. torch only.

A new loss is one file, one line in `LOSSES` and one golden row in tests/numerics/test_golden_losses.py.
"""

from collections.abc import Mapping
from typing import Any

from debias.bias.column import ColumnWeight
from debias.bias.own import SelfWeight, gce_weight
from debias.bias.weights import BiasWeightSource
from debias.config.blocks import make
from debias.losses.afr import AFR
from debias.losses.balanced_softmax import BalancedSoftmax
from debias.losses.base import EVERY_LABEL, HIDDEN, LOGITS, Loss
from debias.losses.bias_covariance import BiasCovariance
from debias.losses.blind import Blind
from debias.losses.class_balanced import ClassBalanced
from debias.losses.confidence_regularization import ConfidenceRegularization
from debias.losses.coral import Coral
from debias.losses.cross_entropy import CrossEntropy, cross_entropy
from debias.losses.cvar_dro import CVaRDRO
from debias.losses.debiased_focal import DebiasedFocal
from debias.losses.focal import Focal
from debias.losses.gce import GCE
from debias.losses.gerne import GERNE
from debias.losses.gradient_alignment import GradientAlignment
from debias.losses.group_dro import GroupDRO
from debias.losses.irm import IRM
from debias.losses.label_smoothing import LabelSmoothing
from debias.losses.ldam import LDAM
from debias.losses.learned_mixin import LearnedMixin
from debias.losses.learning import LearningLoss
from debias.losses.logit_correction import LogitCorrection
from debias.losses.mmd import MMD
from debias.losses.one_vs_rest import OneVsRest
from debias.losses.pgi import PGI
from debias.losses.relative_difficulty import RelativeDifficulty
from debias.losses.ula import ULA
from debias.readouts.answers import Answers, answer_log_likelihood
from debias.readouts.classification import Classification
from debias.readouts.router import RouterLoss, add_router_loss, router_loss_of
from debias.readouts.said import Readout

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        CrossEntropy,
        Focal,
        GroupDRO,
        CVaRDRO,
        GERNE,
        IRM,
        Coral,
        MMD,
        PGI,
        ClassBalanced,
        BalancedSoftmax,
        LDAM,
        LabelSmoothing,
        LogitCorrection,
        LearnedMixin,
        ULA,
        DebiasedFocal,
        ConfidenceRegularization,
        AFR,
        Blind,
        GradientAlignment,
        BiasCovariance,
        RelativeDifficulty,
        GCE,
        OneVsRest,
    )
}


def make_loss(block: str | Mapping[str, Any]) -> Loss:
    """The loss of a `loss:` block: `focal`, or `{"name": "focal", "gamma": 1.0}`. ValueError names a wrong setting."""
    return make("loss", LOSSES, block)


Objective = Readout  # its older name

# Names of the rooms `readouts` and `bias` are handed on for those who import them from here.
__all__ = [
    "AFR",
    "EVERY_LABEL",
    "GCE",
    "GERNE",
    "HIDDEN",
    "IRM",
    "LDAM",
    "LOGITS",
    "LOSSES",
    "MMD",
    "PGI",
    "ULA",
    "Answers",
    "BalancedSoftmax",
    "BiasCovariance",
    "BiasWeightSource",
    "Blind",
    "CVaRDRO",
    "ClassBalanced",
    "Classification",
    "ColumnWeight",
    "ConfidenceRegularization",
    "Coral",
    "CrossEntropy",
    "DebiasedFocal",
    "Focal",
    "GradientAlignment",
    "GroupDRO",
    "LabelSmoothing",
    "LearnedMixin",
    "LearningLoss",
    "LogitCorrection",
    "Loss",
    "Objective",
    "OneVsRest",
    "Readout",
    "RelativeDifficulty",
    "RouterLoss",
    "SelfWeight",
    "add_router_loss",
    "answer_log_likelihood",
    "cross_entropy",
    "gce_weight",
    "make_loss",
    "router_loss_of",
]
