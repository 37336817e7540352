"""Judge a fine-tuned model where its training data's shortcut no longer holds.

A suite is data only (`suites/<name>/suite.yaml` beside its `CARD.md`). `evaluate.evaluate_run` scores one run on one
suite and writes `RUN/eval/<suite>.json`; `report.write_report` lays several runs side by side on one HTML page. Nothing
here trains, and only `predict.load` reaches torch, when it is called.
"""
