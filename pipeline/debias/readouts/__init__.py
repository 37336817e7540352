"""How a model's answer is read: a classification head, or the answers of a causal model. What a loss makes of it is
another room's.
"""

from debias.readouts.answers import Answers, answer_log_likelihood
from debias.readouts.classification import Classification
from debias.readouts.packed import sample_index_of
from debias.readouts.router import RouterLoss, add_router_loss, leave_out_router_loss, router_loss_of
from debias.readouts.said import DONE, Facts, Readout, Said, inputs_and_facts, of_right_label

__all__ = [
    "DONE",
    "Answers",
    "Classification",
    "Facts",
    "Readout",
    "RouterLoss",
    "Said",
    "add_router_loss",
    "answer_log_likelihood",
    "inputs_and_facts",
    "leave_out_router_loss",
    "of_right_label",
    "router_loss_of",
    "sample_index_of",
]
