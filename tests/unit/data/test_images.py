"""IDX files read and refused; colours counted and compared with a plain loop."""

import gzip
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_digits import DIGITS, idx, pictures, write_digits

from debias.config.data import DataConfig, PlantedColor
from debias.data import Example, load_examples, paint
from debias.data.painted import PALETTE_C3
from debias.errors import InputError


def config(path: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"train": str(path), "labels": DIGITS, **more})


def load(path: Path, **more: object) -> list[Example]:
    data = config(path, **more)
    return load_examples(data.train, data)


def grey(labels: list[int], side: int = 4) -> list[Example]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (len(labels), side, side), dtype=np.uint8)
    images[:, 0, 0], images[:, 1, 1] = 0, 255
    return [
        Example(f"p-{i}", (), label, image=np.broadcast_to(image, (3, side, side)))
        for i, (label, image) in enumerate(zip(labels, images, strict=True))
    ]


def test_what_was_written_is_read(tmp_path):
    image_NHW, label_N = pictures(23)
    examples = load(write_digits(tmp_path, 23))
    assert [one.label for one in examples] == label_N.tolist()
    assert [one.id for one in examples][:2] == ["train-1", "train-2"]
    for one, image_HW in zip(examples, image_NHW, strict=True):
        assert one.image.dtype == np.uint8
        assert one.image.shape == (3, 28, 28)
        assert all((channel == image_HW).all() for channel in one.image)
        assert (one.texts, one.group) == ((), None)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_plain_and_gzipped_names(tmp_path, images, labels):
    for name, array in zip((images, labels), pictures(10, side=5), strict=True):
        content = idx(array)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(load(tmp_path / images)) == 10


def test_limit_keeps_a_seeded_subset(tmp_path):
    path = write_digits(tmp_path, 60)
    kept = load(path, train={"source": str(path), "limit": 7, "seed": 3})
    assert [one.id for one in kept] == [
        one.id for one in load(path, train={"source": str(path), "limit": 7, "seed": 3})
    ]
    assert len(kept) == 7
    everything = {one.id: one for one in load(path)}
    assert all((everything[one.id].image == one.image).all() for one in kept)


IMAGES, LABELS = pictures(10, side=4)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (b"", idx(LABELS), r"train-images.*damaged: only 0 bytes"),
        (idx(IMAGES)[:9], idx(LABELS), "damaged: only 9 bytes, too few for the header"),
        (idx(IMAGES)[:-1], idx(LABELS), r"damaged: \[10, 4, 4\] pictures take 160 bytes, it holds only 159"),
        (idx(IMAGES) + b"\0", idx(LABELS), "take 160 bytes, it holds more"),
        (idx(LABELS), idx(LABELS), "begins with 0x00000801, expected 0x00000803, an IDX file of pictures"),
        (idx(IMAGES, 0x0D03), idx(LABELS), "begins with 0x00000d03, expected 0x00000803"),
        (idx(IMAGES), idx(IMAGES), "train-labels.*begins with 0x00000803, expected 0x00000801, an IDX file of labels"),
        (idx(IMAGES), idx(LABELS[:9]), "10 pictures, but train-labels-idx1-ubyte has 9 labels"),
        (idx(IMAGES), idx(LABELS)[:-2], r"train-labels.*\[10\] labels take 10 bytes, it holds only 8"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "holds no pictures"),
        (idx(IMAGES), idx(LABELS + 3), r"row 8: label 10 is not in labels \['0'"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, images, labels, said):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(InputError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_no_gzip(tmp_path):
    path = write_digits(tmp_path, 10)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="damaged gzip file"):
        load(path)
    path.write_bytes(b"no gzip at all, just some words")
    with pytest.raises(InputError, match="damaged gzip file"):
        load(path)
    path.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"no file of labels beside it; expected .*train-labels-idx1-ubyte.gz"):
        load(path)
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "other-images-idx3-ubyte.gz")


def test_a_weight_column_is_refused(tmp_path):
    data = config(write_digits(tmp_path, 10))
    with pytest.raises(InputError, match=r"no column 'w' \(bias_weight.column\); the columns are image, label"):
        load_examples(data.train, data, bias_column="w")


def test_the_paper_s_shares():
    """98 % of each digit in its colour, the other 2 % over nine colours evenly."""
    painted = paint(grey([i % 10 for i in range(9000)], side=2), PlantedColor(strength=0.98), 10)
    assert Counter(one.group for one in painted) == {"bias-aligned": 8820, "bias-conflicting": 180}
    assert Counter((one.label, color_of(one)) for one in painted) == Counter(
        {(label, color): 882 if label == color else 2 for label in range(10) for color in range(10)}
    )


def color_of(example: Example) -> int:
    """The nearest colour of the palette, by the brightest pixel; a loop over all."""
    pixel = example.image.reshape(3, -1)[:, example.image.reshape(3, -1).sum(0).argmax()].astype(float)
    return min(range(10), key=lambda c: float(((PALETTE_C3[c] - pixel) ** 2).sum()))


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    strength=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_counts_are_exact_and_shapes_stay(labels, strength, seed):
    before = grey(labels)
    planted = PlantedColor(strength=strength, seed=seed)
    after = paint(before, planted, 5)
    for label in range(5):
        colors = Counter(color_of(one) for one in after if one.label == label)
        aligned = round(strength * labels.count(label))
        assert colors.pop(label, 0) == aligned
        assert sum(colors.values()) == labels.count(label) - aligned
        assert all(color < 5 for color in colors)
        others = [colors[color] for color in range(5) if color != label]
        assert max(others) - min(others) <= 1
    again = paint(before, planted, 5)
    for old, new, same in zip(before, after, again, strict=True):
        assert (new.image == same.image).all()
        assert new.group == ("bias-aligned" if color_of(new) == new.label else "bias-conflicting")
        assert (new.id, new.label, new.texts) == (old.id, old.label, old.texts)


def test_a_painted_pixel_is_grey_times_colour():
    """Against a plain loop: black stays black, white is the colour itself, give or take the jitter."""
    for old, new in zip(*((before := grey(list(range(10)) * 20)), paint(before, PlantedColor(), 10)), strict=True):
        color = PALETTE_C3[color_of(new)] / 255
        for c in range(3):
            for y in range(4):
                for x in range(4):
                    value = int(old.image[c, y, x])
                    assert abs(float(new.image[c, y, x]) - value * color[c]) <= 1 + value * 0.03
        assert new.image.dtype == np.uint8
        assert new.image[:, 0, 0].tolist() == [0, 0, 0]


def test_seeds_differ_and_colours_are_far_apart():
    before = grey([i % 10 for i in range(300)])
    groups = [[one.group for one in paint(before, PlantedColor(strength=0.5, seed=seed), 10)] for seed in (0, 1)]
    assert groups[0] != groups[1]
    distances = [np.abs(PALETTE_C3[a] - PALETTE_C3[b]).max() for a in range(10) for b in range(a)]
    assert min(distances) > 50  # twenty times the jitter


def test_an_unbiased_test_set_tells_nothing():
    painted = paint(grey([i % 10 for i in range(1000)], side=2), PlantedColor(strength=0.1), 10)
    assert set(Counter((one.label, color_of(one)) for one in painted).values()) == {10}


def test_the_published_files(tmp_path):
    folder = Path(os.environ.get("DEBIAS_DATA", "")) / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("no MNIST: set DEBIAS_DATA")
    examples = load(folder / "train-images-idx3-ubyte.gz")
    counts = Counter(one.label for one in examples)
    # As published: LeCun, Cortes, Burges.
    assert [counts[i] for i in range(10)] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    mean = np.mean([one.image[0].mean() for one in examples]) / 255
    assert mean == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"planted_bias": {"label": "1"}}, "planted_bias has no effect on pictures"),
        ({"text_fields": ["text"]}, "text_fields has no effect on pictures"),
        ({"group_field": "writer"}, "group_field has no effect on pictures"),
        ({"id_field": "key"}, "id_field has no effect on pictures"),
        ({"validation": "dev.jsonl"}, "both must be IDX files of pictures, or neither"),
        ({"planted_color": {"strength": 1.5}}, "less than or equal to 1"),
        ({"planted_color": {"strength": 0.9, "seed": -1}}, "greater than or equal to 0"),
        ({"planted_color": {"share": 0.9}}, "Extra inputs are not permitted"),
        ({"labels": [*DIGITS, "x"], "planted_color": {}}, "10 colours, one for each label; there are 11 labels"),
    ],
)
def test_settings_that_do_not_fit(settings_, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        DataConfig.model_validate({"train": "train-images-idx3-ubyte.gz", "labels": DIGITS, **settings_})


def test_texts_take_no_colour():
    with pytest.raises(ValueError, match=r"planted_color paints pictures, and 'train.jsonl' is no IDX file"):
        DataConfig.model_validate({"train": "train.jsonl", "planted_color": {}})
