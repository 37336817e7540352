"""What a run is: typed, validated, read from YAML and `key=value`; an unknown key is an error with the nearest name."""

import re
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from debias.config import blocks
from debias.config.data import DataConfig, Strict, is_list
from debias.config.expanding import expanded
from debias.config.passes import check_passes

# Rules of `selection` that need validation, and the figure each takes the largest of; ties go to the earliest.
SELECTIONS = {
    "validation": "eval_accuracy",
    "worst_class": "eval_worst_class_accuracy",
    "pseudo_groups": "eval_pseudo_group_accuracy",
}

STAGES = "stages"  # in a run's folder: the runs before it
# Of which runs of older versions, and runs before a run, have none.
LATER = ("sharpness", "smoothness", "weight_penalty", "weight_projection", "gradient_mask")
LARGEST = 2**31 - 1  # of a count: beyond it others' code overflows


class PromptConfig(Strict):
    """How a causal model is asked: a template over the text fields and one answer for each label.

    `{premise}`-style fields are filled in; a verbalizer keeps its leading space. With `chat`, the filled template is
    the user's turn of the tokenizer's chat template. `more_templates`: training asks each example in `template` or in
    one of these, drawn anew in each epoch, so that what is learned does not hang on one wording (PAFT, Wei et al.,
    2025, arXiv 2502.12859, whose prompt is drawn for several steps at a time); a model is judged in `template`.
    """

    template: str = Field(min_length=1)
    verbalizers: dict[str, str]
    chat: bool = False
    more_templates: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _templates_differ(self) -> "PromptConfig":
        every = (self.template, *self.more_templates)
        twice = next((one for place, one in enumerate(every) if one in every[:place]), None)
        if twice is not None:
            raise ValueError(f"more_templates: {twice!r} is there twice, template included; remove one")
        return self

    @model_serializer(mode="wrap")
    def _as_versions_without_it_had_it(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What an older version kept of a run is of the same run."""
        told: dict[str, Any] = whole(self)
        if not self.more_templates:
            told.pop("more_templates", None)
        return told


class BiasWeight(Strict):
    """Where the bias weight of a sample comes from; apart from the rule that combines the gradients.

    `self`: `q * p^q` of the model's own probability (generalized cross-entropy). `file`: the column `column` of the
    training data, used as the weight itself (finite, not negative). `bias_model`: made of the bias model's
    probabilities in the form `gce` (`q * p^q`), `confidence` (`p`) or `balanced` (what it leaves of samples gives
    every label the same mass).
    """

    source: Literal["self", "file", "bias_model"] = "self"
    q: float = Field(0.7, gt=0, le=1)
    column: str | None = None
    form: Literal["gce", "confidence", "balanced"] = "gce"

    @model_validator(mode="after")
    def _file_has_column(self) -> "BiasWeight":
        if (self.source == "file") != (self.column is not None):
            raise ValueError("column must be given with source 'file', and only with it")
        if self.source == "file" and "q" in self.model_fields_set and self.q != BiasWeight.model_fields["q"].default:
            raise ValueError("q has no effect with source 'file', whose column is the weight itself; remove it")
        if self.source != "bias_model" and self.form != "gce":
            raise ValueError(f"form has no effect with source {self.source!r}; remove it, or set source: bias_model")
        if self.form != "gce" and self.q != BiasWeight.model_fields["q"].default:
            raise ValueError(f"q has no effect with form {self.form!r}; remove it")
        return self


# What PyYAML takes for a text where it has no point or no sign.
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
# Old runs wrote these settings of LoRA, at their defaults, beside every type of adapter.
OF_LORA: dict[str, Any] = {"targets": "auto", "target_parameters": [], "experts": "auto", "experts_r": None}


def _of_lora_alone(block: str | dict[str, Any]) -> str | dict[str, Any]:
    """The block without settings of LoRA that say nothing beside another type; ValueError for one of the run's."""
    if isinstance(block, str):
        return block
    for key in block:
        if str(key) in RunConfig.model_fields:
            raise ValueError(f"adapter.{key}: unknown key; did you mean {key}? It stands beside adapter, not in it")
    if block.get("type", "lora") == "lora":
        return block
    return {key: value for key, value in block.items() if key not in OF_LORA or value not in (OF_LORA[key], ())}


class FirstStage(Strict):
    """A run before the run, on the same data and model: what it says of the training examples becomes facts.

    `keep`: `errors`, which examples it gets wrong (JTT); `log_p`, log-probabilities of every label, in the place of a
    bias model's; or `teacher`, the same, as what a teacher says. `settings`: what it does otherwise than the run
    itself; beside these it trains plainly.
    """

    keep: Literal["errors", "log_p", "teacher"] = "errors"
    settings: dict[str, Any] = Field({})


class RunConfig(Strict):
    """One fine-tuning run. Names that Hugging Face has are Hugging Face's."""

    model: str = Field(min_length=1)  # hub id, local folder, package:minilm, package:smollm2, vision:mlp, vision:vit
    data: DataConfig
    output_dir: str = Field(min_length=1)
    head: Literal["classification", "causal_lm", "image_classification"] = "classification"
    prompt: PromptConfig | None = None
    max_length: int = Field(128, ge=4, le=LARGEST)

    method: dict[str, Any] = Field({"name": "edge"}, validate_default=True)
    gradients: Literal["auto", "single_pass", "shared_forward", "two_pass"] = "auto"
    verify: bool = True  # single_pass compares its bias gradient with an ordinary backward pass, twice in a run
    loss: dict[str, Any] = Field({"name": "cross_entropy"}, validate_default=True)
    bias_model: dict[str, Any] | None = None  # who says what is easy, before training; see bias_weight
    first_stage: FirstStage | None = None
    groups: dict[str, Any] | None = None  # who says which group a training example is of; null: the data
    sharpness: dict[str, Any] | None = None  # where the gradients of a step are taken; null: at the weights
    smoothness: dict[str, Any] | None = None  # beside the loss: answers should hardly change near what is read
    weight_penalty: dict[str, Any] | None = None  # beside the loss, of the weights of LoRA alone
    weight_projection: dict[str, Any] | None = None  # of the weights after the optimizer's step
    gradient_mask: dict[str, Any] | None = None  # which single elements move, by their gradients; null: all that train
    order: dict[str, Any] = Field({"name": "shuffled"}, validate_default=True)  # which examples make an epoch
    bias_weight: BiasWeight = BiasWeight.model_validate({})
    answer_probability: Literal["product", "geometric_mean"] = "product"
    loss_mean: Literal["samples", "tokens"] = "samples"  # causal_lm: the one denominator of both gradients
    debias_head: bool = False  # let the rule act on a freshly initialised head too

    adapter: dict[str, Any] = Field({"type": "lora"}, validate_default=True)
    lora_r: int = Field(8, ge=1, le=LARGEST)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)  # of the last hidden states that the head reads, while training
    load_in_4bit: bool = False
    attn_implementation: str = Field("auto", min_length=1)  # auto: flash_attention_2 where it can run, else sdpa, eager
    router_aux_loss_coef: float = Field(0.0, ge=0)  # mixtures of experts: of their load balancing loss, in main alone
    use_liger_kernel: bool = False  # Liger's norms and rotary positions; activations if checkpointing; CUDA
    torch_compile: bool = False  # each transformer layer by itself, with shared_forward or two_pass
    packing: bool = False  # causal_lm: the samples of a micro-batch in one row, without padding
    loss_chunk_size: int | None = Field(1024, ge=1)  # causal_lm: answer positions whose logits exist at a time

    learning_rate: float = Field(3e-4, gt=0, le=1e38)
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] = Field({})  # the schedule's own settings, such as {num_cycles: 2}
    warmup_steps: float = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, ge=-1, le=LARGEST)  # -1: as many as num_train_epochs makes
    stop_when_learned: float | None = Field(None, gt=0, lt=1)  # the share of the label entropy the loss is to fall by
    per_device_train_batch_size: int = Field(32, ge=1, le=LARGEST)
    per_device_eval_batch_size: int = Field(64, ge=1, le=LARGEST)
    gradient_accumulation_steps: int = Field(1, ge=1, le=LARGEST)
    max_grad_norm: float = Field(1.0, ge=0)
    gradient_checkpointing: bool = False
    bf16: bool = False
    deepspeed: str | None = Field(None, min_length=1)  # zero1, zero2, zero3, ... of ds_configs/, or a file
    optim: str = "adamw_torch"
    seed: int = Field(0, ge=0, lt=2**32)
    logging_steps: int = Field(10, ge=1)
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: int | None = Field(None, ge=1)
    save_strategy: Literal["no", "steps", "epoch"] = "epoch"
    save_steps: int = Field(500, ge=1)
    save_total_limit: int | None = Field(1, ge=1)
    selection: Literal["last", "validation", "worst_class", "pseudo_groups"] = "last"  # of checkpoints; see SELECTIONS
    report_to: str | tuple[str, ...] = "none"
    max_nonfinite_steps: int = Field(10, ge=0)  # skipped steps a run survives
    ddp_timeout: int = Field(1800, ge=1)  # seconds without a step after which a hang is broken and the rank named
    sigterm_grace_seconds: float = Field(120, gt=0)  # from SIGTERM to a saved checkpoint; then the process exits
    overwrite_output_dir: bool = False
    resume: bool | Literal["auto"] = False  # auto: if output_dir holds a run; for jobs that a scheduler starts again

    @field_validator("model", "output_dir", "deepspeed")
    @classmethod
    def _written_out(cls, value: str | None) -> str | None:
        return None if value is None else expanded(value)

    @field_validator("bias_weight", mode="before")
    @classmethod
    def _short_block(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator(*blocks.KINDS, mode="before")
    @classmethod
    def _canonical_block(cls, value: Any, info: ValidationInfo) -> Any:
        """Every default filled in, so that one method is one method however it was written."""
        kind = str(info.field_name)
        if not isinstance(value, str | dict) or (info.context or {}).get("tables") is False:
            return {blocks.KINDS[kind].key: value} if isinstance(value, str) else value
        return blocks.read(kind, _of_lora_alone(value) if kind == "adapter" else value)

    @field_validator("lr_scheduler_kwargs")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        """YAML's texts for numbers (`1e-5`) are numbers here too."""
        texts = {name for name, one in value.items() if isinstance(one, str) and NUMBER.fullmatch(one)}
        return {name: float(one) if name in texts else one for name, one in value.items()}

    @field_validator("attn_implementation", mode="before")
    @classmethod
    def _attention_of_old_runs(cls, value: Any) -> Any:
        return "auto" if value is None else value  # what the default was called

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false

    @field_validator("report_to", mode="before")
    @classmethod
    def _reporters(cls, value: Any) -> Any:
        if not isinstance(value, str) and not (is_list(value) and all(isinstance(name, str) for name in value)):
            raise ValueError(f"expected a name such as tensorboard, or a list of names, got {value!r}")
        return value

    @model_validator(mode="after")
    def _settings_fit(self) -> "RunConfig":
        if self.max_steps == 0:
            raise ValueError("max_steps is 0; give a number of steps, or -1 to train for num_train_epochs")
        if self.eval_strategy != "no" and self.data.validation is None:
            raise ValueError(f"eval_strategy is {self.eval_strategy!r}, but there is no data.validation to judge on")
        if self.head != "causal_lm":
            for key in ("prompt", "answer_probability", "loss_mean", "packing", "loss_chunk_size"):
                if getattr(self, key) != RunConfig.model_fields[key].default:
                    raise ValueError(f"{key} goes with head 'causal_lm'; remove it, or set the head")
        return self

    @model_validator(mode="after")
    def _what_is_learned_can_be_told(self) -> "RunConfig":
        if self.stop_when_learned is None:
            return self
        needs = "stop_when_learned holds the loss against the entropy of the labels, so it needs"
        if self.loss.get("name") != "cross_entropy" or self.loss.get("class_weights") is not None:
            raise ValueError(f"{needs} loss cross_entropy, all labels weighed alike; loss is {self.loss}")
        if self.loss_mean != "samples":
            raise ValueError(f"{needs} loss_mean 'samples'; it is {self.loss_mean!r}")
        return self

    @model_validator(mode="after")
    def _bias_model_is_there_and_used(self) -> "RunConfig":
        if self.bias_weight.source == "bias_model" and not self.has_bias_log_p:
            raise ValueError("bias_weight.source is 'bias_model', but bias_model is missing; name one")
        if self.bias_model is not None and self.first_stage is not None and self.first_stage.keep == "log_p":
            raise ValueError("bias_model and first_stage.keep 'log_p' both say what is easy; remove one of the two")
        if self.groups is not None and not self.has_bias_log_p:
            raise ValueError(
                f"groups {self.groups.get('name')} are made of what a bias model says, but bias_model is missing; name"
                " one, or set first_stage.keep: log_p"
            )
        return self

    @property
    def has_bias_log_p(self) -> bool:
        """Whether somebody says how likely each label of a training example is by the shortcut alone."""
        return self.bias_model is not None or (self.first_stage is not None and self.first_stage.keep == "log_p")

    @model_validator(mode="after")
    def _stages_are_runs(self, info: ValidationInfo) -> "RunConfig":
        if self.first_stage is not None:
            own = [key for key in ("output_dir", "first_stage", "resume") if key in self.first_stage.settings]
            if own:
                raise ValueError(f"first_stage.settings: {own[0]} is not the first stage's to choose; remove it")
            self.stage_before()
        if (info.context or {}).get("tables") is not False:
            self.bias_stages()
        return self

    def method_parts(self) -> dict[str, Any]:
        """What beside its rule makes this run's method: of plain fine-tuning cross-entropy, the shuffled data alone."""
        first = self.first_stage and self.first_stage.model_dump(mode="json")
        later: dict[str, Any] = {name: getattr(self, name) for name in ("groups", *LATER)}
        wording = self.prompt and self.prompt.more_templates and {"more_templates": [*self.prompt.more_templates]}
        later |= {"head_dropout": self.head_dropout or None, "prompt": wording or None}
        return {
            **{"loss": self.loss, "bias_model": self.bias_model, "order": self.order},
            **{kind: block for kind, block in later.items() if block is not None},
            "first_stage": first,
            "swap": self.data.swap and self.data.swap.model_dump(mode="json"),
        }

    def stage_before(self) -> "RunConfig":
        """The run of the first stage; ValueError where its settings are none of a run."""
        assert self.first_stage is not None
        plain = {
            **{"method": "erm", "loss": "cross_entropy", "order": "shuffled", "bias_model": None, "first_stage": None},
            **{"bias_weight": "self", "groups": None, "selection": "last", "eval_strategy": "no", "report_to": "none"},
            **{"head_dropout": 0.0, **dict.fromkeys(LATER)},
        }
        return self._stage("1", {**plain, **self.first_stage.settings}, "first_stage.settings")

    def bias_stages(self) -> "tuple[RunConfig, ...]":
        """The runs that the bias model asks, if it does; ValueError where its settings make none of a run."""
        if self.bias_model is None:
            return ()
        model = blocks.make("bias_model", blocks.table_of("bias_model"), self.bias_model)
        changes = model.stages(self.model_dump())
        return tuple(self._stage(f"bias_{i}", one, "bias_model") for i, one in enumerate(changes, 1))

    def _stage(self, name: str, changes: dict[str, Any], of: str) -> "RunConfig":
        resume = False if self.overwrite_output_dir else "auto"
        place = {"resume": resume, "output_dir": f"{self.output_dir}/{STAGES}/{name}"}
        try:
            return RunConfig.model_validate({**self.model_dump(), **changes, **place})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            told = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{of}: {where and f'{where}: '}{told}") from None

    @model_validator(mode="after")
    def _pictures_fit(self) -> "RunConfig":
        pictures = self.head == "image_classification"
        if pictures != self.data.pictures:
            what = "is no IDX file of pictures" if pictures else "is pictures, which head 'image_classification' reads"
            raise ValueError(f"head is {self.head!r}, but data.train {self.data.train.source!r} {what}")
        if self.model.startswith("vision:") and not pictures:
            raise ValueError(f"model {self.model!r} reads pictures; set head: image_classification")
        if pictures and self.max_length != RunConfig.model_fields["max_length"].default:
            raise ValueError("max_length has no effect on pictures; remove it")
        return self

    @model_validator(mode="after")
    def _passes_are_possible(self) -> "RunConfig":
        check_passes(self)
        return self

    @model_validator(mode="after")
    def _compiling_is_possible(self) -> "RunConfig":
        if self.torch_compile and self.gradients != "auto":
            from debias.gradients.choice import choose  # which loads torch

            choose(self.gradients, compiled=True)
        if self.torch_compile and self.deepspeed is not None:
            raise ValueError("torch_compile has not been tried with deepspeed; remove one of them")
        return self

    @model_validator(mode="after")
    def _selection_is_possible(self) -> "RunConfig":
        if self.selection == "last":
            return self
        wants = f"selection {self.selection!r}"
        if self.data.validation is None:
            raise ValueError(f"{wants} needs data.validation, the in-distribution examples to select on")
        if self.selection == "pseudo_groups" and not self.has_bias_log_p:
            raise ValueError(f"{wants} needs a bias model, whose guesses make the groups; name one in bias_model")
        if self.eval_strategy == "no" or self.save_strategy != self.eval_strategy:
            raise ValueError(
                f"{wants} keeps a checkpoint that was validated: set eval_strategy and save_strategy both to steps or"
                f" both to epoch; they are {self.eval_strategy!r} and {self.save_strategy!r}"
            )
        every = self.eval_steps or self.logging_steps  # as the Trainer reads a missing eval_steps
        if self.eval_strategy == "steps" and every != self.save_steps:
            raise ValueError(f"{wants} needs eval_steps equal to save_steps; they are {every} and {self.save_steps}")
        if self.eval_strategy == "steps" and 0 < self.max_steps < every:
            raise ValueError(f"{wants}: nothing is validated, eval_steps is {every} and max_steps {self.max_steps}")
        return self

    @model_validator(mode="after")
    def _causal_has_prompt(self) -> "RunConfig":
        if self.head == "causal_lm":
            if self.prompt is None:
                raise ValueError("prompt is missing: head 'causal_lm' needs prompt.template and prompt.verbalizers")
            missing = [label for label in self.data.labels if label not in self.prompt.verbalizers]
            if missing:
                raise ValueError(
                    f"prompt.verbalizers has no answer for {missing}; it needs one for each of data.labels"
                )
            unknown = [label for label in self.prompt.verbalizers if label not in self.data.labels]
            if unknown:
                raise ValueError(f"prompt.verbalizers answers {unknown}, not in data.labels {list(self.data.labels)}")
            for field in self.data.text_fields:
                if "{" + field + "}" not in self.prompt.template:
                    raise ValueError(f"prompt.template does not use {{{field}}}, one of data.text_fields")
            if self.packing and self.prompt.more_templates:
                raise ValueError(
                    "packing lays rows of known lengths together, and more_templates draws them; remove one"
                )
        return self
