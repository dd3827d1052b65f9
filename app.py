"""What does it do with my slice? A page on this machine to play with an autoencoder and the prior beside it.

    python app.py runs/<run>/vqvae.pth                 then open http://127.0.0.1:7860
    python app.py runs/<run>/vqvae.pth --port 8000

Needs `pip install -r requirements-extra.txt`. Only this machine can open the page, which asks no other host for
anything. Samples and walks are there when a prior lies beside the checkpoint; all that do can be chosen.
"""

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import html
import math
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

import dataset
from dataset import Slices
from inference.codec import to_uint8
from inference.depths import draw_codes
from inference.model import TrainedModel
from inference.reconstruction import reconstruct
from inference.sampling import FILES as PRIORS
from inference.sampling import WALK, Sampler
from inference.settings import Computing
from inference.volumes import write_volume
from networks.transformer import Transformer
from reading import nifti
from report import plots
from report.page import parts_of
from report.results import write_png
from report.style import BLUE, INK, MUTED
from runtime import cli, serving
from runtime.cli import LARGEST_SEED, option
from runtime.errors import InputError, exit_on_input_error
from runtime.signals import StopSignals
from scoring.scores import SCORES

PRIVATE = serving.private_folder()
gr = import_module("gradio") if find_spec("gradio") else None
HOST = "127.0.0.1"
MOST = 64  # samples at a time
MOST_BYTES = 2**29  # of a file
MOST_VOXELS = 2**26  # of a volume, 512x512x256: takes 1.5 GB
ANY = "any"  # slice level
EXAMPLE = Path(__file__).parent / "resources" / "example.nii.gz"
EXAMPLE_NOTE = "An example: slices drawn from the MNI152 template, no real person's. Drop a file of yours above."


class AppSettings(Computing):
    """What to play with"""

    checkpoint: Path = option(..., "vqvae.pth of a run; its priors are those beside it")
    port: int = option(7860, "of the page", ge=1, le=65535)


# ----------------------------------------------------------------------------------------------------
# What the page does, whatever it looks like


class View(NamedTuple):
    """What is shown of one slice. Pictures are of the pixels that are coded, with a small margin."""

    pair: tuple[np.ndarray, np.ndarray]  # original and reconstruction, uint8 [h, w]
    error: np.ndarray  # in colour, uint8 [h, w, 3]
    scores: str  # Markdown
    notes: list[str]  # what its owner has to know


class Playground:
    """A trained model, and each prior beside it, whose arguments come from the fields of a page.

    Attributes:
        models: the model with one prior each, by what the page calls the prior; the best first.
        drawer: that one of them which draws whole brains, or None.
    """

    def __init__(self, model: TrainedModel):
        self.model, self.models = model, {}
        for path in (model.path.parent / name for name in PRIORS):
            if path.is_file():
                sampler = Sampler(path, model.codec)
                name = f"{sampler.title} ({path.name})"
                self.models[name] = TrainedModel(model.codec, model.description, sampler, model.path)
        brains = (one for one in self.models.values() if isinstance(one.sampler.prior, Transformer))
        self.drawer = next(brains, None)  # the model that draws whole brains
        self.folder = tempfile.TemporaryDirectory(dir=PRIVATE)  # of files to download, while the page is up

    def sampler(self, prior: str) -> Sampler:
        """The prior that the page calls so."""
        return self.models[prior].sampler

    def open(self, file: str | Path) -> Slices:
        """The slices of a picture or a volume. Raises InputError when the file is neither."""
        path = Path(file)
        try:
            check_voxels(path)
            return dataset.read_files([path], **self.model.cut())
        except InputError as error:  # the folder that the upload went to is nobody's business
            raise InputError(str(error).replace(f"{path.parent}/", "")) from error

    def reconstruct(self, slices: Slices, index: int) -> View:
        """What the model makes of one of the slices."""
        images, frame = slices.images[index : index + 1], slices.frames[index]
        made = reconstruct(self.model, images, frames=[frame])
        window = self.model.codec.window(images)
        original, reconstruction = (enlarged(window.crop(pictures[0])) for pictures in (images, made.pictures))
        error = np.abs(original.astype(np.float32) - reconstruction) / 255
        colours = colormaps["magma"](np.clip(plots.ERROR_GAIN * error, 0, 1), bytes=True)[..., :3]
        notes = [*([EXAMPLE_NOTE] if slices.paths[index] == EXAMPLE else []), *slices.notes]
        if len(made.outliers(self.model.description["validation_ssim"])):
            notes.append("Reconstructed far worse than any like the training slices: is this a brain?")
        scores = {key: values[0] for key, values in made.scores.items()}
        return View((original, reconstruction), colours, score_table(scores, made.bytes_per_image), notes)

    def codes(self, slices: Slices, index: int) -> list[tuple[Image.Image, str]]:
        """What the slice's codes hold, as pictures with labels: see `draw_codes`."""
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            path = Path(folder) / "codes.png"
            draw_codes(self.model.codec, slices.images[index], path, slices.names[index], frame=slices.frames[index])
            _, parts = parts_of(path)
        return [(picture, label) for label, picture in parts]

    def sample(
        self, prior: str, seed: float, samples: float, level: str, temperature: float
    ) -> tuple[list, Path, Path]:
        """Samples of seeds from `seed` on, each with its label; all of them as PNG files in a ZIP file, and as NIfTI.

        Each depends on its seed only. Raises InputError.
        """
        model, seeds = self.models[prior], range(whole(seed), whole(seed) + int(samples))
        heat = None if model.sampler.is_gan else temperature
        pictures = to_uint8(model.sample(seeds, chosen(level), temperature=heat))
        source = f"{model.sampler.title} trained on {model.description['data']['title']}, slice level {level}"
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        name = f"samples_{model.sampler.path.stem}_seeds_{seeds[0]}_to_{seeds[-1]}"
        with zipfile.ZipFile(packed := folder / f"{name}.zip", "w") as archive:
            for number, picture in zip(seeds, pictures, strict=True):
                write_png(file := folder / f"seed_{number:05d}.png", picture, f"{source}, seed {number}")
                archive.write(file, file.name)
        nifti.write_stack(volume := folder / f"{name}.nii.gz", pictures, model.cut()["axis"])
        window = model.codec.window(pictures)
        return [(window.crop(one), f"seed {n}") for n, one in zip(seeds, pictures, strict=True)], packed, volume

    def walk(self, prior: str, first: float, last: float, level: str) -> np.ndarray:
        """The pictures between two seeds' samples, uint8 [WALK, h, w]. Raises InputError."""
        model = self.models[prior]
        pictures = to_uint8(model.walk((whole(first), whole(last)), chosen(level)))
        return enlarged(model.codec.window(pictures).crop(pictures))

    def brain(self, seed: float) -> tuple[np.ndarray, Path]:
        """A whole brain's slices, uint8 [levels, h, w], and its NIfTI file. Raises InputError."""
        volume = to_uint8(self.drawer.sample_volume(whole(seed)))
        path = Path(tempfile.mkdtemp(dir=self.folder.name)) / f"brain_seed_{whole(seed):05d}.nii.gz"
        write_volume(path, volume, self.model.description["data"])
        return enlarged(self.model.codec.window(volume).crop(volume)), path


def check_voxels(path: Path) -> None:
    """Raises InputError when a volume's header claims more voxels than this page takes: few packed MB can be many."""
    try:
        voxels = math.prod(nifti.load(path, voxels=False).shape)
    except (OSError, ValueError):  # no volume, or one that can't be read: who reads it says so
        return
    if voxels > MOST_VOXELS:
        raise InputError(f"{path.name} has {voxels:,} voxels, and this page takes {MOST_VOXELS:,}: cut or scale it")


def chosen(level: str) -> int | None:
    """The slice level that a field holds, None for any."""
    return None if level == ANY else int(level)


def whole(seed: float | None) -> int:
    """A seed as predict.py takes it; raises InputError when the field holds something else."""
    if seed is None or not 0 <= seed <= LARGEST_SEED or seed != int(seed):
        raise InputError(f"a seed is a whole number from 0 to {LARGEST_SEED:,}")
    return int(seed)


def enlarged(pictures: np.ndarray) -> np.ndarray:
    """Small pictures [..., h, w] with every pixel repeated, towards 512 a side: a browser would smooth them."""
    zoom = max(1, 512 // max(pictures.shape[-2:]))
    return pictures.repeat(zoom, -2).repeat(zoom, -1)


def score_table(scores: dict[str, float], size: float) -> str:
    """The scores of one slice as Markdown; a slice without foreground has no foreground SSIM."""
    shown = {SCORES[key].heading: SCORES[key].text(value) for key, value in scores.items()} | {"bytes": f"{size:,.0f}"}
    return "\n".join(["| score | value |", "|:--|--:|", *(f"| {name} | {text} |" for name, text in shown.items())])


# ----------------------------------------------------------------------------------------------------
# What it looks like

CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
:is(#compare, #error, #step, #brain, #codes, #samples) img { image-rendering: pixelated; }
:is(#error, #step, #brain) img { width: 100% !important; height: auto !important; max-height: none !important; }
:is(#step, #brain) { max-width: 640px; }
:is(#codes, #samples) .grid-wrap { height: auto !important; min-height: 0; max-height: none !important; }
:is(#codes, #samples) .grid-container { padding-top: 24px; }
:is(#codes, #samples) .grid-container { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)) !important; }
:is(#codes, #samples) .thumbnail-item { height: auto; aspect-ratio: auto; background: none; }
:is(#codes, #samples) .thumbnail-item img { height: auto; object-fit: contain; }
:is(#codes, #samples) .caption-label { position: static; max-width: none; border: 0; white-space: normal; }
#scores :is(table, thead, tbody, tr) { border: 0 !important; }
#scores :is(th, td) { border: 0; border-bottom: 1px solid var(--border-color-primary); }
.said p { margin: 0 0 8px; padding: 8px 12px; border-left: 4px solid #0072b2; }
.said p.wrong { border-color: #d55e00; }
@media (max-width: 480px) { button[role=tab] { padding: 0 7px !important; } }
"""


def look() -> dict:
    """The report's colours and type, for `launch`; a font that is given as text is one that the system has."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", **fonts)
    theme.set(body_background_fill="#ffffff", body_background_fill_dark="#14171a")
    theme.set(body_text_color=INK, block_label_text_color=MUTED, slider_color=BLUE)
    theme.set(button_primary_background_fill=BLUE, button_primary_background_fill_dark=BLUE)
    return {"theme": theme, "css": CSS, "footer_links": [], "run_history": False}


def introduction(play: Playground) -> str:
    """What the model does to a slice, in two sentences."""
    described, codec = play.model.description, play.model.codec
    height, width = codec.size
    codes = sum(rows * columns for rows, columns in codec.grid_shapes())
    novel = " or draw brains that nobody has" if play.models else ""
    return (
        f"# Brain slices and their codes\nThe `{described['model']}` of epoch {described['epoch']} turns a slice of"
        f" {height}x{width} pixels into {codes:,} codes, {codec.bytes_per_image():,.0f} bytes, and these back into a"
        f" picture. Give it a slice of yours{novel}: nothing leaves this machine."
    )


def said(*texts: str, wrong: bool = False) -> str:
    """Texts as HTML; nothing of a file's name becomes markup."""
    paragraphs = (f"<p{' class=wrong' if wrong else ''}>{html.escape(text)}</p>" for text in texts)
    return f"<div role=status>{''.join(paragraphs)}</div>"


def told(function: Callable, cleared: Sequence) -> Callable:
    """`function`, which returns values and then notes; what it complains of is said beside what is `cleared`."""

    def wrapped(*arguments):
        try:
            *values, notes = function(*arguments)
        except InputError as error:
            return *cleared, said(str(error), wrong=True)
        return *values, said(*notes)

    return wrapped


def page(play: Playground) -> "gr.Blocks":
    """The page, not yet served."""
    with gr.Blocks(title="Brain slices and their codes", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(introduction(play))
        with gr.Tab("Reconstruct"):
            reconstruct_tab(blocks, play)
        if play.models:
            with gr.Tab("Sample"):
                sample_tab(play)
            with gr.Tab("Walk"):
                walk_tab(play)
        if play.drawer:
            with gr.Tab("Whole brain"):
                brain_tab(play)
    return blocks


def reconstruct_tab(blocks: "gr.Blocks", play: Playground) -> None:
    """A file, one of its slices beside the reconstruction, scores, notes, and what the codes hold."""
    slices = gr.State()
    with gr.Row():
        with gr.Column(scale=2):
            file = gr.File(label="a slice or a volume: PNG, JPEG, TIFF, NIfTI, DICOM", elem_id="file", height=180)
            place = gr.Slider(1, 2, 1, step=1, label="slice of the volume", visible=False, elem_id="slice")
            message = gr.HTML(padding=False, elem_classes="said", elem_id="said")
            scores = gr.Markdown(elem_id="scores")
        with gr.Column(scale=3):
            pair = gr.ImageSlider(
                label="original | reconstruction", format="png", interactive=False, elem_id="compare", max_height=560
            )
            error = figure("error", f"{plots.ERROR_GAIN} x |original - reconstruction|, black (0) to pale (1)")
    codes = gallery("codes", "what the codes hold")

    def opened(path: str | Path) -> tuple:
        found = play.open(path)
        middle = len(found) // 2
        moved = gr.update(maximum=max(len(found), 2), value=middle + 1, visible=len(found) > 1)
        view = play.reconstruct(found, middle)
        return found, moved, view.pair, view.error, view.scores, play.codes(found, middle), view.notes

    def seen(found: Slices, number: float) -> tuple:
        view = play.reconstruct(found, int(number) - 1)
        return view.pair, view.error, view.scores, said(*view.notes)

    shown = [slices, place, pair, error, scores, codes, message]
    cleared = [None, gr.update(visible=False), None, None, None, None]
    blocks.load(told(lambda: opened(EXAMPLE), cleared), None, shown)
    file.upload(told(opened, cleared), file, shown)
    file.clear(lambda: [*cleared, None], None, shown)
    moved = place.input(seen, [slices, place], [pair, error, scores, message], trigger_mode="always_last")
    moved.then(lambda found, number: play.codes(found, int(number) - 1), [slices, place], codes)


def sample_tab(play: Playground) -> None:
    """Samples of a prior, to look at and to download."""
    prior = choice_of_prior(play)
    with gr.Row():
        level = choice_of_level(play, prior)
        seed = gr.Number(0, label="first seed", precision=0, elem_id="seed")
        number = gr.Slider(1, MOST, 16, step=1, label="samples")
        first = play.sampler(prior.value)
        temperature = gr.Slider(0.1, 2, first.prior.temperature, label="temperature", visible=not first.is_gan)
    draw = gr.Button("Sample", variant="primary", elem_id="draw")
    message = gr.HTML(padding=False, elem_classes="said")
    drawing = gallery("samples", "samples")
    with gr.Row():
        packed = gr.DownloadButton("PNG files (ZIP)", interactive=False, elem_id="as-png")
        volume = gr.DownloadButton("NIfTI", interactive=False, elem_id="as-nifti")

    def sampled(*asked: object) -> tuple:
        pictures, *files = play.sample(*asked)
        return pictures, *(gr.update(value=str(path), interactive=True) for path in files), []

    def warmed(name: str) -> dict:
        sampler = play.sampler(name)
        return gr.update(visible=not sampler.is_gan, value=sampler.prior.temperature)

    prior.change(warmed, prior, temperature)
    cleared = [None, *2 * [gr.update(value=None, interactive=False)]]
    draw.click(told(sampled, cleared), [prior, seed, number, level, temperature], [drawing, packed, volume, message])


def walk_tab(play: Playground) -> None:
    """The pictures between two samples, one after the other."""
    prior = choice_of_prior(play)
    with gr.Row():
        level = choice_of_level(play, prior)
        ends = [gr.Number(i, label=f"seed {x}", precision=0) for i, x in enumerate("AB")]
    go = gr.Button("Walk", variant="primary", elem_id="go")
    message = gr.HTML(padding=False, elem_classes="said")
    place = gr.Slider(1, WALK, 1, step=1, label="picture, from A to B", elem_id="place")
    picture = figure("step", "sample")
    steps = gr.State()

    def show(steps: np.ndarray | None, place: float) -> np.ndarray | None:
        return None if steps is None else steps[int(place) - 1]

    walked = go.click(told(lambda *asked: (play.walk(*asked), []), [None]), [prior, *ends, level], [steps, message])
    walked.then(show, [steps, place], picture)
    place.input(show, [steps, place], picture, show_progress="hidden", trigger_mode="always_last")


def brain_tab(play: Playground) -> None:
    """All levels of a brain that nobody has, to scroll through and to download."""
    seed = gr.Number(0, label="seed", precision=0, elem_id="brain-seed")
    draw = gr.Button("Draw a brain", variant="primary", elem_id="draw-brain")
    message = gr.HTML(padding=False, elem_classes="said")
    level = gr.Slider(1, 2, 1, step=1, label="slice of the brain", visible=False, elem_id="level")
    picture = figure("brain", "slice of a sampled brain")
    volume = gr.DownloadButton("NIfTI", interactive=False, elem_id="brain-as-nifti")
    slices = gr.State()

    def drawn(asked: float) -> tuple:
        stack, path = play.brain(asked)
        middle = len(stack) // 2
        moved = gr.update(maximum=len(stack), value=middle + 1, visible=True)
        return stack, moved, stack[middle], gr.update(value=str(path), interactive=True), []

    cleared = [None, gr.update(visible=False), None, gr.update(value=None, interactive=False)]
    draw.click(told(drawn, cleared), seed, [slices, level, picture, volume, message])
    level.input(
        lambda stack, number: stack[int(number) - 1],
        [slices, level],
        picture,
        show_progress="hidden",
        trigger_mode="always_last",
    )


def choice_of_prior(play: Playground) -> "gr.Radio":
    names = list(play.models)
    return gr.Radio(names, value=names[0], label="prior", elem_classes="prior")


def choice_of_level(play: Playground, prior: "gr.Radio") -> "gr.Dropdown":
    """One of the slice levels of the prior that is chosen, or any."""

    def levels(name: str) -> list[str]:
        return [ANY, *map(str, range(play.sampler(name).levels))]

    level = gr.Dropdown(levels(prior.value), value=ANY, label="slice level")
    prior.change(lambda name: gr.update(choices=levels(name), value=ANY), prior, level)
    return level


def figure(name: str, label: str) -> "gr.Image":
    return gr.Image(label=label, alt_text=label, format="png", interactive=False, buttons=["download"], elem_id=name)


def gallery(name: str, label: str) -> "gr.Gallery":
    return gr.Gallery(label=label, format="png", interactive=False, buttons=["download", "fullscreen"], elem_id=name)


@exit_on_input_error
@StopSignals()
def main() -> int:
    settings = cli.parse(AppSettings, __doc__)
    if gr is None:
        raise InputError("the package gradio is missing: pip install -r requirements-extra.txt")
    serving.ask_no_proxy()
    model = TrainedModel.load(settings.checkpoint, "none", device=settings.device, precision=settings.precision)
    blocks = page(Playground(model))
    try:
        blocks.launch(
            server_name=HOST,
            server_port=settings.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MOST_BYTES,
            app_kwargs={"middleware": serving.guards()},
            **look(),
        )
    except OSError as error:
        raise InputError(f"--port {settings.port} is taken; choose another") from error
    print(f"{model.codec.on.describe()}; open http://{HOST}:{settings.port}, end with Ctrl-C", flush=True)
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
