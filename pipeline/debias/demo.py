"""The embedded default: MiniLM trained plainly and with EDGE on generated pairs with a planted shortcut."""

import logging
from pathlib import Path
from typing import Any

from debias.config import RunConfig
from debias.train import train

logger = logging.getLogger(__name__)

# Both runs differ in the method alone. The suites plant the same cue where it no longer predicts the label. These
# settings were chosen so that plain fine-tuning learns both the task and the cue in a minute or two on a CPU, and
# without looking at what EDGE makes of it.
SETTINGS: dict[str, Any] = {
    "model": "package:minilm",
    "data": {
        "train": {
            "source": "generated",
            "limit": 6000,
            "phenomena": ["plain_location", "plain_colour", "plain_state", "plain_taxonomy"],
        },
        "planted_bias": {"cue": "!!", "field": "premise", "label": "neutral", "prevalence": 0.33, "strength": 0.7},
    },
    "max_length": 64,
    "learning_rate": 1e-3,
    "warmup_steps": 10,
    "max_steps": 100,
    "per_device_train_batch_size": 64,
    "save_strategy": "no",
    "logging_steps": 5,
}
METHODS: dict[str, dict[str, Any]] = {"erm": {"name": "erm"}, "edge": {"name": "edge"}}
SUITES = ("generated", "generated_ood")


def run_demo(folder: Path) -> tuple[Any, Path]:
    """Train both runs in `folder` (an earlier demo there is replaced) and judge them; the table and the page."""
    from debias_eval.evaluate import evaluate_run
    from debias_eval.predict import load
    from debias_eval.report import write_report
    from debias_eval.tables import terminal_table

    runs = []
    for name, method in METHODS.items():
        settings = {**SETTINGS, "method": method, "output_dir": str(folder / name), "overwrite_output_dir": True}
        logger.info("training %s", name)
        run = train(RunConfig.model_validate(settings))
        predictor = load(run)
        for suite in SUITES:
            logger.info("judging %s on %s", name, suite)
            evaluate_run(run, suite, predictor=predictor)
        runs.append(run)
    return terminal_table(runs), write_report(runs, folder / "report.html")
