"""The groups of training examples that nobody told: inferred once, and kept in the run's folder."""

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from debias.building.idle_settings import reads_inferred_groups
from debias.config.run import RunConfig
from debias.grouping import Inferred, make_grouping
from debias.runs.names import BIAS
from debias.runs.whole import write_whole

logger = logging.getLogger(__name__)
FILE = "inferred_groups.npz"


class InferredGroups:
    """The groups of the `groups:` block of a run, which lie in its folder once it is open."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir) / BIAS / FILE
        self._digest = ""  # of what groups were inferred already
        self._found: Inferred | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is such a block, and the loss or the order reads its groups."""
        return self.config.groups is not None and reads_inferred_groups(self.config)

    def put(self, facts: dict[str, Tensor], *, writes: bool) -> None:
        """Put the groups into the facts of the training examples; nothing where they are not `wanted`: then nobody may
        have been asked.

        They are a function of `bias_log_p`, the labels and the seed. Who `writes` keeps them in the run's folder, where
        others, and the run gone on with, find them.
        """
        config = self.config
        if config.groups is None or not self.wanted:
            return
        log_p_NC, label_N = facts["bias_log_p"].double().numpy(), facts["labels"].numpy()
        told = repr((config.groups, config.seed, config.data.labels)).encode("utf-8", "surrogateescape")
        digest = hashlib.sha256(told + log_p_NC.tobytes() + label_N.tobytes()).hexdigest()
        kept = _kept(self.path, digest)
        found = kept or (self._found if self._digest == digest else None)
        if found is None:
            found = make_grouping(config.groups).infer(log_p_NC, label_N, config.data.labels, config.seed)
        if writes and kept is None:
            _keep(self.path, found, digest)
        if self._digest != digest:
            _say(config.groups["name"], found, label_N)
        self._digest, self._found = digest, found
        facts["group"] = torch.from_numpy(found.group_N)
        if found.draw_weight_N is not None:
            facts["draw_weight"] = torch.from_numpy(found.draw_weight_N)


def _say(name: str, found: Inferred, label_N: np.ndarray) -> None:
    sizes_G = np.bincount(found.group_N)
    listed = ", ".join(f"{group} ({size})" for group, size in zip(found.names, sizes_G.tolist(), strict=True))
    logger.info("groups by %s: %s", name, listed)
    pairs = set(zip(label_N.tolist(), found.group_N.tolist(), strict=True))
    if len(pairs) == len(np.unique(label_N)):
        logger.warning("groups by %s: no label is in two of them: they say no more than labels do", name)


def _kept(path: Path, digest: str) -> Inferred | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            if str(held["digest"]) != digest:
                return None
            return Inferred(held["group"], tuple(held["names"].tolist()), held.get("draw_weight"))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _keep(path: Path, found: Inferred, digest: str) -> None:
    buffer = BytesIO()
    held: dict[str, Any] = {"group": found.group_N, "names": np.array(found.names), "digest": np.array(digest)}
    if found.draw_weight_N is not None:
        held["draw_weight"] = found.draw_weight_N
    np.savez(buffer, **held)
    write_whole(path, buffer.getvalue())
