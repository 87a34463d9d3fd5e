"""Pictures become inputs as the InputSpec says, by hand-computed and by independent results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.evaluate.preprocess import prepare, prepare_batch
from datafree.spec import InputSpec, Refusal

RGB = InputSpec(shape=(3, 2, 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))


def test_scale_order_and_layout():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = (255, 51, 0)
    x = prepare(picture, RGB)
    assert x.shape == (3, 2, 2)
    torch.testing.assert_close(x[:, 0, 1], torch.tensor([(1 - 0.1) / 0.5, 0.0, -0.3 / 0.125]))
    bgr = prepare(picture, InputSpec(shape=(3, 2, 2), mean=(0.3, 0.2, 0.1), std=(0.125, 0.25, 0.5), order="BGR"))
    torch.testing.assert_close(bgr, x.flip(0))


def test_raw_values_pass_through():
    raw = InputSpec(shape=(3, 2, 2), mean=(0.0,), std=(1 / 255,))
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    torch.testing.assert_close(prepare(picture, raw), torch.arange(12.0).reshape(2, 2, 3).permute(2, 0, 1))


def test_resize_is_pillows():
    picture = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    x = prepare(picture, InputSpec(shape=(1, 32, 32), std=(1 / 255,)))
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR))
    torch.testing.assert_close(x[0], torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (235, 235), (50, 640)])
def test_photographs_are_prepared_as_torchvision_does(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    inputs = InputSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224 / 256)
    expected = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(inputs.mean, inputs.std),
        ]
    )(Image.fromarray(picture))
    torch.testing.assert_close(prepare(picture, inputs), expected)


def test_grey_and_colour_are_turned_into_each_other():
    grey = np.full((2, 2), 100, np.uint8)
    assert torch.equal(prepare(grey, RGB), prepare(np.full((2, 2, 3), 100, np.uint8), RGB))
    colour = prepare(np.full((2, 2, 3), 100, np.uint8), InputSpec(shape=(1, 2, 2), std=(1 / 255,)))
    torch.testing.assert_close(colour, torch.full((1, 2, 2), 100.0))


def test_ready_features_are_taken_as_they_are():
    spec = InputSpec(shape=(1, 49, 10), pixels=False)
    x = np.random.default_rng(0).normal(size=(5, 1, 49, 10))
    torch.testing.assert_close(prepare_batch(x, spec), torch.from_numpy(x).float())


@pytest.mark.parametrize(
    ("picture", "spec", "said"),
    [
        (np.zeros((2, 2, 3), np.int64), RGB, "int64"),
        (np.zeros((3, 4, 4), np.float32), RGB, "floating-point"),
        (np.zeros((2, 2, 5), np.uint8), RGB, "3 input channels"),
        (np.zeros((49, 10), np.uint8), InputSpec(shape=(1, 49, 10), pixels=False), "ready features"),
    ],
)
def test_what_does_not_fit_is_refused(picture, spec, said):
    with pytest.raises(Refusal, match=said):
        prepare(picture, spec)


@pytest.mark.parametrize("inputs", [InputSpec(shape=(3, 9, 7), mean=(0.5,), std=(0.25,)),
                                    InputSpec(shape=(1, 9, 7), mean=(0.5,), std=(0.25,)),
                                    InputSpec(shape=(3, 20, 24))])  # fmt: skip
def test_sixteen_bits_tell_what_eight_do_and_more(inputs):
    eight = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    sixteen = eight.astype(np.uint16) * 257  # the same shades
    difference = (prepare(sixteen, inputs) - prepare(eight, inputs)).abs().max()
    assert float(difference) < 1.01 / 255 / min(inputs.std)  # 8 bits are rounded when resized and when made grey
    finer = sixteen.copy()
    finer[0, 0] ^= 1
    if inputs.shape == (3, 9, 7):
        assert not torch.equal(prepare(finer, inputs), prepare(sixteen, inputs))


def test_multispectral_pictures_are_read_as_they_lie():
    inputs = InputSpec(shape=(7, 6, 5), mean=tuple(0.1 * c for c in range(7)), std=(0.5,))
    picture = np.random.default_rng(0).integers(0, 65536, (6, 5, 7), np.uint16)
    wanted = (torch.from_numpy(picture.astype(np.float64) / 65535) - torch.arange(7) * 0.1) / 0.5
    assert torch.allclose(prepare(picture, inputs).double(), wanted.permute(2, 0, 1), atol=1e-6)
