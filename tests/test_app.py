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
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, blob, run_script
from PIL import Image

import app
from inference.codec import Codec
from inference.loading import load_autoencoder
from inference.model import TrainedModel
from inference.sampling import WALK
from networks.pixelcnn import PixelCNN
from runtime import checkpoint
from runtime.compute import Compute
from runtime.errors import InputError

CPU = Compute(torch.device("cpu"), bf16=False)
TEST_PERSON = 6  # of the tiny data set
FIRST = slice(60, 300), slice(20, 270)  # pixels of a figure of samples that are the first sample's, not its label's
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
    content = {"kind": "prior", "model": "pixelcnn", "arguments": arguments, "autoencoder": about["identity"]}
    checkpoint.save(folder / "pixelcnn.pth", content | {"state": PixelCNN(**arguments).state_dict(), "epoch": 1})
    return folder


@pytest.fixture(scope="module")
def play(folder):
    return app.Playground(TrainedModel.load(folder / "vqvae.pth", device="cpu"))


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
    pictures, maps, text = play.reconstruct(predicted["path"])
    shown = table(text)
    assert shown["SSIM"] == f"{float(predicted['ssim']):.4f}"
    assert shown["foreground SSIM"] == f"{float(predicted['foreground_ssim']):.4f}"
    assert shown["PSNR (dB)"] == f"{float(predicted['psnr']):.2f}"
    assert shown["bytes"] == f"{play.model.codec.bytes_per_image():,.0f}"
    assert min(*pictures.size, *maps.size) > 256


def test_slice_without_foreground_has_no_foreground_score(play, tmp_path):
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(tmp_path / "black.png")
    assert table(play.reconstruct(str(tmp_path / "black.png"))[2])["foreground SSIM"] == "-"


def test_bad_files_are_named_without_their_folder(play, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "volume.nii.gz").write_bytes(b"")
    for name in ("text.png", "wide.png", "volume.nii.gz"):
        with pytest.raises(InputError, match=name) as told:
            play.reconstruct(str(tmp_path / name))
        assert str(tmp_path) not in str(told.value)


def test_a_volume_that_takes_too_much_memory_is_refused_by_its_header(play, tmp_path, monkeypatch):
    """2 MB of packed zeros can be 5 GB."""
    path = tmp_path / "zeros.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.uint8), np.eye(4)), path)
    monkeypatch.setattr(app, "MOST_VOXELS", 63_999)
    with pytest.raises(InputError, match=r"^zeros.nii.gz has 64,000 voxels, and this page takes 63,999"):
        play.reconstruct(str(path))


def test_what_was_done_to_a_file_is_said_beside_its_scores(play, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "colour.png")
    *_, text = play.reconstruct(str(tmp_path / "colour.png"))
    assert "colour.png: colour, converted to grey" in text


def test_samples_depend_on_the_seed_alone(play):
    first, again, other = (np.asarray(play.sample(seed, 1, "any"))[FIRST] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert play.sample(3, 4, "5", 0.5).size > (560, 560)
    with pytest.raises(InputError, match="knows slice levels 0 to 31"):
        play.sample(3, 1, "32")


def test_walk_goes_from_one_seed_to_the_other(play):
    steps = play.walk(0, 1, "any")
    assert (steps.shape, steps.dtype) == ((WALK, 256, 256), np.uint8)
    back = play.walk(1, 0, "any")
    assert np.abs(steps[0].astype(int) - back[-1]).mean() < 1
    assert not np.array_equal(steps[0], steps[-1])


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2.0**31 + 1])
def test_seeds_are_whole_numbers(play, seed):
    with pytest.raises(InputError, match="whole number from 0"):
        play.sample(seed, 1, "any")
    with pytest.raises(InputError, match="whole number from 0"):
        play.walk(0, seed, "any")


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
    tabs, temperature = [], []
    for place in (folder, tiny_run, tmp_path):
        blocks = app.page(app.Playground(TrainedModel.load(place / "vqvae.pth", device="cpu")))
        assert not blocks.analytics_enabled
        tabs.append([block.label for block in blocks.blocks.values() if isinstance(block, app.gr.Tab)])
        temperature.append("temperature" in [getattr(block, "label", None) for block in blocks.blocks.values()])
    assert tabs == [["Reconstruct", "Sample", "Walk"]] * 2 + [["Reconstruct"]]
    assert temperature == [True, False, False]


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
    until(browser, "return document.querySelector('#file input') !== null")
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
    drop(opened, Path(predicted["path"]))
    text = until(opened, "const t = document.querySelector('#scores')?.innerText ?? ''; return t.includes('SSIM') && t")
    assert re.search(r"^SSIM\s+(\S+)", text, re.MULTILINE)[1] == f"{float(predicted['ssim']):.4f}"
    assert new_picture(opened, "pictures")[1].shape[0] > 3 * 256
    assert new_picture(opened, "maps")[1].std() > 0


def test_bad_file_is_told_on_the_page(opened, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((2, 1040), np.uint8)).save(path)
    drop(opened, path)
    until(opened, "return document.body.innerText.includes('wide.png has slices of 2x1040')")


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
        pictures.append(pixels[FIRST])
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


def test_slider_moves_through_the_walk(opened):
    open_tab(opened, "Walk")
    until(opened, "return document.querySelector('#go') !== null")
    opened.run("document.querySelector('#go').click()")
    before, first = new_picture(opened, "step")
    enter(opened, "#place input[type=range]", WALK)
    _, last = new_picture(opened, "step", before)
    assert first.shape == last.shape == (256, 256, 3)
    assert not np.array_equal(first, last)
