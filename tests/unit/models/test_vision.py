"""Image classifiers: drawn from a seed, saved and loaded, adapted, and two gradients against the definition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batches import flat
from gradient_checks import assert_same, by_samples, take, weights_for
from tiny_digits import DIGITS
from torch import Tensor, nn

from debias.adapters.bitfit import train_biases
from debias.adapters.lora import add_lora
from debias.data.encode_images import ImageCollator, encode_images
from debias.data.examples import Example
from debias.errors import InputError
from debias.gradients.single_pass import refusal
from debias.losses import Classification
from debias.models.load import load_model, load_tokenizer
from debias.models.vision import positions_of

torch.set_num_threads(1)


def build(name: str = "vision:mlp", seed: int = 0, **settings: Any) -> Any:
    return load_model(name, "image_classification", DIGITS, seed=seed, **settings)


def batch(samples: int = 5, side: int = 28) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.rand((samples, 3, side, side), generator=generator),
        "labels": torch.randint(0, 10, (samples,), generator=generator),
    }


def loss(model: nn.Module, inputs: Any) -> Tensor:
    return -Classification().said(model, inputs).log_p_B


def lora(model: Any) -> Any:
    adapted = add_lora(model, r=3, alpha=6, dropout=0.0, targets="auto", classification=True, fresh=model.fresh_modules)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return adapted


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier of 1,000 classes with its image processor, as the hub has them."""
    from transformers import ConvNextConfig, ConvNextForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("convnext")
    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=1000, image_size=32)
    ConvNextForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("name", ["vision:mlp", "vision:vit"])
def test_a_seed_is_a_model(name):
    states = [build(name, seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", ["vision:mlp", "vision:vit"])
def test_nobody_is_judged_by_a_drawn_head(name):
    from debias.config.run import RunConfig
    from debias.inference.answers import Scoring
    from debias.inference.loading import load

    data = {"train": "test-images-idx3-ubyte", "labels": DIGITS}
    config = RunConfig.model_validate({"model": name, "head": "image_classification", "data": data, "output_dir": "x"})
    with pytest.raises(InputError, match=f"'{name}' has no trained classifier; give an adapter that has"):
        load(config, name, None, Scoring())


def test_drawing_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    build()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("name", ["vision:mlp", "vision:vit"])
def test_a_saved_model_is_the_same(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    load_tokenizer(name, "image_classification").save_pretrained(tmp_path)
    again = build(str(tmp_path))
    assert again.fresh_modules == []
    assert again.config.id2label == dict(enumerate(DIGITS))
    inputs = batch()["pixel_values"]
    assert torch.equal(model.eval()(pixel_values=inputs).logits, again.eval()(pixel_values=inputs).logits)
    load_tokenizer(str(tmp_path), "image_classification")


def test_the_perceptron_is_three_products():
    """Against numpy, in float64."""
    model = build()
    hidden = batch(3)["pixel_values"].flatten(1).double().numpy()
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    for i in range(3):
        hidden = np.maximum(hidden @ state[f"layers.dense_{i}.weight"].T + state[f"layers.dense_{i}.bias"], 0)
    expected = hidden @ state["classifier.weight"].T + state["classifier.bias"]
    found = model(pixel_values=batch(3)["pixel_values"]).logits.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_pass_is_exact_for_the_perceptron():
    model, inputs, weight_B = build(), batch(), weights_for(5)
    assert_same(take("single_pass", model, loss, [inputs], [weight_B]), by_samples(model, loss, inputs, weight_B))


def test_one_pass_is_exact_for_lora_on_a_vit():
    model, inputs, weight_B = lora(build("vision:vit").train()), batch(), weights_for(5)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sum("lora_A" in name for name in trained) == 4 * 6  # q, k, v, o, fc1, fc2 of four layers
    assert [name for name in trained if "lora" not in name] == [
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    ]
    assert_same(take("single_pass", model, loss, [inputs], [weight_B]), by_samples(model, loss, inputs, weight_B))


def test_a_whole_vit_takes_two_backward_passes():
    """Its patches and norms are no linear layers: single_pass refuses, the other ways are exact."""
    model, inputs, weight_B = build("vision:vit").train(), batch(), weights_for(5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.endswith("k_proj.bias")  # its gradient is zero but for rounding
    selected = {name: p for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name}
    assert "not to a plain linear layer" in str(refusal(model, selected)) or "cls_token" in str(
        refusal(model, selected)
    )
    for way in ("shared_forward", "two_pass"):
        assert_same(take(way, model, loss, [inputs], [weight_B]), by_samples(model, loss, inputs, weight_B))


def test_biases_alone():
    model = train_biases(build("vision:vit"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "vit.layers.0.mlp.fc1.bias" in trained
    assert {name for name in trained if not name.endswith("bias")} == {"classifier.weight"}


def test_a_head_of_another_size_is_replaced_and_saved_with_an_adapter(convnext, tmp_path):
    model = build(str(convnext))
    assert model.fresh_modules == ["classifier"]
    assert model(pixel_values=batch(side=32)["pixel_values"]).logits.shape == (5, 10)
    adapted = lora(model)
    adapted.save_pretrained(tmp_path)
    from peft import PeftModel

    torch.manual_seed(99)
    again = PeftModel.from_pretrained(build(str(convnext)), str(tmp_path)).eval()
    inputs = batch(side=32)["pixel_values"]
    torch.testing.assert_close(again(pixel_values=inputs).logits, adapted.eval()(pixel_values=inputs).logits)


def test_pictures_become_numbers_as_the_model_s_processor_says(convnext):
    rng = np.random.default_rng(0)
    examples = [
        Example(str(i), (), i, None, 0.5 + i, image=rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)) for i in range(3)
    ]
    made = ImageCollator(load_tokenizer(str(convnext), "image_classification"))(list(encode_images(examples)))
    made = flat(made)
    expected = (np.stack([one.image for one in examples]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(made["pixel_values"].numpy(), expected, atol=1e-6)
    assert made["labels"].tolist() == [0, 1, 2]
    assert made["bias_weight"].tolist() == [0.5, 1.5, 2.5]
    plain = ImageCollator(load_tokenizer("vision:mlp", "image_classification"))
    small = [Example("a", (), 0, image=one.image[:, :28, :28]) for one in examples]
    scaled = plain(list(encode_images(small)))["inputs"]["pixel_values"].numpy()
    np.testing.assert_allclose(scaled, np.stack([one.image for one in small]) / 255, atol=1e-6)


def test_pictures_of_another_size_are_resized():
    image = np.full((3, 40, 60), 51, dtype=np.uint8)
    collate = ImageCollator(load_tokenizer("vision:vit", "image_classification"))
    made = collate(list(encode_images([Example("a", (), 0, image=image)])))["inputs"]["pixel_values"]
    assert made.shape == (1, 3, 28, 28)
    torch.testing.assert_close(made, torch.full_like(made, 0.2))


def test_texts_are_refused():
    with pytest.raises(InputError, match="reads pictures, and example 'a' is text"):
        encode_images([Example("a", ("hello",), 0)])


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("vision:resnet", {}, "'vision:resnet' is not built here; there are vision:mlp, vision:vit"),
        ("vision:mlp", {"load_in_4bit": True}, "load_in_4bit: 'vision:mlp' has no trained weights"),
        ("no/such/folder", {}, "no folder"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name, settings, said):
    with pytest.raises(InputError, match=said) as caught:
        build(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "positions"),
    [
        ({"image_size": 28, "patch_size": 7}, 16),
        ({"image_size": 224, "patch_size": 16}, 196),
        ({"image_size": [32, 64], "patch_size": (16, 8)}, 16),
        ({"image_size": 8, "patch_size": 16}, 1),
        ({"image_size": 224}, 200),  # a network of convolutions: nobody knows
        ({"image_size": 224, "patch_size": [4, 4, 4]}, 200),
        ({}, 200),
    ],
)
def test_a_picture_counts_as_its_patches(sizes: dict[str, Any], positions: int) -> None:
    assert positions_of(SimpleNamespace(**sizes)) == positions


def test_a_picture_of_the_perceptron_is_one_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures a batch took thirty thousand batches for MNIST, and most of the time of every bias model."""
    from debias.inference import predictor as judging

    model = build("vision:mlp")
    assert positions_of(model.config) == 1
    sizes: list[int] = []
    monkeypatch.setattr(judging, "score_batches", lambda batches, *_, **__: sizes.extend(map(len, batches)))
    task = SimpleNamespace(
        readout=None, prompt=None, collate=None, encode=lambda examples, **_: encode_images(examples)
    )
    config = SimpleNamespace(data=SimpleNamespace(labels=DIGITS))
    judging.Predictor(model, task, config)._raw([Example("x", (), 0, image=np.zeros((3, 28, 28), np.uint8))] * 1000)
    assert sum(sizes) == 1000
    assert max(sizes) >= 500
