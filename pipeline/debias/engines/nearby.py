"""A model's answers near what it reads: a term that is added to each sample's loss. Shapes: B samples, C labels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines.random_state import gpus_of, random_state, set_random_state
from debias.readouts import Readout
from debias.readouts.router import router_loss_of
from debias.readouts.said import Said
from debias.smoothness import SMART, Smoothness

PIXELS = "pixel_values"
NARROW = (torch.bfloat16, torch.float16)


def refuse_nearby(name: str, *, deepspeed: bool, bf16: bool, reentrant: bool = False) -> None:
    """ValueError, in one line, where a trainer has what `smoothness` of that name cannot go with."""
    if reentrant and name == SMART.name:
        raise ValueError(
            f"smoothness {name} takes a gradient by what the model reads, which reentrant checkpointing does not give;"
            " checkpoint with use_reentrant=False"
        )
    if deepspeed:
        raise ValueError(f"smoothness {name} has not been tried with DeepSpeed; remove one of the two")
    if bf16:
        raise ValueError(f"smoothness {name}: answers near each other are the same in bf16; train in float32")


def is_reentrant(model: nn.Module, arguments: Any = None) -> bool:
    """Whether this model is checkpointed by torch's reentrant way, or will be by a trainer's arguments."""
    for module in model.modules():
        settings = getattr(vars(module).get("_gradient_checkpointing_func"), "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and settings.get("use_reentrant"):
            return True
    ways = ("activation_checkpointing", "gradient_checkpointing")
    told = [getattr(arguments, f"{way}_kwargs", None) or {} for way in ways if getattr(arguments, way, False)]
    return any(bool(settings.get("use_reentrant")) for settings in told)


class Nearby:
    """What a model says of a batch, and the `smoothness` term of it, for a model in one process or over ranks.

    What moves is the output of the layer that makes embeddings (positions and norms included, where they are a part of
    it), or, of a model of transformers without one, its pixels. Wrappers around the model see ordinary calls. Raises
    ValueError for a model of which it is not known what it reads, for one in 16 bits, in which answers near each other
    are the same, and for a loss of the batch, which would be that of the last call.
    """

    def __init__(self, model: nn.Module, readout: Readout, smoothness: Smoothness) -> None:
        readout.check_every_label()
        self.readout, self.smoothness = readout, smoothness
        self._layer, self._reads_pixels = _where(model, smoothness.name)
        self._gpus: list[int] | None = None  # looked up in the first call, when the model lies where it trains
        refuse_nearby(smoothness.name, deepspeed=False, bf16=False, reentrant=is_reentrant(model))
        if any(p.dtype in NARROW for p in self._layer.parameters()):
            raise ValueError(
                f"smoothness {smoothness.name} moves embeddings by less than 16 bits can tell; load the model in"
                " float32 (bf16: false)"
            )
        if router_loss_of(model) is not None:
            raise ValueError(
                f"smoothness {smoothness.name} calls the model more than once, and the load balancing loss"
                " (router_aux_loss_coef) is that of the last call; set it to 0"
            )

    def said(self, model: nn.Module, batch: Mapping[str, Any], **asks: Any) -> tuple[Said, Tensor]:
        """`readout.said(model, batch, **asks)` with every label, and the term [B], both with their graphs."""
        asks = {**asks, "every_label": True}
        if self._gpus is None:
            self._gpus = gpus_of(model)
        gpus, same = self._gpus, self.smoothness.masks == "same"
        before = random_state(gpus)
        with self._seen() as seen:
            said = self.readout.said(model, batch, **asks)
        assert said.log_p_BC is not None
        if len(seen) != 1:
            raise RuntimeError(
                f"smoothness {self.smoothness.name}: the layer that makes embeddings was called {len(seen)} times in a"
                " forward pass, so that it is not known what to move"
            )

        def ask(move: Tensor) -> Tensor:
            after = random_state(gpus)
            if same:
                set_random_state(before)
            with self._moved(move):
                near = self.readout.said(model, batch, every_label=True)
            if same:
                set_random_state(after)
            assert near.log_p_BC is not None
            return near.log_p_BC

        move = self.smoothness.move(seen[0], ask, said.log_p_BC.detach())
        return said, self.smoothness.term(said.log_p_BC, ask(move))

    @contextmanager
    def _seen(self) -> Iterator[list[Tensor]]:
        """Inside, what is there to be moved in each call of the model, without its graph."""
        seen: list[Tensor] = []

        def look(reads: Any) -> Any:
            if not isinstance(reads, Tensor):
                layer, made = type(self._layer).__name__, type(reads).__name__
                raise ValueError(f"smoothness {self.smoothness.name}: {layer} makes a {made}, and no tensor to move")
            seen.append(reads.detach())
            return reads

        with self._changing(look):
            yield seen

    @contextmanager
    def _moved(self, move: Tensor) -> Iterator[None]:
        with self._changing(lambda reads: (reads + move).to(reads.dtype)):
            yield

    @contextmanager
    def _changing(self, change: Any) -> Iterator[None]:
        if self._reads_pixels:

            def before(layer: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return given, {**named, PIXELS: change(named[PIXELS])}

            handle = self._layer.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = self._layer.register_forward_hook(lambda layer, given, output: change(output))
        try:
            yield
        finally:
            handle.remove()


def _where(model: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """The layer whose output the first layer reads, or a model that reads pixels, and whether it is that."""
    for module in model.modules():
        prefix = getattr(type(module), "base_model_prefix", None)  # a class attribute of transformers' models
        if prefix is None:
            continue
        found: Any = module
        backbone = module._modules.get(prefix) or module
        if isinstance(embeddings := backbone._modules.get("embeddings"), nn.Module):
            return embeddings, False
        if getattr(module, "main_input_name", None) == PIXELS:
            return module, True
        return found.get_input_embeddings(), False
    raise ValueError(f"smoothness {name} moves embeddings, and {type(model).__name__} holds no model of transformers")
