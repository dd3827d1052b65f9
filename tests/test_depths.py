"""What the codes of a slice hold: the pictures that the first few become, or the grids themselves."""

import json

import numpy as np
import pytest
import torch
from conftest import blob
from PIL import Image

from dataset import Box
from inference.codec import Codec, to_uint8
from inference.depths import draw_codes
from inference.loading import AUTOENCODERS
from runtime.compute import Compute
from scoring.metrics import reconstruction_scores

BOX = Box(96, 96, 64, 64)
IMAGE = blob(1, 1)


def codec(name, **arguments):
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16, **arguments)
    return Codec(model, {"box": BOX, "size": (256, 256)}, Compute(torch.device("cpu"), bf16=False))


def parts_of(path):
    """The parts of the figure: label -> first channel, uint8 [H, W]."""
    with Image.open(path) as image:
        parts, pixels = json.loads(image.text["Parts"])["parts"], np.asarray(image.convert("RGB"))[..., 0]
    tiles = {part["label"]: part["tiles"][0][0] for part in parts}
    return {label: pixels[top:bottom, left:right] for label, (left, top, right, bottom) in tiles.items()}


@pytest.mark.parametrize(("depth", "depths"), [(None, [1, 2, 4, 6]), (3, [1, 2, 3]), (1, [1])])
def test_each_picture_is_decoded_from_the_first_codes(tmp_path, depth, depths):
    one = codec("rqvae", depth=6, width=16)
    draw_codes(one, IMAGE, tmp_path / "codes.png", "blobs", depth)
    found = parts_of(tmp_path / "codes.png")
    codes = one.encode(IMAGE[None])
    expected = {"slice": IMAGE}
    for n in depths:
        picture = one.decode(codes[:n])[0]
        ssim = reconstruction_scores(IMAGE[None], picture[None])["ssim"][0]
        size = n * codes[0][0].numel() * 4 / 8  # 16 codes are 4 bits each
        expected[f"{n} code{'s' if n > 1 else ''}: SSIM {ssim:.4f}, {size:,.0f} bytes"] = to_uint8(picture)
    assert list(found) == list(expected)
    for label, picture in expected.items():
        assert np.array_equal(found[label], BOX.crop(picture).repeat(4, 0).repeat(4, 1)), label


@pytest.mark.parametrize(("name", "labels"), [("vqvae", 3), ("vqvae2", 4)])
def test_one_code_per_position_is_shown_as_grids(tmp_path, name, labels):
    one = codec(name)
    draw_codes(one, IMAGE, tmp_path / "codes.png", "blobs")
    found = parts_of(tmp_path / "codes.png")
    assert len(found) == labels
    decoded = to_uint8(BOX.crop(one.decode(one.encode(IMAGE[None]))[0]))
    assert np.array_equal(found["slice"], BOX.crop(IMAGE).repeat(4, 0).repeat(4, 1))
    assert np.array_equal(found["decoded"], decoded.repeat(4, 0).repeat(4, 1))


def test_only_the_slices_own_pixels_are_scored(tmp_path):
    one = codec("rqvae", depth=2, width=16)
    frame = slice(90, 170), slice(80, 180)
    draw_codes(one, IMAGE, tmp_path / "codes.png", "blobs", frame=frame)
    picture = one.decode(one.encode(IMAGE[None]))[0]
    ssim = reconstruction_scores(IMAGE[frame][None], picture[frame][None])["ssim"][0]
    assert f"2 codes: SSIM {ssim:.4f}" in list(parts_of(tmp_path / "codes.png"))[-1]
