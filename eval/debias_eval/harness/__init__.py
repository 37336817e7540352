"""Beside lm-evaluation-harness: suites as its tasks, its samples as our results, both timed."""
