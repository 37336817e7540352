"""The plan of a run: counts, memory, communication, and whether it fits. Nothing is loaded and no GPU is touched."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import torch

from debias.building.arguments import check_engine
from debias.config import blocks
from debias.config import deepspeed_file as zero_config
from debias.config.run import RunConfig
from debias.engines.parameters import chosen_by, selection
from debias.errors import InputError
from debias.gradients.choice import choose
from debias.gradients.single_pass import refusal
from debias.methods import Rule, make_rule
from debias.plan.advice import Others, advice
from debias.plan.checks import check_adapted, check_run, sizes_that_exist
from debias.plan.communication import bytes_sent
from debias.plan.count import KINDS, Counts, count
from debias.plan.effort import looks_ahead
from debias.plan.gathers import gathers_of
from debias.plan.memory import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    OPTIMIZERS,
    Masked,
    Memory,
    Sharding,
    memory_of,
    sharding_of,
)
from debias.plan.search import largest_that_fits
from debias.plan.shapes import find_config
from debias.plan.sheet import Machine, Parameters, Plan
from debias.plan.skeleton import shallow, skeleton
from debias.plan.trace import Load, Traced, trace
from debias.smoothness import make_smoothness


def make_plan(run: RunConfig, machine: Machine, *, length: int | None = None) -> Plan:
    """The plan of a run on a machine; `length` tokens in the place of its max_length.

    InputError for a model whose configuration is not here, a DeepSpeed file that is not right, an adapter that does not
    fit the model, and what `train` would refuse of its settings.
    """
    planner = Planner(run, machine, length)
    check_run(run.model_copy(update={"max_length": planner.length}), planner.config)
    with sizes_that_exist(run, planner.length):
        check_adapted(run, planner.config)
        found = planner.plan()
    # Those of a bias model are of one size.
    stages = [*([run.stage_before()] if run.first_stage else []), *run.bias_stages()[:1]]
    if not stages:
        return found
    before = max((make_plan(stage, machine, length=length) for stage in stages), key=lambda plan: plan.total)
    fits = None if found.fits is None else found.fits and before.fits
    return found.model_copy(update={"before": before, "fits": fits})


class Planner:
    """One run on one machine; what is expensive is done once."""

    def __init__(self, run: RunConfig, machine: Machine, length: int | None = None) -> None:
        self.run, self.machine = run, machine
        self.length = length or run.max_length
        self.config = find_config(run.model)

    @functools.cached_property
    def counts(self) -> Counts:
        """Of the adapted model."""
        return count(self.run, self.config)

    @functools.cached_property
    def spread(self) -> Sharding:
        """As the run's DeepSpeed configuration says."""
        if self.run.deepspeed is None:
            return sharding_of(None, self.machine.world)
        path = zero_config.find(self.run.deepspeed)
        run = self.run
        found = zero_config.read(
            path, self.machine.world, run.per_device_train_batch_size, run.gradient_accumulation_steps
        )
        check_engine(run, found, path.name)
        return sharding_of(found, self.machine.world)

    @functools.cached_property
    def source(self) -> str:
        """The gradient source that the run will take: `plain` where the rule looks at one gradient alone."""
        local = self.counts.elements(selected=True)
        try:
            chosen = choose(
                self.run.gradients,
                self._refusal,
                uses_bias=self.rule.uses_bias,
                stage=self.spread.stage or 0,
                selected=local,
                whole=self.counts.base + local,
            )
        except ValueError as error:
            raise InputError(str(error)) from None
        return chosen.name

    def _refusal(self) -> str | None:
        """Why single_pass would not be exact, from a model of a few layers."""
        model = skeleton(self.run, shallow(self.config, min(4, self.config.num_hidden_layers)))
        return refusal(model, chosen_by(selection(debias_head=self.run.debias_head), model))

    @functools.cached_property
    def rule(self) -> Rule:
        """The run's method."""
        return make_rule(self.run.method)

    @functools.cached_property
    def answer_tokens(self) -> int:
        """At most: a byte-level tokenizer makes no more tokens of an answer than it has bytes."""
        if self.run.prompt is None:
            return 1
        longest = max(len(answer.encode()) for answer in self.run.prompt.verbalizers.values())
        return min(longest + 1, self.length)

    @functools.cache  # noqa: B019 (a planner lives as long as its plan is made)
    def traced(self, micro_batch: int) -> Traced:
        """Peak live bytes of one micro-batch."""
        # Packed rows are one row of all their tokens.
        rows, each = (1, micro_batch) if self.run.packing else (micro_batch, 1)
        load = Load(
            rows,
            each * self.length,
            each * self.answer_tokens,
            padded="flash" not in self.run.attn_implementation,
            accumulated=self.run.gradient_accumulation_steps > 1,
        )
        source = self.source if self.rule.uses_bias else "auto"
        return trace(self.run, self.config, load, source, uses_bias=self.rule.uses_bias, stage=self.spread.stage or 0)

    def memory(self, micro_batch: int) -> Memory:
        """The parts at that micro-batch."""
        traced = self.traced(micro_batch)
        run, seen, cuda = self.run, self.rule.combines, self.machine.cuda
        second: dict[str, Any] = {"moves": run.sharpness is not None, "held": held(run)}
        second["masked"] = Masked.of(run)
        second["accumulated"] = run.gradient_accumulation_steps > 1
        return memory_of(self.counts, traced, self.spread, self.source, run.optim, cuda=cuda, looks_at=seen, **second)

    def largest(self) -> int | None:
        """The largest micro-batch that fits; 0 if none does, None where the memory is not known."""
        limit = self.machine.gpu_memory
        return (
            None
            if limit is None
            else largest_that_fits(lambda size: self.memory(size).total, limit, self.run.per_device_train_batch_size)
        )

    def plan(self) -> Plan:
        """Everything."""
        run, counts = self.run, self.counts
        memory, limit = self.memory(run.per_device_train_batch_size), self.machine.gpu_memory
        found = self.told(
            memory,
            parameters=parameters_of(counts),
            gradients=self.source,
            sent=self._sent(),
            fits=None if limit is None else memory.total <= limit,
            largest_micro_batch=self.largest(),
            assumptions=self._assumptions(),
        )
        others = Others(self._fits_accumulated, self._saved_by_four_bit)
        return found.model_copy(update={"advice": advice(found, run, counts, others)})

    def told(self, memory: Memory, **found: Any) -> Plan:
        """A plan of this run on this machine, with that memory and what else was found; without advice."""
        run = self.run
        return Plan(
            model=run.model,
            architecture=self.config.model_type,
            stage=self.spread.stage,
            gpus=self.machine.gpus if self.machine.cuda else 0,
            nodes=self.machine.nodes,
            micro_batch=run.per_device_train_batch_size,
            accumulation=run.gradient_accumulation_steps,
            length=self.length,
            answer_tokens=self.answer_tokens,
            gradient_checkpointing=run.gradient_checkpointing,
            optimizer=run.optim,
            parts=memory.parts,
            moment=memory.moment,
            total=memory.total,
            host=memory.host,
            gpu_memory=self.machine.gpu_memory,
            advice=[],
            **found,
        )

    def _fits_accumulated(self, size: int) -> bool:
        """Whether a micro-batch fits beside the gradients of earlier ones of the step."""
        if self.run.gradient_accumulation_steps > 1 or self.machine.gpu_memory is None:
            return True  # as it was looked at
        run = self.run.model_copy(update={"per_device_train_batch_size": size, "gradient_accumulation_steps": 2})
        other = Planner(run, self.machine, self.length)
        other.counts, other.spread, other.source = self.counts, self.spread, self.source
        return other.memory(size).total <= self.machine.gpu_memory

    def _saved_by_four_bit(self) -> int:
        """Bytes of frozen weights on one GPU that load_in_4bit would save."""
        quantized = count(self.run.model_copy(update={"load_in_4bit": True}), self.config)
        saved = self.counts.bytes(trainable=False) - quantized.bytes(trainable=False)
        return saved // (self.machine.world if self.spread.stage == 3 else 1)

    def _sent(self) -> int:
        sharded = self.spread.stage == 3 and self.spread.world > 1
        gathers = gathers_of(self.run, self.config) if sharded else lambda name: 0
        accumulation = self.run.gradient_accumulation_steps
        seen = self.rule.combines
        return bytes_sent(self.counts, self.spread, self.source, gathers, accumulation=accumulation, looks_at=seen)

    def _assumptions(self) -> list[str]:
        found = [
            f"every row is {self.length} tokens long, and attention has a mask unless flash attention is asked for",
            "activations are those of the run's own step on tensors without memory, not a formula",
        ]
        if self.machine.cuda:
            context = f"{CONTEXT_BYTES / 2**20:.0f} MB of CUDA context"
            found.append(f"{context} and {100 * FRAGMENTATION:.0f} % of what comes and goes for fragmentation")
        if self.run.prompt is not None:
            found.append(f"logits at {self.answer_tokens} positions of a row: no answer has more tokens than bytes")
        if self.run.sharpness is not None:
            found.append(f"sharpness {self.run.sharpness['name']} passes each micro-batch twice: twice a step's time")
        term = make_smoothness(self.run.smoothness)
        if term is not None:
            times = f"{term.passes} times a step's time and the activations of two passes"
            found.append(f"smoothness {term.name} passes each micro-batch {term.passes} times: {times}")
        if looks_ahead(self.run):
            found.append(
                f"loss {self.run.loss['name']} sees each step ahead, without gradients: a third of its time more"
            )
        if self.run.bias_model is not None:
            name, runs = self.run.bias_model["name"], len(self.run.bias_stages())
            found.append(f"bias model {name} {blocks.table_of('bias_model')[name].costs}")
            if runs:
                found.append(f"bias model {name} trains {runs} runs before it, one after another, all of one size")
        if self.run.optim not in OPTIMIZERS:
            found.append(f"optim {self.run.optim} is taken to keep 8 bytes an element")
        return found


def held(run: RunConfig) -> bool | None:
    """Whether a `weight_projection` keeps a copy of what trains; None of no projection."""
    return None if run.weight_projection is None else run.weight_projection["towards"] == "start"


def parameters_of(counts: Counts) -> Parameters:
    """What the plan says of them."""
    four_bit = counts.elements(precision="4-bit")
    left = {
        kind: sum(s.elements for s in counts.sizes if s.kind == kind and not s.trainable and s.precision != "4-bit")
        for kind in KINDS
    }
    return Parameters(
        base=counts.base,
        active=counts.active,
        trainable=counts.elements(trainable=True),
        four_bit=four_bit,
        unquantized={kind: elements for kind, elements in left.items() if elements} if four_bit else {},
    )


def host_memory_here() -> int:
    """Bytes of this machine's memory, or of as much of it as this process's group may have."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max": none
            return min(whole, int(Path(limit).read_text(encoding="ascii")))
    return whole


def gpu_memory_here() -> int | None:
    """Bytes of this process's GPU, None without one."""
    if not torch.cuda.is_available():
        return None
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return int(torch.cuda.get_device_properties(index).total_memory)
