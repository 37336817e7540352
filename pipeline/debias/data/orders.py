"""The table of orders of the data."""

from collections.abc import Mapping
from typing import Any

from debias.config.blocks import make
from debias.data.disagreement import Disagreement
from debias.data.expanding import Expanding
from debias.data.order import Order, Shuffled
from debias.data.resampled import Resampled
from debias.data.spare_sampled import SpareSampled
from debias.data.upsampled import Upsampled

ORDERS: dict[str, type[Order]] = {
    order.name: order for order in (Shuffled, Resampled, Upsampled, Disagreement, SpareSampled, Expanding)
}


def make_order(block: str | Mapping[str, Any]) -> Order:
    """The order of an `order:` block. ValueError names a wrong setting."""
    return make("order", ORDERS, block)
