"""The command line, as a user runs it: in a process of its own, on files."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny
import torch
from conftest import blob
from PIL import Image
from skimage.metrics import structural_similarity

import dataset
import train
from dataset import Box, content_box
from inference.codec import Codec
from inference.loading import load_autoencoder, load_prior
from networks.pixelcnn import PixelCNN
from runtime import checkpoint, compute
from runtime.compute import Compute
from scoring.metrics import reconstruction_scores, summarise
from training import figures, likelihood, setup
from training.validation import validation_ssim

ROOT = Path(__file__).parent.parent
CPU = Compute(torch.device("cpu"), bf16=False)


# ----------------------------------------------------------------------------------------------------
# A whole run


def test_run_folder_holds_everything(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {"config.json", "metrics.csv", "log.txt", "vqvae.pth", "dcgan.pth", "last.pth", "progress.gif"}
    assert names >= {"epoch_001.png", "epoch_002.png", "training_curves.png", "report.html"}
    assert names >= {"dcgan_001.png", "dcgan_progress.gif"}
    assert "last epoch of the DCGAN" in (tiny_run / "report.html").read_text()
    assert not [name for name in names if name.endswith(".partial")]
    config = json.loads((tiny_run / "config.json").read_text())
    assert (config["epochs"], config["beta"], config["loss"]) == (2, 0.25, "l1+ssim")
    assert "128 train, 32 validate slices" in (tiny_run / "log.txt").read_text()
    rows = metrics(tiny_run)
    assert [row["stage"] for row in rows] == ["autoencoder"] * 2 + ["dcgan"]
    assert all(0 <= float(rows[-1][key]) <= 1 for key in ("accuracy_real", "accuracy_fake", "histogram_distance"))


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_checkpoints_say_what_they_are(tiny_run):
    model, about = load_autoencoder(tiny_run / "vqvae.pth")
    assert (about["model"], about["data"]["synthetic"], about["data"]["levels"]) == ("vqvae", True, 32)
    assert about["data"]["size"] == [256, 256]
    box = Box(*about["data"]["box"])
    assert max(box.height, box.width) <= 64  # the blobs' place on the canvas
    prior, about = load_prior(tiny_run / "dcgan.pth", model)
    codes = model.encode(torch.rand(2, 1, box.height, box.width))
    assert [grid.shape for grid in prior.sample([0, 1])] == [grid.shape for grid in codes]
    assert about["epoch"] == 1


def test_validation_score_is_scikit_images_of_the_best_model(tiny_run, tiny_data, tiny_cache, monkeypatch):
    """On the full 256x256 pictures of the whole validation split. Mistake 2: the best by loss was not the best."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    model, about = load_autoencoder(tiny_run / "vqvae.pth")
    scores = [float(row["validation_ssim"]) for row in metrics(tiny_run) if row["validation_ssim"]]
    assert about["validation_ssim"] == max(scores)
    originals = dataset.load(str(tiny_data)).splits["validate"].images
    codec = Codec(model, about["data"], compute.choose("cpu"))
    decoded = codec.decode(codec.encode(originals))
    pairs = zip(originals / 255, decoded.astype(np.float64), strict=True)
    mean = np.mean([structural_similarity(x, y, data_range=1.0) for x, y in pairs])
    assert mean == pytest.approx(about["validation_ssim"], abs=1e-4)


def test_ctrl_c_saves_exits_and_says_how_to_go_on(tiny_data, tiny_cache, tmp_path):
    out = tmp_path / "runs"
    quick = ["--device=cpu", "--epochs=10000", "--batch-size=16", "--codebook-size=16", "--prior=none"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tiny_cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"--data={tiny_data}", *quick, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        while process.poll() is None and not list(out.glob("*/last.pth")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    (folder,) = out.glob("*/")
    assert f"--resume {folder}" in printed.splitlines()[-1]
    state = checkpoint.load(folder / "last.pth", "run")
    assert state["epoch"] + state["step"] > 0


# ----------------------------------------------------------------------------------------------------
# Bad options


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr=nan"],
        ["--config=nowhere.json"],
        ["--resume=DATA", "--config=nowhere.json"],
        ["--time-limit=-5"],
        ["stray"],
        ["--resume=nowhere"],
        ["--resume=DATA"],
        ["--data=DATA/keras_png_slices_train"],
        ["--data=DATA", "--slices=9"],
        pytest.param(
            ["--data=DATA", "--device=cuda"], marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
        ),
    ],
    ids=" ".join,
)
def test_bad_options_are_one_line_and_write_nothing(arguments, tiny_data, tiny_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    given = [argument.replace("DATA", str(tiny_data)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["train.py", "--out=runs", *given])
    assert train.main() == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_before_training_is_130(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "load_data", interrupted)
    monkeypatch.setattr(sys, "argv", ["train.py", "--device=cpu"])
    assert train.main() == 130
    assert capsys.readouterr().err == "interrupted\n"


# ----------------------------------------------------------------------------------------------------
# Schedule and losses


def test_losses_in_closed_form():
    x, y = torch.rand(2, 3, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    ssims = [structural_similarity(a[0].numpy(), b[0].numpy(), data_range=1.0) for a, b in zip(x, y, strict=True)]
    expected = [(a - b).abs().mean().item() + 0.5 * (1 - one) for a, b, one in zip(x, y, ssims, strict=True)]
    assert train.LOSSES["l1+ssim"](x, y).tolist() == pytest.approx(expected, abs=1e-5)
    assert train.LOSSES["l1+ssim"](x, x).tolist() == pytest.approx([0] * 3, abs=1e-6)
    squares = [(a - b).square().mean().item() for a, b in zip(x, y, strict=True)]
    assert train.LOSSES["mse"](x, y).tolist() == pytest.approx(squares)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_validation_score_counts_every_slice_once_and_empty_ones_not_at_all(batch_size, monkeypatch):
    """The last, short batch weighs what its slices weigh, and dark ones are left out, as in predict.py."""

    class Copy(torch.nn.Module):
        def forward(self, images, num_codes=None):
            return images.clamp(0, 0.5), [], torch.zeros(())

    monkeypatch.setattr(Compute, "scoring_batch", batch_size)
    data = tiny.data_set()
    images = data.splits["validate"].images
    images[[0, 3]] = np.array([0, 10], np.uint8)[:, None, None]
    copies = np.minimum(images / 255, 0.5)
    pairs = [(x / 255, y) for x, y in zip(images, copies, strict=True) if x.max() > 10]
    expected = np.mean([structural_similarity(x, y, data_range=1.0) for x, y in pairs])
    score = validation_ssim(Copy(), data, Box(0, 0, 32, 32), CPU)
    assert score == pytest.approx(expected, abs=1e-5)
    assert score == pytest.approx(summarise(reconstruction_scores(images, copies))["ssim"]["mean"], abs=1e-5)


@pytest.mark.parametrize("box", [Box(16, 32, 32, 32), Box(0, 0, 48, 16), Box(70, 60, 10, 20)])
def test_validation_score_is_of_full_pictures_wherever_their_content_is(box):
    """Content beyond the model's box, at the pictures' edge, or none of it in the box: all of it counts.

    A slice that needs a larger box is coded in that one alone, as predict.py does, and the others are not.
    """

    class Noise(torch.nn.Module):
        def forward(self, images, num_codes=None):
            noise = torch.rand(images.shape[2:], generator=torch.Generator().manual_seed(0))
            return images + 0.2 * noise, [], None

    data = tiny.data_set()
    pictures = np.zeros((5, 80, 96), np.uint8)
    pictures[:, 20:40, 30:70] = np.random.default_rng(0).integers(0, 256, (5, 20, 40))
    pictures[3, 75:, 90:] = 200
    slices = data.splits["validate"]
    columns = {name: column[:5] for name, column in vars(slices).items() if column is not None}
    data.splits["validate"] = dataclasses.replace(slices, **columns | {"images": pictures})
    expected = []
    for picture in pictures:
        coded = content_box(picture[None], box)
        made = Noise()(torch.from_numpy(coded.crop(picture).copy())[None, None] / 255)[0].clamp(0, 1)
        decoded = coded.paste(made, picture.shape)[0, 0].numpy()
        expected.append(structural_similarity(picture / 255, decoded, data_range=1.0))
    assert validation_ssim(Noise(), data, box, CPU) == pytest.approx(np.mean(expected), abs=1e-5)


def test_validation_leaves_the_codebooks_alone():
    """Mistake 10, in the loop: validation is in eval mode, and training in train mode again after it."""
    data = tiny.data_set()
    model = train.AUTOENCODERS["vqvae"](codebook_size=16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    validation_ssim(model, data, content_box(data.splits["validate"].images), CPU)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_codebook_use_is_over_the_epoch():
    model = train.AUTOENCODERS["vqvae"](codebook_size=4)
    model.quantizer.usage.copy_(torch.tensor([[2.0, 2.0, 0.0, 0.0]]))
    assert train.codebook_use(model) == {"perplexity_0": pytest.approx(2.0), "codes_used_0": 2}
    assert not model.quantizer.usage.any()


def test_training_learns(tmp_path, monkeypatch):
    """A few epochs beat the best constant picture by far, and most codes come into use."""
    trainer = tiny.Trainer(tmp_path, monkeypatch)
    monkeypatch.setattr(train, "cosine", partial(train.cosine, warm_up=8))
    _, folder = trainer(epochs=24, batch_size=8, lr=3e-3, augment="off")
    model, about = load_autoencoder(folder / "vqvae.pth")
    images = tiny.data_set().splits["validate"].images
    codec = Codec(model, about["data"], CPU)
    codes = codec.encode(images)
    error = np.square(codec.decode(codes) - images / 255).mean()
    assert error < 0.3 * (images / 255).var()
    assert len(codes[0].unique()) >= 8


def test_sides_that_no_factor_divides_are_padded(tmp_path, monkeypatch):
    """NIfTI slices of any height and width train."""
    load = setup.load_data
    trainer = tiny.Trainer(tmp_path / "runs", monkeypatch)
    monkeypatch.setattr(setup, "load_data", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, part in tiny.data_set().splits.items():
        (tmp_path / "set" / split).mkdir(parents=True)
        for person in dict.fromkeys(part.people):
            volume = part.images[[name == person for name in part.people], :30, :27]
            image = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4))
            nibabel.save(image, tmp_path / "set" / split / f"{person}.nii")
    status, folder = trainer(data=tmp_path / "set", epochs=1, model="vqvae2")
    assert status == 0
    assert "note: train: 64 slices padded to fit 32x32" in (folder / "log.txt").read_text().splitlines()
    size = load_autoencoder(folder / "vqvae.pth")[1]["data"]["size"]
    assert size == [32, 32]


def test_quantiser_dropout_keeps_all_codes_of_half_and_few_of_the_others():
    torch.manual_seed(0)
    num_codes = train.draw_num_codes(20_000, 8, CPU.device)
    share = torch.bincount(num_codes, minlength=9) / len(num_codes)
    expected = torch.tensor([0, 2, 2, 1, 1, 1, 1, 1, 0]) / 18  # of 1 and 2 twice as many as of 3 to 7
    expected[8] = 0.5
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
    assert train.draw_num_codes(20, 1, CPU.device) is None
    assert set(train.draw_num_codes(50, 2, CPU.device).tolist()) == {1, 2}


def test_images_of_few_codes_weigh_half():
    model = train.AUTOENCODERS["rqvae"](codebook_size=4, depth=3, width=8, blocks=1, dim=4).train()
    model.bypass_quantizers(True)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss(reconstruction, images):
        return torch.tensor([3.0, 5.0]) + 0 * reconstruction.sum()

    values = train.autoencoder_step(model, optimizer, images, torch.tensor([3, 1]), loss, CPU)
    assert values["train_reconstruction"].item() == pytest.approx((3 + 0.5 * 5) / 2)


def test_out_of_memory_names_the_batch_size_of_its_stage(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise torch.cuda.OutOfMemoryError

    trainer = tiny.Trainer(tmp_path, monkeypatch)
    monkeypatch.setitem(train.PRIORS, "pixelcnn", full)
    status, folder = trainer(prior="pixelcnn", prior_batch_size=64)
    assert status == 2
    advice = f"start again with --autoencoder {folder / 'vqvae.pth'} --prior-batch-size 32\n"
    assert capsys.readouterr().err.endswith(advice)
    monkeypatch.setattr(train, "train_autoencoder", full)
    assert trainer()[0] == 2
    assert capsys.readouterr().err.endswith("start again with --batch-size 8\n")


@pytest.mark.parametrize("prior", ["dcgan", "pixelcnn"])
def test_the_same_seeds_are_sampled_after_every_epoch(prior, tmp_path, monkeypatch):
    trainer, drawn = tiny.Trainer(tmp_path, monkeypatch), []
    monkeypatch.setattr(figures, "draw_sampled", lambda run, codec, codes, *args: drawn.append(codes[0]))
    assert trainer(epochs=1, prior=prior, prior_lr=0)[0] == 0
    assert len(drawn) == 2
    assert torch.equal(*drawn)  # since the weights stay as they are
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_a_prior_for_a_trained_autoencoder(tiny_run, tiny_data, tiny_cache, tmp_path, monkeypatch):
    trained = tiny_run / "vqvae.pth"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    arguments = [f"--data={tiny_data}", f"--autoencoder={trained}", "--prior=pixelcnn", "--prior-epochs=1"]
    monkeypatch.setattr(likelihood, "PixelCNN", partial(PixelCNN, width=16, layers=3))
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"--out={tmp_path}", "--device=cpu"])
    assert train.main() == 0
    [run] = tmp_path.glob("*/")
    autoencoder, about = load_autoencoder(run / "vqvae.pth")
    assert about["identity"] == load_autoencoder(trained)[1]["identity"]
    load_prior(run / "pixelcnn.pth", autoencoder)
    assert {row["stage"] for row in metrics(run)} == {"pixelcnn"}
    monkeypatch.setattr(sys, "argv", ["train.py", f"--resume={run}", "--prior-epochs=2"])
    assert train.main() == 0
    assert len(metrics(run)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prior", "none"), "leaves nothing to train"),
        (("--epochs", "2"), "leave out --epochs"),
        (("--limit-people", "3"), "4 training people"),
        (("--data", "OTHER"), "was trained on"),
    ],
)
def test_a_trained_autoencoder_with_what_does_not_go_with_it(
    more, message, tiny_run, tiny_data, tiny_cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_cache))
    out, other = tmp_path / "runs", tmp_path / "other"
    arguments = ["--data", str(tiny_data), "--autoencoder", str(tiny_run / "vqvae.pth"), "--out", str(out)]
    if "OTHER" in more:
        shutil.copytree(tiny_data, other)
        Image.fromarray(blob(99, 0)).save(next(other.glob("*_train/*.png")))
    more = [str(other) if word == "OTHER" else word for word in more]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--device", "cpu", *more])
    assert train.main() == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
