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
DATA |= {"affine": [[-2.0, 0.0, 0.0, 90.0], [0.0, 2.0, 0.0, -126.0], [0.0, 0.0, 2.0, -72.0], [0.0, 0.0, 0.0, 1.0]]}


@pytest.fixture
def written(tmp_path):
    """An autoencoder, its checkpoint, and a prior's of each kind."""
    torch.manual_seed(0)
    arguments = {"codebook_size": 16}
    model = modules.VQVAE(**arguments).eval()
    content = {"kind": "autoencoder", "model": "vqvae", "arguments": model.arguments, "data": DATA, "epoch": 3}
    checkpoint.save(tmp_path / "vqvae.pth", content | {"validation_ssim": 0.9, "state": model.state_dict()})
    about = {"kind": "prior", "autoencoder": identity(model), "epoch": 1}
    gan = {"grid": [8, 8], "channels": 64, "levels": 4, "codes": 1}
    dcgan = DCGAN(model, **gan).eval()
    dcgan.mean.fill_(0.5)
    content = about | {"model": "dcgan", "arguments": dcgan.arguments, "state": dcgan.state_dict()}
    checkpoint.save(tmp_path / "dcgan.pth", content)
    grids = {"grids": [[8, 8]], "sizes": [16], "levels": 4, "width": 8, "layers": 2}
    pixelcnn = PixelCNN(**grids).eval()
    content = about | {"model": "pixelcnn", "arguments": pixelcnn.arguments, "state": pixelcnn.state_dict()}
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
    content = {"kind": "autoencoder", "model": name, "arguments": model.arguments, "data": DATA, "epoch": 1}
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


def test_where_memory_is_too_small_a_file_is_not_simply_called_damaged(written, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(InputError, match=r"can't load .*: there is not enough memory.*; where there is enough"):
        checkpoint.load(written["folder"] / "vqvae.pth", "autoencoder")


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


WRONG = {  # what a file is changed to -> what is said of it
    "vqvae": [
        ({"data": DATA | {"affine": [[1.0, 0.0, 0.0]] * 4}}, "data.affine.0 must have at least 4 values, not 3"),
        ({"model": "transformer"}, "model must be 'vqvae', 'vqvae2' or 'rqvae', not transformer"),
        ({"model": []}, "model must be 'vqvae', 'vqvae2' or 'rqvae', not []"),
        ({"model": "rqvae"}, "arguments: depth is missing; "),
        ({"arguments": {"colour": 3}}, "arguments: colour is no setting of this version"),
        ({"arguments": {"codebook_size": -4}}, "arguments: codebook_size must be at least 2, not -4"),
        (
            {"arguments": {"codebook_size": 10**300}},
            f"arguments: codebook_size must be at most 32767, not 1{39 * '0'}...",
        ),
        ({"arguments": {"codebook_size": 17}}, "size mismatch for quantizers.0.codebook"),
        ({"arguments": {"codebook_size": 32767}}, "doesn't fit the network of its arguments"),
        ({"arguments": {"codebook_size": True}}, "arguments: codebook_size must be a whole number, not True"),
        ({"arguments": {"beta": float("nan")}}, "arguments: beta must be a finite number, not nan"),
        ({"arguments": {"beta": -1.0}}, "arguments: beta must be at least 0, not -1"),
        ({"arguments": {"ema": False}}, 'Unexpected key(s) in state_dict: "quantizers.0.cluster_size"'),
        ({"arguments": [1]}, "arguments must be names and values, not [1]"),
        ({"arguments": None}, "arguments must be names and values, not None"),
        ({"data": {"size": [32]}}, "data.size must have at least 2 values, not 1"),
        ({"data": {"size": [32, 31]}}, "data.size.1 must be a multiple of 16, not 31"),
        ({"data": {"size": [32, 10**9]}}, "data.size.1 must be at most 4096, not 1000000000"),
        ({"data": {"box": [0, 0, 32, 48]}}, "data.box [0, 0, 32, 48] is not inside of data.size [32, 32]"),
        ({"data": {"box": [0, 0, 0, 0]}}, "data.box [0, 0, 0, 0] has sides that are no multiples of 16"),
        ({"data": {"box": [-16, 0, 32, 32]}}, "data.box.0 must be at least 0, not -16"),
        ({"data": {"box": None}}, "data.box must be a list, not None"),
        ({"data": {"slices": "x:y"}}, "slices must look like 60:92 or 60:92:2 (start:stop[:step]), not 'x:y'"),
        ({"data": {"slices": 5}}, "data.slices must be a text, not 5"),
        ({"data": {"axis": 3}}, "data.axis must be 0, 1 or 2, not 3"),
        ({"data": {"levels": 10**6}}, "data.levels must be at most 1024, not 1000000"),
        ({"data": {"fingerprint": "../x"}}, "data.fingerprint must look like ^[0-9a-f]{64}$, not ../x"),
        ({"data": {"root": b"x"}}, "data.root must be a text, not a bytes"),
        ({"epoch": -1}, "epoch must be at least 0, not -1"),
        ({"validation_ssim": float("nan")}, "validation_ssim must be a finite number, not nan"),
        ({"validation_ssim": torch.zeros(3)}, "validation_ssim must be a number, not a Tensor"),
        ({"state": {"encoder.0.bias": None}}, "state.encoder.0.bias must be a Tensor, not None"),
        ({"state": {"encoder.0.bias": torch.zeros(3)}}, "size mismatch for encoder.0.bias"),
        ({"state": {"encoder.0.bias": torch.full((32,), torch.nan)}}, "state.encoder.0.bias holds numbers that aren't"),
        ({"state": {"encoder.0.bias": torch.full((32,), -1e30)}}, "state.encoder.0.bias holds numbers that aren't"),
        ({"state": {"more": torch.zeros(3)}}, 'Unexpected key(s) in state_dict: "more"'),
        ({"state": None}, "state must be names and values, not None"),
    ],
    "dcgan": [
        ({"model": "pixelcnn"}, "arguments: grids is missing"),
        ({"arguments": {"grid": [8, 8, 8]}}, "arguments: grid must have at most 2 values, not 3"),
        ({"arguments": {"grid": [8, 9]}}, "state"),
        ({"arguments": {"levels": 10**6}}, "arguments: levels must be at most 1024, not 1000000"),
        ({"arguments": {"width": 4096}}, "doesn't fit the network of its arguments"),
        ({"arguments": {"network": "flow"}}, "arguments: network must be 'residual' or 'baseline', not flow"),
        ({"arguments": {"codes": 2}}, "its arguments are for other codes than this autoencoder's"),
        ({"arguments": {"channels": 32}}, "its arguments are for other codes than this autoencoder's"),
        ({"autoencoder": 5}, "autoencoder must be a text, not 5"),
        ({"state": {"level_share": torch.zeros(5)}}, "state.level_share holds no shares of slice levels"),
        ({"state": {"level_share": -torch.ones(5)}}, "state.level_share holds no shares of slice levels"),
        ({"state": {"mean": torch.zeros(1, 64, 1, 1).fill_(torch.inf)}}, "state.mean holds numbers that aren't finite"),
    ],
    "pixelcnn": [
        ({"model": "dcgan"}, "arguments: grid is missing"),
        ({"arguments": {"layers": 10**6}}, "arguments: layers must be at most 64, not 1000000"),
        ({"arguments": {"layers": 3}}, "Missing key(s)"),
        ({"arguments": {"dropout": 1.0}}, "arguments: dropout must be less than 1, not 1"),
        ({"arguments": {"sizes": [32]}}, "its arguments are for other codes than this autoencoder's"),
        ({"arguments": {"grids": [[8, 8], [8, 8]]}}, "its arguments are for other codes than this autoencoder's"),
        ({"arguments": {"grids": []}}, "arguments: grids must have at least 1 values, not 0"),
        ({"state": {"level_share": torch.full((5,), torch.nan)}}, "state.level_share holds numbers that aren't finite"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
    ids=lambda value: str(value)[:60],
)
def test_what_can_not_be_is_refused_with_the_field(name, change, told, written):
    path = written["folder"] / f"{name}.pth"
    content = torch.load(path, weights_only=True)
    for field, value in change.items():
        content[field] = content[field] | value if isinstance(value, dict) else value
    checkpoint.save(path, content)
    load = load_autoencoder if name == "vqvae" else partial(load_prior, autoencoder=written["model"])
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "claim", [{"depth": 10**6}, {"blocks": 10**5}, {"width": 4096, "blocks": 64, "depth": 16}], ids=str
)
def test_a_small_file_that_claims_a_huge_network_costs_nothing(claim, tmp_path, monkeypatch):
    model = modules.RQVAE(codebook_size=4, depth=2, width=8, blocks=1)
    content = {"kind": "autoencoder", "model": "rqvae", "arguments": model.arguments | claim, "data": DATA, "epoch": 1}
    checkpoint.save(tmp_path / "a.pth", content | {"validation_ssim": 0.5, "state": model.state_dict()})
    made = []
    monkeypatch.setattr(
        torch.nn.Conv2d, "reset_parameters", lambda self: made.append(self.weight.numel() * (not self.weight.is_meta))
    )
    with pytest.raises(InputError, match=r"must be at most|doesn't fit"):
        load_autoencoder(tmp_path / "a.pth")
    assert sum(made) < 10**6


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


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path):
    """Storages that are deflated can be gigabytes in a file of some kilobytes."""
    stored, path = tmp_path / "stored.pth", tmp_path / "packed.pth"
    checkpoint.save(stored, {"kind": "run", "x": torch.zeros(10**6)})
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert path.stat().st_size < 10**5
    assert torch.load(path, weights_only=True)["x"].shape == (10**6,)
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        checkpoint.load(path, "run")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(2).to_sparse(), torch.zeros(3, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_are_plain_and_no_larger_than_the_file(tensor, tmp_path):
    checkpoint.save(tmp_path / "a.pth", {"kind": "run", "deep": [{"x": (tensor,)}]})
    with pytest.raises(InputError, match="damaged or no checkpoint"):
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


def test_a_file_that_can_not_be_read_is_not_called_damaged(written, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    path = written["folder"] / "vqvae.pth"
    with pytest.raises(InputError) as caught:
        load_autoencoder(path)
    assert str(caught.value) == f"can't read {path}: Permission denied"


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
