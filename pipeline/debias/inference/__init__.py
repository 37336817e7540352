"""A trained model that answers: loaded, whole or sharded, and asked for the score of every label."""

from debias.inference.loading import load_run
from debias.inference.predictor import Predictor

__all__ = ["Predictor", "load_run"]
