"""Does it beat image codecs at the same bytes? JPEG, JPEG 2000, WebP and AVIF beside this project's models.

    python benchmarks/codecs.py --data DIR --checkpoints runs/<run>/vqvae.pth

Each slice gets the best quality whose whole file, headers and all, fits the bytes (--bytes). Models' codes are counted
plain and in files, which a transformer.pth beside the checkpoint makes smaller. The table (codecs.md, codecs.json), the
rate-distortion figure, and for each model its worst, median and best slice beside what the codecs make of them at the
model's own bytes go to --out. About 5 minutes of one core for each of --bytes and 320 slices.
"""

import io
import math
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import dataset
from benchmarks import tables
from dataset import Slices
from inference.codec import to_uint8
from inference.compression import Coder
from inference.model import TrainedModel
from inference.reconstruction import Reconstruction
from reading.listing import SPLITS
from reading.nifti import WHOLE
from report import plots
from report.style import save_tiles, tile
from runtime import cli, compute
from runtime.cli import Device, Settings, option
from runtime.errors import InputError, exit_on_input_error
from scoring.metrics import reconstruction_scores, summarise
from scoring.scores import SCORES


class CodecSettings(Settings):
    """what to compare"""

    data: str | None = option(None, "data set, or 'demo' (default: the usual places)", "DIR")
    split: Literal[*SPLITS] = option("test", "of the data set")
    checkpoints: list[Path] = option([], "models to score", "PTH")
    bytes: list[int] = option([4608, 1152], "that a slice's file may have", "N")
    out: Path = option(Path("runs/codecs"), "folder for table and figures", "DIR")
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True)
class ImageCodec:
    """A codec of Pillow's: `options(quality, pixels)` are its arguments for one of `qualities`, low to high.

    `look_below`: how many of the next lower qualities may give the higher SSIM, and are tried too.
    """

    format: str
    qualities: range
    options: Callable[[int, int], dict]
    look_below: int = 0


CODECS = {  # each with the settings that cost time and save bytes, on one channel where the format has such
    # At every other quality JPEG's black is 1 to 8, which costs more SSIM than all that it does to the brain.
    "JPEG": ImageCodec("JPEG", range(1, 101), lambda q, _: {"quality": q, "optimize": True}, look_below=10),
    "JPEG 2000": ImageCodec(  # its quality is the file's size, as a ratio; no JP2 container around the code stream
        "JPEG2000",
        range(1, 2**16),
        lambda q, pixels: {"quality_layers": [pixels / q], "irreversible": True, "no_jp2": True},
    ),
    "WebP": ImageCodec("WEBP", range(101), lambda q, _: {"quality": q, "method": 6}),
    "AVIF": ImageCodec(
        "AVIF", range(101), lambda q, _: {"quality": q, "subsampling": "4:0:0", "speed": 4, "max_threads": 1}
    ),
}


def compress(codec: ImageCodec, image: np.ndarray, budget: float) -> bytes:
    """`image`, uint8 [H, W], at the best quality that fits `budget` bytes; at the lowest where none does."""
    picture = Image.fromarray(image)

    def at(quality: int) -> bytes:
        file = io.BytesIO()
        picture.save(file, codec.format, **codec.options(quality, image.size))
        return file.getvalue()

    low, high = codec.qualities[0], codec.qualities[-1]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(at(middle)) <= budget else (low, middle - 1)
    if not codec.look_below:
        return at(low)
    files = [at(quality) for quality in range(max(low - codec.look_below, codec.qualities[0]), low + 1)]
    return max(files, key=lambda data: structural_similarity(image, decompress(data), data_range=255))


def decompress(data: bytes) -> np.ndarray:
    """A file that `compress` made -> uint8 [H, W]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


@dataclass(frozen=True)
class Coded:
    """What a codec or a model makes of N slices: a row of the table, uint8 [N, H, W], and bytes a slice, [N]."""

    row: dict
    pictures: np.ndarray
    sizes: np.ndarray


def run_codec(name: str, images: np.ndarray, budget: float) -> Coded:
    """The codec on `images`, uint8 [N, H, W], at `budget` bytes each."""
    with ThreadPoolExecutor() as pool:  # Pillow's encoders let go of the interpreter lock
        files = pool.map(lambda image: compress(CODECS[name], image, budget), images)
        files = list(tqdm(files, f"{name}, {budget:,.0f} bytes", len(images), unit=" slices", disable=None))
    sizes = np.array([len(data) for data in files])
    pictures = np.stack([decompress(data) for data in files])
    row = {"name": name, "budget": budget, "bytes": float(sizes.mean()), "too_large": int((sizes > budget).sum())}
    return Coded(row | means(images, pictures / np.float32(255)), pictures, sizes)


def means(images: np.ndarray, pictures: np.ndarray) -> dict[str, float | None]:
    """Means over the slices of every score, and the lowest SSIM."""
    summary = summarise(reconstruction_scores(images, pictures))
    scores = {name: part["mean"] for name, part in summary.items() if isinstance(part, dict)}
    return scores | {"lowest_ssim": summary["ssim"]["min"]}


def run_model(path: Path, slices: Slices, on: compute.Compute) -> list[Coded]:
    """Score the autoencoder at `path`, and its first 1, 2, 4, ... codes per position where it makes do with these.

    The first is of all codes. "file_bytes" are a slice's share of the files that `predict.py --save-codes` writes, each
    of one person's slices.
    """
    model = TrainedModel.load(path, "none", on.device.type, "fp32")
    codec, depth = model.codec, model.codec.autoencoder.depth
    coder, codes = Coder(model), model.encode(slices.images)
    whole = tuple(slice(0, side) for side in slices.images.shape[1:])
    persons = [Path(person) for person in slices.people]
    people = replace(slices, paths=persons, frames=[whole] * len(slices), ranges=None)
    shapes = [(*shape, len(list(same))) for shape, same in groupby(codec.grid_shapes())]
    grids = " + ".join(f"{h}x{w}x{depth}" if depth > 1 else f"{h}x{w}" for h, w, depth in shapes)
    made = []
    for kept in (None, *(2**i for i in range(depth.bit_length()) if 2**i < depth)):
        pictures, size = codec.decode(codes[:kept]), codec.bytes_per_image(codes.box, kept)
        row = {"name": f"VQ-VAE {path.parent.name}, {grids} codes", "budget": size, "bytes": size, "too_large": 0}
        found = Reconstruction([(np.arange(len(slices)), codes[:kept])], to_uint8(pictures), {}, size)
        row["file_bytes"] = sum(map(len, coder.write(people, found, WHOLE))) / len(slices)
        made.append(Coded(row | means(slices.images, pictures), found.pictures, np.full(len(slices), size)))
    return made


# ----------------------------------------------------------------------------------------------------
# What is shown


def markdown(rows: Iterable[dict], title: str) -> str:
    """The table; rows in order of bytes allowed, then of SSIM."""
    heads = ["codec", "bytes allowed", "mean bytes", "in files", *(score.heading for score in SCORES.values())]
    decimals = {"bytes": 0, "file_bytes": 0, **{key: score.decimals for key, score in SCORES.items()}}
    decimals |= {"lowest_ssim": 4, "too_large": 0}
    cells = []
    for row in sorted(rows, key=lambda row: (-math.ceil(row["budget"]), row["ssim"])):
        numbers = [f"{row[key]:,.{n}f}" if row.get(key) is not None else "" for key, n in decimals.items()]
        cells.append([row["name"], f"{math.ceil(row['budget']):,}", *numbers])
    about = f'{title}; means over the slices. "Did not fit": slices whose file is larger than allowed at the lowest'
    return f"{about} quality.\n\n{tables.markdown([*heads, 'lowest SSIM', 'did not fit'], cells)}"


def side_by_side(images: np.ndarray, model: Coded, path: Path, title: str) -> None:
    """The model's worst, median and best slice: original, model and codecs, and under each its error map."""

    def ssims(originals: np.ndarray, pictures: np.ndarray) -> np.ndarray:
        return reconstruction_scores(originals, pictures / np.float32(255))["ssim"]

    ranked = np.argsort(ssims(images, model.pictures))
    chosen = ranked[[0, len(ranked) // 2, -1]]
    images = images[chosen]
    columns = {"model": Coded(model.row, model.pictures[chosen], model.sizes[chosen])}
    columns |= {name: run_codec(name, images, model.row["budget"]) for name in CODECS}
    scores = {name: ssims(images, one.pictures) for name, one in columns.items()}
    tiles, labels = [], []
    for i, place in enumerate(("worst", "median", "best")):
        pictures = [images[i], *(one.pictures[i] for one in columns.values())]
        tiles += [plots.gray(picture) for picture in pictures]
        tiles += [plots.error_maps(images[i], picture) for picture in pictures]
        labels += [f"{place}: original"]
        labels += [f"{name}, {one.sizes[i]:,.0f} bytes, SSIM {scores[name][i]:.4f}" for name, one in columns.items()]
        labels += [f"{plots.ERROR_GAIN} x error", *[""] * len(columns)]
    caption = (
        f"{title}; {model.row['name']}, and codecs at its bytes, or the fewest that they can do with. The model's"
        f" worst, median and best slice by SSIM; under each {plots.ERROR_GAIN} x |original - picture|, cut at 1."
    )
    save_tiles(tile(np.stack(tiles), 1 + len(columns), labels), path, "At the same bytes", caption)


# ----------------------------------------------------------------------------------------------------
# The command line


@exit_on_input_error
def main() -> int:
    settings = cli.parse(CodecSettings, __doc__)
    on = compute.choose(settings.device, "fp32")
    data = dataset.load(settings.data, (settings.split,))
    slices = data.splits[settings.split]
    title = f"{data.title}, {settings.split} split, {len(slices):,} slices"
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write to {settings.out}: {error.strerror}; choose another --out") from error

    rows = []
    for path in settings.checkpoints:
        models = run_model(path, slices, on)
        rows += [model.row for model in models]
        side_by_side(slices.images, models[0], settings.out / f"side_by_side_{path.parent.name}.png", title)
    for budget in settings.bytes:
        for name in CODECS:
            rows.append(run_codec(name, slices.images, budget).row)
            print(f"{name} at {budget:,.0f} bytes: SSIM {rows[-1]['ssim']:.4f}", flush=True)

    table = markdown(rows, title)
    tables.save(settings.out, "codecs", table, {"data": title, "rows": rows})
    drawn = [row | {"bytes": row.get("file_bytes", row["bytes"])} for row in rows]  # models' bytes are of their files
    plots.rate_distortion(drawn, settings.out / "rate_distortion.png", title)
    print(f"{table}\n\nfigures: {settings.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
