"""What several test files share: a small data set on disk, a run of train.py on it, and a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from reading import demo

ROOT = Path(__file__).resolve().parents[1]
LEVELS, SIDE = 32, 48  # slices a person, and pixels of content a side: few, so that training is fast
PEOPLE = {"train": 4, "validate": 1, "test": 1}


def blob(person: int, level: int) -> np.ndarray:
    """A smooth blob in an ellipse on black, uint8 [256, 256]: made up, different for each person and level."""
    noise = ndimage.gaussian_filter(np.random.default_rng([person, level]).standard_normal((SIDE, SIDE)), 3)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    inside = y**2 + x**2 / 0.8 < 0.6 + 0.01 * level
    pixels = (inside * (140 + 100 * noise / np.abs(noise).max())).round().astype(np.uint8)
    return np.pad(pixels, (256 - SIDE) // 2)


def run_script(*arguments: object, cache: Path) -> subprocess.CompletedProcess:
    """`python *arguments` in the repository's folder, on one core, with a cache folder of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of decoded slices for this test alone, and no usual data set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OASIS_DIR", raising=False)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data set in the OASIS PNG layout, marked as synthetic: `PEOPLE` of `LEVELS` slices each."""
    root, person = tmp_path_factory.mktemp("data"), 0
    for split, people in PEOPLE.items():
        folder = root / f"keras_png_slices_{split}"
        folder.mkdir()
        for _ in range(people):
            person += 1
            for level in range(LEVELS):
                picture = Image.fromarray(blob(person, level))
                picture.save(folder / f"case_{person:03d}_slice_{level}.nii.png")
    (root / demo.MARKER).write_text(json.dumps({"people": person}))
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tiny_cache, tmp_path_factory):
    """The run folder of `train.py` on `tiny_data`: two epochs of the VQ-VAE and one of the DCGAN."""
    out = tmp_path_factory.mktemp("runs")
    options = [
        "--model=vqvae",
        "--epochs=2",
        "--batch-size=8",
        "--prior-epochs=1",
        "--codebook-size=64",
        "--device=cpu",
    ]
    done = run_script("train.py", "--data", tiny_data, *options, "--out", out, cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    [folder] = out.glob("*/")
    return folder


class Browser:
    """Headless Chromium through ChromeDriver's own protocol (W3C WebDriver)."""

    def __init__(self, driver, chromium, profile):
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        port = next(
            found[1] for line in self.process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        self.address = f"http://127.0.0.1:{port}"
        options = {
            "binary": chromium,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.address += "/session/" + self.post("/session", capabilities={"alwaysMatch": capabilities})["sessionId"]

    def post(self, path, **body):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script):
        return self.post("/execute/sync", script=script, args=[])

    def cdp(self, command, **parameters):
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def log(self, kind):
        return self.post("/se/log", type=kind)

    def requests(self):
        """Addresses that the page which is open has asked for since the last call of this or of `log`."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        here = self.run("return location.href")  # Chromium's own start page asks for things too
        return [one["request"]["url"] for one in asked if one["documentURL"] == here]

    def close(self):
        try:
            urllib.request.urlopen(urllib.request.Request(self.address, method="DELETE"), timeout=60).close()
        finally:
            self.process.terminate()
            self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("needs Chromium and its chromedriver on the PATH")
    browser = Browser(driver, chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
