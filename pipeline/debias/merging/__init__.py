"""ROOM 7: after training: edits of what was learned, and an adapter folded into its base.

A new edit is one file and one line in `EDITS`.
"""

from debias.merging.afr_last_layer import AFRLastLayer
from debias.merging.crt_last_layer import CRTLastLayer
from debias.merging.dfr_last_layer import DFRLastLayer
from debias.merging.dispel_last_layer import DISPELLastLayer
from debias.merging.edits import Edit
from debias.merging.greedy_soup import GreedySoup
from debias.merging.gsr_last_layer import GSRLastLayer
from debias.merging.model_stock import ModelStock
from debias.merging.scale import Scale
from debias.merging.soup import Soup
from debias.merging.truncate import Truncate

EDITS: dict[str, type[Edit]] = {
    edit.name: edit
    for edit in (
        Soup,
        GreedySoup,
        ModelStock,
        Truncate,
        Scale,
        AFRLastLayer,
        CRTLastLayer,
        DFRLastLayer,
        DISPELLastLayer,
        GSRLastLayer,
    )
}

__all__ = ["EDITS", "Edit"]
