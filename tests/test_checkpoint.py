import os
import pickle
import zipfile
from functools import partial

import pytest
import torch

import modules
from inference.loading import identity, load_autoencoder, load_prior
from modules import AUTOENCODERS, DCGAN
from networks.pixelcnn import PixelCNN
from runtime import checkpoint
from runtime.errors import InputError

DATA = {"title": "made up", "root": "/nowhere", "synthetic": True, "fingerprint": "f" * 64}
DATA |= {"size": [32, 32], "box": [0, 0, 32, 32], "levels": 4, "axis": 2, "slices": None}


@pytest.fixture
def written(tmp_path):
    """An autoencoder, its checkpoint, and a prior's of each kind."""
    torch.manual_seed(0)
    arguments = {"codebook_size": 16}
    model = modules.VQVAE(**arguments).eval()
    content = {"kind": "autoencoder", "model": "vqvae", "arguments": arguments, "data": DATA, "epoch": 3}
    checkpoint.save(tmp_path / "vqvae.pth", content | {"validation_ssim": 0.9, "state": model.state_dict()})
    about = {"kind": "prior", "autoencoder": identity(model), "epoch": 1}
    gan = {"grid": [8, 8], "channels": 64, "levels": 4, "codes": 1}
    dcgan = DCGAN(model, **gan).eval()
    dcgan.mean.fill_(0.5)
    checkpoint.save(tmp_path / "dcgan.pth", about | {"model": "dcgan", "arguments": gan, "state": dcgan.state_dict()})
    grids = {"grids": [[8, 8]], "sizes": [16], "levels": 4, "width": 8, "layers": 2}
    pixelcnn = PixelCNN(**grids).eval()
    content = about | {"model": "pixelcnn", "arguments": grids, "state": pixelcnn.state_dict()}
    checkpoint.save(tmp_path / "pixelcnn.pth", content)
    return {"folder": tmp_path, "model": model, "dcgan": dcgan, "pixelcnn": pixelcnn}


# ------------------------------------------------------------------------------------------- round trips


def test_autoencoder_comes_back(written):
    model, about = load_autoencoder(written["folder"] / "vqvae.pth")
    assert not model.training
    assert all(torch.equal(written["model"].state_dict()[n], t) for n, t in model.state_dict().items())
    assert (about["data"], about["epoch"], about["validation_ssim"]) == (DATA, 3, 0.9)
    assert about["identity"] == identity(written["model"])


@pytest.mark.parametrize("name", ["dcgan", "pixelcnn"])
def test_prior_comes_back_and_samples_the_same(name, written):
    """The statistics of the normalisation travel with the DCGAN."""
    prior, about = load_prior(written["folder"] / f"{name}.pth", written["model"])
    assert not prior.training
    assert about["epoch"] == 1
    for a, b in zip(prior.sample([1, 2]), written[name].sample([1, 2]), strict=True):
        assert torch.equal(a, b)


def test_identity_is_of_what_decides_the_codes(written):
    model = written["model"]
    before = identity(model)
    model.quantizers[0].usage += 1
    assert identity(model) == before
    model.quantizers[0].codebook[3, 5] += 1e-3
    assert identity(model) != before


@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_every_autoencoder_loads_with_weights_only(name, tmp_path):
    model = AUTOENCODERS[name](codebook_size=8)
    content = {"kind": "autoencoder", "model": name, "arguments": {"codebook_size": 8}, "data": DATA, "epoch": 1}
    content["validation_ssim"] = 0.5
    checkpoint.save(tmp_path / "a.pth", content | {"state": model.state_dict()})
    assert torch.load(tmp_path / "a.pth", weights_only=True)["model"] == name
    assert type(load_autoencoder(tmp_path / "a.pth")[0]) is type(model)


# ------------------------------------------------------------------------------------------- what is refused


class Call:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "legacy torch", "pickle"])
@pytest.mark.parametrize("kind", ["autoencoder", "prior", "run"])
def test_a_pickled_call_is_refused_and_does_not_run(kind, how, tmp_path):
    proof, path = tmp_path / "it ran", tmp_path / "evil.pth"
    content = {"kind": kind, "model": "vqvae", "arguments": {}, "state": Call(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(path, kind)
    assert not proof.exists()


def test_the_file_of_another_kind_is_refused(written):
    folder = written["folder"]
    with pytest.raises(InputError, match="holds prior, not the state of an autoencoder"):
        load_autoencoder(folder / "dcgan.pth")
    with pytest.raises(InputError, match="holds autoencoder, not"):
        load_prior(folder / "vqvae.pth", written["model"])
    for content in ([1, 2], {"kind": 5}, {"state": {}}, torch.zeros(3), "text"):
        torch.save(content, folder / "other.pth")
        with pytest.raises(InputError, match="not the state of a run"):
            checkpoint.load(folder / "other.pth", "run")


def test_the_prior_of_another_autoencoder_is_refused(written):
    torch.manual_seed(1)
    for name in ("dcgan", "pixelcnn"):
        with pytest.raises(InputError, match="another autoencoder"):
            load_prior(written["folder"] / f"{name}.pth", modules.VQVAE(16))


@pytest.mark.parametrize("name", ["vqvae", "dcgan", "pixelcnn"])
@pytest.mark.parametrize(
    "change",
    [
        {"model": "transformer"},
        {"model": []},
        {"arguments": {"colour": 3}},
        {"arguments": {"codebook_size": -4}},
        {"arguments": [1]},
        {"arguments": None},
        {"state": {}},
        {"state": None},
        {"state": {"encoder.0.weight": torch.zeros(3)}},
        {"state": 7},
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_is_refused(name, change, written):
    path = written["folder"] / f"{name}.pth"
    checkpoint.save(path, torch.load(path, weights_only=True) | change)
    load = load_autoencoder if name == "vqvae" else partial(load_prior, autoencoder=written["model"])
    with pytest.raises(InputError, match="train it again"):
        load(path)


@pytest.mark.parametrize("missing", ["model", "arguments", "state", "data"])
def test_a_checkpoint_without_a_part_is_refused(missing, written):
    for name in ("vqvae", "pixelcnn"):
        path = written["folder"] / f"{name}.pth"
        content = torch.load(path, weights_only=True)
        content.pop(missing, None)
        checkpoint.save(path, content)
    with pytest.raises(InputError):
        load_autoencoder(written["folder"] / "vqvae.pth")
    if missing != "data":
        with pytest.raises(InputError):
            load_prior(written["folder"] / "pixelcnn.pth", written["model"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, written):
    path = written["folder"] / "vqvae.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="damaged"):
        load_autoencoder(path)


def test_a_changed_byte_of_a_weight_is_noticed(written):
    """Torch reads such a file without a word: it writes checksums but doesn't look at them."""
    path = written["folder"] / "vqvae.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + largest.file_size // 2 + 200] ^= 0x40
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match="damaged"):
        load_autoencoder(path)


@pytest.mark.parametrize("path", ["nowhere.pth", "."])
def test_no_file_is_an_error(path, tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        checkpoint.load(tmp_path / path, "run")


# ------------------------------------------------------------------------------------------- whole or not at all


def test_writing_where_nothing_can_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no folder" / "a.pth", tmp_path / "file" / "a.pth"):
        with pytest.raises(InputError, match="can't write"):
            checkpoint.save(path, {"kind": "run"})
