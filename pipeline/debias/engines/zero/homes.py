"""Where each kind of DeepSpeed engine keeps reduced gradients, and how to write there so that its step sees it.

Private attributes of DeepSpeed, as of 0.19, are named in this file alone; `home_of` says so when one is missing.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from debias.engines.layout import Chunked, Flat, Layout, Replicated, Span
from debias.engines.parameters import whole_shape
from debias.engines.step_hooks import inner

Parameters = Mapping[str, nn.Parameter]


class Home(Protocol):
    """The gradients that an engine holds between its backward pass and its step."""

    # True: each backward pass is reduced to the end and taken at once, for what the engine itself accumulates is lossy.
    takes_each_pass: bool

    def layout(self, names: Parameters) -> Layout:
        """Which pieces of these parameters are this rank's."""

    def prepare(self) -> None:
        """Before a backward pass that adds to what the engine has accumulated."""

    def local(self) -> dict[str, Tensor]:
        """After a backward pass at the boundary: the mean over ranks, this rank's pieces, flat and writable."""

    def written(self) -> None:
        """After `local()` was written to: make norms and flags agree with it."""

    def clear(self) -> None:
        """Forget all gradients."""

    def skip(self) -> None:
        """The update is not finite: see to it that the engine's step changes nothing."""

    def rates(self) -> dict[str, float]:
        """The learning rate of each parameter in the step that is due."""


class _Base:
    takes_each_pass = False

    def __init__(self, engine: Any, trainable: Parameters) -> None:
        self.engine = engine
        self.optimizer = engine.optimizer
        self.trainable = dict(trainable)
        self.group: dist.ProcessGroup | None = getattr(engine, "seq_data_parallel_group", None)

    def prepare(self) -> None:
        """Nothing, for most engines."""

    def written(self) -> None:
        """Nothing, where the engine reads what was written when it steps."""

    def skip(self) -> None:
        """Nothing: the engine's own check finds what is not finite, on every rank, and skips its step."""

    def rates(self) -> dict[str, float]:
        """See `Home.rates`."""
        groups = getattr(self.optimizer, "optimizer", self.optimizer).param_groups
        names = {id(p): name for name, p in self.trainable.items()}
        held = ((p, groups[index]) for index, parameters in self._groups() for p in parameters)
        return {names[id(p)]: float(group["lr"]) for p, group in held if id(p) in names}

    def _groups(self) -> Iterable[tuple[int, Sequence[nn.Parameter]]]:
        """Parameters by the optimizer's group that steps on them, or on flat copies of them."""
        raise NotImplementedError

    def _shapes(self, names: Parameters) -> dict[str, torch.Size]:
        return {name: whole_shape(p) for name, p in names.items()}


class Whole(_Base):
    """Stage 0 without a wrapper that keeps gradients of its own: they are in `p.grad`."""

    def __init__(self, engine: Any, trainable: Parameters) -> None:
        super().__init__(engine, trainable)
        # What puts back what `skip` changed for the one step.
        self._skipping: list[Callable[[], None]] = []

    def layout(self, names: Parameters) -> Layout:
        return Replicated(self._shapes(names), self.group)

    def local(self) -> dict[str, Tensor]:
        return {name: p.grad.view(-1) for name, p in self.trainable.items() if p.grad is not None}

    def clear(self) -> None:
        for p in self.trainable.values():
            p.grad = None
        while self._skipping:
            self._skipping.pop()()

    def _groups(self) -> Iterable[tuple[int, Sequence[nn.Parameter]]]:
        plain = [group["params"] for group in self.optimizer.param_groups]
        return enumerate(getattr(self.optimizer, "fp16_groups", plain))

    def skip(self) -> None:
        if hasattr(self.optimizer, "overflow"):
            return
        # A plain torch optimizer: a parameter without gradient is left alone, moments and all. The engine must not try
        # to clip none, nor move its schedule on.
        self.clear()
        for owner, name, value in ((self.optimizer, "overflow", True), (self.engine, "clip_fp32_gradients", bool)):
            setattr(owner, name, value)
            self._skipping.append(functools.partial(delattr, owner, name))


class MasterCopies(_Base):
    """Stages 0 and 1 in bf16 with float32 accumulation (`BF16_Optimizer`): whole gradients in float32 buffers."""

    def layout(self, names: Parameters) -> Layout:
        return Replicated(self._shapes(names), self.group)

    def local(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.trainable.items()}
        groups = zip(self.optimizer.bf16_groups, self.optimizer.fp32_groups_gradients, strict=True)
        return {
            names[id(p)]: gradient.view(-1)
            for group, gradients in groups
            for p, gradient in zip(group, gradients, strict=True)
        }

    def written(self) -> None:
        # What this rank has not seen in its last pass would be left out of the norm.
        flags = self.optimizer.fp32_groups_has_gradients
        self.optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in flags]

    def clear(self) -> None:
        self.optimizer.clear_hp_grads()
        for p in self.trainable.values():
            p.grad = None

    def _groups(self) -> Iterable[tuple[int, Sequence[nn.Parameter]]]:
        return enumerate(self.optimizer.bf16_groups)


class Stretches(_Base):
    """Stages 1 and 2: each rank owns a stretch of every flat group."""

    def __init__(self, engine: Any, trainable: Parameters) -> None:
        super().__init__(engine, trainable)
        self.offload = bool(self.optimizer.cpu_offload)
        # With offload, stage 2 accumulates in the parameter's dtype, and drops what the last micro-batch did not use.
        self.takes_each_pass = self.offload and bool(self.optimizer.partition_gradients)
        self._names = {id(p): name for name, p in self.trainable.items()}

    def layout(self, names: Parameters) -> Layout:
        held = {id(p): name for name, p in names.items()}
        spans = []
        for index, group in enumerate(self.optimizer.round_robin_bit16_groups):
            offsets = self.optimizer.round_robin_bit16_offsets[index]
            known = {held[id(p)]: int(at) for p, at in zip(group, offsets, strict=True) if id(p) in held}
            spans.append(Span(known, int(self.optimizer.partition_size[index])))
        return Flat(self._shapes(names), spans, dist.get_rank(self.group), dist.get_world_size(self.group), self.group)

    def prepare(self) -> None:
        if self.offload:
            self._zero_offloaded()  # a parameter that this step does not use would keep the last step's gradient

    def local(self) -> dict[str, Tensor]:
        if self.offload:
            return {name: self._offloaded(p) for name, p in self._owned()}
        found = {}
        for index, parameters in enumerate(self.optimizer.params_in_partition):
            gradients = [g for g in self.optimizer.averaged_gradients[index] if not getattr(g, "_zero_padding", False)]
            for p, gradient in zip(parameters, gradients, strict=False):  # behind the last one there may be padding
                found[self._names[id(p)]] = gradient.view(-1)
        return found

    def written(self) -> None:
        if not self.offload:
            return
        for _, p in self._owned():
            piece = self._offloaded(p)
            self.optimizer.norm_for_param_grads[self.optimizer.get_param_id(p)] = piece.double().norm(2)
            self.optimizer.update_offload_overflow_tracker(piece)

    def clear(self) -> None:
        optimizer = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        for index in range(len(optimizer.bit16_groups)):
            optimizer.averaged_gradients[index] = None
            optimizer.all_grad_tensors[index] = None
        if self.offload:
            optimizer.norm_for_param_grads = {}
            self._zero_offloaded()
        # Or the next pass would add to what the last one left on the CPU.
        optimizer.micro_step_id = -1

    def _groups(self) -> Iterable[tuple[int, Sequence[nn.Parameter]]]:
        return enumerate(self.optimizer.round_robin_bit16_groups)

    def _owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        for parameters in self.optimizer.params_in_partition:
            for p in parameters:
                yield self._names[id(p)], p

    def _offloaded(self, parameter: nn.Parameter) -> Tensor:
        group, _, start, numel = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        flat: Tensor = self.optimizer.single_partition_of_fp32_groups[group].grad
        return flat.view(-1).narrow(0, start, numel)

    def _zero_offloaded(self) -> None:
        for partition in self.optimizer.single_partition_of_fp32_groups:
            if partition.grad is not None:
                partition.grad.zero_()


class Chunks(_Base):
    """Stage 3: each rank owns a chunk of every parameter, in one flat buffer."""

    PARTITIONS = "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition"

    def __init__(self, engine: Any, trainable: Parameters) -> None:
        super().__init__(engine, trainable)
        self.offload = bool(self.optimizer.offload_optimizer)
        self._partitions: dict[int, Tensor] = getattr(self.optimizer, self.PARTITIONS)
        self.clear()

    def layout(self, names: Parameters) -> Layout:
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        return Chunked(self._shapes(names), rank, world, self.group)

    def prepare(self) -> None:
        # Above 0 a pass adds to the buffer, which we keep at zero between steps; at 0 it would overwrite, and a
        # parameter that this pass does not use would keep the gradient of an earlier one.
        self.optimizer.micro_step_id = 1

    def local(self) -> dict[str, Tensor]:
        pieces = self.layout(self.trainable).pieces
        return {name: self._partition(self.trainable[name])[: len(piece)] for name, piece in pieces.items()}

    def written(self) -> None:
        if self.offload:
            for p in self.trainable.values():
                # The one setter that also refreshes the norm that clipping uses.
                self.optimizer.set_local_grad_for_param(self._partition(p), p)

    def clear(self) -> None:
        self.optimizer.grad_partitions_flat_buffer.zero_()
        self.optimizer.zero_grad(set_to_none=True)

    def _groups(self) -> Iterable[tuple[int, Sequence[nn.Parameter]]]:
        parts = enumerate(self.optimizer.fp16_groups)
        return [(self.optimizer.sub_group_to_group_id[index], parameters) for index, parameters in parts]

    def _partition(self, parameter: Any) -> Tensor:
        return self._partitions[parameter.ds_id]


def home_of(engine: Any, trainable: Parameters) -> Home:
    """The home of this engine's gradients; ValueError where this DeepSpeed keeps them somewhere unknown."""
    kinds: dict[str, type[Whole | MasterCopies | Stretches | Chunks]] = {
        "DeepSpeedZeroOptimizer_Stage3": Chunks,
        "DeepSpeedZeroOptimizer": Stretches,
        "BF16_Optimizer": MasterCopies,
    }
    kind = type(engine.optimizer).__name__
    stage = int(engine.zero_optimization_stage())
    home = kinds.get(kind, Whole if stage == 0 else None)
    if home is None:
        raise ValueError(f"zero_optimization: stage {stage} with {kind} is not supported")
    try:
        return home(engine, trainable)
    except AttributeError as error:
        raise ValueError(f"this DeepSpeed keeps gradients of {kind} elsewhere ({error}); 0.19 is known") from error


@contextmanager
def at_boundary(engine: Any) -> Iterator[None]:
    """Inside, a backward pass is reduced as if it were the last of its step."""
    before = engine._is_gradient_accumulation_boundary
    engine.set_gradient_accumulation_boundary(True)
    try:
        yield
    finally:
        engine._is_gradient_accumulation_boundary = before
        if hasattr(engine.optimizer, "set_gradient_accumulation_boundary"):
            engine.optimizer.set_gradient_accumulation_boundary(engine.is_gradient_accumulation_boundary())


@contextmanager
def left_out(engine: Any) -> Iterator[None]:
    """Inside, a step of the engine is all but that of its optimizer: no weight moves, no moment, and no count."""
    optimizer = inner(engine.optimizer)
    had, before = "step" in vars(optimizer), optimizer.step
    optimizer.step = lambda *_, **__: None
    try:
        yield
    finally:
        if had:
            optimizer.step = before
        else:
            del optimizer.step
        if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
            engine.optimizer._hp_optimizer_states_linked = False  # to a state that may not be there yet


def rewind(engine: Any) -> Callable[[], None]:
    """What makes an engine ready to run a graph again, as if its forward pass had just ended.

    Take it before a backward pass whose graph is kept, and call it before the next one. Stage 3 counts on each module
    what a backward pass has still to fetch; stages 1 and 2 would take the next forward pass for that of another step.
    """
    names = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
    modules = [vars(module) for module in engine.module.modules()]
    counts = [{name: module[name] for name in names if name in module} for module in modules]

    def again() -> None:
        for module, before in zip(modules, counts, strict=True):
            module.update(before)
        if hasattr(engine.optimizer, "clear_backward_seen_flag"):
            engine.optimizer.clear_backward_seen_flag()
        if int(engine.zero_optimization_stage()) == 3:
            forget_fetch_order(engine)

    return again


def forget_fetch_order(engine: Any) -> None:
    """Stage 3 fetches in the order that it recorded, and fails when a layer reads other parameters than before."""
    coordinator = engine.optimizer._get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
