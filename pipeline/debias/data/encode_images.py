"""Pictures to batches of `pixel_values`. Shapes: B samples, 3 channels, H rows, W columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from debias.data.encode import Batch, EncodedExamples, Feature, batch_of
from debias.data.examples import Example
from debias.data.facts import facts_of
from debias.data.order import LengthBuckets
from debias.errors import InputError


class EncodedImages(EncodedExamples):
    """Pictures in order, still as bytes: they become numbers batch by batch."""

    def sampler(self, batch_size: int, seed: int) -> LengthBuckets:
        """The training order: random, from the seed and the epoch alone; all pictures are of one length."""
        return LengthBuckets(self.lengths, batch_size, seed, self.order, self.facts)


def encode_images(examples: Sequence[Example]) -> EncodedImages:
    """The pictures with their labels; InputError for an example that is a text."""
    for example in examples:
        if example.image is None:
            raise InputError(f"head: image_classification reads pictures, and example {example.id!r} is text")
    return EncodedImages([{"image": example.image} for example in examples], facts_of(examples))


class ImageCollator:
    """A batch as the model's own image processor makes it: resized where needed, rescaled, normalised."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        size = getattr(processor, "size", None) or {}
        self.shape = (size.get("height"), size.get("width"))

    def __call__(self, examples: Sequence[Feature]) -> Batch:
        images = [np.asarray(example["tokens"]["image"]) for example in examples]
        # Resizing goes picture by picture through Pillow, a hundred times slower than all the rest.
        right_size = {"do_resize": False} if all(image.shape[1:] == self.shape for image in images) else {}
        made = self.processor(images=images, return_tensors="pt", input_data_format="channels_first", **right_size)
        return batch_of({"pixel_values": made["pixel_values"]}, examples)
