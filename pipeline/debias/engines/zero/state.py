"""What a DeepSpeed run needs to go on: float32 weights and optimizer state, whole, so that any world size can load it.

Adapters are small: saved whole they cost little, and the number of ranks, the stage and the partition layout may all be
others when the run is resumed. Everything is copied bit for bit.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from debias.engines.layout import Layout, Piece
from debias.engines.parameters import whole_shape
from debias.engines.reduce import BUCKET_ELEMENTS
from debias.engines.zero.homes import Chunks, Home, MasterCopies, Stretches, Whole, home_of

TENSORS, STATE = "zero_tensors.safetensors", "zero_state.json"
WEIGHT = "weight"  # beside the optimizer's own names (exp_avg, ...)
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Master:
    """One float32 tensor that the optimizer steps on, and where in it this rank's pieces of parameters lie."""

    tensor: Tensor
    held: Mapping[str, tuple[int, Piece]]

    def views(self, flat: Tensor) -> Iterator[tuple[str, Piece, Tensor]]:
        """The pieces as they lie in `flat`, a tensor of the master's size."""
        for name, (start, piece) in self.held.items():
            yield name, piece, flat.view(-1)[start : start + len(piece)]


def trainable_of(engine: Any) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def masters_of(engine: Any, home: Home) -> list[Master]:
    """The float32 tensors that this engine's optimizer steps on."""
    optimizer, trainable = engine.optimizer, trainable_of(engine)
    names = {id(p): name for name, p in trainable.items()}
    pieces = home.layout(trainable).pieces
    if isinstance(home, Chunks):
        return _chunked(optimizer, names, pieces)
    if isinstance(home, Stretches):
        return _stretched(optimizer, names, pieces)
    if isinstance(home, MasterCopies):
        return _copied(optimizer, names)
    groups = getattr(optimizer, "fp16_groups", None)
    if groups is None:  # a plain torch optimizer steps on the parameters themselves
        return [Master(p, {name: (0, Piece(0, p.numel()))}) for name, p in trainable.items()]
    if hasattr(optimizer, "fp32_groups_flat"):
        return [_in_order(flat, group, names) for flat, group in zip(optimizer.fp32_groups_flat, groups, strict=True)]
    pairs = zip(groups, optimizer.fp32_groups, strict=True)
    return [_in_order(copy, [p], names) for group, copies in pairs for p, copy in zip(group, copies, strict=True)]


def _chunked(optimizer: Any, names: Mapping[int, str], pieces: Mapping[str, Piece]) -> list[Master]:
    masters = []
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        held, at = {}, 0
        for p in group:
            if names[id(p)] in pieces:
                held[names[id(p)]] = (at, pieces[names[id(p)]])
            at += p.partition_numel()
        masters.append(Master(flat, held))
    return masters


def _stretched(optimizer: Any, names: Mapping[int, str], pieces: Mapping[str, Piece]) -> list[Master]:
    masters = []
    for index, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        first = dist.get_rank(optimizer.dp_process_group) * int(optimizer.partition_size[index])
        group = zip(optimizer.round_robin_bit16_groups[index], optimizer.round_robin_bit16_offsets[index], strict=True)
        offsets = {names[id(p)]: int(at) for p, at in group if names[id(p)] in pieces}
        held = {name: (at + pieces[name].start - first, pieces[name]) for name, at in offsets.items()}
        masters.append(Master(flat, held))
    return masters


def _copied(optimizer: Any, names: Mapping[int, str]) -> list[Master]:
    masters = []
    for group, flat in zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True):
        first, held, at = optimizer.dp_rank * flat.numel(), {}, 0
        for p in group:
            start, stop = max(at, first), min(at + p.numel(), first + flat.numel())
            if start < stop:
                held[names[id(p)]] = (start - first, Piece(start - at, stop - at))
            at += p.numel()
        masters.append(Master(flat, held))
    return masters


def _in_order(flat: Tensor, group: Sequence[nn.Parameter], names: Mapping[int, str]) -> Master:
    held, at = {}, 0
    for p in group:
        held[names[id(p)]] = (at, Piece(0, p.numel()))
        at += p.numel()
    return Master(flat, held)


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The float32 weights of everything that trains, on every rank's CPU; collective."""
    home = home_of(engine, trainable_of(engine))
    masters = masters_of(engine, home)
    return _whole(engine, home, masters, {id(m.tensor): m.tensor for m in masters})


def local_weights(engine: Any, home: Home, masters: Sequence[Master], names: Collection[str]) -> dict[str, Tensor]:
    """The float32 weights of these parameters now, flat: where this rank's pieces of the gradients lie.

    Collective where the engine keeps gradients whole and weights in pieces (bf16 with float32 sums, stages 0 and 1).
    """
    if isinstance(home, MasterCopies):
        whole = _whole(engine, home, masters, {id(m.tensor): m.tensor for m in masters}, engine.device)
        return {name: whole[name].view(-1) for name in names}
    views = (view for master in masters for view in master.views(master.tensor.data))
    return {name: view.float() for name, _, view in views if name in names}


def gathered(
    pieces: Mapping[str, Tensor], layout: Layout, shapes: Mapping[str, torch.Size], engine: Any
) -> dict[str, Tensor]:
    """Whole float32 tensors, on every rank's CPU, of what lies in pieces as gradients do; collective."""
    group = getattr(engine, "seq_data_parallel_group", None)
    mine = {name: (layout.pieces[name], piece) for name, piece in pieces.items()}
    return joined(mine if layout.sharded or dist.get_rank(group) == 0 else {}, shapes, engine, torch.device("cpu"))


def save_state(engine: Any, folder: Path, skipped: int) -> None:
    """Write weights, optimizer state, loss scale and counters to `folder`; collective, rank 0 writes.

    `skipped`: how many steps the run has skipped so far.
    """
    home = home_of(engine, trainable_of(engine))
    masters = masters_of(engine, home)
    states = _states(engine, masters)
    keys = sorted(
        {key for state in states for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
    )
    tensors = {}
    for key in (WEIGHT, *keys):
        flats = {id(m.tensor): m.tensor if key == WEIGHT else s[key] for m, s in zip(masters, states, strict=True)}
        for name, tensor in _whole(engine, home, masters, flats).items():
            tensors[f"{name}/{key}"] = tensor
    if dist.get_rank() == 0:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(folder / TENSORS))
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        described = {
            "keys": keys,
            "scalars": _scalars(states),
            "groups": [_settings(group) for group in _base(engine).param_groups],
            "loss_scaler": {name: getattr(scaler, name) for name in SCALER if hasattr(scaler, name)},
            "global_steps": engine.global_steps,
            "skipped_steps": engine.skipped_steps,
            "global_samples": engine.global_samples,
            "hook_skipped": skipped,
        }
        (folder / STATE).write_text(json.dumps(described, indent=2), encoding="utf-8")


def load_state(engine: Any, folder: Path) -> int:
    """Put back what `save_state` wrote, at whatever world size and stage; collective. Returns the skipped steps.

    Raises ValueError, naming the tensor, if the folder holds other parameters than the engine trains.
    """
    from safetensors import safe_open

    described = json.loads((folder / STATE).read_text(encoding="utf-8"))
    home = home_of(engine, trainable_of(engine))
    masters = masters_of(engine, home)
    with safe_open(str(folder / TENSORS), framework="pt") as file:
        _check_names(engine, set(file.keys()), folder)
        for master, state in zip(masters, _states(engine, masters), strict=True):
            for name, piece, view in master.views(master.tensor.data):
                view.copy_(file.get_tensor(f"{name}/{WEIGHT}").view(-1)[piece.start : piece.stop])
            for key in described["keys"]:
                flat = state.setdefault(key, torch.zeros_like(master.tensor))
                for name, piece, view in master.views(flat):
                    view.copy_(file.get_tensor(f"{name}/{key}").view(-1)[piece.start : piece.stop])
            for key, (kind, value) in described["scalars"].items():
                state[key] = torch.tensor(float(value)) if kind == "tensor" else value
        _refresh(engine, home, file)
    # The learning rate of the next step lies here: a scheduler that is loaded does not set it.
    for group, settings in zip(_base(engine).param_groups, described["groups"], strict=True):
        group.update(settings)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in described["loss_scaler"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    for name in ("global_steps", "skipped_steps", "global_samples"):
        setattr(engine, name, described[name])
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    return int(described["hook_skipped"])


def _states(engine: Any, masters: Sequence[Master]) -> list[dict[str, Any]]:
    """The optimizer's own state of each master; made where it does not exist yet."""
    optimizer = _base(engine)
    own = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    data = {p.data_ptr(): p for p in own.values() if p.numel()}  # a plain optimizer's keys are the parameters
    keys = [own.get(id(m.tensor), data.get(m.tensor.data_ptr(), m.tensor)) for m in masters]
    return [optimizer.state[key] for key in keys]


def _base(engine: Any) -> Any:
    """The torch optimizer inside DeepSpeed's wrapper, if there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Learning rate, betas and the like of a parameter group."""
    return {key: value for key, value in group.items() if isinstance(value, int | float | bool | tuple | None)}


def _scalars(states: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for state in states:
        for key, value in state.items():
            if isinstance(value, Tensor) and not value.dim():
                found[key] = ("tensor", float(value))
            elif isinstance(value, int | float):
                found[key] = ("number", value)
    return found


def _whole(
    engine: Any,
    home: Home,
    masters: Sequence[Master],
    flats: Mapping[int, Tensor],
    device: torch.device = torch.device("cpu"),  # noqa: B008 (it cannot be changed)
) -> dict[str, Tensor]:
    """Each parameter put together from all ranks' pieces, on that device."""
    sharded = not isinstance(home, Whole)  # otherwise every rank has everything, and one of them is enough
    group = getattr(engine, "seq_data_parallel_group", None)
    mine: dict[str, tuple[Piece, Tensor]] = {}
    for master in masters if sharded or dist.get_rank(group) == 0 else ():
        mine |= {name: (piece, view) for name, piece, view in master.views(flats[id(master.tensor)].data)}
    return joined(mine, {name: whole_shape(p) for name, p in trainable_of(engine).items()}, engine, device)


def joined(
    mine: Mapping[str, tuple[Piece, Tensor]], shapes: Mapping[str, torch.Size], engine: Any, device: torch.device
) -> dict[str, Tensor]:
    """Whole tensors of these shapes, each element from the one rank that has it in `mine`."""
    whole: dict[str, Tensor] = {}
    for names in _buckets(shapes):
        flat = torch.zeros(sum(shapes[n].numel() for n in names), dtype=torch.float32, device=engine.device)
        parts = dict(zip(names, flat.split([shapes[n].numel() for n in names]), strict=True))
        for name in (n for n in names if n in mine):
            piece, view = mine[name]
            parts[name][piece.start : piece.stop] = view.to(flat.device, torch.float32)
        # As integers: adding zeros then keeps every bit, the sign of a zero too.
        dist.all_reduce(flat.view(torch.int32), group=getattr(engine, "seq_data_parallel_group", None))
        whole |= {name: part.view(shapes[name]).to(device, copy=True) for name, part in parts.items()}
    return whole


def _buckets(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    bucket: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if bucket and size + shape.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(name)
        size += shape.numel()
    if bucket:
        yield bucket


def _check_names(engine: Any, keys: set[str], folder: Path) -> None:
    saved = {key.rpartition("/")[0] for key in keys}
    if odd := sorted(saved ^ set(trainable_of(engine))):
        where = "the checkpoint" if odd[0] in saved else "the model"
        raise ValueError(f"{folder}: {odd[0]} is only in {where} ({len(odd)} tensors differ)")


def _refresh(engine: Any, home: Home, file: Any) -> None:
    """Make the weights that the forward pass uses those of the masters."""
    optimizer = engine.optimizer
    if isinstance(home, Chunks):
        for name, p in trainable_of(engine).items():
            _set_sharded(p, file.get_tensor(f"{name}/{WEIGHT}"))
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif isinstance(home, MasterCopies | Stretches):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp16_groups"):
        with torch.no_grad():
            for name, p in trainable_of(engine).items():
                p.copy_(file.get_tensor(f"{name}/{WEIGHT}"))


def _set_sharded(parameter: Any, value: Tensor) -> None:
    """Stage 3, on every rank with the same value: no broadcast is needed."""
    parameter.all_gather()
    parameter.data.copy_(value)
    parameter.partition(has_been_updated=True)
