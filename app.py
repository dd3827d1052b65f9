"""What does it do with my slice? A page on this machine to play with an autoencoder and the priors beside it.

    python app.py runs/<run>/vqvae.pth                 then open http://127.0.0.1:7860
    python app.py runs/<run>/vqvae.pth --port 8000

Needs `pip install -r requirements-extra.txt`. Only this machine can open the page, which asks no other host for
anything. Samples and walks are there when a prior lies beside the checkpoint, whole brains when a transformer does.
"""

import runtime.environment  # noqa: F401, before PyTorch

# isort: split
import atexit
import html
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import dataset
from dataset import Slices
from inference.codec import to_uint8
from inference.depths import code_pictures
from inference.model import TrainedModel
from inference.reconstruction import reconstruct
from inference.sampling import FILES as PRIORS
from inference.sampling import WALK, Sampler, Where
from inference.settings import Computing
from inference.volumes import write_volume
from networks.transformer import Transformer
from reading import nifti
from report import plots
from report.results import write_png
from report.style import BLUE
from runtime import cli
from runtime.cli import LARGEST_SEED, option
from runtime.errors import InputError, exit_on_input_error
from runtime.signals import StopSignals
from scoring.scores import SCORES

HOST = "127.0.0.1"
# By default, gradio keeps what is uploaded for ever, readable by every user: this folder is private, and goes at exit.
os.environ["GRADIO_TEMP_DIR"] = PRIVATE = tempfile.mkdtemp(prefix="brain-vqvae-")
atexit.register(shutil.rmtree, PRIVATE, ignore_errors=True)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = HOST  # a proxy can't reach the page, which gradio looks for
gr = import_module("gradio") if find_spec("gradio") else None

LIVE = {"show_progress": "hidden", "trigger_mode": "always_last"}  # of a slider: what it shows follows the hand
MAX_SAMPLES = 64  # at a time
MAX_BYTES = 2**29  # of a file
MAX_VOXELS = 2**26  # of a volume, 512x512x256: takes 1.5 GB
ANY = "any"  # slice level
EXAMPLE = Path(__file__).parent / "resources" / "example.nii.gz"
EXAMPLE_NOTE = "An example: slices drawn from the MNI152 template, no real person's. Drop a file of yours above."
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
img { image-rendering: pixelated; }
:is(#error, #step, #axial, #coronal, #sagittal) img { width: 100% !important; max-height: none !important; }
#step { max-width: 640px; }
.grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
.grid-container { grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)) !important; padding-top: 24px; }
.thumbnail-item { height: auto !important; aspect-ratio: auto !important; background: none !important; }
.caption-label { position: static !important; max-width: none !important; border: 0; white-space: normal !important; }
@media (max-width: 480px) { .tab-container button { padding: 0 6px !important; font-size: 14px !important; } }
"""


class AppSettings(Computing):
    """What to play with"""

    checkpoint: Path = option(..., "vqvae.pth of a run; its priors are those beside it")
    port: int = option(7860, "of the page", ge=1, le=65535)


class Playground:
    """What the page does, with a trained model and each prior beside it. Its methods raise InputError.

    Attributes:
        priors: the model with one prior each, by the prior's title; the best first.
        brains: that one of them which samples whole brains, or None.
    """

    def __init__(self, model: TrainedModel):
        self.model = model
        samplers = [Sampler(path, model.codec) for name in PRIORS if (path := model.path.parent / name).is_file()]
        models = [TrainedModel(model.codec, model.description, sampler, model.path) for sampler in samplers]
        self.priors = {model.sampler.title: model for model in models}
        self.brains = next((model for model in models if isinstance(model.sampler.prior, Transformer)), None)

    def open(self, file: str | Path) -> Slices:
        """The slices of a picture or a volume."""
        path = Path(file)
        try:
            check_voxels(path)
            return dataset.read_files([path], self.model.cut())
        except InputError as error:  # without the temporary folder of the upload
            raise InputError(str(error).replace(f"{path.parent}/", "")) from error

    def reconstruct(self, slices: Slices, index: int) -> tuple:
        """One slice: (original, reconstruction), error map, scores and notes in Markdown, pictures of its codes."""
        image, frame = slices.images[index : index + 1], slices.frames[index]
        made = reconstruct(self.model, image, frames=[frame])
        box = self.model.codec.window(image)
        pair = tuple(enlarged(box.crop(pictures[0])) for pictures in (image, made.pictures))
        notes = [*([EXAMPLE_NOTE] if slices.paths[index] == EXAMPLE else []), *slices.notes]
        if len(made.outliers(self.model.description["validation_ssim"])):
            notes.append("Reconstructed far worse than any like the training slices: is this a brain?")
        rows = [f"| {SCORES[key].heading} | {SCORES[key].text(values[0])} |" for key, values in made.scores.items()]
        table = ["| score | value |", "|:--|--:|", *rows, f"| bytes | {made.bytes_per_image:,.0f} |"]
        text = "\n".join([*(f"> {html.escape(note)}\n" for note in notes), *table])
        codes = [(picture, label) for label, picture in code_pictures(self.model.codec, image[0], frame=frame)]
        return pair, plots.error_maps(*pair), text, codes

    def reconstruct_volume(self, slices: Slices) -> Path:
        """All slices of a volume as NIfTI, in its own orientation, place and intensities."""
        made = reconstruct(self.model, slices.images, frames=slices.frames)
        pictures = made.pictures / np.float32(255)
        [path] = nifti.write_all(new_folder(), slices.paths, pictures, slices.ranges, self.model.cut())
        return path.rename(path.with_name(f"reconstructed_{path.name}"))

    def sample(
        self, prior: str, seed: float, samples: float, level: str, temperature: float, where: Where | None = None
    ) -> tuple[list, str]:
        """Samples of seeds from `seed` on, each with its label, and a ZIP file of PNG files."""
        model, seeds = self.priors[prior], range(checked_seed(seed), checked_seed(seed) + int(samples))
        temperature = None if model.sampler.is_gan else temperature
        pictures = to_uint8(model.sample(seeds, level_number(level), temperature=temperature, where=where))
        source = f"{model.sampler.title} trained on {model.description['data']['title']}, slice level {level}"
        source += "".join(f", {name}={value}" for name, value in (where or {}).items())
        folder = new_folder() / f"samples_{model.sampler.path.stem}_seeds_{seeds[0]}_to_{seeds[-1]}"
        for number, picture in zip(seeds, pictures, strict=True):
            write_png(folder / f"seed_{number:05d}.png", picture, f"{source}, seed {number}")
        archive = shutil.make_archive(str(folder), "zip", folder)
        box = model.codec.window(pictures)
        return [(box.crop(one), f"seed {n}") for n, one in zip(seeds, pictures, strict=True)], archive

    def walk(self, prior: str, first: float, last: float, level: str) -> np.ndarray:
        """The pictures between two seeds' samples, uint8 [WALK, h, w]."""
        model = self.priors[prior]
        pictures = to_uint8(model.walk((checked_seed(first), checked_seed(last)), level_number(level)))
        return enlarged(model.codec.window(pictures).crop(pictures))

    def brain(self, seed: float, where: Where | None = None) -> tuple[np.ndarray, Path]:
        """A whole brain's slices, uint8 [levels, h, w], and its NIfTI file."""
        volume = to_uint8(self.brains.sample_volume(checked_seed(seed), where=where))
        path = new_folder() / f"brain_seed_{checked_seed(seed):05d}.nii.gz"
        write_volume(path, volume, self.model.description["data"])
        return self.model.codec.window(volume).crop(volume), path

    def planes(self, volume: np.ndarray, level: int) -> list[np.ndarray]:
        """Three planes of a brain, upright with letters; the one along its slices at `level`: uint8 [h, w, 3] each."""
        axis = self.model.description["data"]["axis"]
        planes = plots.three_planes(volume, axis)
        planes[("sagittal", "coronal", "axial")[axis]] = np.rot90(volume[level])
        return [plots.with_letters(plane, name) for name, plane in planes.items()]


def new_folder() -> Path:
    """A folder for files to download, deleted when the server stops."""
    return Path(tempfile.mkdtemp(dir=PRIVATE))


def check_voxels(path: Path) -> None:
    """Raise InputError when a volume's header states too many voxels: a small compressed file can hold billions."""
    try:
        voxels = math.prod(nifti.load(path, voxels=False).shape)
    except (OSError, ValueError):  # no volume, or a broken one: reading it will raise InputError
        return
    if voxels > MAX_VOXELS:
        raise InputError(f"{path.name} has {voxels:,} voxels, and this page takes {MAX_VOXELS:,}: cut or scale it")


def level_number(level: str) -> int | None:
    """The slice level that a field holds, None for any."""
    return None if level == ANY else int(level)


def checked_seed(seed: float | None) -> int:
    """A seed as predict.py takes it; raises InputError when the field holds something else."""
    if seed is None or not 0 <= seed <= LARGEST_SEED or seed != int(seed):
        raise InputError(f"a seed is a whole number from 0 to {LARGEST_SEED:,}")
    return int(seed)


def enlarged(pictures: np.ndarray) -> np.ndarray:
    """Small pictures [..., h, w] with every pixel repeated, towards 512 a side: a browser would smooth them."""
    zoom = max(1, 512 // max(pictures.shape[-2:]))
    return pictures.repeat(zoom, -2).repeat(zoom, -1)


# ----------------------------------------------------------------------------------------------------


def show_input_errors(function: Callable) -> Callable:
    """`function`, whose InputError becomes a message on the page."""

    @wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except InputError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return wrapped


def page(play: Playground) -> "gr.Blocks":
    """The page, not yet served."""
    described, codec = play.model.description, play.model.codec
    side, depth = codec.autoencoder.downsample, len(codec.grid_shapes())
    with gr.Blocks(title="Brain slices and their codes", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(
            f"# Brain slices and their codes\nThe `{described['model']}` of epoch {described['epoch']} turns each block"
            f" of {side}x{side} pixels of a slice into codes ({depth} grids), and these back into a picture. Nothing"
            " that you give it leaves this machine.\n\n**For research and teaching, not for diagnosis.**"
        )
        with gr.Tab("Reconstruct"):
            reconstruct_tab(blocks, play)
        if play.priors:
            with gr.Tab("Sample"):
                sample_tab(play)
            with gr.Tab("Walk"):
                walk_tab(play)
        if play.brains:
            with gr.Tab("Brain"):
                brain_tab(play)
    return blocks


def reconstruct_tab(blocks: "gr.Blocks", play: Playground) -> None:
    """A file, one of its slices beside the reconstruction, scores, notes, what the codes hold, and all slices."""
    slices = gr.State()
    with gr.Row():
        with gr.Column(scale=2):
            file = gr.File(label="a slice or a volume: PNG, JPEG, TIFF, NIfTI, DICOM", elem_id="file", height=180)
            place = gr.Slider(1, 2, 1, step=1, label="slice of the volume", visible=False, elem_id="slice")
            scores = gr.Markdown(elem_id="scores")
            button = gr.Button("Reconstruct all slices", visible=False, elem_id="all")
            download = gr.File(label="NIfTI", visible=False, interactive=False, elem_id="as-nifti")
        with gr.Column(scale=3):
            pair = gr.ImageSlider(
                label="original | reconstruction", format="png", interactive=False, elem_id="compare", max_height=560
            )
            error = figure("error", f"{plots.ERROR_GAIN} x |original - reconstruction|, black (0) to pale (1)")
    codes = gr.Gallery(label="what the codes hold", format="png", object_fit="contain", elem_id="codes")
    view = [pair, error, scores, codes]
    controls = [slices, place, button, download]

    def opened(path: str | Path) -> tuple:
        found = play.open(path)
        middle, several = len(found) // 2, len(found) > 1
        slider = gr.update(maximum=max(len(found), 2), value=middle + 1, visible=several)
        is_volume = gr.update(visible=found.ranges is not None)
        return found, slider, is_volume, gr.update(visible=False), *play.reconstruct(found, middle)

    def cleared() -> list:
        return [None, *3 * [gr.update(visible=False)], *4 * [None]]

    blocks.load(lambda: opened(EXAMPLE), None, controls + view)
    file.upload(cleared, None, controls + view).then(show_input_errors(opened), file, controls + view)
    file.clear(cleared, None, controls + view)

    def whole_volume(found: Slices) -> dict:
        return gr.update(value=str(play.reconstruct_volume(found)), visible=True)

    def moved(found: Slices, number: int) -> tuple:
        return play.reconstruct(found, int(number) - 1)

    place.input(moved, [slices, place], view, trigger_mode="always_last")
    button.click(show_input_errors(whole_volume), slices, download)


def sample_tab(play: Playground) -> None:
    """Samples of a prior, to look at and to download."""
    prior, level = choice_of_prior(play)
    first = play.priors[prior.value].sampler
    with gr.Row():
        seed = gr.Number(0, label="first seed", precision=0, elem_id="seed")
        number = gr.Slider(1, MAX_SAMPLES, 16, step=1, label="samples")
        temperature = gr.Slider(0.1, 2, 1, label="temperature", visible=not first.is_gan)
    asked = covariate_fields(list(play.priors.values()))
    draw = gr.Button("Sample", variant="primary", elem_id="draw")
    drawing = gr.Gallery(label="samples", format="png", object_fit="contain", elem_id="samples")
    packed = gr.File(label="PNG files", interactive=False, elem_id="as-png")

    def prior_changed(name: str) -> dict:
        return gr.update(visible=not play.priors[name].sampler.is_gan)

    def sampled(*values) -> tuple[list, str]:
        return play.sample(*values[: len(fields)], where_of(asked, values[len(fields) :]))

    prior.change(prior_changed, prior, temperature)
    fields = [prior, seed, number, level, temperature]
    draw.click(show_input_errors(sampled), [*fields, *asked.values()], [drawing, packed])


def walk_tab(play: Playground) -> None:
    """The pictures between two samples, one after the other."""
    prior, level = choice_of_prior(play)
    with gr.Row():
        ends = [gr.Number(i, label=f"seed {x}", precision=0) for i, x in enumerate("AB")]
    go = gr.Button("Walk", variant="primary", elem_id="go")
    place = gr.Slider(1, WALK, 1, step=1, label="picture, from A to B", elem_id="place")
    picture = figure("step", "sample")
    steps = gr.State()
    show = {"fn": lambda steps, place: steps[int(place) - 1], "inputs": [steps, place], "outputs": picture}
    go.click(show_input_errors(play.walk), [prior, *ends, level], steps).success(**show)
    place.input(**show, **LIVE)


def brain_tab(play: Playground) -> None:
    """A sampled brain in three planes, to scroll through and to download."""
    seed = gr.Number(0, label="seed", precision=0, elem_id="brain-seed")
    asked = covariate_fields([play.brains])
    draw = gr.Button("Sample a brain", variant="primary", elem_id="draw-brain")
    level = gr.Slider(1, 2, 1, step=1, label="slice of the brain", visible=False, elem_id="level")
    with gr.Row():
        with gr.Column():
            axial = figure("axial", "axial")
        with gr.Column():
            planes = [axial, figure("coronal", "coronal"), figure("sagittal", "sagittal")]
    file = gr.File(label="NIfTI", interactive=False, elem_id="brain-as-nifti")
    brain = gr.State()

    def sampled(number: float, *values) -> tuple:
        volume, path = play.brain(number, where_of(asked, values))
        middle = len(volume) // 2
        moved = gr.update(maximum=len(volume), value=middle + 1, visible=True)
        return volume, moved, *play.planes(volume, middle), str(path)

    draw.click(show_input_errors(sampled), [seed, *asked.values()], [brain, level, *planes, file])
    level.input(lambda volume, number: play.planes(volume, int(number) - 1), [brain, level], planes, **LIVE)


def choice_of_prior(play: Playground) -> tuple["gr.Radio", "gr.Dropdown"]:
    """One of the priors, and one of its slice levels, or any."""

    def levels(name: str) -> list[str]:
        return [ANY, *map(str, range(play.priors[name].sampler.levels))]

    names = list(play.priors)
    with gr.Row():
        prior = gr.Radio(names, value=names[0], label="prior", elem_classes="prior")
        level = gr.Dropdown(levels(names[0]), value=ANY, label="slice level")
    prior.change(lambda name: gr.update(choices=levels(name), value=ANY), prior, level)
    return prior, level


def covariate_fields(models: list[TrainedModel]) -> dict[str, "gr.Component"]:
    """A field for each covariate that one of these priors knows, by its name."""

    def field(name: str, known: list[str] | tuple[float, float]) -> "gr.Component":
        if isinstance(known, list):
            return gr.Dropdown([ANY, *known], value=ANY, label=name)
        return gr.Number(None, label=name, info=f"{known[0]:.4g} to {known[1]:.4g}; empty: {ANY}")

    known = {name: values for model in models for name, values in model.covariates.items()}
    with gr.Row():
        return {name: field(name, values) for name, values in known.items()}


def where_of(fields: dict[str, "gr.Component"], values: Sequence) -> Where:
    """What the fields' values ask for."""
    return {name: value for name, value in zip(fields, values, strict=True) if value not in (None, ANY)}


def figure(name: str, label: str) -> "gr.Image":
    return gr.Image(label=label, alt_text=label, format="png", interactive=False, buttons=["download"], elem_id=name)


@exit_on_input_error
@StopSignals()
def main() -> int:
    settings = cli.parse(AppSettings, __doc__)
    if gr is None:
        raise InputError("the package gradio is missing: pip install -r requirements-extra.txt")
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # both come with gradio

    model = TrainedModel.load(settings.checkpoint, "none", device=settings.device, precision=settings.precision)
    blocks = page(Playground(model))
    theme = gr.themes.Base(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    theme.set(button_primary_background_fill=BLUE, button_primary_background_fill_dark=BLUE, slider_color=BLUE)
    # Another site's name that has been made to mean this machine (DNS rebinding) is none of these hosts.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    try:
        blocks.launch(
            server_name=HOST,
            server_port=settings.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_BYTES,
            app_kwargs={"middleware": [hosts]},
            footer_links=[],
            run_history=False,
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        raise InputError(f"--port {settings.port} is taken; choose another") from error
    print(f"{model.codec.on.describe()}; open http://{HOST}:{settings.port}, end with Ctrl-C", flush=True)
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
