"""The page of app.py: what its functions return, who can open it, and what a reader sees in a browser."""

import base64
import csv
import http.client
import io
import json
import os
import re
import shutil
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
from conftest import ROOT, blob, run_script
from PIL import Image

import app
import dataset
from inference.codec import Codec
from inference.loading import load_autoencoder
from inference.model import TrainedModel
from inference.sampling import WALK
from networks.pixelcnn import PixelCNN
from networks.transformer import Transformer
from runtime import checkpoint
from runtime.compute import Compute
from runtime.errors import InputError

CPU = Compute(torch.device("cpu"), bf16=False)
TEST_PERSON = 6  # of the tiny data set
PRIOR, GAN = "PixelCNN (pixelcnn.pth)", "DCGAN (dcgan.pth)"
needs_gradio = pytest.mark.skipif(app.gr is None, reason="needs gradio: pip install -r requirements-extra.txt")


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """The autoencoder of `tiny_run` beside an untrained PixelCNN; that run's DCGAN draws the same for every seed."""
    folder = tmp_path_factory.mktemp("played")
    shutil.copy(tiny_run / "vqvae.pth", folder)
    autoencoder, about = load_autoencoder(folder / "vqvae.pth")
    codec = Codec(autoencoder, about["data"], CPU)
    arguments = {"grids": [list(shape) for shape in codec.grid_shapes()], "sizes": autoencoder.codebook_sizes}
    arguments |= {"levels": about["data"]["levels"], "width": 16, "layers": 3}
    torch.manual_seed(0)
    prior = PixelCNN(**arguments)
    content = {"kind": "prior", "model": "pixelcnn", "arguments": prior.arguments, "autoencoder": about["identity"]}
    checkpoint.save(folder / "pixelcnn.pth", content | {"state": prior.state_dict(), "epoch": 1})
    return folder


@pytest.fixture(scope="module")
def play(folder):
    return app.Playground(TrainedModel.load(folder / "vqvae.pth", "none", device="cpu"))


@pytest.fixture(scope="module")
def predicted(tiny_run, tiny_data, tiny_cache, tmp_path_factory) -> dict[str, str]:
    """predict.py's row of ssim_scores.csv for one test slice."""
    slice_ = tiny_data / "keras_png_slices_test" / f"case_{TEST_PERSON:03d}_slice_9.nii.png"
    out = tmp_path_factory.mktemp("predicted") / "out"
    options = ["--input", slice_, "--out", out, "--device=cpu"]
    done = run_script("predict.py", tiny_run / "vqvae.pth", *options, cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    with open(out / "ssim_scores.csv", newline="") as file:
        [row] = csv.DictReader(file)
    return row | {"path": str(slice_)}


# ------------------------------------------------------------------------------------------- the functions


def table(text: str) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return dict(cells)


def test_scores_are_those_of_predict(play, predicted):
    view = play.reconstruct(play.open(predicted["path"]), 0)
    shown = table(view.scores)
    assert shown["SSIM"] == f"{float(predicted['ssim']):.4f}"
    assert shown["foreground SSIM"] == f"{float(predicted['foreground_ssim']):.4f}"
    assert shown["PSNR (dB)"] == f"{float(predicted['psnr']):.2f}"
    assert shown["bytes"] == f"{play.model.codec.bytes_per_image():,.0f}"
    assert view.notes == []
    with Image.open(predicted["path"]) as image:
        slice_ = np.asarray(image)
    window = play.model.codec.window(slice_[None])
    original, reconstruction = view.pair
    zoom = len(original) // window.height
    assert np.array_equal(original[::zoom, ::zoom], window.crop(slice_))
    error = np.abs(original.astype(int) - reconstruction)
    assert 0 < error.mean() < 30
    assert view.error[error == 0].tolist() == [[0, 0, 3]] * int((error == 0).sum())  # the darkest of the colour map


def test_codes_of_a_slice_have_labels(play, predicted):
    codes = play.codes(play.open(predicted["path"]), 0)
    assert [label for _, label in codes] == ["slice", "codes, 12 x 12", "decoded"]
    assert {picture.size for picture, _ in codes} == {codes[0][0].size}


def test_volumes_are_seen_slice_by_slice(play):
    slices = play.open(app.EXAMPLE)
    assert len(slices) == 8
    first, last = (play.reconstruct(slices, index) for index in (0, 7))
    assert not np.array_equal(first.pair[0], last.pair[0])
    assert first.scores != last.scores
    assert first.notes[0] == last.notes[0] == app.EXAMPLE_NOTE


def test_slice_without_foreground_has_no_foreground_score(play, tmp_path):
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(tmp_path / "black.png")
    view = play.reconstruct(play.open(tmp_path / "black.png"), 0)
    assert table(view.scores)["foreground SSIM"] == "-"


def test_bad_files_are_named_without_their_folder(play, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "volume.nii.gz").write_bytes(b"")
    for name in ("text.png", "wide.png", "volume.nii.gz"):
        with pytest.raises(InputError, match=name) as told:
            play.open(tmp_path / name)
        assert str(tmp_path) not in str(told.value)


def test_a_volume_that_takes_too_much_memory_is_refused_by_its_header(play, tmp_path, monkeypatch):
    """2 MB of packed zeros can be 5 GB."""
    path = tmp_path / "zeros.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.uint8), np.eye(4)), path)
    monkeypatch.setattr(app, "MOST_VOXELS", 63_999)
    with pytest.raises(InputError, match=r"^zeros.nii.gz has 64,000 voxels, and this page takes 63,999"):
        play.open(path)


def test_what_was_done_to_a_file_is_said_beside_its_scores(play, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "colour.png")
    assert "colour.png: colour, converted to grey" in play.reconstruct(play.open(tmp_path / "colour.png"), 0).notes


def test_samples_depend_on_the_seed_alone(play):
    first, again, other = (play.sample(PRIOR, seed, 1, "any", 1)[0][0][0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert [label for _, label in play.sample(PRIOR, 3, 4, "5", 0.5)[0]] == [f"seed {seed}" for seed in (3, 4, 5, 6)]
    with pytest.raises(InputError, match="knows slice levels 0 to 31"):
        play.sample(PRIOR, 3, 1, "32", 1)


def test_samples_are_downloaded_as_they_are_seen(play):
    shown, packed, volume = play.sample(PRIOR, 7, 3, "any", 1)
    slices = dataset.read_files([volume])
    window = play.model.codec.window(slices.images)
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [f"seed_{seed:05d}.png" for seed in (7, 8, 9)]
        files = [Image.open(archive.open(name)) for name in archive.namelist()]
    assert [file.text["Description"].rpartition(", ")[2] for file in files] == ["seed 7", "seed 8", "seed 9"]
    for (picture, _), file, voxels in zip(shown, files, np.asarray(nib.load(volume).dataobj).T, strict=True):
        assert np.array_equal(picture, window.crop(np.asarray(file)))
        assert np.array_equal(voxels.T, np.asarray(file))
    assert slices.images.shape == (3, 256, 256)
    assert {packed.name, volume.name} == {f"samples_pixelcnn_seeds_7_to_9.{end}" for end in ("zip", "nii.gz")}


def test_every_prior_beside_the_checkpoint_can_be_chosen(tiny_run, folder, tmp_path):
    for file in (tiny_run / "vqvae.pth", tiny_run / "dcgan.pth", folder / "pixelcnn.pth"):
        shutil.copy(file, tmp_path)
    both = app.Playground(TrainedModel.load(tmp_path / "vqvae.pth", "none", device="cpu"))
    assert len(both.models) == 2
    assert [both.sampler(name).is_gan for name in both.models] == [True, False]
    pictures = [both.sample(name, 0, 1, "3", 0.7)[0][0][0] for name in both.models]
    assert not np.array_equal(*pictures)


@pytest.fixture(scope="module")
def drawer(folder, tmp_path_factory):
    """The same autoencoder beside an untrained transformer, which draws whole brains."""
    beside = tmp_path_factory.mktemp("drawn")
    shutil.copy(folder / "vqvae.pth", beside)
    autoencoder, about = load_autoencoder(beside / "vqvae.pth")
    [shape] = Codec(autoencoder, about["data"], CPU).grid_shapes()
    [codebook] = autoencoder.codebooks
    sizes = [len(codebook)]
    prior = Transformer(shape, sizes, codebook.shape[1], about["data"]["levels"], width=24, layers=1, inner=8)
    prior.level_share.copy_(torch.tensor([0.25] * 4 + [0] * (prior.levels - 3)))
    content = {"kind": "prior", "model": "transformer", "arguments": prior.arguments, "autoencoder": about["identity"]}
    checkpoint.save(beside / "transformer.pth", content | {"state": prior.state_dict(), "epoch": 1})
    return beside


def test_a_whole_brain_is_drawn_and_downloaded(drawer, play):
    assert play.drawer is None  # a PixelCNN draws single slices
    brains = app.Playground(TrainedModel.load(drawer / "vqvae.pth", "none", device="cpu"))
    stack, path = brains.brain(3)
    own = TrainedModel.load(drawer / "vqvae.pth", device="cpu").sample_volume(3)
    assert path.name == "brain_seed_00003.nii.gz"
    assert np.array_equal(np.asarray(nib.load(path).dataobj), np.moveaxis((own * 255).round().astype(np.uint8), 0, 2))
    assert len(stack) == len(own) == 4
    assert not np.array_equal(stack, brains.brain(4)[0])
    with pytest.raises(InputError, match="whole number"):
        brains.brain(0.5)


@needs_gradio
def test_only_who_draws_brains_has_a_tab_for_them(drawer, play):
    with_brains = app.Playground(TrainedModel.load(drawer / "vqvae.pth", "none", device="cpu"))
    for one, there in ((with_brains, True), (play, False)):
        assert ("Whole brain" in json.dumps(app.page(one).config, default=str)) == there


def test_walk_goes_from_one_seed_to_the_other(play):
    steps = play.walk(PRIOR, 0, 1, "any")
    assert (len(steps), steps.dtype) == (WALK, np.uint8)
    assert 256 < max(steps.shape[1:]) <= 512
    back = play.walk(PRIOR, 1, 0, "any")
    assert np.abs(steps[0].astype(int) - back[-1]).mean() < 1
    assert not np.array_equal(steps[0], steps[-1])


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2.0**31 + 1])
def test_seeds_are_whole_numbers(play, seed):
    with pytest.raises(InputError, match="whole number from 0"):
        play.sample(PRIOR, seed, 1, "any", 1)
    with pytest.raises(InputError, match="whole number from 0"):
        play.walk(PRIOR, 0, seed, "any")


# ------------------------------------------------------------------------------------------- the command line


def test_missing_gradio_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app, "gr", None)
    monkeypatch.setattr(sys, "argv", ["app.py", "vqvae.pth"])
    assert app.main() == 2
    assert re.fullmatch(r"error: [^\n]*pip install -r requirements-extra.txt\n", capsys.readouterr().err)


@needs_gradio
@pytest.mark.parametrize("arguments", [["no.pth"], ["x.pth", "--port=0"], ["x.pth", "--share"], []], ids=" ".join)
def test_bad_options_are_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    assert app.main() == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)


@needs_gradio
def test_port_that_is_taken_is_one_line(tiny_run, monkeypatch, capsys):
    with socket.create_server((app.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", str(tiny_run / "vqvae.pth"), f"--port={port}", "--device=cpu"])
        assert app.main() == 2
    assert capsys.readouterr().err == f"error: --port {port} is taken; choose another\n"


@needs_gradio
def test_tabs_and_fields_are_those_that_the_prior_has(folder, tiny_run, tmp_path):
    shutil.copy(tiny_run / "vqvae.pth", tmp_path)
    tabs, temperature, choices = [], [], []
    for place in (folder, tiny_run, tmp_path):
        blocks = app.page(app.Playground(TrainedModel.load(place / "vqvae.pth", "none", device="cpu")))
        assert not blocks.analytics_enabled
        tabs.append([block.label for block in blocks.blocks.values() if isinstance(block, app.gr.Tab)])
        labelled = {getattr(block, "label", None): block for block in blocks.blocks.values()}
        temperature.append("temperature" in labelled and labelled["temperature"].visible)
        choices.append([name for name, _ in labelled["prior"].choices] if "prior" in labelled else None)
    assert tabs == [["Reconstruct", "Sample", "Walk"]] * 2 + [["Reconstruct"]]
    assert temperature == [True, False, False]
    assert choices == [[PRIOR], [GAN], None]


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
        said = process.stdout.readline()
        assert said, "app.py ended before it served"
        yield re.search(r"http://[\d.]+:\d+", said).group()
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
    end = time.monotonic() + 240
    while not (value := browser.run(script)):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.1)
    return value


def open_tab(browser, name: str) -> None:
    tab = f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText.trim() === {json.dumps(name)})"
    until(browser, f"return {tab} !== undefined")
    browser.run(f"{tab}.click()")


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


def test_page_loads_without_error_or_request_to_others(opened, served):
    time.sleep(1)  # a request that a script starts late
    assert [entry for entry in opened.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [url for url in opened.requests() if not url.startswith(("data:", "blob:"))]
    assert asked[0].startswith(served)
    assert [url for url in asked if not url.startswith(served + "/")] == []


@needs_gradio
def test_only_this_machine_can_open_it(served):
    """It listens on one address, and that is the machine's own; Linux says so in /proc."""
    listing = Path("/proc/net/tcp")
    if not listing.exists():
        pytest.skip("needs Linux's /proc")
    port = int(served.rpartition(":")[2])
    tables = [path for path in (listing, Path("/proc/net/tcp6")) if path.exists()]
    rows = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert listening == [f"0100007F:{port:04X}"]


def test_page_starts_with_an_example_that_says_what_it_is(opened):
    text = opened.run("return document.body.innerText")
    assert "An example: slices drawn from the MNI152 template, no real person's." in text
    assert "pixels into" in text
    assert new_picture(opened, "compare")[1].std() > 0


def ask(served: str, method: str, path: str, **headers: str) -> int:
    """The status of the answer to a request with these headers."""
    connection = http.client.HTTPConnection(served.removeprefix("http://"), timeout=60)
    connection.request(method, path, headers=headers)
    return connection.getresponse().status


@needs_gradio
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:{port}@127.0.0.1", 403),
        ("", 403),
    ],
)
def test_only_under_this_machines_names(host, status, served):
    """DNS rebinding: a site that has made its own name mean 127.0.0.1 may not use the page."""
    host = host.format(port=served.rpartition(":")[2])
    assert ask(served, "GET", "/config", Host=host) == status


@needs_gradio
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1"])
def test_no_other_site_may_ask(origin, served):
    for method, path in (("GET", "/config"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")):
        assert ask(served, method, path, Origin=origin) == 403
    assert ask(served, "GET", "/config", Origin=served) == 200


@needs_gradio
def test_uploads_are_private(served, temporary):
    [private] = temporary.glob("brain-vqvae-*")
    assert private.stat().st_mode & 0o777 == 0o700
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nPNG\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{served}/gradio_api/upload", body, headers)) as answer:
        [stored] = json.load(answer)
    assert Path(stored).is_relative_to(private)


def test_dropped_slice_is_scored_as_by_predict(opened, predicted):
    before, _ = new_picture(opened, "compare")
    drop(opened, Path(predicted["path"]))
    new_picture(opened, "compare", before)
    text = opened.run("return document.querySelector('#scores').innerText")
    assert re.search(r"^SSIM\s+(\S+)", text, re.MULTILINE)[1] == f"{float(predicted['ssim']):.4f}"
    assert new_picture(opened, "error")[1].std() > 0
    assert opened.run("return document.querySelector('#slice')?.offsetParent ?? null") is None  # one slice
    assert "An example" not in opened.run("return document.body.innerText")


def test_bad_file_is_told_on_the_page_and_nothing_stale_stays(opened, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(path)
    drop(opened, path)
    said = "return document.querySelector('#said').innerText"
    until(opened, f"{said}.includes('wide.png has slices of 2x1040')")
    assert "An example" not in opened.run(said)
    assert opened.run("return document.querySelector('#scores')?.innerText ?? ''").strip() == ""
    assert opened.run("return document.querySelectorAll(':is(#compare, #error, #codes) img').length") == 0
    assert opened.run("return document.querySelector('#slice')?.offsetParent ?? null") is None


def test_volume_is_scrolled(opened):
    before, first = new_picture(opened, "compare")
    enter(opened, "#slice input[type=range]", 2)
    _, second = new_picture(opened, "compare", before)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen_in_both_themes(opened, served, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.cdp("Emulation.setDeviceMetricsOverride", **metrics)
    grounds = []
    for theme in ("light", "dark"):
        opened.post("/url", url=f"{served}?__theme={theme}")
        until(opened, "return document.querySelector('#codes img') !== null")
        assert opened.run("return document.documentElement.scrollWidth") <= width
        left, right = opened.run(
            "const r = document.querySelector('#codes').getBoundingClientRect(); return [r.left, r.right]"
        )
        assert abs(left - (width - right)) < 24  # in the middle, but for a scroll bar
        color = opened.run("return getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
        grounds.append(sum(map(int, re.findall(r"\d+", color)[:3])))
    opened.cdp("Emulation.clearDeviceMetricsOverride")
    assert grounds[1] < 150 < 600 < grounds[0]


def test_what_was_done_to_a_file_is_told_on_the_page(opened, tmp_path):
    path = tmp_path / "colour.png"
    Image.fromarray(np.dstack([blob(1, 1), blob(1, 2), blob(1, 3)])).save(path)
    drop(opened, path)
    until(opened, "return document.body.innerText.includes('colour.png: colour, converted to grey')")


def test_samples_change_with_the_seed_and_come_back(opened):
    open_tab(opened, "Sample")
    until(opened, "return document.querySelector('#draw') !== null")
    pictures, before = [], ""
    for seed in (0, 7, 0):
        enter(opened, "#seed input", seed)
        opened.run("document.querySelector('#draw').click()")
        before, pixels = new_picture(opened, "samples", before)
        pictures.append(pixels)
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


def test_slider_moves_through_the_walk(opened):
    open_tab(opened, "Walk")
    until(opened, "return document.querySelector('#go') !== null")
    opened.run("document.querySelector('#go').click()")
    before, first = new_picture(opened, "step")
    enter(opened, "#place input[type=range]", WALK)
    _, last = new_picture(opened, "step", before)
    assert first.shape == last.shape
    assert not np.array_equal(first, last)
