"""Judge a fine-tuned model where its training data's shortcut no longer holds.

A suite is data only (`suites/<name>/suite.yaml` beside its `CARD.md`). `judging.evaluate.evaluate_run` scores one run
on one suite and writes `RUN/eval/<suite>.json`; `reporting.report.write_report` lays several runs side by side on one
HTML page. Nothing here trains, and torch is loaded only with a model: inside functions of `judging` and `harness`.
"""
