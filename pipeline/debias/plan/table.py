"""A plan as a table for people."""

from typing import Any

from debias.plan.sheet import Plan

GB = 1e9


def table_of(plan: Plan) -> Any:
    """A `rich` table: parameters, bytes by part, communication, steps, disk and hours."""
    from rich.table import Table

    table = Table(title=title_of(plan), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in [*_parameters(plan), *_bytes(plan), *_communication(plan), *_effort(plan)]:
        table.add_row(name, value)
    return table


def title_of(plan: Plan) -> str:
    """One line: what is planned."""
    where = f"{plan.nodes} node(s) x {plan.gpus} GPU(s)" if plan.gpus else f"{plan.nodes} process(es) on CPUs"
    stage = "" if plan.stage is None else f", ZeRO stage {plan.stage}"
    return f"{plan.model}: {plan.micro_batch} x {plan.length} tokens on each of {where}{stage}, {plan.gradients}"


def verdict_of(plan: Plan) -> list[str]:
    """Whether it fits, what to change, what was assumed: one line each."""
    lines = []
    if plan.unknown is not None:
        lines.append(f"not known {plan.unknown}")
    if plan.gpu_memory is None:
        lines.append("give --gpu-memory (for example 24GB) for a verdict")
    elif plan.unknown is not None:
        says = "DOES NOT FIT: at least" if plan.fits is False else "at least"
        lines.append(f"{says} {plan.total / GB:.2f} of {plan.gpu_memory / GB:.2f} GB, and what is not known")
    else:
        says = "fits" if plan.total <= plan.gpu_memory else "DOES NOT FIT"
        lines.append(f"{says}: {plan.total / GB:.2f} of {plan.gpu_memory / GB:.2f} GB; {_largest(plan)}")
    lines += [f"advice: {sentence}" for sentence in plan.advice]
    lines += [f"assumed: {sentence}" for sentence in plan.assumptions]
    if plan.before is None:
        return lines
    # What the two have in common was said above.
    return [*lines, *(f"first stage: {line}" for line in verdict_of(plan.before) if line not in lines)]


def _largest(plan: Plan) -> str:
    if plan.largest_micro_batch:
        return f"the largest micro-batch that fits is {plan.largest_micro_batch}"
    return "not even a micro-batch of 1 fits"


def _parameters(plan: Plan) -> list[tuple[str, str]]:
    found = plan.parameters
    rows = [("parameters", f"{found.base:,}")]
    if found.active != found.base:
        rows.append(("used for one token", f"{found.active:,}"))
    rows.append(("trained", f"{found.trainable:,}"))
    if found.four_bit:
        rows.append(("4-bit", f"{found.four_bit:,}"))
        rows += [(f"not 4-bit: {kind}", f"{elements:,}") for kind, elements in found.unquantized.items()]
    return rows


def _bytes(plan: Plan) -> list[tuple[str, str]]:
    rows = [(name, f"{size / GB:.3f} GB") for name, size in plan.parts.items()]
    what = "a GPU" if plan.gpus else "a process"
    least = "" if plan.unknown is None else "at least "
    rows.append((f"{what} at its peak ({plan.moment})", f"{least}{plan.total / GB:.3f} GB"))
    if plan.before is not None:
        rows.append((f"{what} at the first stage's peak ({plan.before.moment})", f"{plan.before.total / GB:.3f} GB"))
    if plan.host:
        rows.append(("host memory of a rank", f"{plan.host / GB:.3f} GB"))
    return rows


def _communication(plan: Plan) -> list[tuple[str, str]]:
    several = max(plan.gpus, 1) * plan.nodes > 1 and plan.unknown is None
    return [("sent by a rank in a step", f"{plan.sent / GB:.3f} GB")] if several else []


def _effort(plan: Plan) -> list[tuple[str, str]]:
    found = plan.effort
    if found is None:
        return []
    named = {
        "steps": found.steps,
        "tokens in training": found.tokens,
        "tokens in runs before it": found.tokens_before,
        "tokens of the bias model's pass": found.tokens_asked,
        "tokens of validations": found.tokens_validated,
    }
    rows = [(name, f"{number:,}") for name, number in named.items() if number]
    if found.kept is not None:
        rows.append(("rows and tokens kept on disk, at most", f"{found.kept / GB:.3f} GB"))
    if found.hours is not None and found.tokens_validated is None:
        rows.append(("hours of training, at most; validations come on top", f"{found.hours:,.2f}"))
    elif found.hours is not None:
        rows.append(("hours, at most", f"{found.hours:,.2f}"))
    return rows
