"""Image classifiers: two small ones built from a config (`vision:mlp`, `vision:vit`), and those of the hub.

Shapes: B samples, 3 channels, H rows, W columns, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTConfig,
)
from transformers.modeling_outputs import ImageClassifierOutput

from debias.errors import InputError
from debias.models.source import ModelSource

PREFIX = "vision:"
SIDE = 28  # of MNIST; other pictures are resized to it
USUAL_POSITIONS = 200  # of a picture: 224 pixels in patches of 16


class MlpConfig(PretrainedConfig):
    """Sizes of a perceptron over all pixels; three layers of 100 as in Nam et al., NeurIPS 2020 (LfF)."""

    model_type = "debias_mlp"
    positions = 1  # a picture is one vector

    def __init__(self, image_size: int = SIDE, hidden_size: int = 100, num_hidden_layers: int = 3, **more: Any) -> None:
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**more)


class MlpForImageClassification(PreTrainedModel):
    """Linear layers and ReLU over the flattened picture, and a linear `classifier`; all its samples stay apart."""

    config_class = MlpConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        width, inputs = config.hidden_size, 3 * config.image_size**2
        self.layers = nn.ModuleDict(
            {f"dense_{i}": nn.Linear(width if i else inputs, width) for i in range(config.num_hidden_layers)}
        )
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """Logits [B, C] of pictures [B, 3, H, W]."""
        hidden = pixel_values.flatten(1).to(self.classifier.weight.dtype)
        for layer in self.layers.values():
            hidden = torch.relu(layer(hidden))
        return ImageClassifierOutput(logits=self.classifier(hidden))


AutoConfig.register(MlpConfig.model_type, MlpConfig)
AutoModelForImageClassification.register(MlpConfig, MlpForImageClassification)


def load_image_processor(source: ModelSource) -> Any:
    """The model's own image processor; for `vision:` models one that only scales bytes to 0 .. 1."""
    try:
        if source.name.startswith(PREFIX):
            from transformers import ViTImageProcessor

            return ViTImageProcessor(size={"height": SIDE, "width": SIDE}, do_normalize=False)
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(source.path, trust_remote_code=source.trusted)
    except ImportError:
        raise InputError("head: image_classification needs Pillow; pip install 'debias[vision]'") from None


def load_image_model(
    source: ModelSource, labels: Sequence[str], options: dict[str, Any], seed: int
) -> tuple[Any, list[str]]:
    """An image classifier with a head for `labels`, and the names of the parameters that were drawn at random.

    A head of another size is replaced. A `vision:` model is drawn from `seed` alone, so that an adapter trained on it
    finds the same weights again; of these only its head is named, as what must train whole and be saved.
    """
    if source.name.startswith(PREFIX):
        return _drawn(source.name, labels, options, seed), ["classifier.weight", "classifier.bias"]
    model, found = AutoModelForImageClassification.from_pretrained(
        source.path,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=source.trusted,
        **options,
    )
    return model, [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]


def positions_of(config: Any) -> int:
    """How many tokens of a text a picture counts as in a batch: its patches; as usual where the config names none."""
    if (own := getattr(config, "positions", None)) is not None:
        return int(own)
    side, patch = (_area(getattr(config, name, None)) for name in ("image_size", "patch_size"))
    return max(1, side // patch) if side and patch else USUAL_POSITIONS


def _area(size: Any) -> int:
    """Of a side, or of height and width; 0 of what is neither."""
    sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else []
    return sides[0] * sides[1] if len(sides) == 2 and all(isinstance(side, int) for side in sides) else 0


def _drawn(name: str, labels: Sequence[str], options: dict[str, Any], seed: int) -> Any:
    kinds: dict[str, Any] = {"mlp": MlpConfig, "vit": _small_vit}
    key = name.removeprefix(PREFIX)
    if key not in kinds:
        raise InputError(f"model: {name!r} is not built here; there are {', '.join(PREFIX + kind for kind in kinds)}")
    if "quantization_config" in options:
        raise InputError(f"load_in_4bit: {name!r} has no trained weights to keep in 4 bit; remove it")
    config = kinds[key](id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    chosen = {key: options[key] for key in ("dtype", "attn_implementation") if key in options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False, **chosen)


def _small_vit(**labels: Any) -> ViTConfig:
    """Dosovitskiy et al., ICLR 2021, at the size of MNIST: 16 patches of 7 x 7, four layers of 64."""
    return ViTConfig(
        image_size=SIDE,
        patch_size=7,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        **labels,
    )
