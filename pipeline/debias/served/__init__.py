"""A model behind another's completions server (vLLM, SGLang), asked for log-probabilities of the labels' answers."""
