"""Names that users try in a run's settings, from elsewhere, and what is right here."""

# What users look for here and find elsewhere.
NOT_SETTINGS = {
    "trust_remote_code": "no setting, for configs travel; to let the code of a model run, name it in the environment"
    " (DEBIAS_TRUST_REMOTE_CODE=MODEL)",
    "fp16": "not supported; use bf16, or neither for float32",
    "do_train": "no setting; debias train trains, debias eval judges",
    "do_eval": "no setting; see eval_strategy, and debias eval",
}
# What else these are called.
ALSO_CALLED = {
    "alpha": "method.alpha",
    "q": "bias_weight.q",
    "projection": "method.projection",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "quantization": "load_in_4bit",
    "qlora": "load_in_4bit",
    "model_name_or_path": "model",
    "r": "lora_r",
    "rank": "lora_r",
    "dropout": "lora_dropout",
    "target_modules": "adapter.targets",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps",
    "train": "data.train",
    "validation": "data.validation",
    "labels": "data.labels",
    "text_fields": "data.text_fields",
}
