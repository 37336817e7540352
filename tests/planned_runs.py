"""A run to plan."""

from debias.config.run import RunConfig


def run_of(model="Qwen3-0.6B", **settings):
    """A run of a causal model that answers."""
    prompt = {
        "template": "{premise} {hypothesis}",
        "verbalizers": {"entailment": " Yes", "neutral": " Maybe", "contradiction": " No"},
    }
    defaults = {
        "output_dir": "runs/x",
        "data": {"train": "generated"},
        "head": "causal_lm",
        "prompt": prompt,
        "max_length": 32,
    }
    return RunConfig.model_validate({"model": model, **defaults, **settings})
