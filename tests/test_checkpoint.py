"""Checkpoints: what was saved comes back, and damaged or made-up files are refused in one line without running code."""

import copy
import os
import pickle
import zipfile
from functools import partial

import pytest
import torch
from tiny import DATA, content_of

import modules
from inference.loading import AUTOENCODERS, identity, load_autoencoder, load_prior
from modules import DCGAN
from networks.pixelcnn import PixelCNN
from runtime import checkpoint
from runtime.errors import InputError


@pytest.fixture(scope="module")
def made():
    """Networks by the name of their checkpoint, and what the checkpoints hold."""
    torch.manual_seed(0)
    model = modules.VQVAE(codebook_size=16).eval()
    dcgan = DCGAN(model, grid=[8, 8], channels=64, levels=4, codes=1).eval()
    dcgan.mean.fill_(0.5)
    pixelcnn = PixelCNN(grids=[[8, 8]], sizes=[16], levels=4, width=8, layers=2).eval()
    contents = {"vqvae": content_of(model), "dcgan": content_of(dcgan, model), "pixelcnn": content_of(pixelcnn, model)}
    return {"vqvae": model, "dcgan": dcgan, "pixelcnn": pixelcnn}, contents


@pytest.fixture
def folder(made, tmp_path):
    """The networks' checkpoints."""
    for name, content in made[1].items():
        checkpoint.save(tmp_path / f"{name}.pth", content)
    return tmp_path


# ------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_every_autoencoder_comes_back(name, tmp_path):
    written = AUTOENCODERS[name](codebook_size=8)
    checkpoint.save(tmp_path / "a.pth", content_of(written))
    assert torch.load(tmp_path / "a.pth", weights_only=True)["model"] == name
    model, about = load_autoencoder(tmp_path / "a.pth")
    assert (type(model), model.training) == (type(written), False)
    assert all(torch.equal(written.state_dict()[n], t) for n, t in model.state_dict().items())
    assert (about["data"], about["epoch"], about["validation_ssim"]) == (DATA, 1, 0.9)
    assert about["identity"] == identity(written)


@pytest.mark.parametrize("name", ["dcgan", "pixelcnn"])
def test_prior_comes_back_and_samples_the_same(name, made, folder):
    """The statistics of the normalisation travel with the DCGAN."""
    networks, _ = made
    prior, about = load_prior(folder / f"{name}.pth", networks["vqvae"])
    assert (prior.training, about["epoch"]) == (False, 1)
    for a, b in zip(prior.sample([1, 2]), networks[name].sample([1, 2]), strict=True):
        assert torch.equal(a, b)


def test_identity_is_of_what_decides_the_codes(made):
    model = copy.deepcopy(made[0]["vqvae"])
    before = identity(model)
    model.quantizer.usage += 1
    assert identity(model) == before
    model.quantizer.codebooks[0, 3, 5] += 1e-3
    assert identity(model) != before


# ------------------------------------------------------------------------------------------- what is refused


class Call:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickled_call_is_refused_and_does_not_run(how, tmp_path):
    proof, path = tmp_path / "it ran", tmp_path / "evil.pth"
    content = {"kind": "run", "model": "vqvae", "arguments": {}, "state": Call(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load(path, "run")
    assert not proof.exists()


def test_the_file_of_another_kind_is_refused(made, folder):
    with pytest.raises(InputError, match="holds 'prior', not 'autoencoder'"):
        load_autoencoder(folder / "dcgan.pth")
    with pytest.raises(InputError, match="holds 'autoencoder', not 'prior'"):
        load_prior(folder / "vqvae.pth", made[0]["vqvae"])
    for content in ([1, 2], {"kind": 5}, {"state": {}}, torch.zeros(3), "text"):
        torch.save(content, folder / "other.pth")
        with pytest.raises(InputError, match="not 'run'"):
            checkpoint.load(folder / "other.pth", "run")
    for path in (folder / "nowhere.pth", folder):
        with pytest.raises(InputError, match="no checkpoint at"):
            checkpoint.load(path, "run")


def test_the_prior_of_another_autoencoder_is_refused(folder):
    torch.manual_seed(1)
    for name in ("dcgan", "pixelcnn"):
        with pytest.raises(InputError, match="another autoencoder"):
            load_prior(folder / f"{name}.pth", modules.VQVAE(16))


WRONG = [  # a file, what is changed in it, and the message
    ("vqvae", {"model": "transformer"}, "model must be 'vqvae', 'vqvae2' or 'rqvae', not 'transformer'"),
    ("vqvae", {"arguments": {"colour": 3}}, "arguments.colour: Extra inputs are not permitted"),
    ("vqvae", {"arguments": {"codebook_size": 10**300}}, "arguments.codebook_size must be less than or equal to 32767"),
    ("vqvae", {"arguments": {"codebook_size": 32767}}, "doesn't fit the network of its arguments"),
    ("vqvae", {"arguments": {"codebook_size": True}}, "arguments.codebook_size must be a valid integer, not True"),
    ("vqvae", {"arguments": {"beta": float("nan")}}, "arguments.beta must be a finite number, not nan"),
    ("vqvae", {"arguments": {"ema": False}}, 'Unexpected key(s) in state_dict: "quantizer.cluster_size"'),
    ("vqvae", {"arguments": None}, "arguments must be a valid dictionary or instance of Arguments, not None"),
    ("vqvae", {"data": {"size": [256, 31]}}, "data.size.1 must be a multiple of 16, not 31"),
    ("vqvae", {"data": {"box": [0, 0, 32, 272]}}, "data.box [0, 0, 32, 272] is not inside of data.size [256, 256]"),
    ("vqvae", {"data": {"box": [0, 0, 0, 0]}}, "data.box [0, 0, 0, 0] has sides that are no multiples of 16"),
    ("vqvae", {"data": {"slices": "x:y"}}, "slices must look like 60:92 or 60:92:2 (start:stop[:step]), not 'x:y'"),
    ("vqvae", {"data": {"fingerprint": "../x"}}, "data.fingerprint: String should match pattern"),
    ("vqvae", {"data": {"affine": [[1.0, 0.0, 0.0]] * 4}}, "data.affine.0: List should have at least 4 items"),
    ("vqvae", {"validation_ssim": torch.zeros(3)}, "validation_ssim must be a valid number, not tensor"),
    ("vqvae", {"state": {"encoder.0.bias": torch.zeros(3)}}, "size mismatch for encoder.0.bias"),
    ("vqvae", {"state": {"encoder.0.bias": torch.full((32,), torch.nan)}}, "bias holds numbers that aren't finite"),
    ("vqvae", {"state": {"encoder.0.bias": torch.full((32,), -1e30)}}, "bias holds numbers that aren't finite"),
    ("dcgan", {"model": "pixelcnn"}, "unexpected keyword argument 'channels'"),
    ("dcgan", {"arguments": {"codes": 2}}, "its arguments are for other codes than this autoencoder's"),
    ("dcgan", {"state": {"level_share": -torch.ones(5)}}, "state.level_share holds no shares of slice levels"),
    ("pixelcnn", {"arguments": {"layers": 10**6}}, "arguments.layers must be less than or equal to 64"),
    ("pixelcnn", {"arguments": {"layers": 3}}, "Missing key(s)"),
    ("pixelcnn", {"arguments": {"grids": [[8, 8], [8, 8]]}}, "its arguments are for other codes than this"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[f"{name} {text[:40]}" for name, _, text in WRONG])
def test_a_wrong_field_is_refused_and_named(name, change, message, made, tmp_path):
    networks, contents = made
    content, path = dict(contents[name]), tmp_path / "a.pth"
    for field, value in change.items():
        content[field] = content[field] | value if isinstance(value, dict) else value
    checkpoint.save(path, content)
    load = load_autoencoder if name == "vqvae" else partial(load_prior, autoencoder=networks["vqvae"])
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("claim", [{"depth": 10**6}, {"width": 4096, "blocks": 64, "depth": 16}], ids=str)
def test_a_small_file_that_claims_a_huge_network_costs_nothing(claim, tmp_path, monkeypatch):
    model = modules.RQVAE(codebook_size=4, depth=2, width=8, blocks=1)
    checkpoint.save(tmp_path / "a.pth", content_of(model) | {"arguments": model.arguments | claim})
    made = []
    reset = lambda self: made.append(self.weight.numel() * (not self.weight.is_meta))  # noqa: E731
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", reset)
    with pytest.raises(InputError, match=r"must be less than or equal to|doesn't fit"):
        load_autoencoder(tmp_path / "a.pth")
    assert sum(made) < 10**6


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    """Storages that are deflated can be gigabytes in a file of some kilobytes."""
    stored, path = tmp_path / "stored.pth", tmp_path / "packed.pth"
    checkpoint.save(stored, {"kind": "run", "x": torch.zeros(10**6)})
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert path.stat().st_size < 10**5
    assert torch.load(path, weights_only=True)["x"].shape == (10**6,)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load(path, "run")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(2).to_sparse(), torch.zeros(3, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_are_plain_and_no_larger_than_the_file(tensor, tmp_path):
    checkpoint.save(tmp_path / "a.pth", {"kind": "run", "deep": [{"x": (tensor,)}]})
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        checkpoint.load(tmp_path / "a.pth", "run")


def test_lists_that_hold_themselves_and_each_other_come_to_an_end(tmp_path):
    tower: list = ["x"]
    for _ in range(60):
        tower = [tower, tower]
    tower.append(tower)
    checkpoint.save(tmp_path / "a.pth", {"kind": "autoencoder", "model": tower, "epoch": tower, "data": tower})
    with pytest.raises(InputError) as caught:
        load_autoencoder(tmp_path / "a.pth")
    assert len(str(caught.value)) < 1000


def test_a_file_that_can_not_be_read_is_not_called_damaged(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(InputError) as caught:
        load_autoencoder(folder / "vqvae.pth")
    assert str(caught.value) == f"can't read {folder / 'vqvae.pth'}: Permission denied"


def test_a_truncated_file_and_a_changed_byte_of_a_weight_are_noticed(folder):
    """Torch reads the second without a word: it writes checksums but doesn't look at them."""
    path = folder / "vqvae.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    whole = path.read_bytes()
    for share in (0, 0.3, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="damaged"):
            load_autoencoder(path)
    data = bytearray(whole)
    data[largest.header_offset + largest.file_size // 2 + 200] ^= 0x40
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match="damaged"):
        load_autoencoder(path)
