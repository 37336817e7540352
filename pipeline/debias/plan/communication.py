"""What one rank sends in an optimizer step, by the ring algorithm. Formulas as in `zero_cost`, for any architecture.

The sizes of `zero_cost` come from a table of dense shapes; here they come from the counted tensors. With checkpointing
a layer's weights are gathered once more; each micro-batch of a step gathers and reduces for itself.
"""

from debias.plan.count import Counts
from debias.plan.memory import Sharding
from debias.zero_cost import BIAS_WIDTH, GRAM_BYTES, sent_bytes


def bytes_sent(
    counts: Counts, spread: Sharding, source: str, *, accumulation: int = 1, checkpointing: bool = False
) -> int:
    """Bytes that one rank sends in a step; 0 for a rank alone."""
    if spread.world == 1:
        return 0
    return round(sent_bytes(_payload(counts, spread, source, accumulation, checkpointing), spread.world))


def _payload(counts: Counts, spread: Sharding, source: str, accumulation: int, checkpointing: bool) -> dict[str, int]:
    trained, selected = counts.bytes(trainable=True), counts.elements(selected=True)
    passes = (2 if source in ("two_pass", "shared_forward") else 1) * (accumulation if (spread.stage or 0) >= 2 else 1)
    bias = BIAS_WIDTH * selected if source == "single_pass" else 0
    grams = 0 if source == "plain" else GRAM_BYTES * rows(counts)
    if not spread.stage:  # whole gradients, once a step
        own = bias or (0 if source == "plain" else trained)
        return {"all_reduce": trained + own + (grams if spread.stage == 0 else 0)}
    if spread.stage < 3:
        return {"all_reduce": passes * trained + grams, "all_gather": trained, "reduce_scatter": bias}
    forwards = 2 if source == "two_pass" else 1
    uses = forwards * accumulation * (3 if checkpointing else 2)
    gathered = sum(size.bytes for size in counts.sizes if size.stored >= spread.persistence)
    return {"reduce_scatter": passes * trained + bias, "all_gather": uses * gathered, "all_reduce": grams}


def rows(counts: Counts) -> int:
    """How many rows the rule acts on: a Gram each."""
    return sum(size.rows for size in counts.sizes if size.selected)
