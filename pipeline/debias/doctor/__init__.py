"""What is wrong with this machine, these ranks or this run, found before a run finds out: each with its cure."""

from debias.doctor.check import Check
from debias.doctor.examination import Diagnosis, diagnose, examine

__all__ = ["Check", "Diagnosis", "diagnose", "examine"]
