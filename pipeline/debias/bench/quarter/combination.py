"""Part 2: the combination on the device against the CPU, and what it costs. Shapes: N elements."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from debias.bench.combine import bench_combine, combine_setting, group_of_one, made_pieces
from debias.bench.quarter.gradients import judged
from debias.bench.quarter.session import Item, Session
from debias.engines.layout import Chunked
from debias.engines.pieces import combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.methods import Edge, Orthogonal, PCGrad, Rule
from debias.plan.payload import MODELS

RULES: tuple[Rule, ...] = (Edge(), Edge(projection="row"), Edge(projection="tensor"), Orthogonal(), PCGrad())
TOLERANCE = 1e-6


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """Equality for a few rules and for the share of one of eight ranks; then the time."""
    rules = RULES[:2] if session.rehearse else RULES
    for rule in rules:
        for ranks in (1, 8):
            share = "" if ranks == 1 else f", the share of one of {ranks} ranks"
            title = f"{rule.name}, {getattr(rule, 'projection', 'as it is')}{share}"
            yield title, functools.partial(agree, rule, ranks, session)
    model = "Qwen3-0.6B" if session.rehearse else "Qwen3-8B"
    for ranks in (1, 8):
        title = f"time for {model}'s adapters{'' if ranks == 1 else f', the share of one of {ranks} ranks'}"
        yield title, functools.partial(timed, model, ranks, session)


def agree(rule: Rule, ranks: int, session: Session) -> dict[str, Any]:
    """The relative error of the update on the device against that on the CPU, of the same gradients."""
    shape = MODELS["Qwen3-0.6B"]
    layers = 1 if session.rehearse else shape.layers
    adapters = shape.adapters(4 if session.rehearse else 16)
    shapes = {f"{layer}.{i}": torch.Size(size) for layer in range(layers) for i, size in enumerate(adapters)}
    layout = Chunked(shapes, rank=0, world=ranks, group=None)
    sizes = {name: len(piece) for name, piece in layout.pieces.items()}
    given = [made_pieces(sizes, session.seed + side, torch.device("cpu")) for side in (0, 1)]
    updates = []
    for name in dict.fromkeys(("cpu", session.device)):
        device = torch.device(name)
        with group_of_one(device):
            vectors = [{key: t.to(device, copy=True) for key, t in side.items()} for side in given]
            state = RuleState(rule, (), dict, dict)
            plan = make_plan(layout, shapes, None, device)
            combine_pieces(plan, state, vectors, [1.0], lambda summed: (0.25, 0.25))
            updates.append(torch.cat([tensor.double().cpu() for tensor in vectors[0].values()]))
    return judged(float((updates[-1] - updates[0]).norm() / updates[0].norm()), TOLERANCE)


def timed(model: str, ranks: int, session: Session) -> dict[str, Any]:
    """Seconds on the device and on one CPU core, and the floor that memory sets."""
    rounds, rank = (1, 1) if session.rehearse else (5, 16)
    found = bench_combine(combine_setting(model=model, lora_r=rank, ranks=ranks, rounds=rounds, seed=session.seed))
    return {"elements": found["elements"], "rows": found["rows"], **found["devices"]}
