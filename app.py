"""What does it do with my slice? A page on this machine to play with an autoencoder and the prior beside it.

    python app.py runs/<run>/vqvae.pth                 then open http://127.0.0.1:7860
    python app.py runs/<run>/vqvae.pth --port 8000

Needs `pip install -r requirements-extra.txt`. Only this machine can open the page, which asks no other host for
anything. Samples and walks are there when a prior lies beside the checkpoint.
"""

import html
import math
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic_settings import CliPositionalArg

import dataset
from inference.codec import to_uint8
from inference.model import TrainedModel
from inference.reconstruction import reconstruct
from inference.sampling import WALK
from predict import Computing
from reading import nifti
from report import plots
from report.style import BLUE, INK, MUTED
from runtime import cli, serving
from runtime.cli import option
from runtime.errors import InputError, exit_on_input_error
from runtime.signals import StopSignals
from scoring.scores import SCORES

serving.private_folder()
gr = import_module("gradio") if find_spec("gradio") else None
HOST = "127.0.0.1"
MOST = 64  # samples at a time
MOST_BYTES = 2**29  # of a file
MOST_VOXELS = 2**26  # of a volume, 512x512x256: takes 1.5 GB
LARGEST_SEED = 2**31
ANY = "any"  # slice level


class AppSettings(Computing):
    """What to play with"""

    checkpoint: CliPositionalArg[Path] = option(..., "vqvae.pth of a run; its prior is the one beside it")
    port: int = option(7860, "of the page", ge=1, le=65535)


# ----------------------------------------------------------------------------------------------------
# What the page does, whatever it looks like


class Playground:
    """A trained model whose arguments come from the fields of a page, and whose answers are figures."""

    def __init__(self, model: TrainedModel):
        self.model = model

    def reconstruct(self, file: str) -> tuple[Image.Image, Image.Image, str]:
        """Of a picture, or the middle slice of a volume: reconstruction and error, codes, scores and notes.

        Raises InputError when the file is none of these.
        """
        path = Path(file)
        try:
            check_voxels(path)
            slices = dataset.read_files([path], **self.model.cut())
        except InputError as error:  # the folder that the upload went to is nobody's business
            raise InputError(str(error).replace(f"{path.parent}/", "")) from error
        middle = len(slices) // 2
        name, images = slices.names[middle], slices.images[middle : middle + 1]
        frame = slices.frames[middle]
        made = reconstruct(self.model, images, frames=[frame])
        scores = {key: values[0] for key, values in made.scores.items()}
        own = images[:, *frame], made.pictures[:, *frame]
        pictures = drawn(plots.reconstructions, *own, [f"SSIM {scores['ssim']:.4f}"], title=name)
        codes, box = made.codes_of(0)
        which = f"{name}, the {box.height}x{box.width} pixels that are coded"
        maps = drawn(plots.code_map, box.crop(images[0]), codes, box.crop(made.pictures[0]), title=which)
        notes = [html.escape(note, quote=False) for note in slices.notes]
        if len(made.unlike(self.model.description["validation_ssim"])):
            notes.append("Reconstructed far worse than any like the training slices: is this a brain?")
        return pictures, maps, "\n\n".join([score_table(scores, made.bytes_per_image), *notes])

    def sample(self, seed: float, samples: float, level: str, temperature: float | None = None) -> Image.Image:
        """A figure of samples, of seeds from `seed` on; each depends on its seed only. Raises InputError."""
        seeds = range(whole(seed), whole(seed) + int(samples))
        pictures = to_uint8(self.model.sample(seeds, chosen(level), temperature))
        labels = [f"seed {seed}" for seed in seeds]
        title = f"{self.model.sampler.title}, slice level {level}"
        return drawn(plots.sample_grid, pictures, title=title, labels=labels)

    def walk(self, first: float, last: float, level: str) -> np.ndarray:
        """The pictures between two seeds' samples, uint8 [WALK, H, W]. Raises InputError."""
        return to_uint8(self.model.walk((whole(first), whole(last)), chosen(level)))


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


def drawn(plot: Callable[..., None], *arguments, **options) -> Image.Image:
    """What a function of plots.py draws."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        plot(*arguments, path=path, **options)
        with Image.open(path) as figure:
            return figure.convert("RGB")


def score_table(scores: dict[str, float], size: float) -> str:
    """The scores of one slice as Markdown; a slice without foreground has no foreground SSIM."""
    shown = {SCORES[key].heading: SCORES[key].text(value) for key, value in scores.items()} | {"bytes": f"{size:,.0f}"}
    return "\n".join(["| score | value |", "|:--|--:|", *(f"| {name} | {text} |" for name, text in shown.items())])


# ----------------------------------------------------------------------------------------------------
# What it looks like

CSS = """
.gradio-container { max-width: 1120px !important; }
#step img { image-rendering: pixelated; height: 512px; object-fit: contain !important; }
#scores :is(table, thead, tbody, tr) { border: 0 !important; }
#scores :is(th, td) { border: 0; border-bottom: 1px solid var(--border-color-primary); }
"""


def look() -> dict:
    """The report's colours and type, for `launch`; a font that is given as text is one that the system has."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", **fonts)
    theme.set(body_background_fill="#ffffff", body_background_fill_dark="#14171a")
    theme.set(body_text_color=INK, block_label_text_color=MUTED, slider_color=BLUE)
    theme.set(button_primary_background_fill=BLUE, button_primary_background_fill_dark=BLUE)
    return {"theme": theme, "css": CSS, "footer_links": [], "run_history": False}


def page(play: Playground) -> "gr.Blocks":
    """The page, not yet served."""

    def told(function: Callable) -> Callable:
        """`function`, whose complaints stay on the page until they are clicked away."""

        def wrapped(*arguments):
            try:
                return function(*arguments)
            except InputError as error:
                text = html.escape(str(error), quote=False)
                raise gr.Error(text, duration=None, title="That didn't work", print_exception=False) from error

        return wrapped

    def figure(name: str, label: str) -> gr.Image:
        return gr.Image(
            alt_text=label, show_label=False, format="png", interactive=False, buttons=["download"], elem_id=name
        )

    def show(steps: np.ndarray | None, place: float) -> Image.Image | None:
        return None if steps is None else Image.fromarray(steps[int(place) - 1])

    def level() -> gr.Dropdown:
        return gr.Dropdown([ANY, *map(str, range(prior.levels))], value=ANY, label="slice level")

    described, prior = play.model.description, play.model.sampler
    with gr.Blocks(title="Brain slices and their codes", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Brain slices and their codes\n`{described['model']}`, epoch {described['epoch']}")
        with gr.Tab("Reconstruct"):
            with gr.Row():
                with gr.Column(scale=2):
                    file = gr.File(label="a slice or a volume: PNG, JPEG, TIFF, NIfTI, DICOM", elem_id="file")
                    scores = gr.Markdown(elem_id="scores")
                with gr.Column(scale=3):
                    pictures = figure("pictures", "original, reconstruction, error")
            maps = figure("maps", "codes")
            file.upload(told(play.reconstruct), file, [pictures, maps, scores])
        if prior:
            with gr.Tab("Sample"):
                with gr.Row():
                    asked = [
                        gr.Number(0, label="first seed", precision=0, elem_id="seed"),
                        gr.Slider(1, MOST, 16, step=1, label="samples"),
                        level(),
                    ]
                    if not prior.is_gan:
                        asked.append(gr.Slider(0.1, 2, 1, label="temperature"))
                draw = gr.Button("Sample", variant="primary", elem_id="draw")
                drawing = figure("samples", f"samples of the {prior.title}")
                draw.click(told(play.sample), asked, drawing)
            with gr.Tab("Walk"):
                with gr.Row():
                    ends = [gr.Number(i, label=f"seed {x}", precision=0) for i, x in enumerate("AB")]
                    ends.append(level())
                go = gr.Button("Walk", variant="primary", elem_id="go")
                place = gr.Slider(1, WALK, 1, step=1, label="picture, from A to B", elem_id="place")
                picture = figure("step", "sample")
                steps = gr.State()
                go.click(told(play.walk), ends, steps).success(show, [steps, place], picture)
                place.change(show, [steps, place], picture, show_progress="hidden")
    return blocks


@exit_on_input_error
@StopSignals()
def main() -> int:
    settings = cli.parse(AppSettings, __doc__)
    if gr is None:
        raise InputError("the package gradio is missing: pip install -r requirements-extra.txt")
    serving.ask_no_proxy()
    model = TrainedModel.load(settings.checkpoint, device=settings.device, precision=settings.precision)
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
