"""ROOM 2: logits and labels to a loss [B] and a bias weight [B]. torch only."""

from debias.bias.base import BiasWeightSource
from debias.bias.column import ColumnWeight
from debias.bias.own import SelfWeight, gce_weight
from debias.readouts.answers import Answers, answer_log_likelihood
from debias.readouts.classification import Classification, cross_entropy
from debias.readouts.router import RouterLoss, add_router_loss, router_loss_of
from debias.readouts.said import SampleLosses

Objective = Classification | Answers

__all__ = [
    "Answers",
    "BiasWeightSource",
    "Classification",
    "ColumnWeight",
    "Objective",
    "RouterLoss",
    "SampleLosses",
    "SelfWeight",
    "add_router_loss",
    "answer_log_likelihood",
    "cross_entropy",
    "gce_weight",
    "router_loss_of",
]
