"""The report page: whole, self-contained, safe whatever the slices are called, and alive in a browser."""

import io
import json
import re
import time
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from report import plots
from report.index import write_index
from report.page import SLIDER_SLICES, label, write_report
from report.results import replacing
from runtime.errors import InputError

TITLE = "synthetic demo set, test split"
NASTY = """<img src=x onerror="document.title='owned'">&amp;'".png"""
VOID = {"img", "meta", "link", "input", "source"}


class Page(HTMLParser):
    """The page's elements as (tag, attributes), the text of each, and the tags that were not closed."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.stack.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        opened, _ = self.stack.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data):
        for _, index in self.stack:
            self.texts[index] += data

    def all(self, tag):
        """(attributes, text) of every element of the kind."""
        pairs = zip(self.elements, self.texts, strict=True)
        return [(attributes, " ".join(text.split())) for (name, attributes), text in pairs if name == tag]


def opened_picture(address):
    return Image.open(io.BytesIO(urllib.request.urlopen(address).read()))


def slices(n, height=64, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)


def scores(n):
    """Shuffled, so that the order of the page is the page's own."""
    rows = [
        {"name": f"case_{i:03d}.png", "ssim": 0.9 + 0.0001 * i, "foreground_ssim": 0.8, "psnr": 40 - 0.01 * i}
        for i in np.random.default_rng(1).permutation(n)
    ]
    rows[2] |= {"name": NASTY, "foreground_ssim": float("nan")}
    next(row for row in rows if row["ssim"] == 0.9)["psnr"] = float("inf")
    return rows


SPACES = {key: {"frechet": 0.1234, "precision": 0.9, "recall": 0.8} for key in ("pca", "randconv")}
MEMORISATION = {"share": 0.01, "percentiles": [0, 50, 100], "closest": [{"train_name": NASTY, "ssim": 0.5}]}
METRICS = {
    "images": 320,
    "ssim": {"mean": 0.98, "min": 0.95},
    "psnr": {"mean": 39.0, "min": 30.0},
    "codes": [{"codes_used": 500}, {"codes_used": 12345}],
    "notes": ["is this a brain?"],
    "judge": {"samples": 1000, "fidelity": SPACES, "floor": SPACES, "memorisation": MEMORISATION},
}
CONFIG = {"model": "vqvae", "lr": 1e-3, "data": NASTY, "arguments": {"codebook_size": 512}, "resume": None}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report with everything in it: 320 slices, pictures for the slider, and a figure of each kind."""
    folder, run = tmp_path_factory.mktemp("report"), tmp_path_factory.mktemp("run")
    frames = [run / f"epoch_{epoch:03d}.png" for epoch in range(2)]
    for epoch, frame in enumerate(frames):
        plots.epoch_frame({"original": slices(2), "made": slices(2, seed=epoch + 1)}, "SSIM 0.5", frame, TITLE)
    plots.animate(frames, run / "progress.gif", 0.5)
    plots.samples(slices(4), folder / "samples.png", TITLE)
    plots.ssim_distribution([0.5, 0.7, 0.9], folder / "ssim_distribution.png", TITLE)
    return write_report(folder, TITLE, METRICS, scores(320), CONFIG, (slices(320), slices(320, seed=1) / 255), run)


# --------------------------------------------------------------------------------------------- contents


def test_page_is_well_formed_and_needs_nothing_else(full):
    page = Page(full)
    assert not page.stack
    links = [a[key] for _, a in page.elements for key in ("src", "srcset", "href") if key in a]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in links if link.startswith("#")} <= set(identifiers)
    [policy] = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_figures_are_those_in_the_folders_and_animations_have_a_still(full):
    page = Page(full)
    shown = {a["alt"]: urllib.request.urlopen(a["src"]).read() for a, _ in page.all("img") if "src" in a}
    assert shown["Samples"] == (full.parent / "samples.png").read_bytes()
    assert shown["SSIM of the reconstructions"] == (full.parent / "ssim_distribution.png").read_bytes()
    assert len(page.all("figure")) == 3
    captions = [text for _, text in page.all("figcaption")]
    assert all(TITLE in caption for caption in captions)
    assert any("the same in every frame" in caption for caption in captions)  # the animation's own
    [still] = [attributes["srcset"] for attributes, _ in page.all("source")]
    [moving] = [a["src"] for a, _ in page.all("img") if a["alt"] == "Progress"]
    assert (opened_picture(moving).n_frames, opened_picture(still).n_frames) == (2, 1)


def test_names_are_text_and_never_markup(full):
    assert "<img src=x" not in full.read_text()
    page = Page(full)
    assert NASTY in [text for _, text in page.all("th")]
    assert NASTY in [text for _, text in page.all("td")]  # in the settings and in the judge's table
    assert len(page.all("script")) == 1
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_table_has_every_slice_lowest_ssim_first(full):
    page = Page(full)
    values = [float(a["data-value"]) if a["data-value"] else None for a, _ in page.all("td") if "data-value" in a]
    ssim, foreground, psnr = values[0::3], values[1::3], values[2::3]
    assert ssim == pytest.approx([0.9 + 0.0001 * i for i in range(320)])
    assert psnr == pytest.approx([float("inf"), *(40 - 0.01 * i for i in range(1, 320))])
    assert "exact" in [text for _, text in page.all("td")]
    assert foreground.count(None) == 1


def test_numbers_are_readable_and_no_two_tables_have_one_title(full):
    page = Page(full)
    cards = dict(zip([t for _, t in page.all("dt")], [t for _, t in page.all("dd")], strict=True))
    assert cards["slices"] == "320"
    assert cards["mean SSIM"] == f"{0.9 + 0.0001 * 319 / 2:.4f}"
    assert (cards["lowest SSIM"], cards["at or above 0.6"]) == ("0.9000", "100 %")
    assert cards["mean foreground SSIM"] == "0.8000"
    cells, heads = ([text for _, text in page.all(tag)] for tag in ("td", "th"))
    assert {"12,345", "0.9800", "0.1234", "vqvae", "0.0010", "512", "-"} <= set(cells)
    for head in ("PCA: samples", "random network: training slices (floor)", "codebook size", "PSNR (dB)"):
        assert head in heads
    titles = [text for _, text in page.all("caption")]
    assert len(titles) == len(set(titles))
    assert {"Reconstruction scores", "Codebooks", "Samples: memorisation", "Settings: arguments"} <= set(titles)
    assert "is this a brain?" in [text for _, text in page.all("p")]
    assert label("codes_used_0") == "codes used, codebook 1"


def test_slider_pictures_are_exact_and_spread_over_the_ranks(full):
    options = Page(full).all("option")
    texts = [text for _, text in options]
    assert len(options) == SLIDER_SLICES
    ssims = [float(text.rpartition(" ")[2]) for text in texts]
    assert ssims == sorted(ssims)
    assert (ssims[0], ssims[-1]) == (0.9, 0.9319)
    rows = [row["name"] for row in scores(320)]
    for option, text in options[:3]:
        place = rows.index(text.rpartition(", SSIM")[0])
        for key, stack in (("data-original", slices(320)), ("data-reconstruction", slices(320, seed=1))):
            assert np.array_equal(np.asarray(opened_picture(option[key]).convert("L")), stack[place])


def test_parts_without_data_are_left_out_and_a_wrong_call_leaves_the_old_report(tmp_path):
    path = write_report(tmp_path, TITLE, {"images": 5}, scores(5), {"model": "vqvae"})
    page, before = Page(path), path.read_bytes()
    assert [text for _, text in page.all("h2")] == ["Reconstruction", "Numbers", "Settings"]
    assert not page.all("option")
    assert not page.all("figure")
    with pytest.raises(ValueError, match="3 scores, 4 originals"):
        write_report(tmp_path, TITLE, {}, scores(3), {}, (slices(4), slices(4)))
    assert path.read_bytes() == before


# -------------------------------------------------------------------------------------------- a browser


@pytest.fixture
def opened(browser, full):
    browser.log("browser"), browser.log("performance")
    browser.post("/url", url=full.as_uri())
    return browser


def column(browser, number):
    return browser.run(
        f"return [...document.querySelectorAll('#scores tbody tr')].map(r => r.cells[{number}].innerText)"
    )


def test_page_loads_without_error_or_request_and_runs_no_other_script(opened):
    time.sleep(0.2)  # a request that a script starts late
    assert opened.log("browser") == []
    here = opened.run("return location.href")
    assert [url for url in opened.requests() if not url.startswith("data:")] == [here]
    assert opened.run("return document.title") == f"Report: {TITLE}"
    broken = "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)"
    assert opened.run(broken) == []
    added = "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
    opened.run(added)
    assert opened.run("return window.owned ?? null") is None


def test_table_sorts_by_any_column_both_ways(opened):
    press = "document.querySelectorAll('#scores thead button')[{}].click()"
    for number in (1, 3):
        opened.run(press.format(number))
        first = [float(text.replace("exact", "inf")) for text in column(opened, number)]
        opened.run(press.format(number))
        second = [float(text.replace("exact", "inf")) for text in column(opened, number)]
        assert len(first) == 320
        assert first == second[::-1]
        assert first in (sorted(first), sorted(first, reverse=True))
    opened.run(press.format(0))
    names = column(opened, 0)
    assert names == sorted(names, key=lambda name: (name != NASTY, name))
    assert opened.run("return document.querySelectorAll('[aria-sort]').length") == 1
    for _ in range(2):  # the slice without a foreground stays last
        opened.run(press.format(2))
        assert column(opened, 2)[-1] == "-"


def test_slider_moves_and_shows_the_slice_that_is_picked(opened):
    shown = "return getComputedStyle(document.getElementById('reconstruction')).clipPath"
    middle = opened.run(shown)
    opened.run("const c = document.getElementById('cut'); c.value = 20; c.dispatchEvent(new Event('input'))")
    assert "50%" in middle
    assert "20%" in opened.run(shown)
    before = opened.run("return document.getElementById('original').src")
    opened.run("document.querySelectorAll('[data-pair]')[5].click()")
    picked = opened.run("return document.getElementById('slice').selectedOptions[0].innerText")
    name = opened.run("return document.querySelectorAll('[data-pair]')[5].innerText")
    assert picked.startswith(name)
    assert opened.run("return document.getElementById('original').src") != before
    opened.run("document.getElementById('error').click()")
    assert "brightness(5)" in opened.run("return getComputedStyle(document.getElementById('pair')).filter")


def test_page_follows_the_readers_colours(opened):
    background = "return getComputedStyle(document.body).backgroundColor"
    grounds, charts = {}, {}
    for scheme in ("light", "dark"):
        opened.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        grounds[scheme] = sum(map(int, re.findall(r"\d+", opened.run(background))[:3]))
        charts[scheme] = opened.run("return getComputedStyle(document.querySelector('.chart img')).filter")
    assert grounds["dark"] < 150 < 600 < grounds["light"]
    assert (charts["light"], charts["dark"]) == ("none", "invert(1) hue-rotate(180deg)")


def test_page_fits_a_phone_and_no_number_breaks(opened):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.cdp("Emulation.setDeviceMetricsOverride", **metrics)
    width = opened.run("return document.documentElement.scrollWidth")
    lines = opened.run("""
        return [...document.querySelectorAll("td, dd")].filter(cell => /^[\\d.,]+$/.test(cell.innerText)).map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return new Set([...range.getClientRects()].map(box => box.top)).size;
        });
    """)
    opened.cdp("Emulation.clearDeviceMetricsOverride")
    assert width == 390  # wide tables and figures scroll within themselves
    assert len(lines) > 900
    assert set(lines) == {1}


# ------------------------------------------------------------------------------------------- the index


def test_index_compares_runs(tmp_path):
    """Newest first; columns for the settings that differ; unreadable runs are left out."""
    for day, (lr, ssim) in enumerate([(1e-3, "0.5,0.75"), (2e-3, "")], start=1):
        folder = tmp_path / f"2026-01-0{day} <b>"
        folder.mkdir()
        config = {"model": "vqvae", "lr": lr, "commit": "0123456789", "minutes": 12.5}
        config["computed_on"] = "computing on a CPU"
        (folder / "config.json").write_text(json.dumps(config))
        scores = "".join(f"autoencoder,{score}\n" for score in ssim.split(",") if score)
        (folder / "metrics.csv").write_text(f"stage,validation_ssim\n{scores}dcgan,\n")
    Image.fromarray(slices(1)[0]).save(folder / "dcgan_001.png")
    for name, content in (("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    write_index(tmp_path)
    page = Page(tmp_path / "index.html")
    assert not page.stack
    assert [text for _, text in page.all("th")] == [
        *("run", "", "best SSIM", "minutes", "device", "commit", "learning rate"),
        *("2026-01-02 <b>", "2026-01-01 <b>"),
    ]
    assert [text for _, text in page.all("td")] == [
        *("", "-", "12.50", "a CPU", "0123456", "0.0020"),
        *("", "0.7500", "12.50", "a CPU", "0123456", "0.0010"),
    ]
    assert page.all("a")[0][0]["href"] == "2026-01-02%20%3Cb%3E/"
    [picture] = page.all("img")
    assert opened_picture(picture[0]["src"]).size == (48, 64)
    (tmp_path / "index.html").write_text("mine")  # another page is never replaced
    write_index(tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"


def test_results_replace_results_and_nothing_else(tmp_path):
    out = tmp_path / "predict"
    for _ in range(2):
        with replacing(out) as new:
            (new / "samples").mkdir()
            (new / "samples/seed_0.png").touch()
            (new / "metrics.json").write_text('{"files": ["samples/seed_0.png"]}')
    (out / "samples/mine.png").touch()
    (tmp_path / "file").touch()
    for path, message in ((out, "holds samples/mine.png, which"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=message), replacing(path):
            pass
    assert (out / "samples/mine.png").is_file()
