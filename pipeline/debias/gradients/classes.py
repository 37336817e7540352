"""What class a module was written as."""

from torch import nn


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as its author wrote it.

    `fully_shard` (FSDP2) gives a module a class made on the spot, `FSDPLinear` of `Linear`, which has another name.
    """
    kind = type(module)
    bases = kind.__bases__
    return bases[1] if len(bases) == 2 and bases[0].__name__ == "FSDPModule" else kind
