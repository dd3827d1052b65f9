"""Files of codes: the same codes come back, in as few bytes as the probabilities allow, and damage is an error."""

import math
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, blob
from PIL import Image
from tiny import content_of

import predict
from dataset import read_files
from inference.compression import Coder
from inference.model import TrainedModel
from inference.reconstruction import reconstruct
from modules import RQVAE
from networks.transformer import Transformer
from reading.codes import unpack
from reading.nifti import WHOLE
from runtime import checkpoint
from runtime.errors import InputError

pytest.importorskip("constriction")


@pytest.fixture
def weights(tmp_path):
    """A vqvae.pth with three codes of 16 a position, whose shares differ, beside a transformer.pth for the first."""
    torch.manual_seed(0)
    model = RQVAE(codebook_size=16, depth=3, width=8, blocks=1, dim=4)
    model.quantizer.cluster_size.uniform_(0.1, 2)
    prior = Transformer((8, 8), [16], 4, 32, width=24, layers=2, inner=8)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    checkpoint.save(tmp_path / "vqvae.pth", content_of(model))
    checkpoint.save(tmp_path / "transformer.pth", content_of(prior, model))
    return tmp_path / "vqvae.pth"


@pytest.fixture
def pictures(tmp_path):
    """Two slices whose content lies where the training's does, the last of another size, and one whose doesn't."""
    made = {"case_001_slice_5": blob(1, 5), "shifted": np.roll(blob(1, 6), 60, 1), "small": blob(1, 7)[100:150, 90:160]}
    for name, picture in made.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in made]


def load(weights):
    return TrainedModel.load(weights, "none", "cpu")


def write(model, files, prior=None, depth=None):
    """The coder, what the slices of files were made of, and the files of codes."""
    slices, coder = read_files(files), Coder(model, prior)
    made = reconstruct(model, slices.images, depth, slices.frames)
    return coder, made, coder.write(slices, made, WHOLE)


def run(monkeypatch, capsys, weights, out, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict.py", str(weights), "--device=cpu", *map(str, arguments), f"--out={out}"])
    return predict.main(), capsys.readouterr().err


@pytest.mark.parametrize("depth", [None, 1])
@pytest.mark.parametrize("prior", [None, "none"])
def test_codes_come_back_exactly(weights, pictures, tmp_path, prior, depth):
    coder, made, files = write(load(weights), pictures, prior, depth)
    for row, content in enumerate(files):
        (tmp_path / "one.codes").write_bytes(content)
        header, [(own, read)] = coder.read(tmp_path / "one.codes")
        [(codes, i)] = [(codes, list(rows).index(row)) for rows, codes in made.groups if row in rows]
        assert (header.prior is None) == (prior == "none" or row == 1)
        assert (list(own), read.box, read.size) == ([0], codes.box, codes.size)
        assert len(read) == len(codes) == (depth or 3)
        for a, b in zip(read, codes, strict=True):
            assert np.array_equal(a, b[i : i + 1])


def test_a_file_is_as_long_as_the_probabilities_say(weights, pictures, tmp_path):
    model = load(weights)
    coder, made, [content] = write(model, pictures[:1])
    codes, shares = made.groups[0][1], model.codec.autoencoder.quantizer.cluster_size.double()
    with torch.no_grad():
        bits = coder.prior([torch.from_numpy(codes[0]).long()], torch.tensor([5])).item()
    for share, grid in zip(shares[1:], codes[1:], strict=True):
        bits -= (share / share.sum()).log2()[grid].sum().item()
    (tmp_path / "one.codes").write_bytes(content)
    assert math.ceil(bits / 8) <= len(unpack(tmp_path / "one.codes")[2]) <= bits / 8 + 8
    assert len(content) - bits / 8 < 64  # the header


def test_a_changed_byte_is_an_error(weights, pictures, tmp_path):
    coder, _, [content] = write(load(weights), pictures[:1])
    path = tmp_path / "one.codes"
    for place in range(4, len(content) - 8, 3):  # from the checksum on; the last bits may not count
        path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"one\.codes"):
            coder.read(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="doesn't decode to the codes that were written"):
        coder.read(path)


def test_only_the_networks_that_wrote_it_read_a_file(weights, pictures, tmp_path):
    model = load(weights)
    _, _, [content] = write(model, pictures[:1])
    (tmp_path / "one.codes").write_bytes(content)
    with pytest.raises(InputError, match=r"another transformer\.pth"):
        Coder(model, "none").read(tmp_path / "one.codes")
    model.description["identity"] = "0" * 64
    with pytest.raises(InputError, match="another autoencoder"):
        Coder(model).read(tmp_path / "one.codes")


def test_without_constriction_there_is_advice(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(InputError, match=r"requirements-extra\.txt"):
        Coder(load(weights))


@pytest.mark.parametrize("nifti", [True, False], ids=["NIfTI", "PNG"])
def test_a_volume_comes_back_from_its_codes(weights, tmp_path, monkeypatch, capsys, nifti):
    voxels = np.stack([np.rot90(blob(2, level)[90:170, 95:160]) for level in range(3)], 2) * 7.5
    image = nib.Nifti1Image(voxels.astype(np.float32), np.diag([-1.5, 1.5, 4, 1]) + np.eye(4, k=3) * 9)
    image.header["descrip"] = b"as it was"
    nib.save(image, tmp_path / "brain.v2.nii.gz")
    how = ["--save-nifti"] if nifti else []
    given = [tmp_path / "brain.v2.nii.gz", "--slices", "0:2", "--save-codes"]
    assert run(monkeypatch, capsys, weights, tmp_path / "a", "--input", *given, *how) == (0, "")
    assert run(monkeypatch, capsys, weights, tmp_path / "b", "--input", tmp_path / "a/codes", *how) == (0, "")
    before, after = (sorted((tmp_path / out / "reconstructions").iterdir()) for out in "ab")
    assert [path.name for path in before] == [path.name for path in after]
    if not nifti:
        assert [path.name for path in after] == ["brain.v2_slice_0.png", "brain.v2_slice_1.png"]
        assert all(np.array_equal(*map(np.asarray, map(Image.open, pair))) for pair in zip(before, after, strict=True))
        return
    [a, b] = nib.load(before[0]), nib.load(after[0])
    assert (b.shape, b.header["descrip"]) == ((*voxels.shape[:2], 2), b"as it was")
    assert np.array_equal(a.get_fdata(), b.get_fdata())
    assert np.array_equal(a.affine, b.affine)


def test_what_does_not_fit_is_one_line(weights, pictures, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(monkeypatch, capsys, weights, out, "--input", pictures[0], "--save-codes")[0] == 0
    codes = out / "codes/case_001_slice_5.codes"
    for given, reason in [
        (["--save-codes"], "give them as --input"),
        (["--input", pictures[0], "--save-codes", "--prior", weights], "not 'prior'"),
        (["--input", codes, "--save-nifti"], "these are pictures"),
        (["--input", codes, "--spacing", 1], "leave it out"),
        (["--input", codes, pictures[0]], "give them alone"),
    ]:
        status, error = run(monkeypatch, capsys, weights, tmp_path / "b", *given)
        assert (status, error.count("\n"), reason in error) == (2, 1, True), error
        assert not (tmp_path / "b").exists()


def test_the_shipped_weights_read_what_they_wrote(tmp_path):
    model = load(ROOT / "resources/pretrained/vqvae.pth")
    coder, made, [content] = write(model, [ROOT / "resources/example.nii.gz"])
    (tmp_path / "one.codes").write_bytes(content)
    header, groups = coder.read(tmp_path / "one.codes")
    each = {row: [grid[i] for grid in codes] for rows, codes in made.groups for i, row in enumerate(rows)}
    for own, codes in groups:
        for i, row in enumerate(own):
            assert all(np.array_equal(grid[i], known) for grid, known in zip(codes, each[row], strict=True))
    assert len(header.levels) == 8
    assert len(content) < 8 * made.bytes_per_image
