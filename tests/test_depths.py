"""What the codes of a slice hold: the pictures that the first few become, or the grids themselves."""

import numpy as np
import pytest
import torch
from conftest import blob

from dataset import Box
from inference.codec import Codec, to_uint8
from inference.depths import code_pictures, draw_codes
from inference.loading import AUTOENCODERS
from runtime.compute import Compute
from scoring.metrics import reconstruction_scores

BOX = Box(96, 96, 64, 64)
IMAGE = blob(1, 1)


def codec(name, **arguments):
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16, **arguments)
    return Codec(model, {"box": BOX, "size": (256, 256)}, Compute(torch.device("cpu"), bf16=False))


@pytest.mark.parametrize(("depth", "depths"), [(None, [1, 2, 4, 6]), (3, [1, 2, 3]), (1, [1])])
def test_each_picture_is_decoded_from_the_first_codes(depth, depths):
    one = codec("rqvae", depth=6, width=16)
    codes = one.encode(IMAGE[None])
    expected = {"slice": IMAGE}
    for n in depths:
        picture = one.decode(codes[:n])[0]
        ssim = reconstruction_scores(IMAGE[None], picture[None])["ssim"][0]
        size = n * codes[0][0].numel() * 4 / 8  # 16 codes are 4 bits each
        expected[f"{n} code{'s' if n > 1 else ''}: SSIM {ssim:.4f}, {size:,.0f} bytes"] = to_uint8(picture)
    found = code_pictures(one, IMAGE, depth)
    assert [label for label, _ in found] == list(expected)
    for (label, picture), wanted in zip(found, expected.values(), strict=True):
        assert np.array_equal(picture[..., 0], BOX.crop(wanted)), label


@pytest.mark.parametrize(("name", "grids"), [("vqvae", 1), ("vqvae2", 2)])
def test_one_code_per_position_is_shown_as_grids(tmp_path, name, grids):
    one = codec(name)
    found = code_pictures(one, IMAGE)
    assert len(found) == 2 + grids
    codes = one.encode(IMAGE[None])
    for (label, picture), grid in zip(found[1:-1], codes, strict=True):
        height, width = grid.shape[1:]
        assert label == f"codes, {height} x {width}"
        block = picture[: BOX.height // height, : BOX.width // width].reshape(-1, 3)
        assert (block == block[0]).all()  # one code is one block, where it belongs
    assert np.array_equal(found[-1][1][..., 0], to_uint8(BOX.crop(one.decode(codes)[0])))
    draw_codes(one, IMAGE, tmp_path / "codes.png", "blobs")
    assert (tmp_path / "codes.png").is_file()


def test_only_the_slices_own_pixels_are_scored():
    one = codec("rqvae", depth=2, width=16)
    frame = slice(90, 170), slice(80, 180)
    picture = one.decode(one.encode(IMAGE[None]))[0]
    ssim = reconstruction_scores(IMAGE[frame][None], picture[frame][None])["ssim"][0]
    assert f"2 codes: SSIM {ssim:.4f}" in code_pictures(one, IMAGE, frame=frame)[-1][0]
