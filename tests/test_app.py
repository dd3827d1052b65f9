"""The page of app.py: what its functions return, who can open it, and what a reader sees in a browser."""

import base64
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, blob
from PIL import Image
from skimage.metrics import structural_similarity
from tiny import content_of

import app
from inference.model import TrainedModel
from inference.sampling import WALK
from modules import VQVAE
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from report import plots
from runtime import checkpoint
from runtime.errors import InputError

PIXELCNN = "PixelCNN"
LEVELS = 4  # of whole brains
needs_gradio = pytest.mark.skipif(app.gr is None, reason="needs gradio: pip install -r requirements-extra.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained autoencoder beside an untrained PixelCNN and a transformer that samples brains of `LEVELS`."""
    folder = tmp_path_factory.mktemp("played")
    torch.manual_seed(0)
    model = VQVAE(codebook_size=64)
    brains = Transformer((16, 16), [64], model.quantizer.dim, 8, width=24, layers=1, inner=8)
    brains.fit_levels(torch.arange(LEVELS))
    brains.fit(model.quantizer.codebooks)  # else its logits, and so the slices, are all equal
    single = PixelCNN(grids=[[16, 16]], sizes=[64], levels=8, width=16, layers=3)
    checkpoint.save(folder / "vqvae.pth", content_of(model) | {"validation_ssim": 0.0})
    checkpoint.save(folder / "pixelcnn.pth", content_of(single, model))
    checkpoint.save(folder / "transformer.pth", content_of(brains, model))
    return folder


@pytest.fixture(scope="module")
def play(folder):
    return app.Playground(TrainedModel.load(folder / "vqvae.pth", "none", device="cpu"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A slice on disk."""
    path = tmp_path_factory.mktemp("given") / "case_001_slice_9.png"
    Image.fromarray(blob(1, 9)).save(path)
    return path


# ------------------------------------------------------------------------------------------- the functions


def test_a_slice_beside_its_reconstruction_with_scores_and_bytes(play, picture):
    (original, reconstruction), error, text, codes = play.reconstruct(play.open(picture), 0)
    slice_, codec = blob(1, 9), play.model.codec
    decoded = codec.decode(codec.encode(slice_[None]))[0]
    ssim = structural_similarity(slice_ / np.float32(255), decoded, data_range=1.0)
    size = f"{codec.bytes_per_image():,.0f}"
    assert f"| SSIM | {ssim:.4f} |" in text
    assert f"| bytes | {size} |" in text
    assert ">" not in text  # no notes
    window = codec.window(slice_[None])
    zoom = len(original) // window.height
    for shown, expected in ((original, slice_), (reconstruction, (255 * decoded).round())):
        assert np.array_equal(shown[::zoom, ::zoom], window.crop(expected))
    assert np.array_equal(error, plots.error_maps(original, reconstruction))
    assert [label for _, label in codes] == ["slice", "codes, 16 x 16", "decoded"]


def test_a_volume_is_seen_slice_by_slice_and_downloaded_whole(play):
    slices = play.open(app.EXAMPLE)
    assert len(slices) == 8
    first, last = (play.reconstruct(slices, index) for index in (0, 7))
    assert not np.array_equal(first[0][0], last[0][0])
    assert app.EXAMPLE_NOTE.replace("'", "&#x27;") in first[2]
    path = play.reconstruct_volume(slices)
    assert path.name == "reconstructed_example.nii.gz"
    made, source = nib.load(path), nib.load(app.EXAMPLE)
    assert made.shape == source.shape
    assert np.array_equal(made.affine, source.affine)


def test_what_was_done_to_a_file_is_said_beside_its_scores(play, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "colour.png")
    assert "colour.png: colour, converted to grey" in play.reconstruct(play.open(tmp_path / "colour.png"), 0)[2]
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(tmp_path / "black.png")
    assert "| foreground SSIM | - |" in play.reconstruct(play.open(tmp_path / "black.png"), 0)[2]


def test_bad_files_are_named_without_their_folder(play, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "volume.nii.gz").write_bytes(b"")
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.uint8), np.eye(4)), tmp_path / "zeros.nii.gz")
    monkeypatch.setattr(app, "MAX_VOXELS", 63_999)  # 2 MB of packed zeros can be 5 GB
    for name in ("text.png", "wide.png", "volume.nii.gz", "zeros.nii.gz has 64,000 voxels, and this page takes 63,999"):
        with pytest.raises(InputError, match=name) as error:
            play.open(tmp_path / name.split()[0])
        assert str(tmp_path) not in str(error.value)


def test_samples_depend_on_the_seed_alone_and_are_downloaded_as_they_are_seen(play):
    shown, packed = play.sample(PIXELCNN, 7, 3, "any", 1)
    with zipfile.ZipFile(packed) as archive:
        names = [f"seed_{seed:05d}.png" for seed in (7, 8, 9)]
        assert sorted(archive.namelist()) == names
        files = [Image.open(archive.open(name)) for name in names]
    assert [file.text["Description"].rpartition(", ")[2] for file in files] == ["seed 7", "seed 8", "seed 9"]
    window = play.model.codec.window(np.stack([np.asarray(file) for file in files]))
    for (one, label), file, seed in zip(shown, files, (7, 8, 9), strict=True):
        assert label == f"seed {seed}"
        assert np.array_equal(one, window.crop(np.asarray(file)))
    [(again, _)], _ = play.sample(PIXELCNN, 8, 1, "any", 1)
    assert np.array_equal(again, shown[1][0])
    assert not np.array_equal(again, shown[0][0])
    with pytest.raises(InputError, match="knows slice levels 0 to 7"):
        play.sample(PIXELCNN, 3, 1, "8", 1)


def test_a_whole_brain_is_sampled_downloaded_and_shown_in_three_planes(play, folder):
    volume, path = play.brain(3)
    own = TrainedModel.load(folder / "vqvae.pth", device="cpu").sample_volume(3)
    assert path.name == "brain_seed_00003.nii.gz"
    assert np.array_equal(np.asarray(nib.load(path).dataobj), np.moveaxis((own * 255).round().astype(np.uint8), 0, 2))
    assert len(volume) == len(own) == LEVELS
    axial, coronal, sagittal = play.planes(volume, 1)
    assert np.array_equal(axial, plots.with_letters(np.rot90(volume[1]), "axial"))
    assert coronal.shape[0] == sagittal.shape[0] == 2 * LEVELS + 32


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2.0**32])
def test_seeds_are_whole_numbers(play, seed):
    for call in (play.sample, PIXELCNN, seed, 1, "any", 1), (play.walk, PIXELCNN, 0, seed, "any"), (play.brain, seed):
        with pytest.raises(InputError, match="whole number from 0"):
            call[0](*call[1:])


# ------------------------------------------------------------------------------------------- the command line


def test_missing_gradio_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app, "gr", None)
    monkeypatch.setattr(sys, "argv", ["app.py", "vqvae.pth"])
    assert app.main() == 2
    assert re.fullmatch(r"error: [^\n]*pip install -r requirements-extra.txt\n", capsys.readouterr().err)


@needs_gradio
def test_a_bad_option_and_a_port_that_is_taken_are_one_line(folder, monkeypatch, capsys):
    with socket.create_server((app.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        for option, message in (("--share", ""), ("--port=0", ""), (f"--port={port}", f"--port {port} is taken")):
            monkeypatch.setattr(sys, "argv", ["app.py", str(folder / "vqvae.pth"), option, "--device=cpu"])
            assert app.main() == 2
            assert re.fullmatch(rf"error: {message}[^\n]+\n", capsys.readouterr().err)


@needs_gradio
@pytest.mark.parametrize(("priors", "tabs"), [([], []), (["pixelcnn.pth"], ["Sample", "Walk"])], ids=len)
def test_tabs_are_those_that_the_priors_have(folder, tmp_path, priors, tabs):
    for name in ("vqvae.pth", *priors):
        (tmp_path / name).symlink_to(folder / name)
    blocks = app.page(app.Playground(TrainedModel.load(tmp_path / "vqvae.pth", "none", device="cpu")))
    assert not blocks.analytics_enabled
    found = [block.label for block in blocks.blocks.values() if isinstance(block, app.gr.Tab)]
    assert found == ["Reconstruct", *tabs]


# ------------------------------------------------------------------------------------------- served, in a browser


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """The system's folder for temporary files, of `served`."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def served(folder, temporary):
    """The address of the page, served by app.py as a user starts it, where a proxy is set that doesn't answer."""
    if app.gr is None:
        pytest.skip("needs gradio: pip install -r requirements-extra.txt")
    with socket.create_server((app.HOST, 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", str(folder / "vqvae.pth"), f"--port={port}", "--device=cpu"]
    environment = os.environ | {"TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, "app.py ended before it served"
        yield re.search(r"http://[\d.]+:\d+", line).group()
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 143
    assert not list(temporary.glob("brain-vqvae-*"))  # what was uploaded and drawn is gone


@pytest.fixture
def opened(browser, served):
    browser.log("browser"), browser.log("performance")
    browser.post("/url", url=served)
    until(browser, "return document.querySelector('#codes img') !== null")  # the example is there
    return browser


def until(browser, script: str):
    """What the script returns, once that is true."""
    end = time.monotonic() + 60
    while not (value := browser.run(script)):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.1)
    return value


def drop(browser, path: Path) -> None:
    """A file, dragged from the desktop onto the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    browser.run(f"""
        const bytes = Uint8Array.from(atob("{data}"), c => c.charCodeAt(0));
        const held = new DataTransfer();
        held.items.add(new File([bytes], {json.dumps(path.name)}, {{type: "image/png"}}));
        const drop = new DragEvent("drop", {{dataTransfer: held, bubbles: true, cancelable: true}});
        document.querySelector("#file button").dispatchEvent(drop);
    """)


def enter(browser, selector: str, value: int) -> None:
    browser.run(f"""
        const field = document.querySelector("{selector}");
        field.value = {value};
        field.dispatchEvent(new Event("input", {{bubbles: true}}));
        field.dispatchEvent(new Event("change", {{bubbles: true}}));
    """)


def new_picture(browser, name: str, before: str = "") -> tuple[str, np.ndarray]:
    """Address and pixels of the picture in the element, once it is another than the one before."""
    address = f"document.querySelector('#{name} img')?.src ?? ''"
    source = until(browser, f"const now = {address}; return now !== {json.dumps(before)} && now")
    with urllib.request.urlopen(source) as file, Image.open(io.BytesIO(file.read())) as image:
        return source, np.asarray(image.convert("RGB"))


def test_page_starts_with_an_example_and_asks_no_other_host(opened, served):
    time.sleep(1)  # a request that a script starts late
    assert [entry for entry in opened.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [url for url in opened.requests() if not url.startswith(("data:", "blob:"))]
    assert asked[0].startswith(served)
    assert [url for url in asked if not url.startswith(served + "/")] == []
    text = opened.run("return document.body.innerText")
    assert "An example: slices drawn from the MNI152 template, no real person's." in text
    assert "not for diagnosis" in text
    assert new_picture(opened, "compare")[1].std() > 0


def test_only_this_machine_can_open_it(served):
    """It listens on one address, and that is the machine's own; Linux says so in /proc."""
    port = int(served.rpartition(":")[2])
    tables = [path for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists()]
    if not tables:
        pytest.skip("needs Linux's /proc")
    rows = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert listening == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1", 200), ("localhost", 200), ("evil.example", 400), ("127.0.0.1.evil.example", 400)]
)
def test_only_under_this_machines_names(host, status, served):
    """DNS rebinding: a site that has made its own name mean 127.0.0.1 may not use the page."""
    address = served.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/config", headers={"Host": address.replace(app.HOST, host)})
    assert connection.getresponse().status == status


def test_uploads_are_private(served, temporary):
    [private] = temporary.glob("brain-vqvae-*")
    assert private.stat().st_mode & 0o777 == 0o700
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nPNG\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{served}/gradio_api/upload", body, headers)) as answer:
        [stored] = json.load(answer)
    assert Path(stored).is_relative_to(private)


def test_dropped_slice_is_scored(opened, play, picture):
    before, _ = new_picture(opened, "compare")
    drop(opened, picture)
    new_picture(opened, "compare", before)
    text = until(opened, "return document.querySelector('#scores').innerText")
    expected = re.search(r"\| SSIM \| (\S+) \|", play.reconstruct(play.open(picture), 0)[2])[1]
    assert re.search(r"^SSIM\s+(\S+)", text, re.MULTILINE)[1] == expected
    assert new_picture(opened, "error")[1].std() > 0
    assert opened.run("return document.querySelector('#slice')?.offsetParent ?? null") is None  # one slice
    assert "An example" not in opened.run("return document.body.innerText")


def test_bad_file_is_an_error_on_the_page_and_nothing_stale_stays(opened, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(path)
    drop(opened, path)
    until(opened, "return document.body.innerText.includes('wide.png has slices of 2x1040')")
    assert opened.run("return document.querySelector('#scores')?.innerText ?? ''").strip() in ("", "Error")
    assert opened.run("return document.querySelectorAll(':is(#compare, #error, #codes) img').length") == 0
    assert opened.run("return document.querySelector('#slice')?.offsetParent ?? null") is None


def test_volume_is_scrolled_and_reconstructed_whole(opened):
    before, first = new_picture(opened, "compare")
    enter(opened, "#slice input[type=range]", 2)
    _, second = new_picture(opened, "compare", before)
    assert not np.array_equal(first, second)
    opened.run("document.querySelector('#all').click()")
    address = until(opened, "return document.querySelector('#as-nifti a')?.href")
    assert address.endswith("/reconstructed_example.nii.gz")


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen_in_both_themes(opened, served, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.cdp("Emulation.setDeviceMetricsOverride", **metrics)
    grounds = []
    for theme in ("light", "dark"):
        opened.post("/url", url=f"{served}?__theme={theme}")
        until(opened, "return document.querySelector('#codes img') !== null")
        assert opened.run("return document.documentElement.scrollWidth") <= width
        tabs = opened.run("return [...document.querySelectorAll('button[role=tab]')].map(tab => tab.innerText.trim())")
        assert tabs == ["Reconstruct", "Sample", "Walk", "Brain"]  # none is hidden behind a menu
        color = opened.run("return getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
        grounds.append(sum(map(int, re.findall(r"\d+", color)[:3])))
    opened.cdp("Emulation.clearDeviceMetricsOverride")
    assert grounds[1] < 150 < 600 < grounds[0]


@pytest.mark.parametrize(
    ("tab", "button", "field", "image", "value"),
    [
        ("Sample", "draw", "seed", "samples", 7),
        ("Walk", "go", "place", "step", WALK),
        ("Brain", "draw-brain", "level", "axial", LEVELS),
    ],
)
def test_samples_change_with_the_seed_and_sliders_move_through_walk_and_brain(opened, tab, button, field, image, value):
    tab = f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText.trim() === {json.dumps(tab)})"
    until(opened, f"return {tab} !== undefined")
    opened.run(f"{tab}.click()")
    until(opened, f"return document.querySelector('#{button}') !== null")
    opened.run(f"document.querySelector('#{button}').click()")
    before, first = new_picture(opened, image)
    entry = f"#{field} input"
    if field != "seed":
        entry = f"#{field} input[type=range]"
        until(opened, f"return document.querySelector('{entry}')?.max === '{value}'")
    enter(opened, entry, value)
    if field == "seed":
        opened.run(f"document.querySelector('#{button}').click()")
    _, last = new_picture(opened, image, before)
    assert first.shape == last.shape
    assert not np.array_equal(first, last)
