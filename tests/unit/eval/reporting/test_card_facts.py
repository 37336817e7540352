"""What a card says of the data that a run was trained on: every shortcut and every change of its rows."""

import re

import pytest
import yaml

from debias_eval.reporting.card import card
from debias_eval.results.runs import read_runs

CUE = {"cue": "??", "field": "premise", "label": "neutral", "prevalence": 0.33, "strength": 0.9, "seed": 4}
CASES = {
    "nothing": ({"planted_bias": None, "swap": None}, {"Planted shortcut": "none"}),
    "a cue": (
        {"planted_bias": CUE, "planted_color": None},
        {"Planted shortcut": "cue ??, field premise, label neutral, prevalence 0.33, strength 0.9, seed 4"},
    ),
    "colours": (
        {"planted_color": {"strength": 0.98, "seed": 3}},
        {"Planted shortcut": "a colour for each label (strength 0.98, seed 3)"},
    ),
    "tokens dealt out": (
        {"swap": {"tokens": ["no", "not"], "seed": 1}},
        {"Planted shortcut": "none", "Tokens swapped": "tokens no, not, seed 1"},
    ),
    "rows of a fold": (
        {"planted_bias": CUE, "leave_out": {"fold": 1, "folds": 4}},
        {"Planted shortcut": "cue ??", "Rows left out": "fold 1, folds 4"},
    ),
}


@pytest.mark.parametrize(("data", "wanted"), CASES.values(), ids=CASES)
def test_a_card_names_what_was_done_to_the_training_rows(make_run, data, wanted):
    run = make_run("run")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"] |= data
    (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    told = dict(re.findall(r"^- ([A-Z][a-z ]+): (.*)$", card(read_runs([run])[0])[1], re.MULTILINE))
    for name in ("Planted shortcut", "Tokens swapped", "Rows left out"):
        assert (name in told) == (name in wanted)
        assert told.get(name, "").replace("\\", "").startswith(wanted.get(name, ""))
