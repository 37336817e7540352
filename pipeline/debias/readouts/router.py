"""The load balancing loss of a mixture of experts: of a batch, not of its samples, so a part of `main` alone."""

from typing import Any

from torch import Tensor, nn


class RouterLoss:
    """`coefficient` times the auxiliary loss (Switch Transformer, arXiv 2101.03961, eq. 4 to 6) of a model's forwards.

    The model itself computes it, over the tokens that its attention mask leaves, each micro-batch by itself.
    """

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient
        self._seen: Tensor | None = None
        self._watched: tuple[nn.Module, list[Any]] | None = None

    def take(self) -> Tensor:
        """The scalar loss of the last forward pass that had gradients, once.

        Raises RuntimeError where there was none, or where nothing that trains reaches it.
        """
        seen, self._seen = self._seen, None
        if seen is None:
            raise RuntimeError("router_aux_loss_coef: the model's forward pass gave no load balancing loss")
        if not seen.requires_grad:
            raise RuntimeError(
                "router_aux_loss_coef: no gradient leads from the load balancing loss to what trains (reentrant"
                " checkpointing cuts it, or all that trains comes after the routers); set it to 0"
            )
        return seen * self.coefficient

    def watch(self, model: nn.Module) -> None:
        """Ask `model` for the loss in every forward pass that has gradients."""
        asking = model.register_forward_pre_hook(self._ask, with_kwargs=True)
        vars(model)["router_loss"] = self
        self._watched = model, [asking, model.register_forward_hook(self._note)]

    def end(self) -> None:
        """Leave the model as it was before `watch`."""
        if self._watched is not None:
            model, handles = self._watched
            for handle in handles:
                handle.remove()
            vars(model).pop("router_loss", None)
        self._watched = self._seen = None

    def _ask(self, model: nn.Module, inputs: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Not in the configuration: inference would pay for it, and a saved model would keep it.
        return inputs, {**settings, "output_router_logits": True} if model.training else settings

    def _note(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and getattr(output, "aux_loss", None) is not None:
            self._seen = output.aux_loss


def add_router_loss(model: nn.Module, coefficient: float) -> RouterLoss:
    """Let the causal model inside `model` compute its load balancing loss in training; ValueError if it has none."""
    for module in model.modules():
        # What has a coefficient of its own is what computes the loss: Llama-4's configuration has one, its code none.
        if hasattr(module, "router_aux_loss_coef"):
            loss = RouterLoss(coefficient)
            loss.watch(module)
            return loss
    raise ValueError(
        f"router_aux_loss_coef is {coefficient}, but this model computes no load balancing loss; set it to 0"
    )


def leave_out_router_loss(model: nn.Module) -> None:
    """Ask for no load balancing loss in this model's configuration, whatever it came with."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        parts: tuple[Any, ...] = (config, getattr(config, "text_config", None))
        for part in parts:
            if getattr(part, "output_router_logits", False):
                part.output_router_logits = False


def router_loss_of(model: nn.Module) -> RouterLoss | None:
    """What `add_router_loss` added to a part of `model`, if it did."""
    found = (getattr(module, "router_loss", None) for module in model.modules())
    return next((one for one in found if isinstance(one, RouterLoss)), None)
