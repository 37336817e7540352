"""The embedded default: MiniLM on made-up pairs with a planted shortcut: plainly, with EDGE, with logit correction."""

import logging
from pathlib import Path
from typing import Any

from debias.config.places import find_recipe
from debias.config.reading import load_config
from debias.train import train

logger = logging.getLogger(__name__)

# The recipes differ in the method alone. The suites plant the same cue where it no longer predicts the label.
RECIPES = {
    "erm": "minilm_generated_erm",
    "edge": "minilm_generated_edge",
    "artifacts": "minilm_generated_artifacts",
}
SUITES = ("generated", "generated_ood")


def run_demo(folder: Path) -> tuple[Any, Path]:
    """Train all runs in `folder` (an earlier demo there is replaced) and judge them; the table and the page."""
    from debias_eval.judging.evaluate import evaluate_run
    from debias_eval.judging.predict import load
    from debias_eval.reporting.report import write_report
    from debias_eval.reporting.tables import terminal_table

    runs = []
    for name, recipe in RECIPES.items():
        config = load_config(find_recipe(Path(recipe)))
        settings = config.model_copy(update={"output_dir": str(folder / name), "overwrite_output_dir": True})
        logger.info("training %s", name)
        run = train(settings)
        predictor = load(run)
        for suite in SUITES:
            logger.info("judging %s on %s", name, suite)
            evaluate_run(run, suite, predictor=predictor)
        runs.append(run)
    return terminal_table(runs), write_report(runs, folder / "report.html")
