"""Part 2: the combination on the device against the CPU, by plain torch and by Triton kernels, and what it costs.

Shapes: K parameters of O rows and I columns, N elements.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from debias.bench.combine import bench_combine, combine_setting, group_of_one, made_pieces, ways
from debias.bench.quarter.gradients import judged
from debias.bench.quarter.session import Item, Session
from debias.engines.layout import Chunked
from debias.engines.pieces import combine_pieces, make_plan
from debias.engines.rule_state import RuleState
from debias.methods import Edge, Orthogonal, PCGrad, Rule, fused, gram_of_rows, write_update
from debias.plan.payload import MODELS

RULES: tuple[Rule, ...] = (Edge(), Edge(projection="row"), Edge(projection="tensor"), Orthogonal(), PCGrad())
TOLERANCE = 1e-6
# Of each pass alone: dtype, vectors, [K, O, I]. Few, for each kind is compiled: short rows, long ones, one that is cut.
PASSES: tuple[tuple[torch.dtype, int, tuple[int, int, int]], ...] = (
    (torch.float32, 2, (3, 5, 1)),
    (torch.float32, 2, (2, 300, 8)),
    (torch.float32, 2, (4, 16, 4096)),
    (torch.float32, 2, (1, 1, 1_000_003)),
    (torch.float32, 3, (2, 7, 1025)),
    (torch.bfloat16, 2, (2, 300, 16)),
    (torch.float16, 2, (2, 7, 1025)),
)
TOLERANCE_GRAM = 1e-13  # of sums of a million terms, in another order


def items(session: Session, left: Callable[[], float]) -> Iterator[Item]:
    """Equality of the passes, for a few rules and for the share of one of eight ranks; then the time."""
    for dtype, count, shape in PASSES:
        title = f"Gram and update of {count} x {list(shape)}, {str(dtype).removeprefix('torch.')}"
        yield title, functools.partial(passes_agree, dtype, count, shape, session)
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
    """The relative errors of the update, by each way of the device, against that on the CPU; of the same gradients."""
    shape = MODELS["Qwen3-0.6B"]
    layers = 1 if session.rehearse else shape.layers
    adapters = shape.adapters(4 if session.rehearse else 16)
    shapes = {f"{layer}.{i}": torch.Size(size) for layer in range(layers) for i, size in enumerate(adapters)}
    layout = Chunked(shapes, rank=0, world=ranks, group=None)
    sizes = {name: len(piece) for name, piece in layout.pieces.items()}
    given = [made_pieces(sizes, session.seed + side, torch.device("cpu")) for side in (0, 1)]
    updates: dict[str, Tensor] = {}
    for way, (device, by_kernels) in {**ways("cpu"), **ways(session.device)}.items():
        with group_of_one(device), fused.made_by(by_kernels):
            vectors = [{key: t.to(device, copy=True) for key, t in side.items()} for side in given]
            state = RuleState(rule, (), dict, dict)
            plan = make_plan(layout, shapes, None, device)
            combine_pieces(plan, state, vectors, [1.0], lambda summed: (0.25, 0.25))
            updates[way] = torch.cat([tensor.double().cpu() for tensor in vectors[0].values()])
    want = updates["cpu"]
    errors = {way: float((got - want).norm() / want.norm()) for way, got in updates.items()}
    return {**judged(_largest(errors), TOLERANCE), "by": errors}


def passes_agree(dtype: torch.dtype, count: int, shape: tuple[int, int, int], session: Session) -> dict[str, Any]:
    """The Gram, the update and how many of its elements are other numbers than the CPU's; views at an odd place."""
    size = math.prod(shape)
    generator = torch.Generator().manual_seed(session.seed)
    given = [torch.randn(3 + size, generator=generator).to(dtype) for _ in range(count)]
    coefficients = [torch.randn(shape[:2], generator=generator, dtype=torch.float64) for _ in range(count)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for way, (device, by_kernels) in {**ways("cpu"), **ways(session.device)}.items():
        views_KOI = [flat_N.to(device, copy=True)[3:].view(shape) for flat_N in given]
        with fused.made_by(by_kernels):
            gram_KOG = gram_of_rows(*views_KOI)
            write_update([x_KO.to(device) for x_KO in coefficients], views_KOI)
        found[way] = gram_KOG.cpu(), views_KOI[0].cpu()
    lengths_KOG = gram_of_rows(*(flat_N[3:].view(shape).abs() for flat_N in given))
    want_KOG, want_KOI = found["cpu"]
    errors = {way: float(((gram_KOG - want_KOG).abs() / lengths_KOG).max()) for way, (gram_KOG, _) in found.items()}
    ulps = {way: float(_relative(got_KOI, want_KOI) / torch.finfo(dtype).eps) for way, (_, got_KOI) in found.items()}
    unequal = {way: int((got_KOI != want_KOI).sum()) for way, (_, got_KOI) in found.items()}
    verdict = judged(_largest(errors), TOLERANCE_GRAM)
    verdict["ok"] = verdict["ok"] and _largest(ulps) <= 1
    return {**verdict, "gram": errors, "update_norm_in_eps": ulps, "unequal_elements": unequal}


def _relative(got: Tensor, want: Tensor) -> Tensor:
    return (got.double() - want.double()).norm() / want.double().norm()


def _largest(errors: Mapping[str, float]) -> float:
    return float(torch.tensor(list(errors.values()), dtype=torch.float64).max())  # NaN, where one is


def timed(model: str, ranks: int, session: Session) -> dict[str, Any]:
    """Seconds on the device and on one CPU core, and the floor that memory sets."""
    rounds, rank = (1, 1) if session.rehearse else (5, 16)
    found = bench_combine(combine_setting(model=model, lora_r=rank, ranks=ranks, rounds=rounds, seed=session.seed))
    item = {"elements": found["elements"], "rows": found["rows"], **found["devices"]}
    if found["left_out"]:
        item["left_out"] = "; ".join(f"{way}: {why}" for way, why in found["left_out"].items())
    return item
