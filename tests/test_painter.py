"""The painter: the flow's paths and losses in closed form, the noise of a brain, and a training through train.py."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT

import train
from dataset import Box
from inference.codec import Codec, to_uint8
from inference.loading import identity, load_autoencoder, load_painter
from inference.model import TrainedModel
from modules import RQVAE
from networks.painter import NOISE_CORRELATION, Painter, flow_loss, jump_loss
from runtime import checkpoint, compute
from runtime.errors import InputError
from scoring import tissue
from training import painter as training

CPU = compute.choose("cpu", "fp32")
DATA = {"box": [0, 0, 32, 48], "size": [32, 48]}


@pytest.fixture(scope="module")
def painter():
    """A narrow one, none of whose weights is zero."""
    torch.manual_seed(0)
    net = Painter(dim=4, width=8, blocks=1).eval()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0, 0.1)
    return net


@pytest.fixture(scope="module")
def codec(painter):
    torch.manual_seed(1)
    return Codec(RQVAE(codebook_size=16, depth=3, width=8, blocks=1, dim=4), DATA, CPU, painter)


def inputs(n=2, height=32, width=48):
    r, noise, plain = (torch.randn(n, 1, height, width) for _ in range(3))
    return r, noise, plain.sigmoid(), torch.randn(n, 4, height // 8, width // 8)


class Constant(torch.nn.Module):
    """A painter whose estimate of the clean residual is always the same."""

    def __init__(self, r):
        super().__init__()
        self.r = r

    def forward(self, x, t, plain, z_q, phase=None):
        return self.r


# ----------------------------------------------------------------------------------------------------
# The flow


@pytest.mark.parametrize("steps", [1, 4, 24])
def test_a_path_to_a_known_residual_is_straight_and_ends_there(painter, monkeypatch, steps):
    r, noise, plain, z_q = inputs()
    monkeypatch.setattr(painter, "forward", Constant(r).forward)
    path = list(painter.path(plain, z_q, noise, steps))
    assert [t for t, _ in path] == [i / steps for i in range(steps + 1)]
    for t, x in path:
        torch.testing.assert_close(x, (1 - t) * noise + t * r, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(painter.paint(plain, z_q, noise), (plain + painter.scale * r).clamp(0, 1))


def test_loss_is_of_the_velocity():
    r, noise, plain, z_q = inputs()
    t = torch.tensor([0.25, 0.99])
    assert flow_loss(Constant(r), r, t, noise, plain, z_q, None).tolist() == [0, 0]
    expected = r.square().mean(dim=(1, 2, 3)) / torch.tensor([0.75, 0.05]) ** 2  # no nearer to the end than that
    torch.testing.assert_close(flow_loss(Constant(torch.zeros(())), r, t, noise, plain, z_q, None), expected)


def test_a_student_that_jumps_along_its_teachers_path_has_no_loss():
    r, noise, plain, z_q = inputs()
    start, end = (0.25, 0.75 * noise + 0.25 * r), (0.5, 0.5 * noise + 0.5 * r)
    torch.testing.assert_close(jump_loss(Constant(r), start, end, plain, z_q), torch.zeros(2), atol=1e-10, rtol=0)
    off = jump_loss(Constant(r + 3), start, end, plain, z_q)  # 3 in the residual is 3 / 0.75 in the velocity
    torch.testing.assert_close(off, torch.full((2,), 16.0))


def test_a_new_painter_returns_the_plain_picture():
    _, noise, plain, z_q = inputs()
    with torch.no_grad():
        torch.testing.assert_close(Painter(dim=4, width=8, blocks=1).paint(plain, z_q, noise), plain, atol=1e-6, rtol=0)


def test_a_pixel_depends_on_its_neighbourhood_only(painter):
    """No statistics over the canvas: a far corner of another picture changes nothing."""
    _, noise, plain, z_q = inputs(1, 256, 256)
    other = plain.clone()
    other[:, :, -16:, -16:] = 0
    with torch.no_grad():
        a, b = (painter.paint(each, z_q, noise) for each in (plain, other))
    assert torch.equal(a[:, :, :64, :64], b[:, :, :64, :64])
    assert not torch.equal(a, b)


@pytest.mark.parametrize("downsample", [4, 16])
def test_grids_of_any_downsampling(painter, downsample):
    _, noise, plain, _ = inputs()
    z_q = torch.randn(2, 4, 32 // downsample, 48 // downsample)
    with torch.no_grad():
        assert painter.paint(plain, z_q, noise).shape == (2, 1, 32, 48)


# ----------------------------------------------------------------------------------------------------
# Noise


def test_noise_correlates_between_adjacent_levels(painter):
    noise = painter.noise(7, 60, 64, 64)
    assert torch.equal(noise, painter.noise(7, 60, 64, 64))
    assert not torch.equal(noise[0], painter.noise(8, 1, 64, 64)[0])
    assert noise.std(dim=(1, 2, 3)) == pytest.approx(torch.ones(60), abs=0.05)
    for distance in (1, 2, 4):
        correlation = (noise[distance:] * noise[:-distance]).mean()
        assert correlation == pytest.approx(NOISE_CORRELATION**distance, abs=0.02)


def test_scale_of_the_noise_is_drawn_once_per_brain(painter):
    painter = deepcopy(painter)
    painter.noise_size.copy_(torch.tensor([2.0, 0.5]))
    scales = torch.stack([painter.noise(seed, 3, 128, 128).std(dim=(1, 2, 3)) for seed in range(200)])
    assert (scales.std(dim=1) / scales.mean(dim=1)).max() < 0.03
    assert scales.mean() == pytest.approx(2.0, abs=0.1)
    assert scales[:, 0].std() == pytest.approx(0.5, abs=0.08)


def test_a_painted_picture_depends_on_its_own_seed_and_not_on_the_batch(codec):
    codes = [torch.randint(16, (5, 4, 6))]
    together = codec.paint(codes, [3, 1, 4, 1, 5])
    alone = codec.paint([codes[0][2:3]], [4])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)
    assert abs(together[2:3] - codec.paint([codes[0][2:3]], [5])).max() > 1e-3


def test_a_brain_has_one_noise_however_its_slices_fall_into_batches(codec, monkeypatch):
    codes = [torch.randint(16, (15, 4, 6))]
    together = codec.paint(codes, [3, 1, 4], slices_per_seed=5)
    monkeypatch.setattr("inference.codec.BATCH", 4)
    np.testing.assert_allclose(codec.paint(codes, [3, 1, 4], slices_per_seed=5), together, atol=1e-5)
    np.testing.assert_allclose(codec.paint([codes[0][5:10]], [1], slices_per_seed=5), together[5:10], atol=1e-5)


def test_only_the_first_code_is_painted_and_all_codes_are_decoded(codec):
    codes = [torch.randint(16, (2, 4, 6)) for _ in range(3)]
    np.testing.assert_array_equal(codec.paint(codes, [0, 1]), codec.decode(codes))
    np.testing.assert_array_equal(codec.paint(codes[:2], [0, 1]), codec.paint(codes[:1], [0, 1]))
    plainly = Codec(codec.autoencoder, DATA, CPU)
    np.testing.assert_array_equal(plainly.paint(codes[:1], [0, 1]), codec.decode(codes[:1]))


# ----------------------------------------------------------------------------------------------------
# Training


def test_phase_is_the_shift_of_each_slice():
    torch.manual_seed(0)
    images, box = torch.rand(1, 1, 48, 48).expand(64, -1, -1, -1), Box(8, 8, 32, 32)
    views, phases = training.shift_and_mirror(images, box)
    phases_of: dict[int, list[int]] = {}
    for view, phase in zip(views, phases.tolist(), strict=True):
        down, across = ([by for by in range(-4, 5) if by % 8 == each] for each in divmod(phase, 8))
        shifted = [box.crop(images[0].roll((d, a), (1, 2))) for d in down for a in across]
        mirrored = [box.crop(images[0].roll((-d, a), (1, 2))).flip(1) for d in down for a in across]
        matches = [any(torch.equal(view, each) for each in group) for group in (shifted, mirrored)]
        assert any(matches)
        phases_of.setdefault(matches.index(True), []).append(phase)
    assert all(0 in own and len(set(own)) > 5 for own in phases_of.values())  # with and without a shift
    assert len(phases_of) == 2  # upright and mirrored


def test_noise_scale_is_fitted_to_each_persons_grain(codec, monkeypatch):
    """Each person's slices have the grain that noise of a known scale gives."""
    truth = {"a": 0.95, "b": 1.0, "c": 1.1}
    grain = np.random.default_rng(0).standard_normal((32, 48)) * 10

    def paint(codes, seeds):
        scale = float(codec.painter.noise_size[0])
        return np.stack([(100 + scale * grain) / 255 for _ in seeds])

    images = np.stack([(100 + scale * grain).round() for scale in truth.values()]).astype(np.uint8)
    slices = replace(tiny.slices(1, 3), images=images, people=list(truth))
    monkeypatch.setattr(codec, "paint", paint)
    monkeypatch.setattr(codec, "encode", lambda *_: [])
    monkeypatch.setattr(training.tissue, "deep_white", lambda image: np.ones(image.shape, bool))
    fitted = training.noise_scale(codec, slices)
    assert fitted[0] == pytest.approx(np.mean(list(truth.values())), abs=0.01)
    assert fitted[1] == pytest.approx(np.std(list(truth.values())), abs=0.01)


def test_train_makes_the_painter_of_samples(tmp_path, monkeypatch):
    options = {"model": "rqvae", "depth": 2, "width": 16, "painter_slices": 128, "painter_width": 8}
    with pytest.MonkeyPatch.context() as patch:
        status, folder = tiny.Trainer(tmp_path, patch)(**options, prior="transformer")
    assert status == 0
    autoencoder, _ = load_autoencoder(folder / "vqvae.pth")
    made = load_painter(folder / "painter.pth", autoencoder)
    assert (made.steps, made.arguments["width"]) == (4, 8)
    assert json.loads((folder / "config.json").read_text())["painter_slices"] == 128
    rows = (folder / "metrics.csv").read_text()
    assert [rows.count(f"\n{stage},") for stage in ("painter", "student", "transformer")] == [2, 2, 2]
    assert "train_loss_at_0.125" in rows
    assert "validation_loss_at_0.875" in rows
    model = TrainedModel.load(folder / "vqvae.pth", device="cpu")
    codes = model.sample_codes(range(3))
    painted = model.sample(range(3))
    np.testing.assert_allclose(painted, model.codec.paint(codes, range(3)), atol=1e-6)
    assert abs(painted - model.decode(codes)).max() > 1e-3


def test_from_goes_on_with_autoencoder_and_painter(tmp_path, monkeypatch):
    """With rates of 0 all weights that a gradient moves stay, and the codebooks are not set anew."""
    options = {"epochs": 1, "painter_slices": 64}
    sizes = {"model": "rqvae", "depth": 2, "width": 16, "codebook_size": 8, "painter_width": 8}
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    _, first = trainer(**options, **sizes)
    monkeypatch.setattr(training, "TEACHER_RATE", 0.0)
    monkeypatch.setattr(training, "STUDENT_RATE", 0.0)
    monkeypatch.setattr(train, "initialise_codebooks", None)
    for name in sizes:
        monkeypatch.delitem(tiny.OPTIONS, name.replace("_", "-"), raising=False)
    status, second = trainer("--from", str(first / "vqvae.pth"), **options, lr=0)
    assert status == 0
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert [{name: config[name] for name in sizes} for config in configs] == [sizes] * 2
    for name in ("vqvae.pth", "painter.pth"):
        before, after = (torch.load(folder / name, weights_only=True)["state"] for folder in (first, second))
        same = [key for key in before if torch.equal(before[key], after[key])]
        moved = {key for key in before if key not in same}
        assert moved <= {"noise_size", *(key for key in before if key.startswith("quantizer."))}


def test_a_painter_of_another_autoencoder_is_refused(tmp_path, painter, codec):
    content = {"kind": "painter", "arguments": painter.arguments, "epoch": 1, "state": painter.state_dict()}
    path = tmp_path / "painter.pth"
    assert load_painter(path, codec.autoencoder) is None
    checkpoint.save(path, content | {"autoencoder": identity(codec.autoencoder)})
    assert load_painter(path, codec.autoencoder).arguments == painter.arguments
    checkpoint.save(path, content | {"autoencoder": "0" * 64})
    with pytest.raises(InputError, match="another autoencoder"):
        load_painter(path, codec.autoencoder)
    checkpoint.save(path, content | {"autoencoder": identity(codec.autoencoder), "arguments": {"dim": 4}})
    with pytest.raises(InputError, match="arguments"):
        load_painter(path, codec.autoencoder)


def test_the_shipped_painter_restores_the_grain():
    """Of deep white matter, which the plain decoder leaves smooth."""
    model = TrainedModel.load(ROOT / "resources/pretrained/vqvae.pth", device="cpu")
    codes = model.sample_codes(range(2), level=16)
    plain, painted = (to_uint8(pictures) for pictures in (model.decode(codes), model.codec.paint(codes, range(2))))
    grains = [
        [tissue.grain(one, tissue.deep_white(under)) for one, under in zip(pictures, plain, strict=True)]
        for pictures in (plain, painted)
    ]
    assert np.mean(grains[1]) > 1.05 * np.mean(grains[0]), grains
