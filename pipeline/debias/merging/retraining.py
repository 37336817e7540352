"""The last layer of an adapter through an edit that fits it to rows. Shapes: N rows, C labels, D what it is given."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from debias.errors import InputError
from debias.merging.changes import Adapter
from debias.merging.edits import Edit, LastLayer

logger = logging.getLogger(__name__)
# What the layer of this name is given of rows held out, by the adapter in a folder [N, D], their labels [N], and their
# groups [N] as numbers, None where a row has none. With `training=True` of the rows that its run was trained on.
LayerInputs = Callable[..., tuple[Any, Any, Any]]


def retrained(
    edit: Edit, adapter: Adapter, layer_inputs: LayerInputs | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the adapter trained whole, its last layer retrained; and how that does on the rows it was fitted to.

    InputError where it trained no last layer, and for rows without the groups that the edit reads.
    """
    if layer_inputs is None:
        raise InputError(f"edit: {edit.name} fits the last layer to rows held out; give it these")
    weights = [name for name, one in adapter.whole.items() if name.endswith(".weight") and one.ndim == 2]
    if not weights:
        raise InputError(
            f"adapter: {adapter.folder} trained no last layer whole, as adapters of classifiers do; there is"
            f" nothing that {edit.name} could retrain"
        )
    layer = min(weights, key=lambda name: len(adapter.whole[name])).removesuffix(".weight")
    weight_CD, bias_C = adapter.whole[f"{layer}.weight"], adapter.whole.get(f"{layer}.bias")
    which = {"training": True} if edit.fits_training_rows else {}
    inputs, labels, groups = layer_inputs(adapter.folder, layer, **which)
    if edit.reads_groups and groups is None:
        raise InputError(
            f"edit: {edit.name} reads groups, and a row held out has none; data.group_field of the run is the column"
            " that has them"
        )
    last = LastLayer(
        torch.as_tensor(inputs).double(),
        torch.as_tensor(labels).long(),
        weight_CD.double(),
        None if bias_C is None else bias_C.double(),
        torch.as_tensor(groups).long() if edit.reads_groups else None,
    )
    made = edit.retrained(last)
    whole = {**adapter.whole, f"{layer}.weight": made.weight_CD.to(weight_CD.dtype)}
    if made.bias_C is not None:
        whole[f"{layer}.bias"] = made.bias_C.to(weight_CD.dtype)
    return whole, _on_its_rows(edit, last, made)


def _on_its_rows(edit: Edit, before: LastLayer, after: LastLayer) -> dict[str, float]:
    """For the record; said, with a warning where nothing is better for it."""
    told = (edit.name, 100 * before.right, len(before.label_N), 100 * after.right)
    logger.info("%s: right on %.1f %% of %d rows before, on %.1f %% after", *told)
    found = {"count": len(before.label_N), "right_before": before.right, "right_after": after.right, **after.told}
    if edit.balances:
        means = (100 * before.balanced, 100 * after.balanced)
        logger.info("%s: in the mean over labels right on %.1f %%, on %.1f %% after", edit.name, *means)
        return {**found, "balanced_before": before.balanced, "balanced_after": after.balanced}
    if not edit.reads_groups:
        _warn_of_wrong(edit, after)
        return found
    told = (edit.name, 100 * before.worst, len(before.cell_sizes_K), 100 * after.worst)
    logger.info(
        "%s: right in the worst of the pairs of label and group on %.1f %% (of %d pairs), on %.1f %% after", *told
    )
    if after.worst <= before.worst:
        logger.warning("WARNING: %s: the worst pair of label and group is no better for it, on its own rows", edit.name)
    return {**found, "worst_before": before.worst, "worst_after": after.worst}


def _warn_of_wrong(edit: Edit, after: LastLayer) -> None:
    """Where one label for all would do better."""
    most = float(torch.bincount(after.label_N).max()) / len(after.label_N)
    if after.right < most:
        logger.warning(
            "WARNING: %s: the last layer is right on %.1f %% of its own rows now, the most frequent label would be on"
            " %.1f %%: it has learned to be wrong; take a smaller gamma",
            edit.name,
            100 * after.right,
            100 * most,
        )
