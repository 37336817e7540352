"""What a plan says: the machine, the parameters, bytes and advice, as one record."""

from pydantic import BaseModel, ConfigDict


class Machine(BaseModel):
    """What the run is planned for; `gpu_memory` in bytes, None where it is not known."""

    model_config = ConfigDict(frozen=True)
    gpu_memory: int | None = None
    gpus: int = 1  # of a node
    nodes: int = 1
    cuda: bool = True

    @property
    def world(self) -> int:
        """Ranks, one for each GPU."""
        return self.gpus * self.nodes


class Parameters(BaseModel):
    """Elements of the model; `active` are used for one token; `unquantized` what is not 4-bit in a 4-bit run."""

    base: int
    active: int
    trainable: int
    four_bit: int
    unquantized: dict[str, int]


class Effort(BaseModel):
    """What a run takes beside memory; None where the number of rows would have to be known, or a throughput.

    `rows`: of the training set. `tokens`: that are trained on, by all processes together; `tokens_before`: by the runs
    before it, `tokens_asked`: of the bias model's pass over the training set, `tokens_validated`: of all `validations`
    together (their number, or that of their rows, may be unknown). `kept`: bytes of rows and tokens on disk, at most.
    """

    rows: int | None
    steps: int | None
    tokens: int | None
    tokens_before: int | None
    tokens_asked: int | None
    validations: int | None
    tokens_validated: int | None
    kept: int | None
    hours: float | None


class Plan(BaseModel):
    """What `debias plan --json` prints; all sizes in bytes, of one GPU; `gpus` is 0 for a process on CPUs."""

    model: str
    architecture: str
    parameters: Parameters
    gradients: str
    stage: int | None
    gpus: int
    nodes: int
    micro_batch: int
    accumulation: int
    length: int
    answer_tokens: int
    gradient_checkpointing: bool
    optimizer: str
    parts: dict[str, int]
    moment: str
    total: int
    host: int
    sent: int
    gpu_memory: int | None
    fits: bool | None  # the run before this one too, if there is one
    largest_micro_batch: int | None
    advice: list[str]
    assumptions: list[str]
    unknown: str | None = None  # what the plan does not know, and its total does not hold
    effort: Effort | None = None
    before: "Plan | None" = None  # of the largest run before this one (first_stage, bias_model)
